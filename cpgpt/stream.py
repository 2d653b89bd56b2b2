"""A text while it is written: `Stream` is what its reader has of it, `Work` what the engine knows. Knows no model."""

import codecs
import contextlib
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from cpgpt.grammar import Grammar, State
from cpgpt.sampling import Sampling, uniforms

RANDOMS = 256  # random numbers are made so many at a time


@dataclass(eq=False)
class Work:
    """What the engine knows of a stream."""

    ids: list[int]  # the prompt and what was drawn
    seed: int
    sampling: Sampling
    grammar: Grammar | None
    state: State | None
    left: int  # how many ids may still be drawn
    stop_id: int | None
    pieces: "queue.SimpleQueue[str | BaseException | None]" = field(default_factory=queue.SimpleQueue)  # text; None at the end
    text: bytes = b""  # what is given out first, once there is a place
    closed: bool = False
    ended: bool = False
    place: int = -1
    offset: int = 0  # where the context starts in `ids`
    read: int = 0  # ids up to here are in the cache, those before `offset` no longer
    randoms: np.ndarray = field(default_factory=lambda: np.empty(0))
    randoms_from: int = 0  # the position that the first of them is for
    # How many drafted ids were expected to be right, and were: it starts as if that had agreed a few times.
    expected: float = 8.0
    accepted: float = 8.0
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))
    # One step's plan: how many ids are read, the draft behind them, and the grammar's state before and after each drafted id.
    pending: int = 0
    draft: list[int] = field(default_factory=list)
    states: list[State | None] = field(default_factory=list)

    def uniforms(self, count: int) -> np.ndarray:
        """The random numbers for the next `count` positions."""
        at = len(self.ids) - self.randoms_from
        if at + count > len(self.randoms):
            self.randoms_from, at = len(self.ids), 0
            self.randoms = uniforms(self.seed, len(self.ids), max(count, RANDOMS))
        return self.randoms[at : at + count]


class Stream:
    """Text while it is written: iterate over its characters, or `take` what has come. Closed when it is no longer referred to."""

    def __init__(self, work: Work, queue_position: Callable[[Work], int]) -> None:
        self._work, self._queue_position = work, queue_position
        self._came: Iterator[str] = iter(())  # characters that have come and were not given out
        self._over = False  # nothing more will come
        self._closed = False  # by whoever reads it, before its end
        self._error: BaseException | None = None  # what went wrong in it
        self._told = False  # whether that was raised
        self.text = ""  # what was given out so far

    @property
    def seed(self) -> int:
        return self._work.seed

    @property
    def waiting(self) -> int:
        """Its place in the queue, from 1; 0 once it is being written."""
        return self._queue_position(self._work)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> str:
        """The next character; waits for it.

        Raises:
            Exception: what went wrong in this stream, once.
        """
        while True:
            for character in self._came:
                self.text += character
                return character
            if self._over:
                self._raise()
                raise StopIteration
            self._receive(block=True)

    def take(self) -> str | None:
        """What has come since the last call; never waits. "" if that is nothing, None if the stream has ended.

        Raises:
            Exception: what went wrong in this stream, once.
        """
        taken = "".join(self._came)
        with contextlib.suppress(queue.Empty):
            while not self._over:
                self._receive(block=False)
                taken += "".join(self._came)
        self.text += taken
        if self._over and not taken:
            self._raise()
            return None
        return taken

    def _receive(self, block: bool) -> None:
        piece = self._work.pieces.get(block)
        if isinstance(piece, str) and not self._over:  # not closed by another thread meanwhile
            self._came = iter(piece)
        elif not isinstance(piece, str):
            self._over, self._error = True, piece

    def _raise(self) -> None:
        if self._error is not None and not self._told:
            self._told = True
            raise self._error

    def read(self) -> str:
        """The whole text, once it has ended; waits for that.

        Raises:
            RuntimeError: the stream was closed before its end.
            Exception: what went wrong in this stream.
        """
        for _ in self:
            pass
        if self._error is not None:
            raise self._error
        if self._closed:
            raise RuntimeError(f"this text was closed before its end, after {len(self.text)} characters")
        return self.text

    def close(self) -> None:
        """Stop writing; the stream's place is free at the engine's next step. Whoever waits for a character waits no longer."""
        if self._over:
            return
        self._over, self._closed, self._came = True, True, iter(())
        self._work.closed = True
        self._work.pieces.put(None)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._work.closed = True


AnyStream = TypeVar("AnyStream", bound=Stream)
