"""From logits to the next id: temperature, top-k, top-p, min-p, all seeded. Knows nothing about text.

The random number of a draw depends on the stream's seed and on the position of the token drawn, on nothing else (a counter-based
generator, Salmon et al. 2011). So the same seed gives the same text, alone or in a batch, however the steps are grouped.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cpgpt.model import GPT, Cache


def uniform(seed: int, position: int) -> float:
    """The random number in [0, 1) that `seed` has for `position`."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())


def probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, min_p: float | None = None
) -> Tensor:
    """The distribution (B, V) that is sampled, from `logits` (B, V).

    Args:
        temperature: divides the logits; 0 leaves only the likeliest id (greedy).
        top_k: keep the `top_k` likeliest ids, and those as likely as the last of them.
        top_p: keep the likeliest ids that together have at least this probability (https://arxiv.org/abs/1904.09751).
        min_p: keep ids with at least this share of the likeliest one's probability (https://arxiv.org/abs/2407.01082).

    Raises:
        ValueError: an argument out of its range.
    """
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}: it must be 0 (greedy) or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}: it must be 1 or more")
    for name, value in (("top_p", top_p), ("min_p", min_p)):
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"{name} is {value}: it must be over 0 and at most 1")

    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.size(-1)).to(torch.float32)
    logits = logits.cpu().double()  # so that a temperature near 0 is greedy, not infinity; not every device has float64
    probs = F.softmax((logits - logits.max(-1, keepdim=True).values) / temperature, dim=-1).float()
    if top_k is not None and top_k < probs.size(-1):
        probs = probs.masked_fill(probs < probs.topk(top_k).values[:, -1:], 0)
    if top_p is not None and top_p < 1:
        ordered = probs.sort(descending=True).values
        kept = ordered.cumsum(-1) - ordered < top_p * ordered.sum(-1, keepdim=True)  # what is likelier is less than top_p
        least = ordered.masked_fill(~kept, torch.inf).min(-1, keepdim=True).values
        probs = probs.masked_fill(probs < least, 0)
    if min_p is not None:
        probs = probs.masked_fill(probs < min_p * probs.max(-1, keepdim=True).values, 0)
    return probs / probs.sum(-1, keepdim=True)


def sample(probs: Tensor, randoms: Sequence[float]) -> list[int]:
    """One id for each row of `probs` (B, V): the first whose cumulated probability passes the row's random number in [0, 1)."""
    cumulated = probs.cpu().double().cumsum(-1)  # (B, V); not every device has float64
    threshold = torch.tensor(randoms, dtype=torch.double)[:, None] * cumulated[:, -1:]
    return (cumulated <= threshold).sum(-1).tolist()


def keep_newest(ids: Sequence[int], size: int, line_breaks: frozenset[int] = frozenset()) -> list[int]:
    """The last `size` ids at most, from the first line that starts among them (or from anywhere, if none does)."""
    start = max(0, len(ids) - size)
    for i in range(start, len(ids)):
        if i == 0 or ids[i - 1] in line_breaks:
            return list(ids[i:])
    return list(ids[start:])


@torch.inference_mode()
def generate(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    max_new_tokens: int,
    stop_id: int | None = None,
    line_breaks: frozenset[int] = frozenset(),
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Iterator[list[int | None]]:
    """Continue every prompt, a token a step: yields each stream's new id, None once it has ended with `stop_id`.

    A stream that fills the context drops its oldest half, at a line break, and the rest is read again from position 0. A prompt
    longer than the context is cut the same way.

    Raises:
        ValueError: no prompt, an empty one, or not one seed for each; an argument out of its range.
    """
    if not prompts or not all(prompts) or len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: give at least one prompt, each with an id and a seed")
    if min(seeds) < 0:
        raise ValueError(f"seed is {min(seeds)}: it must be 0 or more")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: it must be 1 or more")
    device, size = model.head.weight.device, model.config.block_size
    cache = Cache(model.config, len(prompts), device)
    texts = [keep_newest(prompt, size, line_breaks) for prompt in prompts]  # what each stream's cache stands for
    counts = torch.tensor([len(text) for text in texts], device=device)
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(text, device=device) for text in texts], batch_first=True)  # (B, T)
    every = torch.arange(len(texts), device=device)
    logits = model(ids, cache, counts)[every, counts - 1]  # (B, V)
    ended = [False] * len(texts)
    for step in range(max_new_tokens):
        probs = probabilities(logits, temperature, top_k, top_p, min_p)
        randoms = [uniform(seed, len(prompt) + step) for seed, prompt in zip(seeds, prompts, strict=True)]
        drawn = sample(probs, randoms)
        yield [None if done else id for id, done in zip(drawn, ended, strict=True)]
        ended = [done or id == stop_id for id, done in zip(drawn, ended, strict=True)]
        if all(ended) or step == max_new_tokens - 1:
            return
        for stream, text in enumerate(texts):
            if ended[stream]:  # it is computed along with the others, and nobody reads it
                cache.lengths[stream] = 0
                continue
            if len(text) == size:
                texts[stream] = text = keep_newest(text, size // 2, line_breaks)
                cache.lengths[stream] = 0
                if text:  # a context of one token has no half to keep
                    model(torch.tensor([text], device=device), cache.rows(slice(stream, stream + 1)))
            text.append(drawn[stream])
        logits = model(torch.tensor(drawn, device=device)[:, None], cache)[:, -1]  # (B, V)
