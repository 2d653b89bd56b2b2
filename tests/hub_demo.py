"""The README's "Publish your own", line by line, against a stand-in for the Hub: `make hub-demo`.

At the end a second process, whose cache is empty, writes a scene with what the Hub then holds.
"""

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tests.hub_server import logged_in

ROOT = Path(__file__).parents[1]


def commands() -> list[str]:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Publish your own\n")[2]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return block[1].splitlines()


def run(line: str, environment: dict[str, str]) -> None:
    print(f"\n$ {line}", flush=True)
    words = shlex.split(line)
    scripts = Path(sys.executable).parent  # .venv/bin, unless somebody has an environment of another name
    words[0] = words[0].replace(".venv/bin", str(scripts))
    code = subprocess.run(words, env=environment, cwd=ROOT).returncode
    if code:
        sys.exit(code)


def main(
    checkpoint: Annotated[Path | None, typer.Option(help="Publish this folder, and train nothing.", show_default=False)] = None,
) -> None:
    """Publish a model and its Space, and read the model back."""
    lines = commands()
    if checkpoint is not None:
        lines = [line.replace("runs/tiny/checkpoint", str(checkpoint)) for line in lines if "training.train" not in line]
    with logged_in() as (hub, environment):
        for line in lines:
            run(line, environment)
        print("\nAnother process, with an empty cache:")
        with tempfile.TemporaryDirectory() as home:
            for line in lines:
                if "from_hub" in line:
                    run(line, {**environment, "HF_HOME": home})
        for (kind, name), repository in hub.repositories.items():
            print(f"\nthe stand-in Hub holds the {kind} {name}, at commit {repository.head[:8]}: {len(repository.files())} files")


if __name__ == "__main__":
    typer.run(main)
