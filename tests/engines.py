"""Engines to test with: one whose steps are made one at a time, and what starts and awaits streams."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cpgpt.engine import Engine
from cpgpt.model import GPT
from cpgpt.runner import PlainRunner, Runner
from cpgpt.sampling import Sampling
from cpgpt.stream import Stream
from tests.conftest import TOKENIZER

WIDE = {"n_head": 2, "n_embd": 32}  # what the kernel can run
PATIENCE = 30  # seconds: longer than any step takes


class Watched:
    """A runner that shows what it is asked for and makes a step only when it is told to, until it is set free."""

    row_cost = 0.1

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.entered: queue.SimpleQueue[list[tuple[int, int]]] = queue.SimpleQueue()  # each step: (place, rows)
        self.steps: list[list[tuple[int, int]]] = []
        self.turns = threading.Semaphore(0)
        self.held = True
        self.spoil: Callable[[np.ndarray, np.ndarray], None] = lambda places, logits: None
        self.spoil_copy: Callable[[], None] = lambda: None

    def forward(self, ids: np.ndarray, places: np.ndarray, positions: np.ndarray) -> np.ndarray:
        rows = [(int(place), int((places == place).sum())) for place in np.unique(places)]
        self.steps.append(rows)
        self.entered.put(rows)
        if self.held:
            assert self.turns.acquire(timeout=PATIENCE)
        logits = self.runner.forward(ids, places, positions)
        self.spoil(places, logits)
        return logits

    def copy(self, source: int, target: int, count: int) -> None:
        self.spoil_copy()
        self.runner.copy(source, target, count)

    def step(self) -> list[tuple[int, int]]:
        """Wait for a step to begin, let it happen, and tell what it read."""
        rows = self.entered.get(timeout=PATIENCE)
        self.turns.release()
        return rows

    def set_free(self) -> None:
        self.held = False
        self.turns.release(1000)


def engine_on(runner: Runner, model: GPT, **settings: Any) -> Engine:
    return Engine(runner, TOKENIZER, model.config.block_size, **{"places": 8, **settings})


def plain_engine(model: GPT, **settings: Any) -> Engine:
    return engine_on(PlainRunner(model, settings.get("places", 8)), model, **settings)


def start(engine: Engine, prompt: Sequence[int] = (0,), seed: int = 1, count: int = 20, **settings: Any) -> Stream:
    how = {"sampling": Sampling(), "stop_id": None, **settings}
    return engine.submit(list(prompt), seed=seed, max_new_tokens=count, kind=Stream, **how)


def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds, not for ever."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
