"""The scene format: what a scene is made of, and how its text is read. Knows no name, no place and no model.

    THE ONE WITH THE FLAKY TEST          the title; may be missing, with the blank line after it

    SCENE: CENTRAL PERK

    (Ross walks in with his laptop.)     a stage direction
    ROSS: It passed on my machine.       a line

The text of a scene ends with one line break and holds no other blank line.
"""

import re
from dataclasses import dataclass

_NAME = re.compile(r"[A-Z][A-Z0-9 .'-]*")
_HEADING = re.compile(r"[^a-zA-Z]*[A-Z][^a-z]*")  # a title or a place: in capitals
SCENE = "SCENE: "


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
        elif colon and _NAME.fullmatch(speaker) and speech.strip() and speaker != SCENE.strip(": "):
            items.append(Line(speaker, speech))
        else:
            faults.append(Fault(number, f"not a line of dialogue (NAME: what is said): {row!r}" if row else "a blank line"))
    if not any(isinstance(item, Line) for item in items):
        faults.append(Fault(max(1, len(rows)), "nobody speaks"))
    if faults:
        raise ScreenplayError(sorted(faults, key=lambda fault: fault.line))
    return Scene(title, place, tuple(items))
