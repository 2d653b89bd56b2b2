"""The engine: each stream is as if it were alone, whatever the others do, and nothing of it stays behind."""

import gc
import queue
import random
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import cpgpt
from cpgpt.engine import PROMPT_ROWS, BusyError, Engine
from cpgpt.grammar import Grammar, Rules, State
from cpgpt.kernel import Kernel
from cpgpt.model import GPT, Config
from cpgpt.runner import PlainRunner, Runner
from cpgpt.sampling import Sampling, keep_newest, probabilities, sample, uniforms
from cpgpt.screenplay import parse
from cpgpt.stream import Stream, Work
from cpgpt.tokenizer import END_OF_TEXT_ID, Tokenizer
from tests.commands import ENVIRONMENT, ROOT
from tests.conftest import TOKENIZER, random_ids, randomised, tiny

LINE_BREAKS = TOKENIZER.line_break_ids()
WIDE = {"n_head": 2, "n_embd": 32}  # what the kernel can run
SECONDS = 60  # of the long run
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


@pytest.fixture
def watched() -> Iterator[Watched]:
    runner = Watched(PlainRunner(randomised(tiny("modern", block_size=600)), 8))
    yield runner
    runner.set_free()


def start(engine: Engine, prompt: Sequence[int] = (0,), seed: int = 1, count: int = 20, **settings: Any) -> Stream:
    how = {"sampling": Sampling(), "stop_id": None, **settings}
    return engine.submit(list(prompt), seed=seed, max_new_tokens=count, kind=Stream, **how)


def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds, not for ever."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# What a stream is made of


def slowly(
    logits_of: Callable[[list[int]], np.ndarray], block_size: int, prompt: Sequence[int], seed: int, count: int, how: Sampling
) -> str:
    """What the engine promises for one stream: no cache, no batch, everything read anew for every id."""
    ids, drawn = keep_newest(prompt, block_size, LINE_BREAKS), list[int]()
    for position in range(len(prompt), len(prompt) + count):
        drawn += sample(probabilities(logits_of(ids)[None], how), uniforms(seed, position)).tolist()
        if len(ids) == block_size:
            ids = keep_newest(ids, block_size // 2, LINE_BREAKS)
        ids.append(drawn[-1])
    return TOKENIZER.decode(drawn)


def by_the_model(model: GPT) -> Callable[[list[int]], np.ndarray]:
    def logits_of(ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor([ids]))[0, -1].numpy()

    return logits_of


def by_a_new_kernel(model: GPT) -> Callable[[list[int]], np.ndarray]:
    runner = Kernel(model, 1)

    def logits_of(ids: list[int]) -> np.ndarray:
        columns = (ids, [0] * len(ids), range(len(ids)))
        return runner.forward(*(np.array(column, dtype=np.int32) for column in columns))[-1]

    return logits_of


PROMPTS = [random_ids(length, seed=length).tolist() for length in (1, 17, 24, 5, 60)]  # the context is 24
PROMPTS[-1][45] = min(LINE_BREAKS)  # in what is left of the longest
SEEDS = [5, 6, 7, 5, 9]
SAMPLINGS = {
    "plain": Sampling(),
    "greedy": Sampling(0),
    "all": Sampling(1.5, top_k=20, top_p=0.9, min_p=0.01),
}


@pytest.mark.parametrize("how", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("kind", ["classic", "modern", "kernel"])
def test_same_seed_same_text_alone_and_together_also_past_the_context(kind: str, how: Sampling) -> None:
    model = randomised(tiny("modern", **WIDE) if kind == "kernel" else tiny(kind))
    make = (lambda: Kernel(model, 8)) if kind == "kernel" else (lambda: PlainRunner(model, 8))
    logits_of = by_a_new_kernel(model) if kind == "kernel" else by_the_model(model)
    expected = [slowly(logits_of, 24, prompt, seed, 50, how) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    engine = engine_on(make(), model)
    streams: list[Stream] = [start(engine, *request, 50, sampling=how) for request in zip(PROMPTS, SEEDS, strict=True)]
    assert [stream.read() for stream in streams] == expected
    alone = [start(engine_on(make(), model), *request, 50, sampling=how).read() for request in zip(PROMPTS, SEEDS, strict=True)]
    assert alone == expected
    again = [start(engine, *request, 50, sampling=how).read() for request in zip(PROMPTS, SEEDS, strict=True)]  # in used places
    assert again == expected


def test_streams_with_different_settings_go_together(model: GPT) -> None:
    requests = [(prompt, seed, how) for prompt, seed in zip(PROMPTS, SEEDS, strict=True) for how in SAMPLINGS.values()]
    engine = plain_engine(model, places=16)
    streams = [start(engine, prompt, seed, 20, sampling=how) for prompt, seed, how in requests]
    assert [s.read() for s in streams] == [slowly(by_the_model(model), 24, prompt, seed, 20, how) for prompt, seed, how in requests]


def test_seeds_differ(model: GPT) -> None:
    engine = plain_engine(model)
    streams = [start(engine, seed=seed, sampling=Sampling(2)) for seed in range(8)]
    assert len({stream.read() for stream in streams}) == 8
    assert [stream.seed for stream in streams] == list(range(8))


def test_a_stream_ends_with_its_stop_id(model: GPT) -> None:
    engine = plain_engine(model)
    whole = start(engine, count=40, sampling=Sampling(3)).read()
    stop = whole[len(whole) // 2]
    stopped = start(engine, count=40, sampling=Sampling(3), stop_id=TOKENIZER.encode(stop)[0]).read()
    assert stopped == whole[: whole.index(stop) + 1]
    assert engine.steps > 0


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_the_smallest_contexts_go_on_too(block_size: int) -> None:
    model = randomised(tiny("modern", block_size=block_size))
    text = start(plain_engine(model), count=9).read()
    assert text == slowly(by_the_model(model), block_size, [0], 1, 9, Sampling())


def test_a_character_of_several_ids_is_given_out_whole() -> None:
    tokenizer = Tokenizer.train(["日本 é"])

    class Writes(PlainRunner):
        """Makes each id of a text certain after the one before it."""

        def forward(self, ids: np.ndarray, places: np.ndarray, positions: np.ndarray) -> np.ndarray:
            text = tokenizer.encode("é日本é")
            return np.eye(tokenizer.vocab_size, dtype=np.float32)[[text[position] for position in positions]] * 1000

    model = randomised(Config.modern(tokenizer.vocab_size, n_layer=1, n_head=1, n_embd=8, block_size=32))
    engine = Engine(Writes(model, 1), tokenizer, 32, places=1)
    stream: Stream = engine.submit([0], seed=0, sampling=Sampling(), max_new_tokens=10)
    assert list(stream) == ["é", "日", "本", "é"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "the prompt is empty: it must have at least one id"),
        ({"seed": -1}, "seed is -1: it must be 0 or more"),
        ({"count": 0}, "max_new_tokens is 0: it must be 1 or more"),
    ],
)
def test_what_cannot_be_written_is_named(model: GPT, arguments: dict[str, Any], message: str) -> None:
    engine = plain_engine(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        start(engine, **arguments)
    assert (engine.running, engine.waiting) == (0, 0)


# Reading a stream


def test_a_stream_can_be_iterated_taken_and_read_whole(model: GPT) -> None:
    engine = plain_engine(model)
    expected = start(engine).read()
    characters = list(start(engine))
    assert all(len(character) == 1 for character in characters)
    assert "".join(characters) == expected

    stream, pieces = start(engine), list[str]()
    while (piece := stream.take()) is not None:
        pieces.append(piece)
        assert stream.text == "".join(pieces)
        time.sleep(0.001)
    assert "".join(pieces) == expected
    assert stream.take() is None
    assert list(stream) == []
    assert stream.read() == expected

    stream = start(engine)  # all ways in turn
    assert [next(stream), next(stream)] == list(expected[:2])
    until(lambda: engine.running == engine.waiting == 0)
    assert stream.take() == expected[2:]
    assert stream.read() == expected
    stream.close()  # after its end nothing is lost
    assert stream.read() == expected


def test_take_never_waits(watched: Watched) -> None:
    engine = engine_on(watched, watched.runner.model, places=8)  # type: ignore[attr-defined]
    stream = start(engine, text="So: ")
    watched.entered.put(watched.entered.get(timeout=PATIENCE))  # it has a place
    assert stream.take() == "So: "
    assert [stream.take() for _ in range(3)] == ["", "", ""]
    watched.step()
    watched.entered.get(timeout=PATIENCE)
    assert len(stream.take() or "") <= 1
    assert stream.take() == ""


def test_a_stream_that_was_closed_says_so_and_gives_nothing_more(model: GPT) -> None:
    engine = plain_engine(model)
    with start(engine, count=5000) as stream:
        text = next(stream) + next(stream)
    assert list(stream) == []
    assert stream.take() is None
    with pytest.raises(RuntimeError, match="closed before its end, after 2 characters"):
        stream.read()
    assert stream.text == text
    stream.close()  # twice does no harm

    ended = start(engine)  # written, but not read to its end
    next(ended)
    until(lambda: engine.running == engine.waiting == 0)
    ended.close()
    with pytest.raises(RuntimeError, match="closed before its end, after 1 characters"):
        ended.read()


def test_whoever_waits_for_a_character_is_woken_when_the_stream_is_closed(watched: Watched) -> None:
    engine = engine_on(watched, watched.runner.model)  # type: ignore[attr-defined]
    stream, read = start(engine), list[str]()
    reader = threading.Thread(target=lambda: read.extend(stream))
    reader.start()
    watched.entered.get(timeout=PATIENCE)  # the step does not come to its end
    stream.close()
    reader.join(timeout=PATIENCE)
    assert not reader.is_alive()
    assert read == []


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


# What goes wrong


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
