"""What the README prints is what happens."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cpgpt.cli import app
from tests.commands import ENVIRONMENT, ROOT, run_module

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_run_as_printed(code: str) -> None:
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_the_scene_at_the_top_is_what_its_command_types() -> None:
    shown = re.search(r"```\n(THE ONE .*?)```", README, re.DOTALL)
    command = re.search(r"`cpgpt (scene --seed \d+ --temperature [\d.]+)`", README)
    assert shown
    assert command
    result = run_module("cpgpt", *command[1].split())
    assert result.stdout == shown[1], result.stderr


def test_the_commands_that_write_scenes_run_as_printed() -> None:
    ours = [line for line in COMMANDS if line.startswith(".venv/bin/cpgpt") and "--checkpoint" not in line]
    commands = [line for line in ours if shlex.split(line)[1] in ("scene", "chat", "cast")]
    assert len({shlex.split(line)[1] for line in commands}) == 3
    for line in commands:
        result = CliRunner().invoke(app, shlex.split(line)[1:], input="So, is it down again?\n")
        assert result.exit_code == 0, f"{line}: {result.stderr}"
        assert ": " in result.stdout


def test_make_targets_of_the_readme_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"make ([a-z-]+)", README)) <= set(targets)


def test_training_on_a_text_of_ones_own_goes_as_printed(tmp_path: Path) -> None:
    """The commands of "On a text of yours", with folders of the test's own and few steps."""
    (tmp_path / "my.txt").write_text("".join(f"Once upon a time there were {n} friends.\n" for n in range(900)))
    commands = [line for line in COMMANDS if "my" in line]
    assert [shlex.split(line)[0] for line in commands] == [".venv/bin/python", ".venv/bin/python", ".venv/bin/cpgpt"]
    replaced = {"my.txt": f"{tmp_path}/my.txt", "data=data/my": f"data={tmp_path}/my", "out=runs/my": f"out={tmp_path}/run"}
    replaced["runs/my/checkpoint"] = f"{tmp_path}/run/checkpoint"
    extra = {"prepare": ["--out", f"{tmp_path}/my"], "train": ["--set", "steps=4", "--set", "evaluate_every=2"]}
    for line in commands:
        words = [replaced.get(word, word) for word in shlex.split(line)]
        module, arguments = (words[2], words[3:]) if words[1] == "-m" else ("cpgpt", words[1:])
        arguments += extra.get(module.split(".")[-1], ["--max-chars", "50"])
        result = run_module(module, *arguments)
        assert result.returncode == 0, result.stderr
    assert len(result.stdout) >= 40


def test_publish_your_own_goes_as_printed() -> None:
    """The block that `make hub-demo` runs, with the embedded checkpoint in place of a minute's training."""
    result = run_module("tests.hub_demo", "--checkpoint", "cpgpt/checkpoints/centralperk")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\nSCENE: ") == 2  # here, and in a second process with an empty cache
    for held in ("the model you/coffee-scenes", "the space you/coffee-scenes"):
        assert f"the stand-in Hub holds {held}" in result.stdout


def test_files_that_the_readme_links_to_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_nothing_of_ours_sends_people_to_another_project() -> None:
    """On PyPI, `cpgpt` is somebody else's."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        if name.endswith((".md", ".py", ".toml", ".txt", ".yml")) and not name.startswith("training/corpus/"):
            assert not re.search(r"pip install (-\S+ )*cpgpt\b", (ROOT / name).read_text(encoding="utf-8")), name
