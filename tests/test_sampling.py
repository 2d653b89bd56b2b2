"""Sampling: every setting keeps what its definition says, draws are fair, and the same seed gives the same ids."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpgpt.model import GPT
from cpgpt.sampling import generate, keep_newest, probabilities, sample, uniform
from tests.conftest import random_ids, randomised, tiny

LOGITS = torch.tensor([[0.2, 0.4, 0.1, 0.3]]).log() + 5
LINE_BREAKS = frozenset({3, 4})
just_below_1 = float(np.nextafter(1, 0))
# Different logits, so that "the likeliest" is never a matter of order.
different_logits = st.lists(st.integers(-60, 60), min_size=1, max_size=30, unique=True).map(lambda xs: torch.tensor([xs]) / 4)


# Which ids may be drawn


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [2, 4, 1, 3]),
        ({"temperature": 0}, [0, 1, 0, 0]),
        ({"temperature": 0.5}, [4, 16, 1, 9]),
        ({"temperature": 0.5, "top_k": 2}, [0, 16, 0, 9]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 3}, [2, 4, 0, 3]),
        ({"top_k": 9}, [2, 4, 1, 3]),
        ({"top_p": 0.39}, [0, 1, 0, 0]),
        ({"top_p": 0.41}, [0, 4, 0, 3]),
        ({"top_p": 0.69}, [0, 4, 0, 3]),
        ({"top_p": 0.71}, [2, 4, 0, 3]),
        ({"top_p": 1}, [2, 4, 1, 3]),
        ({"min_p": 0.26}, [2, 4, 0, 3]),
        ({"min_p": 0.51}, [0, 4, 0, 3]),
        ({"min_p": 1}, [0, 1, 0, 0]),
        ({"top_k": 3, "top_p": 0.75}, [0, 4, 0, 3]),  # the three have 0.9, of which 0.7 is more than three quarters
        ({"top_k": 3, "min_p": 0.7}, [0, 4, 0, 3]),
    ],
    ids=str,
)
def test_settings_keep_what_their_definition_says(settings: dict[str, Any], expected: list[int]) -> None:
    row = torch.tensor([expected]) / sum(expected)
    torch.testing.assert_close(probabilities(LOGITS, **settings), row)
    both = probabilities(torch.cat([LOGITS, LOGITS.flip(1)]), **settings)  # rows know nothing of each other
    torch.testing.assert_close(both, torch.cat([row, row.flip(1)]))


@given(logits=different_logits, k=st.integers(1, 40))
def test_top_k_keeps_the_k_likeliest(logits: torch.Tensor, k: int) -> None:
    kept = probabilities(logits, top_k=k)[0].nonzero().flatten().tolist()
    assert sorted(kept) == sorted(logits[0].argsort(descending=True)[:k].tolist())


@given(logits=different_logits, p=st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_likeliest_that_have_it(logits: torch.Tensor, p: float) -> None:
    probs, kept = probabilities(logits)[0], probabilities(logits, top_p=p)[0] > 0
    assert probs[kept].sum() > p - 1e-6
    assert probs[kept].sum() - probs[kept].min() < p + 1e-6
    assert (~kept).sum() == 0 or probs[kept].min() > probs[~kept].max()


@given(logits=different_logits, p=st.floats(0.01, 1))
def test_min_p_keeps_what_has_that_share_of_the_likeliest(logits: torch.Tensor, p: float) -> None:
    probs, kept = probabilities(logits)[0], probabilities(logits, min_p=p)[0] > 0
    share = probs / probs.max()
    assert (share[kept] > p - 1e-6).all()
    assert (share[~kept] < p + 1e-6).all()


@pytest.mark.parametrize("temperature", [0, 1e-3, 1e-30, 1e-40, 1e-320])
def test_temperatures_near_zero_are_greedy(temperature: float) -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 10
    assert probabilities(logits, temperature).argmax(-1).tolist() == logits.argmax(-1).tolist()
    torch.testing.assert_close(probabilities(logits, temperature).amax(-1), torch.ones(5))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-0.1, math.inf, math.nan)),
        *(("top_k", value) for value in (0, -3)),
        *((name, value) for name in ("top_p", "min_p") for value in (0, -0.5, 1.1, math.nan)),
    ],
)
def test_a_setting_out_of_its_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}: it must be"):
        probabilities(LOGITS, **{name: value})


# Which id is drawn


def test_draws_are_as_frequent_as_their_probabilities() -> None:
    probs, n = torch.tensor([0.3, 0.0, 0.05, 0.4, 0.25, 0.0]), 4000
    drawn = sample(probs.expand(n, -1), [uniform(7, position) for position in range(n)])
    seen, expected = torch.bincount(torch.tensor(drawn), minlength=6), probs * n
    assert (seen[expected == 0] == 0).all()
    possible = expected > 0
    chi_square = ((seen - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 16.3  # 3 degrees of freedom: less in 999 of 1000 cases


@given(weights=st.lists(st.sampled_from([0.0, 0.0, 1e-30, 1e-7, 0.1, 1.0, 3.0]), min_size=1, max_size=50).filter(any))
def test_an_id_with_probability_zero_is_never_drawn(weights: list[float]) -> None:
    row = torch.tensor([weights]) / sum(weights)
    for random in (0.0, 1e-300, 0.5, 1 - 1e-9, just_below_1):
        [id] = sample(row, [random])
        assert weights[id] > 0


def test_a_random_number_belongs_to_its_seed_and_position_only() -> None:
    numbers = {(seed, position): uniform(seed, position) for seed in (0, 1, 7, 2**64) for position in range(200)}
    np.random.seed(0)
    torch.manual_seed(0)
    assert all(uniform(*key) == number for key, number in reversed(numbers.items()))
    assert len(set(numbers.values())) == len(numbers)
    assert all(0 <= number < 1 for number in numbers.values())
    assert np.mean(list(numbers.values())) == pytest.approx(0.5, abs=0.04)


# Whole streams


def collected(steps: Iterable[list[int | None]], streams: int) -> list[list[int]]:
    """What each stream gave until it ended; every step names every stream, and None stays None."""
    ids: list[list[int | None]] = [[] for _ in range(streams)]
    for step in steps:
        for stream, id in zip(ids, step, strict=True):
            stream.append(id)
    given = [[id for id in stream if id is not None] for stream in ids]
    assert all(stream == [*ids, *[None] * (len(stream) - len(ids))] for stream, ids in zip(ids, given, strict=True))
    return given


def slowly(model: GPT, prompt: Sequence[int], seed: int, count: int, **settings: Any) -> list[int]:
    """What `generate` promises for one stream, with neither cache nor batch."""
    text, drawn = keep_newest(prompt, model.config.block_size, LINE_BREAKS), list[int]()
    for position in range(len(prompt), len(prompt) + count):
        with torch.no_grad():
            logits = model(torch.tensor([text]))[:, -1]
        drawn += sample(probabilities(logits, **settings), [uniform(seed, position)])
        if len(text) == model.config.block_size:
            text = keep_newest(text, model.config.block_size // 2, LINE_BREAKS)
        text.append(drawn[-1])
    return drawn


PROMPTS = [random_ids(length, seed=length).tolist() for length in (1, 17, 24, 5, 60)]  # the context is 24
PROMPTS[-1][45] = min(LINE_BREAKS)  # in what is left of the longest


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0}, {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.01}],
    ids=["plain", "greedy", "all"],
)
def test_same_seed_same_ids_alone_and_in_a_batch_also_past_the_context(model: GPT, settings: dict[str, Any]) -> None:
    seeds, how = [5, 6, 7, 5, 9], {"max_new_tokens": 50, "line_breaks": LINE_BREAKS, **settings}
    together = collected(generate(model, PROMPTS, seeds, **how), len(PROMPTS))
    alone = [collected(generate(model, [prompt], [seed], **how), 1)[0] for prompt, seed in zip(PROMPTS, seeds, strict=True)]
    assert together == alone
    assert together == [slowly(model, prompt, seed, 50, **settings) for prompt, seed in zip(PROMPTS, seeds, strict=True)]


def test_past_the_context_a_stream_goes_on_as_if_its_newest_half_had_been_the_prompt(model: GPT) -> None:
    greedy = dict[str, Any](temperature=0, line_breaks=LINE_BREAKS)
    [prompt] = random_ids(1, 24).tolist()
    [ids] = collected(generate(model, [prompt], [0], max_new_tokens=8, **greedy), 1)
    rest = [*keep_newest(prompt, 12, LINE_BREAKS), ids[0]]
    assert 1 < len(rest) <= 13
    assert collected(generate(model, [rest], [0], max_new_tokens=7, **greedy), 1) == [ids[1:]]


def test_seeds_differ(model: GPT) -> None:
    ids = collected(generate(model, [[0]] * 8, range(8), max_new_tokens=12, temperature=2), 8)
    assert len({tuple(stream) for stream in ids}) == 8


def test_a_stream_ends_with_stop_id_and_is_none_from_then_on(model: GPT) -> None:
    seeds, how = [5, 6, 7], dict[str, Any](max_new_tokens=40, temperature=3.0)
    whole = collected(generate(model, [[0], [1, 2], [3]], seeds, **how), 3)
    possible = {id: [stream.index(id) + 1 if id in stream else 40 for stream in whole] for id in whole[0]}
    stop, ends = next((id, ends) for id, ends in possible.items() if len(set(ends)) == 3)  # each stream ends at another step
    steps = list(generate(model, [[0], [1, 2], [3]], seeds, stop_id=stop, **how))
    assert len(steps) == max(ends)
    for stream, end in enumerate(ends):
        assert [step[stream] for step in steps] == [*whole[stream][:end], *[None] * (len(steps) - end)]


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_the_smallest_contexts_generate_too(block_size: int) -> None:
    model = randomised(tiny("modern", block_size=block_size))
    assert len(list(generate(model, [[0]], [0], max_new_tokens=9))) == 9


@pytest.mark.parametrize(
    ("prompts", "seeds", "settings", "words"),
    [
        ([], [], {}, "0 prompts and 0 seeds"),
        ([[1], []], [1, 2], {}, "each with an id"),
        ([[1], [2]], [1], {}, "2 prompts and 1 seeds"),
        ([[1]], [1], {"temperature": -1}, "temperature is -1"),
        ([[1]], [1], {"top_k": 0}, "top_k is 0"),
    ],
)
def test_generate_names_what_is_wrong(
    model: GPT, prompts: list[list[int]], seeds: list[int], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        next(generate(model, prompts, seeds, max_new_tokens=1, **settings))


# What stays when the context is full


@pytest.mark.parametrize(
    ("ids", "size", "kept"),
    [
        ([1, 3, 5, 6, 3, 7, 8], 9, [1, 3, 5, 6, 3, 7, 8]),  # all of it fits
        ([1, 3, 5, 6, 3, 7, 8], 6, [5, 6, 3, 7, 8]),  # from the first line that starts among the last six
        ([1, 3, 5, 6, 3, 7, 8], 5, [5, 6, 3, 7, 8]),  # which may be the first of them
        ([1, 3, 5, 6, 3, 7, 8], 4, [7, 8]),
        ([1, 3, 5, 6, 3, 7, 8], 1, [8]),  # no line starts there
        ([1, 3, 5, 6, 3], 2, [6, 3]),  # a line break alone at the end starts none
    ],
)
def test_keep_newest_cuts_at_a_line_break(ids: list[int], size: int, kept: list[int]) -> None:
    assert keep_newest(ids, size, LINE_BREAKS) == kept


@given(ids=st.lists(st.integers(0, 8), min_size=1, max_size=40), size=st.integers(1, 40))
def test_keep_newest_keeps_the_longest_whole_lines_that_fit(ids: list[int], size: int) -> None:
    kept = keep_newest(ids, size, LINE_BREAKS)
    starts = [0, *(i + 1 for i, id in enumerate(ids[:-1]) if id in LINE_BREAKS)]
    fitting = list(itertools.dropwhile(lambda start: len(ids) - start > size, starts))
    assert kept == ids[fitting[0] if fitting else len(ids) - size :]
    assert keep_newest(ids, size) == ids[-size:]
