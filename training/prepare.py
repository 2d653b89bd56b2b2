"""Turn text into what training reads: `python -m training.prepare` for our corpus, `--input FILE` for any text of yours.

The folder that it writes holds, for each split, an array of token ids in which `<|endoftext|>` (id 0) stands before the first
document, between two, and after the last; the tokenizer; and meta.json, the facts about the text that a checkpoint carries on.
"""

import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cpgpt.checkpoint import replaced_folder
from cpgpt.screenplay import SCENE, Direction, Line, Scene, ScreenplayError, parse
from cpgpt.tokenizer import END_OF_TEXT_ID, Tokenizer

SPLITS = ("train", "validation", "test")
CORPUS = Path(__file__).parent / "corpus"

# The corpus's rules (corpus/GUIDE.md), beyond what makes a text a scene at all.
ALLOWED = re.compile(r"[A-Za-z0-9 .,!?'\":;\-()&%+/#]*")
TITLE_LENGTH = (16, 60)  # characters
LINE_LENGTH = 140  # characters at most, the name included
LINES = (7, 14)  # of dialogue, a scene
SPEAKERS = (2, 6)  # a scene
RARE = 0.002  # a name or a place in a smaller share of the scenes is taken for a slip


@dataclass
class Found:
    """A scene and where it was found."""

    file: Path
    line: int  # of its first line, from 1
    text: str
    scene: Scene | None = None  # None: it has faults


@dataclass
class Corpus:
    """The scenes of a folder, and what is wrong with them, each as FILE:LINE: fault."""

    scenes: list[Found] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def read_corpus(folder: Path) -> Corpus:
    """Read and check every `*.txt` of `folder`.

    Raises:
        FileNotFoundError: there is none.
    """
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise FileNotFoundError(f"no .txt files with scenes in {folder}")
    corpus = Corpus()
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            corpus.faults.append(f"{file}:1: not UTF-8: {error}")
            continue
        if not text.endswith("\n") or text.endswith("\n\n") or text.startswith("\n"):
            corpus.faults.append(f"{file}:1: a file starts with a title and ends with one line break")
        corpus.scenes += split_scenes(file, text)
    for found in corpus.scenes:
        try:
            found.scene = parse(found.text)
        except ScreenplayError as error:
            corpus.faults += [f"{found.file}:{found.line + fault.line - 1}: {fault.message}" for fault in error.faults]
        corpus.faults += [f"{found.file}:{found.line + offset}: {message}" for offset, message in house_faults(found)]
    corpus.faults += shared_faults([found for found in corpus.scenes if found.scene])
    corpus.faults.sort(key=_place_of_fault)
    return corpus


def split_scenes(file: Path, text: str) -> list[Found]:
    """Cut a file before every title: the line that stands two above a `SCENE:` line."""
    rows = text.split("\n")
    starts = [i - 2 for i, row in enumerate(rows) if row.startswith(SCENE) and i >= 2 and rows[i - 1] == ""] or [0]
    starts[0] = 0
    ends = [start - 1 if rows[start - 1] == "" else start for start in starts[1:]] + [len(rows) - 1]
    return [Found(file, start + 1, "\n".join(rows[start:end]) + "\n") for start, end in zip(starts, ends, strict=True)]


def house_faults(found: Found) -> list[tuple[int, str]]:
    """(lines below the scene's first, fault) for what one scene does against the corpus's rules."""
    faults: list[tuple[int, str]] = []
    rows = found.text.split("\n")
    for offset, row in enumerate(rows):
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
        title = found.scene.title or ""
        counts = (
            ("characters in the title", len(title), TITLE_LENGTH),
            ("lines of dialogue", len(found.scene.lines), LINES),
            ("speakers", len(found.scene.speakers), SPEAKERS),
        )
        faults += [(0, f"{n} {what}: {low} to {high} are right") for what, n, (low, high) in counts if not low <= n <= high]
    return faults


def shared_faults(found: list[Found]) -> list[str]:
    """Faults that show only beside the other scenes: a title used twice, a name, a place or a title's form that nobody else has."""
    faults: list[str] = []
    seen: dict[str, Found] = {}
    forms = title_forms([f.scene.title or "" for f in found if f.scene])
    cast, places = count_cast(found), count_places(found)
    for f in found:
        assert f.scene is not None
        where, title = f"{f.file}:{f.line}", f.scene.title or ""
        if title in seen:
            faults.append(f"{where}: title used at {seen[title].file}:{seen[title].line} already: {title}")
        seen.setdefault(title, f)
        if forms and not title.startswith(tuple(form + " " for form in forms)):
            faults.append(f"{where}: a title starts with {' or '.join(forms)}: {title!r}")
        first = f.text.split("\n").index(f"{SCENE}{f.scene.place}")
        if _rare(places[f.scene.place], len(found)):
            faults.append(f"{f.file}:{f.line + first}: {f.scene.place!r} is no place of the others: {_common(places, len(found))}")
        for offset, item in enumerate(f.scene.items, first + 2):
            if isinstance(item, Line) and _rare(cast[item.speaker], len(found)):
                faults.append(f"{f.file}:{f.line + offset}: {item.speaker!r} is not in the cast: {_common(cast, len(found))}")
    return faults


def _rare(count: int, scenes: int) -> bool:
    return count < scenes * RARE


def _common(counts: Counter[str], scenes: int) -> str:
    return ", ".join(name for name, count in counts.most_common() if not _rare(count, scenes))


def _place_of_fault(fault: str) -> tuple[str, int]:
    file, line, _ = fault.split(":", 2)
    return file, int(line)


def count_cast(found: list[Found]) -> Counter[str]:
    """In how many scenes each speaker speaks."""
    return Counter(speaker for f in found if f.scene for speaker in f.scene.speakers)


def count_places(found: list[Found]) -> Counter[str]:
    return Counter(f.scene.place for f in found if f.scene)


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


def facts_about(found: list[Found]) -> dict[str, Any]:
    """What the grammar and the page want to know: names, places, forms, usual lengths (5th, 50th and 95th percentile)."""
    scenes = [f.scene for f in found if f.scene]

    def spread(numbers: list[int]) -> dict[str, int]:
        low, usual, high = (int(np.percentile(numbers, q, method="nearest")) for q in (5, 50, 95))
        return {"min": min(numbers), "low": low, "usual": usual, "high": high, "max": max(numbers)}

    return {
        "cast": [name for name, _ in Counter(line.speaker for s in scenes for line in s.lines).most_common()],
        "places": [place for place, _ in count_places(found).most_common()],
        "title_forms": title_forms([s.title or "" for s in scenes]),
        "lengths": {
            "characters_of_a_scene": spread([len(f.text) for f in found]),
            "characters_of_a_title": spread([len(s.title or "") for s in scenes]),
            "characters_of_a_line": spread([len(str(line)) for s in scenes for line in s.lines]),
            "characters_of_a_direction": spread([len(str(i)) for s in scenes for i in s.items if isinstance(i, Direction)] or [0]),
            "lines_of_a_scene": spread([len(s.lines) for s in scenes]),
            "directions_of_a_scene": spread([len(s.items) - len(s.lines) for s in scenes]),
            "speakers_of_a_scene": spread([len(s.speakers) for s in scenes]),
        },
    }


def hashed(key: str) -> int:
    """A number that depends on `key` alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def split_of(key: str, shares: tuple[float, float, float]) -> str:
    """The split of the document called `key`: its own business, so that it never changes sides when others are added."""
    at = hashed(key) % 10_000 / 100
    return SPLITS[0] if at < shares[0] else SPLITS[1] if at < shares[0] + shares[1] else SPLITS[2]


def write(
    out: Path, splits: dict[str, list[str]], originals: list[str], facts: dict[str, Any], vocab_size: int | None
) -> dict[str, Any]:
    """Train the tokenizer on `originals`, encode the documents of each split, write everything at once; returns meta.json.

    Raises:
        ValueError: a split for training has no document; see also `Tokenizer.train`.
    """
    if not splits["train"]:
        raise ValueError("no document fell to training: give more text")
    tokenizer = Tokenizer.train(originals, vocab_size)
    if tokenizer.vocab_size > 65_535:
        raise ValueError(f"vocab_size is {tokenizer.vocab_size}: ids are stored in 16 bits, so 65535 at most")
    digest = hashlib.sha256("\0".join(originals).encode()).hexdigest()
    meta: dict[str, Any] = {"sha256": digest, "vocab_size": tokenizer.vocab_size, "alphabet": tokenizer.alphabet, **facts}
    meta["splits"] = {}
    with replaced_folder(out) as fresh:
        for name, documents in splits.items():
            ids = [END_OF_TEXT_ID]
            for document in track(documents, f"encoding {name}", console=Console(stderr=True), transient=True):
                ids += [*tokenizer.encode(document), END_OF_TEXT_ID]
            np.save(fresh / f"{name}.npy", np.array(ids, dtype=np.uint16))
            characters = sum(map(len, documents))
            meta["splits"][name] = {"documents": len(documents), "characters": characters, "tokens": len(ids) - 1}
        for name, text in {**tokenizer.files(), "meta.json": json.dumps(meta, indent=2, ensure_ascii=False) + "\n"}.items():
            (fresh / name).write_text(text, encoding="utf-8")
    return meta


def prepare_corpus(folder: Path, out: Path, vocab_size: int | None, shares: tuple[float, float, float]) -> dict[str, Any]:
    """Our corpus, or another in its format.

    In a third of the training scenes the title is left out, so that the model learns to start at `SCENE:` as well.

    Raises:
        ScreenplayError: there are faults; every one was printed.
    """
    corpus = read_corpus(folder)
    if corpus.faults:
        for fault in corpus.faults:
            print(fault)
        raise ValueError(f"{len(corpus.faults)} faults in {folder}: nothing was written")
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    sides: dict[str, str] = {}
    for found in corpus.scenes:
        assert found.scene is not None
        title = found.scene.title or found.text
        sides[title] = side = split_of(title, shares)
        untitled = side == "train" and hashed(title) // 10_000 % 3 == 0
        splits[side].append(str(Scene(None, found.scene.place, found.scene.items)) if untitled else found.text)
    meta = write(
        out, splits, [found.text for found in corpus.scenes], {"format": "scenes", **facts_about(corpus.scenes)}, vocab_size
    )
    print_tables(corpus, meta, sides)
    return meta


def prepare_text(
    file: Path, out: Path, vocab_size: int | None, documents: str, shares: tuple[float, float, float]
) -> dict[str, Any]:
    """Any UTF-8 text: as one document, cut by position, or as documents between blank lines, split by their hash."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error}") from error
    if not text.strip():
        raise ValueError(f"{file} is empty")
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    if documents == "whole":
        ends = [round(len(text) * sum(shares[: i + 1]) / 100) for i in range(3)]
        for name, start, end in zip(SPLITS, [0, *ends], ends, strict=False):
            splits[name] = [text[start:end]] if end > start else []
    else:
        for document in re.split(r"\n\s*\n", text):
            if document.strip():
                splits[split_of(document, shares)].append(document.strip("\n") + "\n")
    meta = write(out, splits, [text], {"format": "text"}, vocab_size)
    print_tables(None, meta, {})
    return meta


def print_tables(corpus: Corpus | None, meta: dict[str, Any], sides: dict[str, str]) -> None:
    console = Console()
    columns = ["documents", "characters", "tokens"]
    rows = [[name, *(f"{meta['splits'][name][column]:,}" for column in columns)] for name in SPLITS]
    rows.append(["all", *(f"{sum(meta['splits'][name][column] for name in SPLITS):,}" for column in columns)])
    console.print(_table("split", columns, rows))
    console.print(f"{len(meta['alphabet'])} characters in the alphabet, {meta['vocab_size']:,} ids")
    if corpus is None:
        return

    def by(count: Any) -> list[list[str]]:
        """A row for each name, with its number in all splits and in each."""
        totals: Counter[str] = Counter()
        parts: dict[str, Counter[str]] = {name: Counter() for name in SPLITS}
        for found in corpus.scenes:
            assert found.scene is not None
            counted = Counter(count(found.scene))
            totals += counted
            parts[sides[found.scene.title or found.text]] += counted
        return [[name, f"{n:,}", *(f"{parts[split][name]:,}" for split in SPLITS)] for name, n in totals.most_common()]

    console.print(_table("lines by speaker", ["all", *SPLITS], by(lambda scene: [line.speaker for line in scene.lines])))
    console.print(_table("scenes by place", ["all", *SPLITS], by(lambda scene: [scene.place])))


def _table(first: str, columns: list[str], rows: list[list[str]]) -> Table:
    table = Table()
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def parse_shares(text: str) -> tuple[float, float, float]:
    """The percentages of "90/5/5"."""
    try:
        train, validation, test = (float(part) for part in text.split("/"))
    except ValueError:
        train = validation = test = -1
    if min(train, validation, test) < 0 or not math.isclose(train + validation + test, 100):
        raise ValueError(f"--split is {text!r}: give three percentages that add up to 100, such as 90/5/5")
    return train, validation, test


def main(
    input: Annotated[Path | None, typer.Option(help="Any UTF-8 text, instead of the corpus.", show_default=False)] = None,
    corpus: Annotated[Path, typer.Option(help="A folder of scene files.", show_default="training/corpus")] = CORPUS,
    out: Annotated[
        Path | None, typer.Option(help="Where to write.", show_default="data/centralperk, or data/ and FILE's name")
    ] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Subwords, so many; without it, characters.", show_default=False)] = None,
    documents: Annotated[Literal["whole", "blank-lines"], typer.Option(help="How --input is cut into documents.")] = "whole",
    split: Annotated[str, typer.Option(help="Shares of training, validation and test, in percent.")] = "90/5/5",
) -> None:
    """Check a text, split it, encode it, and write what training reads."""
    try:
        shares = parse_shares(split)
        if input is not None:
            out = out or Path("data") / input.stem
            prepare_text(input, out, vocab_size, documents, shares)
        else:
            out = out or Path("data/centralperk")
            prepare_corpus(corpus, out, vocab_size, shares)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    Console().print(f"written to {out}")


if __name__ == "__main__":
    typer.run(main)
