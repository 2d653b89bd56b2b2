"""The engine: what a stream is made of, as if it were alone, and how it is read."""

import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from cpgpt.engine import Engine
from cpgpt.kernel import Kernel
from cpgpt.model import GPT, Config
from cpgpt.runner import PlainRunner
from cpgpt.sampling import Sampling, keep_newest, probabilities, sample, uniforms
from cpgpt.stream import Stream
from cpgpt.tokenizer import Tokenizer
from tests.conftest import TOKENIZER, random_ids, randomised, tiny
from tests.engines import PATIENCE, WIDE, Watched, engine_on, plain_engine, start, until

LINE_BREAKS = TOKENIZER.line_break_ids()


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
