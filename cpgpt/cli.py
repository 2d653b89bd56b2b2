"""The `cpgpt` command. PyTorch is imported where it is needed, so that --help does not wait for it."""

import json
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from cpgpt.cli_hub import push, push_space
from cpgpt.cli_serve import serve
from cpgpt.terminal import errors

app = typer.Typer(
    help="centralperkGPT: a small GPT, written from scratch, that writes coffee-house scenes.",
    no_args_is_help=True,
    add_completion=False,
)

Temperature = Annotated[float, typer.Option(help="0: always the likeliest; 0.5: careful; 0.8: lively; above 1: wild.")]
TopP = Annotated[float | None, typer.Option(help="Keep the likeliest characters with this probability.", show_default="all")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text.", show_default="a new one each time")]
Checkpoint = Annotated[Path | None, typer.Option(help="A checkpoint folder.", show_default="the embedded one")]
Title = Annotated[str | None, typer.Option(help='Such as "the one with the flaky test".', show_default="the model's")]
Place = Annotated[str | None, typer.Option(help="Where it takes place; `cpgpt cast` lists where.", show_default="the model's")]


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
    character: Annotated[
        str | None, typer.Argument(help="Who leads the scene; `cpgpt cast` lists who can.", show_default="anybody")
    ] = None,
    title: Title = None,
    place: Place = None,
    cast: Annotated[
        str | None, typer.Option("--with", help="Who else speaks: names with commas between.", show_default="anybody")
    ] = None,
    lines: Annotated[
        str | None, typer.Option(help="How many lines of dialogue: 10, or 8-12.", show_default="as in the corpus")
    ] = None,
    temperature: Temperature = 0.8,
    top_p: TopP = None,
    seed: Seed = None,
    count: Annotated[int, typer.Option(min=1, help="How many scenes; their seeds count up.")] = 1,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON, a scene a line.")] = False,
    checkpoint: Checkpoint = None,
    max_chars: Annotated[int, typer.Option(help="Where to end a text of a model that does not write scenes.")] = 2_000,
) -> None:
    """Type a scene, as the model writes it."""
    with errors():
        from cpgpt import load
        from cpgpt.terminal import Typewriter

        writer = load(checkpoint)
        typewriter = Typewriter(writer.characters)
        if not writer.writes_scenes:
            if json_:
                raise ValueError("--json: this checkpoint was not trained on scenes, and what it writes has no parts")
            for piece in writer.stream_text(max_characters=max_chars, stop=False, temperature=temperature, seed=seed):
                typewriter.type(piece)
            return
        streams = writer.streams(
            count,
            character,
            title=title,
            place=place,
            cast=[name for name in cast.split(",") if name.strip()] if cast is not None else None,
            lines=_lines(lines),
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        for number, stream in enumerate(streams):
            if json_:
                print(json.dumps(stream.scene.to_dict()), flush=True)
                continue
            if number:
                print()
            typewriter.play(stream)
            if sys.stderr.isatty():
                told = f"\n(seed {stream.seed}: with it and the same settings, the same scene)"
                typer.echo(told if typewriter.plain else typer.style(told, dim=True), err=True)


@app.command()
def chat(
    me: Annotated[str, typer.Option("--as", help="Who you are; `cpgpt cast` lists who you can be.")],
    them: Annotated[str | None, typer.Option("--with", help="Who answers.", show_default="whoever the model picks")] = None,
    title: Title = None,
    place: Place = None,
    temperature: Temperature = 0.8,
    top_p: TopP = None,
    seed: Seed = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the answers as JSON, one a line.")] = False,
    checkpoint: Checkpoint = None,
) -> None:
    """Talk with a character: type a line, read the answer. An empty line lets them go on; Ctrl-D ends it."""
    with errors():
        from cpgpt import Line, Scene, load
        from cpgpt.terminal import Typewriter
        from cpgpt.writer import one_of

        writer = load(checkpoint)
        if not writer.writes_scenes:
            raise ValueError("this checkpoint was not trained on scenes: there is nobody to talk with")
        me = one_of("character", me, writer.characters)
        history = Scene(title, place or writer.places[0], ())
        typewriter = Typewriter(writer.characters)
        while True:
            if sys.stdin.isatty() and not json_:
                typewriter.name(me)
            line = sys.stdin.readline()
            if not line:
                if sys.stdin.isatty() and not json_:
                    print()
                return
            try:
                said = [Line(me, line.strip())] if line.strip() else []
                so_far = Scene(title, history.place, (*history.items, *said))
                stream = writer.stream_reply(so_far, them, temperature=temperature, top_p=top_p, seed=seed)
            except ValueError as error:  # what was typed cannot be said: nothing is lost, try another line
                if not sys.stdin.isatty():
                    raise
                typer.secho(str(error), err=True, fg="red")
                continue
            if not json_:
                typewriter.play_line(stream)
            answer = stream.line
            if json_:
                print(json.dumps({"speaker": answer.speaker, "text": answer.text, "seed": stream.seed}), flush=True)
            history = Scene(title, history.place, (*history.items, *said, answer))


@app.command()
def cast(checkpoint: Checkpoint = None) -> None:
    """List who can speak, and where."""
    with errors():
        from cpgpt import load_checkpoint

        facts = load_checkpoint(checkpoint).facts.get("corpus", {})
        if facts.get("format") != "scenes":
            raise ValueError("this checkpoint was not trained on scenes: it has no cast")
        print("characters:", ", ".join(facts["cast"]))
        print("places:", ", ".join(facts["places"]))


def _lines(text: str | None) -> int | tuple[int, int] | None:
    """`--lines`, read: 10, or 8-12."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    if not match:
        raise ValueError(f"--lines is {text!r}: give a number, such as 10, or a range, such as 8-12")
    return (int(match[1]), int(match[2])) if match[2] else int(match[1])


app.command()(push)
app.command()(push_space)
app.command()(serve)
