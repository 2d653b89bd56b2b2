"""A checkpoint writes: text from a model, its tokenizer and a seed. Knows nothing about terminals, pages or files."""

from collections.abc import Iterator, Sequence

from cpgpt.checkpoint import Checkpoint
from cpgpt.sampling import generate
from cpgpt.tokenizer import END_OF_TEXT_ID

MAX_CHARACTERS = 2_000  # more than any scene of the corpus has


def stream(
    checkpoint: Checkpoint,
    seed: int,
    *,
    temperature: float = 0.8,
    max_characters: int = MAX_CHARACTERS,
    stop: bool = True,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Iterator[str]:
    """One document, from nothing, in the pieces in which it comes: a character each, or a subword.

    Args:
        seed: the same seed, settings and checkpoint give the same text.
        max_characters: where to end a text that does not end by itself.
        stop: end at `<|endoftext|>`; False is for a model of one endless text, which never learned where to end.
        temperature, top_k, top_p, min_p: see `sampling.probabilities`, also for the errors raised.
    """
    if max_characters < 1:
        raise ValueError(f"max_characters is {max_characters}: it must be 1 or more")
    decoder, left = checkpoint.tokenizer.stream(), max_characters
    steps = generate(
        checkpoint.model,
        [[END_OF_TEXT_ID]],
        [seed],
        max_new_tokens=max_characters,
        stop_id=END_OF_TEXT_ID if stop else None,
        line_breaks=checkpoint.tokenizer.line_break_ids(),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
    )
    for (id,) in steps:
        piece = decoder.step(checkpoint.tokenizer.backend, id) if id is not None else None
        if piece:
            yield piece[:left]
            left -= len(piece)
        if left <= 0:
            return


def write(
    checkpoint: Checkpoint, seeds: Sequence[int], *, temperature: float = 0.8, max_characters: int = MAX_CHARACTERS
) -> list[str]:
    """A document for each seed, all together; each is what `stream` gives for its seed alone, up to rounding in the model."""
    documents: list[list[int]] = [[] for _ in seeds]
    steps = generate(
        checkpoint.model,
        [[END_OF_TEXT_ID]] * len(seeds),
        seeds,
        max_new_tokens=max_characters,
        stop_id=END_OF_TEXT_ID,
        line_breaks=checkpoint.tokenizer.line_break_ids(),
        temperature=temperature,
    )
    for ids in steps:
        for document, id in zip(documents, ids, strict=True):
            if id is not None:
                document.append(id)
    return [checkpoint.tokenizer.decode(document)[:max_characters] for document in documents]
