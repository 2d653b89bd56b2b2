"""From logits to the next id: temperature, top-k, top-p, min-p, all seeded. Knows nothing about text.

The random number of a draw depends on the stream's seed and on the position of the token drawn, on nothing else (a counter-based
generator, Salmon et al. 2011). So the same seed gives the same text, alone or in a batch, however the steps are grouped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def uniforms(seed: int, position: int, count: int = 1) -> np.ndarray:
    """The random numbers (count,) in [0, 1) that `seed` has for `position` and those after it."""
    # A counter gives four numbers of 64 bits: the first is the position's. A double has 53 bits.
    raw = np.random.Philox(key=seed, counter=position).random_raw(4 * count)[::4]
    return (raw >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class Sampling:
    """How the next id is drawn.

    Args:
        temperature: divides the logits; 0 leaves only the likeliest id (greedy).
        top_k: keep the `top_k` likeliest ids, and those as likely as the last of them.
        top_p: keep the likeliest ids that together have at least this probability (https://arxiv.org/abs/1904.09751).
        min_p: keep ids with at least this share of the likeliest one's probability (https://arxiv.org/abs/2407.01082).

    Raises:
        ValueError: an argument out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.temperature) or not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature!r}: it must be 0 (greedy) or more")
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            raise ValueError(f"top_k is {self.top_k!r}: it must be a whole number, 1 or more")
        for name, value in (("top_p", self.top_p), ("min_p", self.min_p)):
            if value is not None and (not _is_number(value) or not 0 < value <= 1):
                raise ValueError(f"{name} is {value!r}: it must be over 0 and at most 1")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def probabilities(logits: np.ndarray, how: Sampling) -> np.ndarray:
    """The distributions (B, V) that are sampled, from `logits` (B, V). An id whose logit is minus infinity has none."""
    if how.temperature == 0:
        return (np.arange(logits.shape[-1]) == logits.argmax(-1)[:, None]).astype(np.float64)
    # In float64, so that a temperature near 0 is greedy, not infinity; what overflows there is as unlikely as can be.
    with np.errstate(over="ignore"):
        probs = np.exp((logits - logits.max(-1, keepdims=True)).astype(np.float64) / how.temperature)
    if how.top_k is not None and how.top_k < probs.shape[-1]:
        least = np.partition(probs, -how.top_k)[:, -how.top_k, None]
        probs = np.where(probs < least, 0, probs)
    if how.top_p is not None and how.top_p < 1:
        ordered = -np.sort(-probs)
        kept = ordered.cumsum(-1) - ordered < how.top_p * ordered.sum(-1, keepdims=True)  # what is likelier is less than top_p
        least = np.where(kept, ordered, np.inf).min(-1, keepdims=True)
        probs = np.where(probs < least, 0, probs)
    if how.min_p is not None:
        probs = np.where(probs < how.min_p * probs.max(-1, keepdims=True), 0, probs)
    return probs / probs.sum(-1, keepdims=True)


def sample(probs: np.ndarray, randoms: np.ndarray) -> np.ndarray:
    """One id for each row of `probs` (B, V): the first whose cumulated probability passes the row's random number in [0, 1)."""
    cumulated = probs.cumsum(-1)  # (B, V)
    return (cumulated / cumulated[:, -1:] <= randoms[:, None]).sum(-1)


def keep_newest(ids: Sequence[int], size: int, line_breaks: frozenset[int] = frozenset()) -> list[int]:
    """The last `size` ids at most, from the first line that starts among them (or from anywhere, if none does)."""
    start = max(0, len(ids) - size)
    for i in range(start, len(ids)):
        if i == 0 or ids[i - 1] in line_breaks:
            return list(ids[i:])
    return list(ids[start:])
