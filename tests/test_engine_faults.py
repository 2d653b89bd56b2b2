"""The engine: an error is of the stream that has it, and nothing of any stream stays behind."""

import gc
import random
import resource
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

import cpgpt
from cpgpt.engine import BusyError, Engine
from cpgpt.grammar import Grammar, Rules, State
from cpgpt.kernel import Kernel
from cpgpt.model import Config
from cpgpt.sampling import Sampling
from cpgpt.screenplay import parse
from cpgpt.stream import Stream, Work
from cpgpt.tokenizer import END_OF_TEXT_ID
from tests.commands import ENVIRONMENT, ROOT
from tests.conftest import TOKENIZER, random_ids, randomised, tiny
from tests.engines import PATIENCE, WIDE, Watched, engine_on, plain_engine, start, until

SECONDS = 60  # of the long run


class Broken(Grammar):
    """A grammar that fails at the tenth id, in one of its two methods."""

    def __init__(self, method: str) -> None:
        super().__init__(Rules(("ROSS", "CLARK"), ("CENTRAL PERK",), line_ends="?"), TOKENIZER)
        self.method, self.count = method, 0

    def fail(self, method: str) -> None:
        if method == self.method and self.count >= 10:
            raise LookupError(f"{method} is broken")

    def allowed(self, state: State) -> np.ndarray:
        self.fail("allowed")
        return super().allowed(state)

    def forced(self, state: State) -> int | None:
        return None

    def advance(self, state: State, id: int) -> None:
        self.count += 1
        self.fail("advance")
        super().advance(state, id)


@pytest.mark.parametrize("method", ["allowed", "advance"])
def test_an_error_in_one_stream_ends_only_that_one_and_its_text_is_not_lost(method: str) -> None:
    model = randomised(tiny("modern", block_size=100))
    engine = plain_engine(model)
    good = [start(engine, seed=seed, count=60) for seed in range(3)]
    grammar = Broken(method)
    bad = start(engine, seed=4, count=60, grammar=grammar, state=grammar.start("items"))
    characters = list[str]()
    with pytest.raises(LookupError, match=f"{method} is broken"):
        characters.extend(bad)
    assert len(bad.text) >= 9 - (method == "advance")
    assert bad.take() is None  # it is raised once, where the text is read
    assert list(bad) == []
    with pytest.raises(LookupError):  # but there is no whole text
        bad.read()
    assert [s.read() for s in good] == [start(plain_engine(model), seed=seed, count=60).read() for seed in range(3)]
    grammar = Broken(method)
    taken = start(engine, seed=4, count=60, grammar=grammar, state=grammar.start("items"))
    until(lambda: engine.running == engine.waiting == 0)
    assert taken.take() == bad.text
    with pytest.raises(LookupError):
        taken.take()
    assert taken.take() is None


def test_logits_that_are_not_numbers_end_only_the_stream_that_has_them(watched: Watched) -> None:
    engine = engine_on(watched, watched.runner.model)  # type: ignore[attr-defined]

    def spoil(places: np.ndarray, logits: np.ndarray) -> None:
        if len(watched.steps) > 12:
            logits[places == 1, 3] = np.nan

    watched.spoil = spoil
    streams = [start(engine, seed=seed, count=30) for seed in range(3)]
    watched.set_free()
    with pytest.raises(FloatingPointError, match="logits are not numbers: its weights are damaged"):
        streams[1].read()
    assert 0 < len(streams[1].text) < 30
    alone = [start(plain_engine(watched.runner.model), seed=seed, count=30).read() for seed in range(3)]  # type: ignore[attr-defined]
    assert [streams[0].read(), streams[2].read()] == [alone[0], alone[2]]
    assert alone[1].startswith(streams[1].text)


def test_an_error_of_the_model_ends_all_that_is_being_written_and_the_engine_works_afterwards(watched: Watched) -> None:
    engine = engine_on(watched, watched.runner.model, places=2)  # type: ignore[attr-defined]

    def spoil(places: np.ndarray, logits: np.ndarray) -> None:
        if len(watched.steps) == 5:
            raise MemoryError("no more of it")

    watched.spoil = spoil
    streams = [start(engine, seed=seed, count=30) for seed in range(4)]
    watched.set_free()
    for stream in streams[:2]:
        with pytest.raises(MemoryError, match="no more of it"):
            list(stream)
    alone = [start(plain_engine(watched.runner.model), seed=seed, count=30).read() for seed in range(5)]  # type: ignore[attr-defined]
    assert [stream.read() for stream in streams[2:]] == alone[2:4]  # they had not begun
    assert start(engine, seed=4, count=30).read() == alone[4]
    assert alone[0].startswith(streams[0].text)
    assert (engine.running, engine.waiting) == (0, 0)


def test_an_error_while_a_prompt_is_copied_ends_only_the_newcomer(watched: Watched) -> None:
    engine = engine_on(watched, watched.runner.model)  # type: ignore[attr-defined]
    watched.set_free()
    prompt = random_ids(60).tolist()
    first = start(engine, prompt, count=500)
    next(first)

    def spoil_copy() -> None:
        watched.spoil_copy = lambda: None
        raise MemoryError("no more of it")

    watched.spoil_copy = spoil_copy
    second = start(engine, prompt, count=10)
    with pytest.raises(MemoryError):
        second.read()
    third = start(engine, prompt, count=10)
    assert third.read() == first.read()[: len(third.text)]


def test_a_process_that_ends_while_texts_are_written_ends_cleanly() -> None:
    code = "import cpgpt; writer = cpgpt.load(); streams = [writer.stream() for _ in range(20)]; print(next(streams[0]))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


# All of it, for a minute


def memory() -> float:
    """What this process holds, in megabytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def alive(kind: type) -> int:
    return sum(type(thing) is kind for thing in gc.get_objects())


def test_streams_come_and_go_for_a_minute_and_nothing_is_left_behind() -> None:
    gc.collect()
    before = alive(Work)  # those of other tests' engines
    facts, tokenizer = cpgpt.load_checkpoint().facts["corpus"], cpgpt.load_checkpoint().tokenizer
    model = randomised(Config.modern(tokenizer.vocab_size, n_layer=2, block_size=200, **WIDE))
    rules = Rules.of(facts, min_lines=1, max_lines=3, min_speakers=1, max_line_length=50, max_direction_length=40)
    grammar = Grammar(rules, tokenizer)
    headers = [f"SCENE: {place}\n\n" for place in facts["places"][:2]]

    def submit(engine: Engine, number: int) -> Stream:
        """The request with this number: scenes and texts, short ones and ones far past the context, shared prompts and others."""
        how = Sampling((0.0, 0.7, 1.0, 2.0)[number % 4])
        settings: dict[str, Any]
        if number % 3:
            settings = {"max_new_tokens": 2000, "grammar": grammar, "state": grammar.start("items")}
        else:
            settings = {"max_new_tokens": (5, 60, 700)[number % 9 // 3], "stop_id": None}
        text = headers[number % 2] if number % 3 else "So what? " * (number % 5)
        return engine.submit([END_OF_TEXT_ID, *tokenizer.encode(text)], seed=number, sampling=how, **settings, text=text)

    requests = range(36)
    single = Engine(Kernel(model, 1), tokenizer, model.config.block_size, places=1)
    expected = [submit(single, number).read() for number in requests]
    assert all(parse(expected[number]) for number in requests if number % 3)

    engine = Engine(Kernel(model, 32, threads=2), tokenizer, model.config.block_size, places=32, max_waiting=100)
    end = time.monotonic() + SECONDS
    faults, finished, busy, megabytes = list[str](), list[int](), list[int](), list[float]()

    def come_and_go(chance: random.Random) -> None:
        try:
            while time.monotonic() < end:
                number = chance.choice(requests)
                try:
                    stream = submit(engine, number)
                except BusyError:
                    busy.append(number)
                    time.sleep(chance.random() / 2)
                    continue
                way = chance.random()
                if way < 0.5:
                    text = stream.read()
                elif way < 0.6:
                    pieces = list[str]()
                    while (piece := stream.take()) is not None:
                        pieces.append(piece)
                        time.sleep(0.02)
                    text = "".join(pieces)
                else:  # some characters, and then no more: closed, or simply dropped
                    text = "".join(character for _, character in zip(range(chance.randrange(60)), stream, strict=False))
                    if way < 0.8:
                        stream.close()
                    del stream
                    if not expected[number].startswith(text):
                        faults.append(f"{number}: {text!r} is not the beginning of {expected[number]!r}")
                    continue
                finished.append(number)
                if text != expected[number]:
                    faults.append(f"{number}: {text!r} is not {expected[number]!r}")
        except Exception as error:
            faults.append(repr(error))

    readers = [threading.Thread(target=come_and_go, args=(random.Random(seed),)) for seed in range(200)]
    for reader in readers:
        reader.start()
    while time.monotonic() < end:
        time.sleep(0.25)
        megabytes.append(memory())
        assert engine.running <= 32
        assert engine.waiting <= 100 + 32  # those with a place from the next step on among them
    for reader in readers:
        reader.join(timeout=PATIENCE)
    assert not any(reader.is_alive() for reader in readers)
    assert faults == []
    assert set(finished) == set(requests)
    assert len(finished) > 500
    assert busy  # it was overrun, too

    until(lambda: engine.running == engine.waiting == 0)
    gc.collect()
    assert not any(thread.name == "cpgpt-engine" for thread in threading.enumerate())
    assert alive(Stream) == 0
    assert alive(Work) - before <= 32 + 1  # a place remembers whom it belonged to, for the prompts that are shared
    third = len(megabytes) // 3
    assert max(megabytes[2 * third :]) - max(megabytes[:third]) < 20
    last = [submit(engine, number) for number in (*requests[:31], 3)]  # every place can be had again
    until(lambda: engine.waiting == 0)
    assert [stream.read() for stream in last] == [*expected[:31], expected[3]]
