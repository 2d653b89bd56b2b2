"""The transformer: ids in, logits out. Read it top to bottom; the parts come before the whole.

A decoder-only language model (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; Radford et al. 2019, GPT-2) in two shapes
that share almost every line. `classic` is GPT-2: learned positions, LayerNorm, a GELU feed-forward, biases. `modern` is what the
years since have changed: rotary positions, RMSNorm, normalised queries and keys, SwiGLU, no biases; it is Qwen3's shape
(https://arxiv.org/abs/2505.09388). Every difference is one switch in `Config`.

This file knows nothing about text, files, sampling or training.

The letters in shape comments: B streams in a batch, T tokens read now, S tokens attended to (T and what the cache holds),
C the model's width (`n_embd`), nh heads, hs the size of a head (C / nh), V the vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The two whole shapes, as settings of the switches of `Config`.
CLASSIC: dict[str, Any] = {
    "positions": "learned",
    "norm": "layernorm",
    "norm_eps": 1e-5,
    "qk_norm": False,
    "activation": "gelu",
    "bias": True,
    "qkv_bias": True,
}
MODERN: dict[str, Any] = {
    "positions": "rotary",
    "norm": "rmsnorm",
    "norm_eps": 1e-6,
    "qk_norm": True,
    "activation": "swiglu",
    "bias": False,
    "qkv_bias": False,
}

LARGEST = 2**24  # of any size: more is a damaged or hostile configuration


@dataclass(frozen=True)
class Config:
    """The sizes of a model and its switches. The defaults are the modern shape; `Config.classic(...)` is the other.

    Raises:
        ValueError: a size or a switch that cannot be built; the message names the values that can.
    """

    vocab_size: int
    block_size: int = 1024  # the context: how many tokens the model can attend to
    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 384
    n_hidden: int = 0  # width of the feed-forward; 0: 4 x n_embd, or 8/3 x n_embd for SwiGLU, which has a third matrix
    positions: Literal["rotary", "learned"] = "rotary"
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = 1e-6
    qk_norm: bool = True  # normalise queries and keys before they meet
    activation: Literal["swiglu", "gelu", "relu"] = "swiglu"
    bias: bool = False  # in the linear layers and in LayerNorm
    qkv_bias: bool = False  # in the query/key/value projection
    tie_embeddings: bool = True  # the head that predicts an id is the table that embeds it
    rope_theta: float = 10_000.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_hidden"):
            value, least = getattr(self, name), 0 if name == "n_hidden" else 1
            if type(value) is not int or not least <= value <= LARGEST:
                raise ValueError(f"{name} is {value!r}: it must be a whole number from {least} to {LARGEST}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} cannot be split among {self.n_head} heads: it must be a multiple of n_head")
        choices = {"positions": ("rotary", "learned"), "norm": ("rmsnorm", "layernorm"), "activation": ("swiglu", "gelu", "relu")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}: it must be one of {', '.join(allowed)}")
        if self.positions == "rotary" and self.head_size % 2:
            raise ValueError(f"rotary positions turn pairs: the head size n_embd / n_head is {self.head_size}, it must be even")
        for name in ("qk_norm", "bias", "qkv_bias", "tie_embeddings"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} is {getattr(self, name)!r}: it must be true or false")
        for name in ("norm_eps", "rope_theta", "dropout"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < 1e10:
                raise ValueError(f"{name} is {value!r}: it must be a number of 0 or more")
        if self.rope_theta == 0:
            raise ValueError(f"rope_theta is {self.rope_theta!r}: it must be over 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout!r}: it must be at least 0 and less than 1")
        if not self.n_hidden:
            third = -(-self.n_embd * 8 // 3 // 64) * 64  # rounded up: matrix products like multiples of 64
            object.__setattr__(self, "n_hidden", third if self.activation == "swiglu" else 4 * self.n_embd)

    @classmethod
    def classic(cls, vocab_size: int, **sizes: Any) -> "Config":
        """GPT-2's shape; `sizes` are any other fields."""
        return cls(vocab_size, **{**CLASSIC, **sizes})

    @classmethod
    def modern(cls, vocab_size: int, **sizes: Any) -> "Config":
        """Qwen3's shape; `sizes` are any other fields."""
        return cls(vocab_size, **{**MODERN, **sizes})

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head


class Cache:
    """The keys and values of what each stream has read so far, so that the next token is computed and nothing else again.

    Memory for `batch` streams of `block_size` tokens is taken once. Streams may have different lengths.
    """

    def __init__(self, config: Config, batch: int = 1, device: torch.device | str | None = None) -> None:
        shape = (config.n_layer, batch, config.n_head, config.block_size, config.head_size)
        self.keys = torch.zeros(shape, device=device)
        self.values = torch.zeros(shape, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)  # tokens that each stream has read

    def rows(self, streams: slice) -> "Cache":
        """The same memory, seen as the cache of some of the streams only."""
        part = object.__new__(Cache)
        part.keys, part.values, part.lengths = self.keys[:, streams], self.values[:, streams], self.lengths[streams]
        return part

    def append(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """Write the new (B, nh, T, hs) at `positions` (B, T); return all up to the `longest` stream: (B, nh, S, hs)."""
        stream = torch.arange(len(positions), device=positions.device)[:, None]  # (B, 1)
        self.keys[layer][stream, :, positions] = keys.transpose(1, 2)
        self.values[layer][stream, :, positions] = values.transpose(1, 2)
        return self.keys[layer][:, :, :longest], self.values[layer][:, :, :longest]


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight: LayerNorm without the mean and the bias (https://arxiv.org/abs/1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def make_norm(config: Config, size: int) -> nn.Module:
    if config.norm == "layernorm":
        return nn.LayerNorm(size, eps=config.norm_eps, bias=config.bias)
    return RMSNorm(size, config.norm_eps)


def rotary_table(config: Config) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (block_size, hs / 2) each, of position times frequency (https://arxiv.org/abs/2104.09864).

    Frequencies fall geometrically from 1 to 1 / rope_theta: the first pairs of a head tell near tokens apart, the last far ones.
    """
    cpu = torch.device("cpu")  # also where a model is made on the meta device, whose arithmetic imports PyTorch's compiler first
    exponents = torch.arange(0, config.head_size, 2, device=cpu).float() / config.head_size
    angles = torch.outer(torch.arange(config.block_size, device=cpu).float(), config.rope_theta**-exponents)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + hs/2]) of queries or keys by the angle of its position.

    The product of a turned query and a turned key depends on the distance between their positions only.
    """
    first, second = x.chunk(2, dim=-1)  # (B, nh, T, hs / 2) each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attention_written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention, step by step: what each token takes from those before it, and the weights it takes it with.

    q is (B, nh, T, hs), k and v (B, nh, S, hs), mask (B, 1, T, S) true where a token may look (None: all up to itself).
    """
    T, S = q.size(2), k.size(2)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, nh, T, S)
    if mask is None:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril()
    scores = scores.masked_fill(~mask, -math.inf)
    weights = F.softmax(scores, dim=-1)
    return F.dropout(weights, dropout) @ v, weights  # (B, nh, T, hs), (B, nh, T, S)


def attention_fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """The same result in one call that never holds all the weights (https://arxiv.org/abs/2205.14135)."""
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None)


@dataclass
class Reading:
    """What the blocks share in one forward pass."""

    positions: Tensor  # (1 or B, T)
    cos: Tensor | None = None  # rotary positions only: (1 or B, 1, T, hs / 2)
    sin: Tensor | None = None
    mask: Tensor | None = None  # (B, 1, T, S), true where a token may look; None: all up to itself
    cache: Cache | None = None
    longest: int = 0  # S: tokens in the longest stream once this pass is done
    fused: bool = True  # which of the two attentions
    maps: list[Tensor] | None = None  # where attention maps are collected, one (B, nh, T, S) a layer


class Attention(nn.Module):
    """Multi-head causal self-attention: every token asks (query), every earlier one answers (key) and gives (value)."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.layer, self.n_head, self.dropout = layer, config.n_head, config.dropout
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.qkv_bias)  # all heads, all three, in one product
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.q_norm = make_norm(config, config.head_size) if config.qk_norm else nn.Identity()
        self.k_norm = make_norm(config, config.head_size) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, reading: Reading) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).unbind(2)  # (B, T, nh, hs) each
        q, k = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2)  # (B, nh, T, hs)
        v = v.transpose(1, 2)  # (B, nh, T, hs)
        if reading.cos is not None and reading.sin is not None:
            q, k = rotate(q, reading.cos, reading.sin), rotate(k, reading.cos, reading.sin)
        if reading.cache is not None:
            k, v = reading.cache.append(self.layer, k, v, reading.positions, reading.longest)  # (B, nh, S, hs)
        dropout = self.dropout if self.training else 0.0
        if reading.fused and reading.maps is None:
            y = attention_fused(q, k, v, reading.mask, dropout)
        else:
            y, weights = attention_written_out(q, k, v, reading.mask, dropout)
            if reading.maps is not None:
                reading.maps.append(weights)
        return self.out(y.transpose(1, 2).reshape(B, T, C))  # (B, nh, T, hs) -> (B, T, C)


class FeedForward(nn.Module):
    """What a token works out for itself: widen, bend, narrow. SwiGLU bends by a gate (https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.activation = config.activation
        if config.activation == "swiglu":
            self.gate = nn.Linear(config.n_embd, config.n_hidden, bias=config.bias)
        self.up = nn.Linear(config.n_embd, config.n_hidden, bias=config.bias)
        self.down = nn.Linear(config.n_hidden, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.activation == "swiglu":
            return self.down(F.silu(self.gate(x)) * self.up(x))
        if self.activation == "relu":
            return self.down(F.relu(self.up(x)))
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """One layer. Each half reads a normalised copy of the stream and adds what it found (pre-norm residuals)."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config, config.n_embd)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = make_norm(config, config.n_embd)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, reading: Reading) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), reading))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class GPT(nn.Module):
    """The whole model: embed, add the blocks' findings one after the other, predict the next id at every position.

    The context is `block_size` tokens, counted from where a stream was started: past it a forward pass raises `ValueError`, in
    both shapes. Whoever generates further drops the oldest half at a line break and reads the rest again (`sampling.generate`).
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.fused = True  # False: attention is written out, which trains faster on a CPU where rows are short
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        if config.positions == "learned":
            self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        else:
            for name, table in zip(("cos", "sin"), rotary_table(config), strict=True):
                self.register_buffer(name, table, persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = make_norm(config, config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.initialise()

    def initialise(self) -> None:
        """GPT-2's start: normal with standard deviation 0.02; what adds to the stream is scaled by 1 / sqrt(additions)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                scale = 1 / math.sqrt(2 * self.config.n_layer) if name.endswith(("out.weight", "down.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def n_parameters(self) -> int:
        """How many numbers are learned; a tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(
        self, ids: Tensor, cache: Cache | None = None, counts: Tensor | None = None, maps: list[Tensor] | None = None
    ) -> Tensor:
        """Logits (B, T, V) of what follows each of `ids` (B, T).

        Args:
            ids: token ids. With a cache they continue what each stream has read; without, they start at position 0.
            cache: read from and added to. Row b of `ids` belongs to stream b.
            counts: (B,) how many ids of each row are real, where rows were padded on the right to one length; needs a cache.
                The logits after a row's count mean nothing, and the next pass overwrites what the padding left in the cache.
            maps: a list that receives the attention weights, (B, nh, T, S) for each layer; attention is then written out.

        Raises:
            ValueError: the ids do not fit in the context.
        """
        T = ids.size(1)
        start = 0 if cache is None else int(cache.lengths.max())
        if start + T > self.config.block_size:
            raise ValueError(f"{start} tokens read and {T} more do not fit in a context of {self.config.block_size}")
        positions = torch.arange(T, device=ids.device)[None]  # (1, T)
        reading = Reading(positions, cache=cache, longest=start + T, fused=self.fused, maps=maps)
        if cache is not None:
            reading.positions = cache.lengths[:, None] + positions  # (B, T)
            columns = torch.arange(reading.longest, device=ids.device)  # (S,)
            reading.mask = columns <= reading.positions[:, None, :, None]  # (B, 1, T, S)

        x = self.embedding(ids)  # (B, T, C)
        if self.config.positions == "learned":
            x = x + self.position_embedding(reading.positions)
        else:
            reading.cos = self.cos[reading.positions][:, None]  # (1 or B, 1, T, hs / 2)
            reading.sin = self.sin[reading.positions][:, None]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, reading)
        if cache is not None:
            cache.lengths += T if counts is None else counts
        return self.head(self.norm(x))  # (B, T, V)
