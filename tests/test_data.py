"""Which rows are trained on and evaluated."""

from collections import Counter

import numpy as np
import pytest
import torch

from training.data import IGNORED, Rows, evaluation_batches


def documents(lengths: list[int]) -> np.ndarray:
    """A stream of documents whose tokens are all different (from 1), with id 0 around each."""
    ids, token = [0], 1
    for length in lengths:
        ids += [*range(token, token + length), 0]
        token += length
    return np.array(ids, dtype=np.uint16)


def epoch(rows: Rows, number: int = 0) -> list[tuple[list[int], list[int]]]:
    size = len(rows._plan(number))
    inputs, targets = rows.batch(number * size, size) if number == 0 else rows.batch(len(rows._plan(0)), size)
    return list(zip(inputs.tolist(), targets.tolist(), strict=True))


IDS = documents([30, 50, 41, 7, 120, 33, 64, 58, 20, 77])
SHORT, LONG = 16, 64


@pytest.mark.parametrize("length", [SHORT, LONG])
def test_every_token_is_a_target_in_every_epoch(length: int) -> None:
    rows = Rows(IDS, length, seed=3)
    for number in (0, 1):
        targets = Counter(token for _, row in epoch(rows, number) for token in row)
        assert set(range(1, 501)) <= set(targets)


def test_short_rows_train_every_token_once_an_epoch() -> None:
    """But for what wraps around at the end to fill the last row."""
    targets = Counter(token for _, row in epoch(Rows(IDS, SHORT, seed=3)) for token in row if token)
    assert sum(count - 1 for count in targets.values()) < SHORT


def test_targets_are_the_inputs_shifted_by_one() -> None:
    for length in (SHORT, LONG):
        for inputs, targets in epoch(Rows(IDS, length, seed=3)):
            assert inputs[1:] == targets[:-1]
            assert len(inputs) == len(targets) == length


def test_long_rows_start_where_a_document_starts_or_goes_on() -> None:
    starts = [inputs[0] for inputs, _ in epoch(Rows(IDS, LONG, seed=3))]
    # Only the 120 and the 77 are longer than a row: they go on where the row before them ended.
    assert Counter(start == 0 for start in starts)[False] <= 2
    assert {start for start in starts if start} <= {token for token in IDS.tolist() if token}


def test_long_rows_hold_whole_documents_up_to_the_one_that_the_end_cuts() -> None:
    whole = [tuple(document) for document in np.split(IDS, np.flatnonzero(IDS == 0))]
    for inputs, targets in epoch(Rows(IDS, LONG, seed=3))[:-1]:
        row = np.array([*inputs, targets[-1]])
        first, *rest = [tuple(document) for document in np.split(row, np.flatnonzero(row == 0)) if len(document)]
        assert all(document in whole for document in rest[:-1])
        assert not rest or any(document[: len(rest[-1])] == rest[-1] for document in whole)
        assert first in whole or first[0] != 0 or len(first) == LONG + 1


@pytest.mark.parametrize("length", [SHORT, LONG])
def test_rows_depend_on_the_seed_the_epoch_and_their_number_only(length: int) -> None:
    one, other = Rows(IDS, length, seed=3), Rows(IDS, length, seed=3)
    many, _ = one.batch(0, 40)
    for first in (31, 0, 17):
        assert torch.equal(other.batch(first, 5)[0], many[first : first + 5])
    assert not torch.equal(Rows(IDS, length, seed=4).batch(0, 40)[0], many)
    assert epoch(one, 0) != epoch(one, 1)


@pytest.mark.parametrize("length", [1, 5, 16, 64, 1000])
@pytest.mark.parametrize("tokens", [1, 100, 10_000])
def test_evaluation_takes_every_token_as_a_target_exactly_once(length: int, tokens: int) -> None:
    seen: list[int] = []
    for inputs, targets in evaluation_batches(IDS, length, tokens):
        assert inputs.shape == targets.shape
        assert inputs.size(1) <= length
        seen += targets[targets != IGNORED].tolist()
    assert sorted(seen) == sorted(IDS[1:].tolist())


def test_a_text_shorter_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="has 511 tokens: too few for rows of 600"):
        Rows(IDS, 600, seed=1)
