"""What may come next, guessed from the training text: the likeliest id after the last few, where one is likely. Knows ids only.

A draft never changes what is written (`engine.py` keeps of it what was drawn anyway), it only saves steps: an idea of speculative
decoding (https://arxiv.org/abs/2211.17192) with a table of n-grams in the place of a small model. `training/drafts.py` makes it.
"""

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import safetensors
import safetensors.numpy

FILE = "drafts.safetensors"
ORDERS = (7, 5, 4, 3)  # how many ids are looked at, the longest first
LONGEST = 16  # ids in a draft


def hashed(context: bytes) -> int:
    """32 bits for the last few ids, two bytes each: the lower ones say in which slot to look, the upper ones what must be there."""
    return crc32(context)


def as_bytes(ids: Sequence[int]) -> bytes:
    return array("H", ids).tobytes()


@dataclass(eq=False)
class Drafts:
    """The table: a power of two of slots, in each the upper 16 bits of a context's hash, the id that follows, and how sure that is.

    Raises:
        ValueError: arrays that do not fit each other.
    """

    checks: np.ndarray  # (slots,) uint16
    next_ids: np.ndarray  # (slots,) uint16
    shares: np.ndarray  # (slots,) uint8: in how many of 255 cases the id follows; 0: the slot is empty

    def __post_init__(self) -> None:
        for name, dtype in (("checks", np.uint16), ("next_ids", np.uint16), ("shares", np.uint8)):
            tensor = getattr(self, name)
            if tensor.dtype != dtype or tensor.shape != self.checks.shape or tensor.ndim != 1 or len(tensor) & (len(tensor) - 1):
                raise ValueError(
                    f"{name} is {tensor.dtype} {tensor.shape}: it must be {np.dtype(dtype)} with a power of two of slots"
                )
        # `.data` is a memoryview, which gives Python's own numbers, several times faster than an array does.
        self._checks, self._next_ids, self._shares = self.checks.data, self.next_ids.data, self.shares.data
        self._mask = len(self.checks) - 1

    def propose(self, ids: Sequence[int], most: int, least: float, trust: float = 1.0) -> tuple[list[int], float]:
        """At most `most` ids that may follow `ids`, and how many of them are expected to be right.

        Args:
            least: go on as long as the whole draft is right with this probability or more.
            trust: how much likelier, or less likely, than the table says its ids have been so far.
        """
        context = as_bytes(ids[-ORDERS[0] :])
        draft: list[int] = []
        right = expected = 1.0
        while len(draft) < min(most, LONGEST):
            for order in ORDERS:
                value = hashed(context[-2 * order :])
                slot = value & self._mask
                if self._checks[slot] == value >> 16 and self._shares[slot]:
                    break
            else:
                break
            right *= min(1.0, self._shares[slot] / 255 * trust)
            if right < least:
                break
            expected += right
            draft.append(self._next_ids[slot])
            context = context[2:] + as_bytes(draft[-1:])
        return draft, expected - 1

    def save(self, folder: str | os.PathLike[str]) -> None:
        data = {"checks": self.checks, "next_ids": self.next_ids, "shares": self.shares}
        (Path(folder) / FILE).write_bytes(safetensors.numpy.save(data))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], vocab_size: int) -> "Drafts | None":
        """The table in `folder`; None where there is none.

        Raises:
            ValueError: the file is damaged, or is for another vocabulary.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        try:
            drafts = cls(**safetensors.numpy.load_file(path))
        except (safetensors.SafetensorError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a table of drafts ({error}): take the file away, it is not needed") from error
        if drafts.next_ids.max(initial=0) >= vocab_size:
            raise ValueError(
                f"{path} has id {drafts.next_ids.max()}, but the vocabulary ends at {vocab_size - 1}: take the file away"
            )
        return drafts
