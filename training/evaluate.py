"""How good a checkpoint is: `python -m training.evaluate CHECKPOINT`.

Bits per character on text that it never saw, and three questions to what it writes: is it words, is it copied, is it a scene?
"""

import hashlib
import json
import math
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from cpgpt import EMBEDDED, SceneWriter, checkpoint
from cpgpt.card import EVALUATION
from cpgpt.checkpoint import write_atomically
from cpgpt.model import GPT
from cpgpt.screenplay import ScreenplayError, parse
from cpgpt.tokenizer import END_OF_TEXT_ID
from training.data import IGNORED, Data, evaluation_batches
from training.machine import autocast

WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
SPAN = 50  # characters: shorter runs are common phrases


def loss_of(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats a token; padding does not count."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction=reduction)


@torch.inference_mode()
def loss_over(model: GPT, ids: np.ndarray, row_length: int, precision: str = "float32") -> tuple[float, int]:
    """The loss in nats, summed over all tokens of a split, and their number.

    Every document is read from its start, its end counts as a token; one longer than `row_length` goes on in a new context.
    """
    was_training = model.training
    model.eval()
    device = model.head.weight.device
    total, tokens = 0.0, 0
    for inputs, targets in evaluation_batches(ids, row_length, tokens=8192):
        with autocast(device, precision):
            logits = model(inputs.to(device))
        total += loss_of(logits, targets.to(device), "sum").item()
        tokens += int((targets != IGNORED).sum())
    model.train(was_training)
    return total, tokens


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def known_word_share(texts: list[str], corpus: str) -> float:
    """The share of the words of `texts` that are words of `corpus`."""
    known = set(words(corpus))
    written = [word for text in texts for word in words(text)]
    return sum(word in known for word in written) / max(1, len(written))


def copied_share(texts: list[str], source: str, span: int = SPAN) -> float:
    """The share of the characters of `texts` that lie in a stretch of `span` or more that stands in `source` as well.

    Stretches are compared by a 64-bit polynomial hash (Karp and Rabin 1987); with a few million of them a false match is one in
    a million such evaluations.
    """
    known = np.unique(_hashes(source, span))
    copied = total = 0
    for text in texts:
        inside = np.zeros(len(text) + 1, dtype=np.int64)  # +1 where a copied stretch starts, -1 where it ends
        hashes = _hashes(text, span)
        starts = np.flatnonzero(known[np.searchsorted(known, hashes).clip(max=len(known) - 1)] == hashes)
        np.add.at(inside, starts, 1)
        np.add.at(inside, starts + span, -1)
        copied += int((inside.cumsum() > 0).sum())
        total += len(text)
    return copied / max(1, total)


def _hashes(text: str, span: int) -> np.ndarray:
    """A hash for each stretch of `span` characters."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    if len(codes) < span:
        return np.zeros(0, dtype=np.uint64)
    # Characters are mixed first, so that the hash is not linear in small numbers.
    codes = (codes + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    codes ^= codes >> np.uint64(32)
    hashes = np.zeros(len(codes) - span + 1, dtype=np.uint64)
    for offset in range(span):
        hashes = hashes * np.uint64(0xD1342543DE82EF95) + codes[offset : offset + len(hashes)]
    return hashes


def parses(text: str) -> bool:
    try:
        parse(text)
    except ScreenplayError:
        return False
    return True


def main(
    folder: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder.", show_default="the embedded one")
    ] = EMBEDDED,
    data: Annotated[Path, typer.Option(help="The prepared text that it was trained on.")] = Path("data/centralperk"),
    scenes: Annotated[int, typer.Option(min=0, help="How many scenes to write.")] = 100,
    temperature: Annotated[float, typer.Option(min=0, help="At which temperature.")] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="Of the first scene; the next ones count up.")] = 1,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    save: Annotated[bool, typer.Option("--save", help="Keep the figures in the checkpoint's folder, for its card.")] = False,
) -> None:
    """Measure a checkpoint: bits per character, and how good what it writes is."""
    try:
        loaded, prepared = checkpoint.load(folder), Data.load(data)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    trained_on = loaded.facts.get("corpus", {}).get("sha256")
    if trained_on != prepared.meta["sha256"]:
        sys.exit(f"error: {folder} was not trained on the text in {data}: prepare that text again, or name its folder with --data")

    console = Console(stderr=True)
    figures: dict[str, float] = {"parameters": loaded.model.n_parameters()}
    for split in track(("validation", "test"), "reading", console=console, transient=True):
        if prepared.characters(split):
            nats, _ = loss_over(loaded.model, prepared.splits[split], loaded.model.config.block_size)
            figures[f"{split} bits per character"] = nats / prepared.characters(split) / math.log(2)
    written = SceneWriter(loaded).texts(range(seed, seed + scenes), temperature=temperature, max_characters=1500)
    texts = list(track(written, "writing", total=scenes, console=console, transient=True))
    if texts:
        decoded = {name: _text(prepared, name) for name in prepared.splits}
        figures["words of the corpus"] = known_word_share(texts, "\n".join(decoded.values()))
        figures[f"characters copied in spans of {SPAN} or more"] = copied_share(texts, decoded["train"])
        if prepared.meta["format"] == "scenes":
            figures["parse rate"] = sum(map(parses, texts)) / len(texts)
    if save:
        # The weights' hash tells figures that are out of date.
        how = {"scenes": len(texts), "temperature": temperature, "seed": seed}
        weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        write_atomically(folder / EVALUATION, json.dumps({**figures, **how, "sha256": weights}, indent=2) + "\n")
    if json_:
        print(json.dumps(figures, indent=2))
        return
    table = Table(title=f"{folder.name}: {len(texts)} scenes at temperature {temperature}, seeds from {seed}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        share = name in ("words of the corpus", "parse rate") or name.startswith("characters copied")
        table.add_row(name, f"{value:.1%}" if share else f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
    Console().print(table)


def _text(data: Data, split: str) -> str:
    """All of a split's documents, with an `<|endoftext|>` that no text holds between them."""
    ids = data.splits[split]
    ends = np.flatnonzero(ids == END_OF_TEXT_ID).tolist()
    return "\0".join(data.tokenizer.decode(ids[a + 1 : b].tolist()) for a, b in pairwise(ends))


if __name__ == "__main__":
    typer.run(main)
