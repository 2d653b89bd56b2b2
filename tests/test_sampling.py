"""Sampling: every setting keeps what its definition says, draws are fair, and a random number belongs to its seed and position."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpgpt.sampling import Sampling, keep_newest, probabilities, sample, uniforms

LOGITS = np.log(np.array([[0.2, 0.4, 0.1, 0.3]], dtype=np.float32)) + 5
LINE_BREAKS = frozenset({3, 4})
just_below_1 = float(np.nextafter(1, 0))
# Different logits, so that "the likeliest" is never a matter of order.
different_logits = st.lists(st.integers(-60, 60), min_size=1, max_size=30, unique=True).map(
    lambda xs: np.array([xs], dtype=np.float32) / 4
)


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
    row = np.array([expected]) / sum(expected)
    np.testing.assert_allclose(probabilities(LOGITS, Sampling(**settings)), row, atol=1e-6)
    both = probabilities(np.concatenate([LOGITS, LOGITS[:, ::-1]]), Sampling(**settings))  # rows know nothing of each other
    np.testing.assert_allclose(both, np.concatenate([row, row[:, ::-1]]), atol=1e-6)


def test_what_has_a_logit_of_minus_infinity_is_never_kept() -> None:
    masked = np.where([True, False, True, False], LOGITS, -np.inf)
    for settings in ({}, {"temperature": 0}, {"temperature": 1e-9}, {"top_k": 3}, {"top_p": 0.99}, {"min_p": 0.01}):
        probs = probabilities(masked, Sampling(**settings))[0]
        assert probs[[1, 3]].tolist() == [0, 0]
        assert probs.sum() == pytest.approx(1)


@given(logits=different_logits, k=st.integers(1, 40))
def test_top_k_keeps_the_k_likeliest(logits: np.ndarray, k: int) -> None:
    kept = probabilities(logits, Sampling(top_k=k))[0].nonzero()[0].tolist()
    assert sorted(kept) == sorted((-logits[0]).argsort()[:k].tolist())


@given(logits=different_logits, p=st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_likeliest_that_have_it(logits: np.ndarray, p: float) -> None:
    probs, kept = probabilities(logits, Sampling())[0], probabilities(logits, Sampling(top_p=p))[0] > 0
    assert probs[kept].sum() > p - 1e-6
    assert probs[kept].sum() - probs[kept].min() < p + 1e-6
    assert (~kept).sum() == 0 or probs[kept].min() > probs[~kept].max()


@given(logits=different_logits, p=st.floats(0.01, 1))
def test_min_p_keeps_what_has_that_share_of_the_likeliest(logits: np.ndarray, p: float) -> None:
    probs, kept = probabilities(logits, Sampling())[0], probabilities(logits, Sampling(min_p=p))[0] > 0
    share = probs / probs.max()
    assert (share[kept] > p - 1e-6).all()
    assert (share[~kept] < p + 1e-6).all()


@pytest.mark.parametrize("temperature", [0, 1e-3, 1e-30, 1e-40, 1e-320])
def test_temperatures_near_zero_are_greedy(temperature: float) -> None:
    logits = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32) * 10
    probs = probabilities(logits, Sampling(temperature))
    assert probs.argmax(-1).tolist() == logits.argmax(-1).tolist()
    np.testing.assert_allclose(probs.max(-1), np.ones(5))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-0.1, math.inf, math.nan, True, "hot", None)),
        *(("top_k", value) for value in (0, -3, 2.5, True)),
        *((name, value) for name in ("top_p", "min_p") for value in (0, -0.5, 1.1, math.nan, "all")),
    ],
)
def test_a_setting_out_of_its_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value!r}: it must be"):
        Sampling(**{name: value})


# Which id is drawn


def test_draws_are_as_frequent_as_their_probabilities() -> None:
    probs, n = np.array([0.3, 0.0, 0.05, 0.4, 0.25, 0.0]), 4000
    drawn = sample(np.tile(probs, (n, 1)), uniforms(7, 0, n))
    seen, expected = np.bincount(drawn, minlength=6), probs * n
    assert (seen[expected == 0] == 0).all()
    possible = expected > 0
    chi_square = ((seen - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 16.3  # 3 degrees of freedom: less in 999 of 1000 cases


@given(weights=st.lists(st.sampled_from([0.0, 0.0, 1e-30, 1e-7, 0.1, 1.0, 3.0]), min_size=1, max_size=50).filter(any))
def test_an_id_with_probability_zero_is_never_drawn(weights: list[float]) -> None:
    row = np.array([weights]) / sum(weights)
    for random in (0.0, 1e-300, 0.5, 1 - 1e-9, just_below_1):
        [id] = sample(row, np.array([random]))
        assert weights[id] > 0


def test_a_random_number_belongs_to_its_seed_and_position_only() -> None:
    numbers = {(seed, position): float(uniforms(seed, position)[0]) for seed in (0, 1, 7, 2**64 - 1) for position in range(200)}
    np.random.seed(0)
    assert all(uniforms(*key)[0] == number for key, number in reversed(numbers.items()))
    assert uniforms(7, 13, 100).tolist() == [numbers[7, position] for position in range(13, 113)]  # many at a time are the same
    assert len(set(numbers.values())) == len(numbers)
    assert all(0 <= number < 1 for number in numbers.values())
    assert np.mean(list(numbers.values())) == pytest.approx(0.5, abs=0.04)


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
