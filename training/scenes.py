"""The corpus's scenes: found in its files, checked against its rules, and the facts about them that a checkpoint carries on.

No name stands here: who is in the cast, where scenes take place and how titles begin is found in the text.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cpgpt.screenplay import SCENE, Direction, Line, Scene, ScreenplayError, parse

# The corpus's rules (corpus/GUIDE.md), beyond what makes a text a scene at all.
ALLOWED = re.compile(r"[A-Za-z0-9 .,!?'\":;\-()&%+/#]*")
TITLE_LENGTH = (16, 60)  # characters
LINE_LENGTH = 140  # characters at most, the name included
LINES = (7, 14)  # of dialogue, a scene
SPEAKERS = (2, 6)  # a scene
RARE = 0.002  # a name or a place in a smaller share of the scenes is taken for a slip


@dataclass
class Found:
    """A scene's text and where it was found."""

    file: Path
    line: int  # of its first line, from 1
    text: str
    scene: Scene | None = None  # None: it has faults


@dataclass
class Corpus:
    """The scenes of a folder, and what is wrong with them, each as "FILE:LINE: what"."""

    found: list[Found] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def scenes(self) -> list[Scene]:
        return [found.scene for found in self.found if found.scene]


def read_corpus(folder: Path) -> Corpus:
    """Read and check every `*.txt` of `folder`.

    Raises:
        FileNotFoundError: there is none.
    """
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise FileNotFoundError(f"no .txt files with scenes in {folder}")
    corpus = Corpus()
    faults: list[tuple[Path, int, str]] = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            faults.append((file, 1, f"not UTF-8: {error}"))
            continue
        if not text.endswith("\n") or text.endswith("\n\n") or text.startswith("\n"):
            faults.append((file, 1, "a file starts with a title and ends with one line break"))
        corpus.found += split_scenes(file, text)
    for found in corpus.found:
        try:
            found.scene = parse(found.text)
        except ScreenplayError as error:
            faults += [(found.file, found.line + fault.line - 1, fault.message) for fault in error.faults]
        faults += [(found.file, found.line + offset, message) for offset, message in faults_of_one(found)]
    faults += faults_among(corpus)
    corpus.faults = [f"{file}:{line}: {message}" for file, line, message in sorted(faults)]
    return corpus


def split_scenes(file: Path, text: str) -> list[Found]:
    """Cut a file before every title: the line that stands two above a `SCENE:` line."""
    rows = text.split("\n")
    starts = [i - 2 for i, row in enumerate(rows) if row.startswith(SCENE) and i >= 2 and rows[i - 1] == ""] or [0]
    starts[0] = 0
    ends = [start - 1 if rows[start - 1] == "" else start for start in starts[1:]] + [len(rows) - 1]
    return [Found(file, start + 1, "\n".join(rows[start:end]) + "\n") for start, end in zip(starts, ends, strict=True)]


def faults_of_one(found: Found) -> list[tuple[int, str]]:
    """(lines below the scene's first, what is wrong) for what one scene does against the corpus's rules."""
    faults: list[tuple[int, str]] = []
    for offset, row in enumerate(found.text.split("\n")):
        if not ALLOWED.fullmatch(row):
            wrong = sorted({c for c in row if not ALLOWED.fullmatch(c)})
            faults.append((offset, f"characters outside the alphabet: {' '.join(map(repr, wrong))}"))
        if "..." in row:
            faults.append((offset, "an ellipsis: end the sentence"))
        if len(row) > LINE_LENGTH:
            faults.append((offset, f"{len(row)} characters: a line has {LINE_LENGTH} at most"))
        if row.startswith("(") and not row.endswith(".)"):
            faults.append((offset, "a stage direction ends with a full stop and a bracket"))
    if found.scene is not None:
        counts = (
            ("characters in the title", len(found.scene.title or ""), TITLE_LENGTH),
            ("lines of dialogue", len(found.scene.lines), LINES),
            ("speakers", len(found.scene.speakers), SPEAKERS),
        )
        faults += [(0, f"{n} {what}: {low} to {high} are right") for what, n, (low, high) in counts if not low <= n <= high]
    return faults


def faults_among(corpus: Corpus) -> list[tuple[Path, int, str]]:
    """What shows only beside the other scenes: a title used twice, a name, a place or a title's beginning that nobody else has."""
    faults: list[tuple[Path, int, str]] = []
    seen: dict[str, Found] = {}
    beginnings = title_forms([scene.title or "" for scene in corpus.scenes])
    cast, places = count_cast(corpus.scenes), count_places(corpus.scenes)
    fewest = len(corpus.scenes) * RARE

    def usual(counts: Counter[str]) -> str:
        return ", ".join(name for name, count in counts.most_common() if count >= fewest)

    for found in corpus.found:
        if not found.scene:
            continue
        title = found.scene.title or ""
        if title in seen:
            faults.append((found.file, found.line, f"title used at {seen[title].file}:{seen[title].line} already: {title}"))
        seen.setdefault(title, found)
        if beginnings and not title.startswith(tuple(f"{words} " for words in beginnings)):
            faults.append((found.file, found.line, f"a title starts with {' or '.join(beginnings)}: {title!r}"))
        at = found.line + (0 if found.scene.title is None else 2)  # the SCENE: line
        if places[found.scene.place] < fewest:
            faults.append((found.file, at, f"{found.scene.place!r} is no place of the others: {usual(places)}"))
        for line, item in enumerate(found.scene.items, at + 2):
            if isinstance(item, Line) and cast[item.speaker] < fewest:
                faults.append((found.file, line, f"{item.speaker!r} is not in the cast: {usual(cast)}"))
    return faults


def count_cast(scenes: list[Scene]) -> Counter[str]:
    """In how many scenes each speaker speaks."""
    return Counter(speaker for scene in scenes for speaker in scene.speakers)


def count_places(scenes: list[Scene]) -> Counter[str]:
    return Counter(scene.place for scene in scenes)


def title_forms(titles: list[str]) -> list[str]:
    """The beginnings that titles share, the most usual first: word by word, as long as a few words cover nearly all of them."""
    forms = [""]
    while True:
        longer: list[str] = []
        for form in forms:
            tails = [title[len(form) :].split() for title in titles if title.startswith(form)]
            words = Counter(tail[0] for tail in tails if len(tail) > 1)
            usual = [word for word, count in words.most_common() if count >= 0.2 * len(tails)]
            if not usual or sum(words[word] for word in usual) < 0.95 * len(tails):
                return [form.strip() for form in forms if form]
            longer += [f"{form}{word} " for word in usual]
        forms = longer


def facts_about(corpus: Corpus) -> dict[str, Any]:
    """What a grammar and a page want to know: names and places, the most usual first, titles' beginnings, usual lengths.

    Lengths are the least, the 5th, 50th and 95th percentile, and the greatest.
    """
    scenes = corpus.scenes

    def spread(numbers: list[int]) -> dict[str, int]:
        low, usual, high = (int(np.percentile(numbers, q, method="nearest")) for q in (5, 50, 95))
        return {"min": min(numbers), "low": low, "usual": usual, "high": high, "max": max(numbers)}

    return {
        "cast": [name for name, _ in Counter(line.speaker for scene in scenes for line in scene.lines).most_common()],
        "places": [place for place, _ in count_places(scenes).most_common()],
        "title_forms": title_forms([scene.title or "" for scene in scenes]),
        "lengths": {
            "characters_of_a_scene": spread([len(str(scene)) for scene in scenes]),
            "characters_of_a_title": spread([len(scene.title or "") for scene in scenes]),
            "characters_of_a_line": spread([len(str(line)) for scene in scenes for line in scene.lines]),
            "characters_of_a_direction": spread(
                [len(str(item)) for scene in scenes for item in scene.items if isinstance(item, Direction)] or [0]
            ),
            "lines_of_a_scene": spread([len(scene.lines) for scene in scenes]),
            "directions_of_a_scene": spread([len(scene.items) - len(scene.lines) for scene in scenes]),
            "speakers_of_a_scene": spread([len(scene.speakers) for scene in scenes]),
        },
    }
