"""Makes the table of `cpgpt/drafts.py` from a text's ids: which id follows which few, how often and how surely."""

import numpy as np

from cpgpt.drafts import ORDERS, Drafts, as_bytes, hashed

SLOTS = 2**18
FEWEST = 4  # times that a context must have been seen
LEAST = 0.4  # the share of the likeliest id after it


def make_drafts(ids: np.ndarray, slots: int = SLOTS) -> Drafts:
    """The table for `ids` (uint16). Where two contexts want one slot, the more useful one has it."""
    entries: list[tuple[float, int, int, float]] = []  # how useful, hash, id, share
    for order in ORDERS:
        if len(ids) > order:
            entries += _entries(ids.astype(np.uint16), order)
    drafts = Drafts(np.zeros(slots, np.uint16), np.zeros(slots, np.uint16), np.zeros(slots, np.uint8))
    for _, value, id, share in sorted(entries):
        slot = value % slots
        drafts.checks[slot], drafts.next_ids[slot], drafts.shares[slot] = value >> 16, id, round(255 * share)
    return drafts


def _entries(ids: np.ndarray, order: int) -> list[tuple[float, int, int, float]]:
    """What is worth knowing about the contexts of one length."""
    windows = np.lib.stride_tricks.sliding_window_view(ids, order + 1)  # (N, order + 1): a context and what follows it
    # One number for each context, then for each context with what follows: equal numbers are equal ids, bar one case in 2^40.
    contexts = np.zeros(len(windows), dtype=np.uint64)
    for column in range(order):
        contexts = (contexts + windows[:, column] + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        contexts ^= contexts >> np.uint64(29)
    order_of = np.lexsort((windows[:, order], contexts))
    context, follows = contexts[order_of], windows[order_of, order]
    starts = np.flatnonzero(np.r_[True, (context[1:] != context[:-1]) | (follows[1:] != follows[:-1])])  # of each pair
    counts = np.diff(starts, append=len(context))
    firsts = np.flatnonzero(np.r_[True, np.diff(context[starts]) != 0])  # of each context, among the pairs
    seen = np.add.reduceat(counts, firsts)
    most = np.maximum.reduceat(counts, firsts)
    shares = most / (seen + 0.5)  # what was seen a few times only is less sure
    entries = []
    for number in np.flatnonzero((seen >= FEWEST) & (shares >= LEAST)).tolist():
        first, last = firsts[number], firsts[number + 1] if number + 1 < len(firsts) else len(starts)
        best = starts[first + counts[first:last].argmax()]
        window = windows[order_of[best]]
        value = hashed(as_bytes(window[:order].tolist()))
        entries.append((float(seen[number] * shares[number]), value, int(window[order]), float(shares[number])))
    return entries
