"""`cpgpt serve`: the web page on this machine. It knows where the page's files lie; what they do is theirs."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cpgpt.terminal import errors

PLACES = (Path(__file__).parent / "space", Path(__file__).parents[1] / "space")  # in a wheel; in a checkout


def serve(
    model: Annotated[
        str | None,
        typer.Option(
            help="A checkpoint folder, or a model on the Hub: user/name or user/name@revision.", show_default="the embedded one"
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the page is.")] = 7860,
) -> None:
    """Open the web page on this machine: pick a character, watch a scene being typed."""
    folder = next((place for place in PLACES if (place / "app.py").is_file()), None)
    if folder is None:
        print(f"error: the page's files are missing: no app.py in {' or '.join(map(str, PLACES))}", file=sys.stderr)
        raise typer.Exit(1)
    if importlib.util.find_spec("gradio") is None:
        print("error: the page needs Gradio; install the package with its extra, as in: pip install '.[space]'", file=sys.stderr)
        raise typer.Exit(1)
    sys.path.insert(0, str(folder))
    if model is not None:
        os.environ["CPGPT_MODEL"] = model
    import app  # the page's own module, found in its folder

    with errors():  # a port in use, a folder that is no checkpoint
        app.main(server_name=host, server_port=port)
