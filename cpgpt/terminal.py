"""What the commands share: scenes on a terminal, and errors that are one line.

Each speaker has a colour of their own, stage directions are in italics, all of it comes as it is typed. Where the output is no
terminal, or colour is switched off (NO_COLOR), the text is printed as it is.
"""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

import typer
from rich.console import Console

from cpgpt.screenplay import SCENE, Event, SceneReader

COLOURS = ("cyan", "magenta", "yellow", "green", "bright_blue", "bright_red", "bright_magenta", "bright_green")


class Typewriter:
    """Types scenes as they come; the place of a name in `cast` decides on its colour."""

    def __init__(self, cast: Sequence[str], console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(cast)}
        self.plain = self.console.no_color or not self.console.color_system
        self._direction = False  # whether what is being typed is a stage direction

    def type(self, text: str, style: str | None = None) -> None:
        self.console.out(text, end="", style=None if self.plain else style, highlight=False)
        self.console.file.flush()

    def name(self, speaker: str) -> None:
        self.type(f"{speaker}: ", f"bold {self.colours.get(speaker, 'white')}")

    def play(self, pieces: Iterable[str]) -> None:
        """Type a whole scene while it comes."""
        reader = SceneReader()
        for piece in pieces:
            if self.plain:
                self.type(piece)
                continue
            for event in reader.feed(piece):
                self._show(event)

    def play_line(self, pieces: Iterable[str]) -> None:
        """Type a line of dialogue while it comes."""
        name, pieces = "", iter(pieces)
        for piece in pieces:
            name += piece
            if name.endswith(": "):
                self.name(name.removesuffix(": "))
                break
        for piece in pieces:
            self.type(piece)

    def _show(self, event: Event) -> None:
        if event.kind == "title":
            self.type(f"{event.text}\n\n", "bold")
        elif event.kind == "place":
            self.type(f"{SCENE}{event.text}\n\n", "bold")
        elif event.kind == "speaker":
            self.name(event.text)
        elif event.kind == "direction":
            self._direction = True
            self.type("(", "italic dim")
        elif event.kind == "text":
            self.type(event.text, "italic dim" if self._direction else None)
        elif event.kind == "line":
            self.type(")\n" if self._direction else "\n", "italic dim" if self._direction else None)
            self._direction = False


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Errors that a user can mend are one line on stderr, and no traceback."""
    try:
        yield
    except BrokenPipeError:  # whoever read it has had enough: cpgpt scene | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        print()
        raise typer.Exit(130) from None
