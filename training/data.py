"""Prepared text as rows of ids: which rows a step trains on, and which the validation loss is measured on.

Every choice depends on the seed and the step alone, so that a run can be stopped anywhere and go on with the same rows.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cpgpt.drafts import Drafts
from cpgpt.tokenizer import END_OF_TEXT_ID, Tokenizer
from training.settings import Settings

IGNORED = -1  # the target of padding: no loss


@dataclass(frozen=True)
class Data:
    """What `training.prepare` wrote into a folder; the arrays stay on the disk and are mapped into memory."""

    tokenizer: Tokenizer
    meta: dict[str, Any]
    splits: dict[str, np.ndarray]
    drafts: Drafts | None = None

    @classmethod
    def load(cls, folder: Path) -> "Data":
        """
        Raises:
            FileNotFoundError: the folder was not prepared.
        """
        if not (folder / "meta.json").exists():
            raise FileNotFoundError(f"{folder} has no prepared text: run `python -m training.prepare --out {folder}` first")
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        splits = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in meta["splits"]}
        tokenizer = Tokenizer.load(folder)
        return cls(tokenizer, meta, splits, Drafts.load(folder, tokenizer.vocab_size))

    def characters(self, split: str) -> int:
        return self.meta["splits"][split]["characters"]

    @property
    def characters_per_token(self) -> float:
        return self.characters("train") / self.meta["splits"]["train"]["tokens"]


class Rows:
    """The rows of one phase of training: `row_length` inputs and their targets each, all of the text once an epoch.

    Rows that can hold a whole document (of the usual length) start where one starts, in a new order every epoch; the document
    that the row's end cuts starts the next row. Shorter rows start anywhere, shifted every epoch. (Short rows that start only at
    document starts would never show the model a document's second half.)
    """

    def __init__(self, ids: np.ndarray, row_length: int, seed: int) -> None:
        if len(ids) <= row_length:
            raise ValueError(f"the training text has {len(ids)} tokens: too few for rows of {row_length}")
        self.ids, self.row_length, self.seed = ids, row_length, seed
        self.ends = np.flatnonzero(ids == END_OF_TEXT_ID)  # document i is ids[ends[i] : ends[i + 1]], its first id included
        self.whole = len(self.ends) > 2 and row_length >= np.median(np.diff(self.ends))
        self.epochs: dict[int, np.ndarray | list[list[tuple[int, int]]]] = {}

    def batch(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, (count, T) each, of the rows `first` to `first + count`, numbered through all epochs."""
        rows: list[np.ndarray] = []
        epoch = 0
        while len(rows) < count:
            plan = self._plan(epoch)
            rows += [self._row(spans) for spans in plan[first : first + count - len(rows)]]
            first, epoch = max(0, first - len(plan)), epoch + 1
        table = torch.from_numpy(np.stack(rows).astype(np.int64))  # (count, T + 1)
        return table[:, :-1], table[:, 1:]

    def _row(self, spans: Any) -> np.ndarray:
        if self.whole:
            return np.concatenate([self.ids[start:end] for start, end in spans])
        return self.ids.take(np.arange(spans, spans + self.row_length + 1), mode="wrap")

    def _plan(self, epoch: int) -> Any:
        """An epoch's rows: where each starts, or the spans that it is put together from."""
        if epoch not in self.epochs:
            random = np.random.default_rng([self.seed, self.row_length, epoch])
            self.epochs[epoch] = self._whole_plan(random) if self.whole else self._anywhere_plan(random)
        return self.epochs[epoch]

    def _anywhere_plan(self, random: np.random.Generator) -> np.ndarray:
        shift = random.integers(self.row_length)
        return random.permutation(np.arange(shift, len(self.ids) - 1 + shift, self.row_length))

    def _whole_plan(self, random: np.random.Generator) -> list[list[tuple[int, int]]]:
        plan: list[list[tuple[int, int]]] = []
        row: list[tuple[int, int]] = []
        room = self.row_length + 1
        for document in random.permutation(len(self.ends) - 1):
            start, end = int(self.ends[document]), int(self.ends[document + 1])
            while True:
                row.append((start, min(end, start + room)))
                room -= row[-1][1] - row[-1][0]
                if room:
                    break
                plan.append(row)
                if len(row) == 1:  # longer than a row: the rest goes on where this one ended
                    start = row[0][1] - 1
                row, room = [], self.row_length + 1
                if end - start <= 1:
                    break
        # The last row is filled up from the start of the text.
        if row:
            plan.append([*row, (0, room)])
        return plan


class Batches:
    """The rows of every step: short ones and, for the last share of the steps, as many tokens in long ones."""

    def __init__(self, ids: np.ndarray, settings: Settings) -> None:
        self.settings = settings
        self.long_from = settings.steps - round(settings.steps * settings.long_share)
        self.short = Rows(ids, settings.row_length, settings.seed)
        self.long = Rows(ids, settings.long_row_length, settings.seed) if settings.long_share else self.short

    def row_length(self, step: int) -> int:
        return (self.short if step < self.long_from else self.long).row_length

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> list[tuple[Tensor, Tensor]]:
        """The micro-batches of a step for the process `rank` of `world`: (inputs, targets) each."""
        rows, since, count = self.short, step, self.settings.batch_size
        if step >= self.long_from:
            rows, since = self.long, step - self.long_from
            parts = world * self.settings.micro_batches
            count = max(1, round(count * self.settings.row_length / rows.row_length / parts)) * parts
        share = count // world
        inputs, targets = rows.batch(since * count + rank * share, share)
        return list(zip(inputs.chunk(self.settings.micro_batches), targets.chunk(self.settings.micro_batches), strict=True))


def evaluation_batches(ids: np.ndarray, row_length: int, tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of all of a split, each token a target once, at most about `tokens` a batch.

    A row starts where a document starts; a document longer than a row goes on in the next. Short rows are padded.
    """
    ends = np.flatnonzero(ids == END_OF_TEXT_ID).tolist()
    rows = [
        ids[start : min(start + row_length, last) + 1].astype(np.int64)
        for first, last in pairwise(ends)
        for start in range(first, last, row_length)
    ]
    rows.sort(key=len)
    for at in range(0, len(rows), max(1, tokens // row_length)):
        some = [torch.from_numpy(row) for row in rows[at : at + max(1, tokens // row_length)]]
        inputs = torch.nn.utils.rnn.pad_sequence([row[:-1] for row in some], batch_first=True)
        targets = torch.nn.utils.rnn.pad_sequence([row[1:] for row in some], batch_first=True, padding_value=IGNORED)
        yield inputs, targets
