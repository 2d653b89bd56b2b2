"""Runs a model over the tokens of many streams at once: the plain way, with PyTorch, or the fast one, with the kernel.

A runner has places. Each holds what one stream has read (its keys and values); rows of ids come in, logits go out. Which stream has
which place, and what is drawn from the logits, is the engine's business.
"""

import logging
from typing import Protocol

import numpy as np
import torch

from cpgpt.kernel import Kernel, KernelError, why_not
from cpgpt.model import GPT, Cache

log = logging.getLogger(__name__)


class Runner(Protocol):
    """What the engine needs of a model."""

    row_cost: float  # what one row more costs, as a share of a pass with one row

    def forward(self, ids: np.ndarray, places: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Logits (n, V), float32, of what follows each of `ids` (n,), read at `positions` of the streams at `places`, all int32.

        The rows of one stream follow each other, in the order of their positions.
        """

    def copy(self, source: int, target: int, count: int) -> None:
        """Give the place `target` what `source` has read at its first `count` positions."""


class PlainRunner:
    """`GPT.forward` with its cache: every shape, every device."""

    row_cost = 0.05

    def __init__(self, model: GPT, places: int) -> None:
        self.model = model
        self.cache = Cache(model.config, places, model.head.weight.device)

    @torch.inference_mode()
    def forward(self, ids: np.ndarray, places: np.ndarray, positions: np.ndarray) -> np.ndarray:
        logits = np.empty((len(ids), self.model.config.vocab_size), dtype=np.float32)
        starts = np.flatnonzero(np.diff(places, prepend=-1))  # each stream's first row
        counts = np.diff(starts, append=len(ids))
        first = 0
        while first < len(starts):
            # Streams at neighbouring places with equally many rows go through the model together.
            last = first + 1
            while last < len(starts) and counts[last] == counts[first] and places[starts[last]] == places[starts[last - 1]] + 1:
                last += 1
            rows = slice(int(starts[first]), int(starts[last - 1] + counts[last - 1]))
            cache = self.cache.rows(slice(int(places[starts[first]]), int(places[starts[last - 1]]) + 1))
            cache.lengths[:] = torch.from_numpy(positions[starts[first:last]].astype(np.int64))
            table = torch.from_numpy(ids[rows].astype(np.int64)).view(last - first, -1).to(self.cache.lengths.device)  # (B, T)
            logits[rows] = self.model(table, cache).flatten(0, 1).float().cpu().numpy()
            first = last
        return logits

    def copy(self, source: int, target: int, count: int) -> None:
        for pool in (self.cache.keys, self.cache.values):
            pool[:, target, :, :count] = pool[:, source, :, :count]


def make_runner(model: GPT, places: int, threads: int | None = None) -> Runner:
    """The fast runner where there can be one: a modern model on a CPU, on a machine with a C++ compiler. Else the plain one.

    `threads` are the fast one's; by default as many as there are processors, up to four. PyTorch has its own.
    """
    if model.head.weight.device.type == "cpu" and why_not(model.config) is None:
        try:
            return Kernel(model, places, threads)
        except KernelError as error:
            log.warning("writing will be several times slower than it could be: %s", error)
    return PlainRunner(model, places)
