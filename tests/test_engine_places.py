"""The engine: who has a place and when, and what is read once for all."""

import gc
import threading
import time
from collections.abc import Callable

import pytest

import cpgpt.engine
from cpgpt.engine import PROMPT_ROWS, BusyError
from cpgpt.kernel import Kernel
from cpgpt.model import GPT
from cpgpt.stream import Stream
from tests.conftest import random_ids, randomised, tiny
from tests.engines import PATIENCE, WIDE, Watched, engine_on, plain_engine, start, until

# Who has a place, and when


def close(streams: list[Stream]) -> None:
    streams.pop(0).close()


def leave(streams: list[Stream]) -> None:
    with streams.pop(0):
        pass


def forget(streams: list[Stream]) -> None:
    del streams[0]
    gc.collect()


@pytest.mark.parametrize("give_up", [close, leave, forget])
def test_a_stream_that_nobody_reads_frees_its_place_at_the_next_step(
    watched: Watched, give_up: Callable[[list[Stream]], None]
) -> None:
    engine = engine_on(watched, watched.runner.model, places=2)  # type: ignore[attr-defined]
    streams = [start(engine, seed=seed, count=400) for seed in range(3)]
    watched.step()
    places = dict(watched.entered.get(timeout=PATIENCE))  # the second step has begun, with the first two streams
    assert len(places) == 2
    assert (engine.running, engine.waiting, streams[2].waiting) == (2, 1, 1)
    give_up(streams)
    watched.turns.release()
    assert watched.entered.get(timeout=PATIENCE) == [(0, 1), (1, 1)]  # the third has the first one's place
    assert (engine.running, engine.waiting, streams[1].waiting) == (2, 0, 0)
    give_up(streams)
    give_up(streams)
    watched.turns.release()
    until(lambda: engine.running == engine.waiting == 0)
    assert not any(thread.name == "cpgpt-engine" for thread in threading.enumerate())


def test_more_streams_than_places_wait_in_order_and_past_the_limit_it_is_busy(watched: Watched) -> None:
    engine = engine_on(watched, watched.runner.model, places=2, max_waiting=3)  # type: ignore[attr-defined]
    streams = [start(engine, seed=seed, count=3) for seed in range(2)]
    watched.step()
    until(lambda: engine.running == 2)
    streams += [start(engine, seed=seed, count=3) for seed in range(2, 5)]
    assert [stream.waiting for stream in streams] == [0, 0, 1, 2, 3]
    with pytest.raises(BusyError, match="busy: 2 texts are being written and 3 wait; try again in a moment"):
        start(engine)
    streams[3].close()  # whoever gives up makes room
    streams.append(start(engine, seed=5, count=3))
    assert [stream.waiting for stream in streams] == [0, 0, 1, 0, 2, 3]
    with pytest.raises(BusyError):
        start(engine)
    del streams[3]
    watched.set_free()
    assert all(stream.read() for stream in streams)
    assert [stream.read() for stream in streams] == [start(engine, seed=stream.seed, count=3).read() for stream in streams]
    assert (engine.running, engine.waiting) == (0, 0)


def test_those_who_wait_begin_in_the_order_they_came(watched: Watched) -> None:
    engine = engine_on(watched, watched.runner.model, places=1)  # type: ignore[attr-defined]
    streams = [start(engine, seed=seed, count=2) for seed in range(5)]
    for number in range(5):
        watched.step()
        watched.step()
        assert streams[number].read()
        until(lambda: engine.running == (number < 4))  # noqa: B023
        assert [stream.waiting for stream in streams[number + 1 :]] == list(range(4 - number))


def test_no_running_stream_is_left_out_of_a_step(watched: Watched) -> None:
    """The issue allows two steps; here it is none."""
    engine = engine_on(watched, watched.runner.model)  # type: ignore[attr-defined]
    streams = [start(engine, seed=0, count=30)]
    watched.step()
    prompts = [random_ids(length, seed=length).tolist() for length in (590, 2, 570, 300)]
    streams += [start(engine, prompt, seed=1, count=9) for prompt in prompts]  # much to read beside somebody who writes
    watched.set_free()
    for stream in streams:
        stream.read()
    for place in range(5):
        takes_part = [place in dict(step) for step in watched.steps]
        first, last = takes_part.index(True), len(takes_part) - takes_part[::-1].index(True)
        assert all(takes_part[first:last])
    assert all(rows[0] == (0, 1) for rows in watched.steps[:29])
    assert max(sum(count for _, count in rows) for rows in watched.steps) <= PROMPT_ROWS + 8
    assert sum(count for rows in watched.steps for place, count in rows if place == 1) == 590 + 8


@pytest.mark.parametrize("arriving", [True, False])
def test_while_streams_arrive_the_engine_leaves_the_processor_to_them(
    model: GPT, arriving: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpgpt.engine, "ARRIVING", 1000.0 if arriving else 0.0)
    engine = plain_engine(model)
    expected = start(engine).read()
    engine.breath = 0.03 if arriving else 1000.0
    began = time.monotonic()
    assert start(engine, count=20).read() == expected
    assert time.monotonic() - began >= 19 * 0.03 if arriving else time.monotonic() - began < PATIENCE


# What has been read once


def test_the_prompt_that_streams_share_is_read_once(model: GPT) -> None:
    model = randomised(tiny("modern", block_size=200))
    prompt = random_ids(90).tolist()
    expected = [start(plain_engine(model), prompt, seed, 10).read() for seed in range(8)]
    engine = plain_engine(model)
    streams = [start(engine, prompt, seed, 10) for seed in range(8)]
    assert [stream.read() for stream in streams] == expected
    assert engine.rows == 90 + 7 + 8 * 9  # of it, the seven others read the last id only
    before = engine.rows
    assert start(engine, prompt, 3, 10).read() == expected[3]  # also of those who have left
    assert engine.rows - before == 1 + 9
    other = [*prompt[:50], *random_ids(40, seed=9).tolist()]  # as far as it is the same
    text = start(engine, other, 3, 10).read()
    assert engine.rows - before == 1 + 9 + 40 + 9
    assert text == start(plain_engine(model), other, 3, 10).read()


def test_the_kernel_shares_prompts_bit_for_bit() -> None:
    model = randomised(tiny("modern", block_size=200, **WIDE))
    prompt = random_ids(90).tolist()
    prompts = [prompt[:length] for length in (90, 17, 18, 90, 33, 5)]
    expected = [start(engine_on(Kernel(model, 1), model, places=1), p, 3, 60).read() for p in prompts]
    engine = engine_on(Kernel(model, 4), model, places=4)
    for _ in range(3):
        streams = [start(engine, p, 3, 60) for p in prompts]
        assert [stream.read() for stream in streams] == expected
