"""Turn text into what training reads: `python -m training.prepare` for our corpus, `--input FILE` for any text of yours.

The folder that it writes holds, for each split, an array of token ids in which `<|endoftext|>` (id 0) stands before the first
document, between two, and after the last; the tokenizer; and what a checkpoint carries on: meta.json, the facts about the text, and
the table of what usually follows what (`training/drafts.py`).
"""

import hashlib
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cpgpt.checkpoint import replaced_folder
from cpgpt.screenplay import Scene
from cpgpt.tokenizer import END_OF_TEXT_ID, Tokenizer
from training.drafts import make_drafts
from training.scenes import facts_about, read_corpus

SPLITS = ("train", "validation", "test")
CORPUS = Path(__file__).parent / "corpus"
OUT = Path("data/centralperk")
Shares = tuple[float, float, float]  # of the splits, in percent
SHARES: Shares = (90.0, 5.0, 5.0)


def hashed(key: str) -> int:
    """A number that depends on `key` alone, the same on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def split_of(key: str, shares: Shares) -> str:
    """The split of the document called `key`: its own business, so that it never changes sides when others are added."""
    at = hashed(key) % 10_000 / 100
    return SPLITS[0] if at < shares[0] else SPLITS[1] if at < shares[0] + shares[1] else SPLITS[2]


def prepare_corpus(
    folder: Path = CORPUS, out: Path = OUT, vocab_size: int | None = None, shares: Shares = SHARES
) -> dict[str, Any]:
    """Prepare scenes: our corpus, or another folder in its format. Returns the contents of meta.json.

    In a third of the training scenes the title is left out, so that the model learns to start at `SCENE:` as well.

    Raises:
        FileNotFoundError: the folder has no scenes.
        ValueError: there are faults; every one was printed, and nothing was written. See also `write`.
    """
    corpus = read_corpus(folder)
    if corpus.faults:
        print("\n".join(corpus.faults))
        raise ValueError(f"{len(corpus.faults)} faults in {folder}: nothing was written")
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    scenes: dict[str, list[Scene]] = {name: [] for name in SPLITS}
    for scene in corpus.scenes:
        key = scene.title or str(scene)
        side = split_of(key, shares)
        untitled = side == "train" and hashed(key) // 10_000 % 3 == 0
        scenes[side].append(scene)
        splits[side].append(str(Scene(None, scene.place, scene.items) if untitled else scene))
    facts = {"format": "scenes", **facts_about(corpus)}
    meta = write(out, splits, [str(scene) for scene in corpus.scenes], facts, vocab_size)
    print_splits(meta)
    print_counts("lines by speaker", scenes, lambda scene: [line.speaker for line in scene.lines])
    print_counts("scenes by place", scenes, lambda scene: [scene.place])
    return meta


def prepare_text(
    file: Path,
    out: Path,
    vocab_size: int | None = None,
    documents: Literal["whole", "blank-lines"] = "whole",
    shares: Shares = SHARES,
) -> dict[str, Any]:
    """Prepare any UTF-8 text: as one document, cut by position, or as documents between blank lines, split by their hash.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is empty or not UTF-8. See also `write`.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error}") from error
    if not text.strip():
        raise ValueError(f"{file} is empty")
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    if documents == "whole":
        ends = [round(len(text) * sum(shares[:i]) / 100) for i in range(4)]
        for name, start, end in zip(SPLITS, ends, ends[1:], strict=False):
            splits[name] = [text[start:end]] if end > start else []
    else:
        for document in re.split(r"\n\s*\n", text):
            if document.strip():
                splits[split_of(document, shares)].append(document.strip("\n") + "\n")
    meta = write(out, splits, [text], {"format": "text"}, vocab_size)
    print_splits(meta)
    return meta


def write(
    out: Path, splits: dict[str, list[str]], originals: list[str], facts: dict[str, Any], vocab_size: int | None
) -> dict[str, Any]:
    """Train the tokenizer on `originals`, encode each split's documents, write all of it at once; returns what meta.json says.

    Raises:
        ValueError: nothing to train on or to validate with; a vocabulary that the text does not give (`Tokenizer.train`).
    """
    for name in ("train", "validation"):
        if not splits[name]:
            raise ValueError(f"no document fell to {name}: give more text, or another --split")
    tokenizer = Tokenizer.train(originals, vocab_size)
    if tokenizer.vocab_size > 65_536:
        raise ValueError(f"vocab_size is {tokenizer.vocab_size}: ids are stored in 16 bits, so it must be 65536 at most")
    digest = hashlib.sha256("\0".join(originals).encode()).hexdigest()
    alphabet = "".join(sorted({character for text in originals for character in text}))
    meta = {"sha256": digest, "vocab_size": tokenizer.vocab_size, "alphabet": alphabet, **facts, "splits": {}}
    with replaced_folder(out) as fresh:
        for name, documents in splits.items():
            ids = [END_OF_TEXT_ID]
            for document in track(documents, f"encoding {name}", console=Console(stderr=True), transient=True):
                ids += [*tokenizer.encode(document), END_OF_TEXT_ID]
            np.save(fresh / f"{name}.npy", np.array(ids, dtype=np.uint16))
            if name == "train":
                make_drafts(np.array(ids, dtype=np.uint16)).save(fresh)
            counts = {"documents": len(documents), "characters": sum(map(len, documents)), "tokens": len(ids) - 1}
            meta["splits"][name] = counts
        for name, text in {**tokenizer.files(), "meta.json": json.dumps(meta, indent=2, ensure_ascii=False) + "\n"}.items():
            (fresh / name).write_text(text, encoding="utf-8")
    return meta


def print_splits(meta: dict[str, Any]) -> None:
    columns = ("documents", "characters", "tokens")
    counts = {name: [meta["splits"][name][column] for column in columns] for name in SPLITS}
    counts["all"] = [sum(numbers) for numbers in zip(*counts.values(), strict=True)]
    _print_table("split", columns, counts)
    print(f"{len(meta['alphabet'])} characters in the alphabet, {meta['vocab_size']:,} ids\n")


def print_counts(title: str, scenes: dict[str, list[Scene]], names: Callable[[Scene], list[str]]) -> None:
    """A row for each name that `names` finds in a scene, the most usual first: how often in all splits and in each."""
    parts = [Counter(name for scene in scenes[split] for name in names(scene)) for split in SPLITS]
    totals = sum(parts, Counter[str]())
    _print_table(title, ("all", *SPLITS), {name: [n, *(part[name] for part in parts)] for name, n in totals.most_common()})


def _print_table(first: str, columns: tuple[str, ...], rows: dict[str, list[int]]) -> None:
    table = Table(first)
    for column in columns:
        table.add_column(column, justify="right")
    for name, numbers in rows.items():
        table.add_row(name, *(f"{number:,}" for number in numbers))
    Console().print(table)


def parse_shares(text: str) -> Shares:
    """The percentages of "90/5/5".

    Raises:
        ValueError: anything else.
    """
    parts = [float(part) if re.fullmatch(r"\d+(\.\d+)?", part) else math.nan for part in text.split("/")]
    if len(parts) != 3 or not math.isclose(sum(parts), 100):
        raise ValueError(f"--split is {text!r}: give three percentages that add up to 100, such as 90/5/5")
    return parts[0], parts[1], parts[2]


def main(
    input: Annotated[Path | None, typer.Option(help="Any UTF-8 text, instead of the corpus.", show_default=False)] = None,
    corpus: Annotated[Path, typer.Option(help="A folder of scene files.", show_default="training/corpus")] = CORPUS,
    out: Annotated[Path | None, typer.Option(help="Where to write.", show_default=f"{OUT}, or data/ and FILE's name")] = None,
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
            out = out or OUT
            prepare_corpus(corpus, out, vocab_size, shares)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"written to {out}")


if __name__ == "__main__":
    typer.run(main)
