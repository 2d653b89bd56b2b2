"""What may come next, guessed from the training text. Knows ids only."""

from collections.abc import Sequence


class Drafts:
    """The guesses."""

    def propose(self, ids: Sequence[int], most: int, streams: int) -> list[int]:
        raise NotImplementedError
