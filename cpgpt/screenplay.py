"""The scene format: what a scene is made of, and how its text is read, whole or as it grows. Knows no name, no place, no model.

    THE ONE WITH THE FLAKY TEST          the title; may be missing, with the blank line after it

    SCENE: CENTRAL PERK

    (Ross walks in with his laptop.)     a stage direction
    ROSS: It passed on my machine.       a line

The text of a scene ends with one line break and holds no other blank line.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_NAME = re.compile(r"[^\W\d_](?:[^\W_]|[ .'-])*")
_HEADING = re.compile(r"[^a-zA-Z]*[A-Z][^a-z]*")  # a title or a place: in capitals
SCENE = "SCENE: "


def _is_name(text: str) -> bool:
    """In capitals, of any alphabet."""
    return bool(_NAME.fullmatch(text)) and text == text.upper()


@dataclass(frozen=True)
class Line:
    """What somebody says."""

    speaker: str
    text: str

    def __str__(self) -> str:
        return f"{self.speaker}: {self.text}"


@dataclass(frozen=True)
class Direction:
    """What happens, without the brackets."""

    text: str

    def __str__(self) -> str:
        return f"({self.text})"


@dataclass(frozen=True)
class Scene:
    """A scene; `str(scene)` is its text, byte for byte what `parse` read."""

    title: str | None
    place: str
    items: tuple[Line | Direction, ...]
    seed: int | None = field(default=None, compare=False)  # of a scene that the model wrote: with it, it can be written again

    @property
    def lines(self) -> list[Line]:
        return [item for item in self.items if isinstance(item, Line)]

    @property
    def speakers(self) -> list[str]:
        """Who speaks, in the order of their first lines."""
        return list(dict.fromkeys(line.speaker for line in self.lines))

    def __str__(self) -> str:
        title = f"{self.title}\n\n" if self.title is not None else ""
        return f"{title}{SCENE}{self.place}\n\n" + "".join(f"{item}\n" for item in self.items)

    def to_dict(self) -> dict[str, Any]:
        """The scene as JSON has it: `{"title", "place", "items": [{"speaker", "text"} or {"direction"}], "seed"}`."""
        items = [
            {"speaker": item.speaker, "text": item.text} if isinstance(item, Line) else {"direction": item.text}
            for item in self.items
        ]
        return {"title": self.title, "place": self.place, "items": items, "seed": self.seed}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Scene":
        """The scene that `to_dict` gave.

        Raises:
            ValueError: something is missing or is not what `to_dict` gives; the message names it.
        """
        try:
            items = tuple(
                Direction(_text(item, "direction")) if "direction" in item else Line(_text(item, "speaker"), _text(item, "text"))
                for item in data["items"]
            )
            title = None if data.get("title") is None else _text(data, "title")
            return cls(title, _text(data, "place"), items, data.get("seed"))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f'not a scene: {error!r}; it has "title", "place" and "items", a list of {{"speaker", "text"}} and {{"direction"}}'
            ) from error


def _text(data: Mapping[str, Any], name: str) -> str:
    if not isinstance(data[name], str):
        raise TypeError(f"{name} is {data[name]!r}, not a text")
    return data[name]


@dataclass(frozen=True)
class Fault:
    """What is wrong in a line of a scene's text; `line` counts from 1."""

    line: int
    message: str


class ScreenplayError(ValueError):
    """Text that is not a scene. The message names the first fault and its line; `.faults` has them all."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = faults
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        super().__init__(f"line {faults[0].line}: {faults[0].message}{more}")


def parse(text: str) -> Scene:
    """The scene that `text` holds.

    Raises:
        ScreenplayError: it does not hold one.
    """
    faults: list[Fault] = []
    rows = text.split("\n")
    if rows[-1] == "":
        rows.pop()
    else:
        faults.append(Fault(len(rows), "the last line must end with a line break"))

    at = 0
    title = None
    if not rows or not rows[0].startswith(SCENE):
        title = rows[0] if rows else ""
        if not _HEADING.fullmatch(title):
            faults.append(Fault(1, f"not a title in capitals: {title!r}"))
        if rows[1:2] != [""]:
            faults.append(Fault(2, "a blank line must follow the title"))
        at = 2 if rows[1:2] == [""] else 1
    place = rows[at].removeprefix(SCENE) if at < len(rows) else ""
    if at >= len(rows) or not rows[at].startswith(SCENE) or not _HEADING.fullmatch(place):
        faults.append(Fault(at + 1, f"not {SCENE!r} and a place in capitals: {place!r}"))
    if rows[at + 1 : at + 2] != [""]:
        faults.append(Fault(at + 2, f"a blank line must follow the {SCENE.strip()} line"))

    items: list[Line | Direction] = []
    for number, row in enumerate(rows[at + 2 :], at + 3):
        speaker, colon, speech = row.partition(": ")
        if row.startswith("("):
            if len(row) < 3 or not row.endswith(")"):
                faults.append(Fault(number, f"a stage direction must end with a bracket: {row!r}"))
            items.append(Direction(row[1:-1]))
        elif colon and _is_name(speaker) and speech.strip() and speaker != SCENE.strip(": "):
            items.append(Line(speaker, speech))
        else:
            faults.append(Fault(number, f"not a line of dialogue (NAME: what is said): {row!r}" if row else "a blank line"))
    if not any(isinstance(item, Line) for item in items):
        faults.append(Fault(max(1, len(rows)), "nobody speaks"))
    if faults:
        raise ScreenplayError(sorted(faults, key=lambda fault: fault.line))
    return Scene(title, place, tuple(items))


@dataclass(frozen=True)
class Event:
    """What became known of a scene while its text came in.

    kind        text is
    "title"     the title
    "place"     the place
    "speaker"   the name of whoever speaks now: a line of theirs begins
    "direction" nothing: a stage direction begins
    "text"      what was added to the line or the direction that has begun
    "line"      the whole of what was said or happened: it has ended
    "scene"     nothing: the scene has ended
    """

    kind: Literal["title", "place", "speaker", "direction", "text", "line", "scene"]
    text: str = ""


class SceneReader:
    """Reads a scene while it is being written: `feed` it the text in whatever pieces it comes, `end` it, and it tells what is new.

    `.items` are the lines and directions that are complete, `.title` and `.place` what is known of them. What is not a scene is an
    error as soon as a row of it is complete: the same one that `parse` has.
    """

    def __init__(self) -> None:
        self.title: str | None = None
        self.place: str | None = None
        self.items: list[Line | Direction] = []
        self._text = ""  # all of it
        self._row = ""  # what has come of the present row
        self._told = 0  # how much of it was told as "text"
        self._speaker: str | None = None
        self._inside: Literal["", "line", "direction"] = ""  # what the present row has turned out to be

    def feed(self, piece: str) -> list[Event]:
        """What `piece` makes known.

        Raises:
            ScreenplayError: a row is none that a scene has at this place.
        """
        events: list[Event] = []
        self._text += piece
        rows = piece.split("\n")
        for number, part in enumerate(rows):
            self._row += part
            if self.place is not None and self._row:
                events += self._grow()
            if number < len(rows) - 1:
                events += self._end_row()
        return events

    def end(self) -> list[Event]:
        """The text is complete: the last event.

        Raises:
            ScreenplayError: it is not a whole scene.
        """
        parse(self._text)
        return [Event("scene")]

    def _grow(self) -> list[Event]:
        events: list[Event] = []
        if not self._inside and self._row[0] == "(":
            self._inside, self._told = "direction", 1
            events.append(Event("direction"))
        elif not self._inside and ": " in self._row:
            self._speaker = self._row.partition(": ")[0]
            self._inside, self._told = "line", len(self._speaker) + 2
            events.append(Event("speaker", self._speaker))
        # A direction's closing bracket is no part of its text; whether a bracket closes it shows with the next character.
        known = len(self._row) - (self._inside == "direction" and self._row.endswith(")"))
        if self._inside and known > self._told:
            events.append(Event("text", self._row[self._told : known]))
            self._told = known
        return events

    def _end_row(self) -> list[Event]:
        row, self._row = self._row, ""
        inside, self._inside = self._inside, ""
        if inside == "direction" and row.endswith(")") and len(row) > 2:
            self.items.append(Direction(row[1:-1]))
            return [Event("line", row[1:-1])]
        if inside == "line" and self._speaker is not None and _is_name(self._speaker):
            speech = row[len(self._speaker) + 2 :]
            if speech.strip() and f"{self._speaker}: " != SCENE:
                self.items.append(Line(self._speaker, speech))
                return [Event("line", speech)]
        if self.place is None and row.startswith(SCENE) and _HEADING.fullmatch(row.removeprefix(SCENE)):
            self.place = row.removeprefix(SCENE)
            return [Event("place", self.place)]
        if self.place is None and self.title is None and _HEADING.fullmatch(row):
            self.title = row
            return [Event("title", row)]
        if not row and not self.items:  # the blank line after a title or a place
            return []
        parse(self._text[: self._text.rindex("\n") + 1])  # names what is wrong
        raise AssertionError(f"{row!r} is a fault to one reader and none to the other")
