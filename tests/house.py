"""The Space, open in this process: the real page and API on a port of their own, with the engine in reach of the tests."""

import contextlib
import functools
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cpgpt
from tests.commands import ROOT

sys.path.insert(0, str(ROOT / "space"))
import app


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class House:
    """A Space that is open at `url`."""

    url: str
    writer: Any
    page: Any

    @property
    def taken(self) -> int:
        """Streams that are written or wait."""
        return self.writer.engine.running + self.writer.engine.waiting

    def wait(self, for_what: Callable[[], bool], seconds: float) -> float:
        """How long it took until `for_what()` held; an error after `seconds`."""
        start = time.monotonic()
        while not for_what():
            assert time.monotonic() - start < seconds, f"not within {seconds} s"
            time.sleep(0.005)
        return time.monotonic() - start

    @contextlib.contextmanager
    def slow(self, seconds: float = 0.03) -> Iterator[None]:
        """Every step of the engine takes this much longer: time to leave before a scene has ended."""
        runner = self.writer.engine.runner
        forward = runner.forward

        def slowly(*arguments: Any) -> Any:
            time.sleep(seconds)
            return forward(*arguments)

        runner.forward = slowly
        try:
            yield
        finally:
            del runner.forward

    @contextlib.contextmanager
    def room(self, places: int, max_waiting: int) -> Iterator[None]:
        """Only so many places and chairs, beside the place of a stream that keeps the engine at work."""
        engine = self.writer.engine
        self.wait(lambda: self.taken == 0, 5)
        with engine._lock:
            spare = [engine._free.pop() for _ in range(engine.places - places - 1)]
        before, engine.max_waiting = engine.max_waiting, max_waiting
        try:
            with self.writer.stream(seed=1):
                self.wait(lambda: engine.running == 1, 5)
                yield
        finally:
            engine.max_waiting = before
            with engine._lock:
                engine._free += spare


@functools.cache
def house() -> House:
    """One for all tests."""
    writer = cpgpt.load()
    page, url = app.launch(writer, server_port=free_port())
    return House(url.rstrip("/"), writer, page)
