"""The `cpgpt` command."""

import os
import secrets
import sys
from pathlib import Path
from typing import Annotated

import typer

from cpgpt import cli_serve

app = typer.Typer(
    help="centralperkGPT: a small GPT, written from scratch, that writes coffee-house scenes.",
    no_args_is_help=True,
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from cpgpt import __version__

        print(f"centralperkgpt {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command()
def scene(
    temperature: Annotated[
        float, typer.Option(help="0: always the likeliest; 0.5: careful; 1.0: as it learned; above: wild.")
    ] = 0.8,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same scene.", show_default="a new one each time")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="A checkpoint folder.", show_default="the embedded one")] = None,
    max_chars: Annotated[int, typer.Option(help="End a scene that does not end by itself.")] = 2_000,
) -> None:
    """Type a scene, as the model writes it."""
    from cpgpt import load_checkpoint, stream  # here, so that --help does not wait for PyTorch

    seed = secrets.randbelow(2**32) if seed is None else seed
    try:
        loaded = load_checkpoint(checkpoint)
        ends = loaded.facts.get("corpus", {}).get("format", "scenes") == "scenes"
        for piece in stream(loaded, seed, temperature=temperature, max_characters=max_chars, stop=ends):
            print(piece, end="", flush=True)
    except BrokenPipeError:  # whoever read it has had enough: cpgpt scene | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        print()
        raise typer.Exit(130) from None
    if sys.stderr.isatty():
        print(f"\n(write it again: cpgpt scene --seed {seed} --temperature {temperature})", file=sys.stderr)


app.command()(cli_serve.serve)
