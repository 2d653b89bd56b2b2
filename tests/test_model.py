"""The model: both shapes against `transformers`, the two attentions against each other, the cache against none."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from cpgpt.checkpoint import stock_fields, to_stock
from cpgpt.model import GPT, Attention, Cache, Config, attention_fused, attention_written_out
from tests.conftest import random_ids, randomised, tiny

both_attentions = pytest.mark.parametrize("fused", [True, False], ids=["fused", "written out"])
both_shapes = pytest.mark.parametrize("shape", ["classic", "modern"])
STOCK = {
    "GPT2LMHeadModel": tiny("classic", norm_eps=1e-3),
    "GPT2LMHeadModel, untied, relu": tiny("classic", tie_embeddings=False, activation="relu", n_hidden=48),
    "Qwen3ForCausalLM": tiny("modern", norm_eps=1e-3, rope_theta=500.0),
    "Qwen3ForCausalLM, untied": tiny("modern", tie_embeddings=False, n_hidden=48),
}


@torch.no_grad()
def logits_of(model: GPT, ids: Tensor, fused: bool = True, **how: Any) -> Tensor:
    model.fused = fused
    try:
        return model(ids, **how)
    finally:
        model.fused = True


# Attention


def test_attention_is_what_its_formula_says() -> None:
    q, k, v = torch.randn(3, 1, 2, 5, 8, generator=torch.Generator().manual_seed(0)).double()  # 2 heads of 8, 5 tokens
    expected, weights = torch.zeros_like(q), torch.zeros(1, 2, 5, 5).double()
    for head, token in itertools.product(range(2), range(5)):
        shares = [math.exp(float(q[0, head, token] @ k[0, head, earlier]) / math.sqrt(8)) for earlier in range(token + 1)]
        for earlier, share in enumerate(shares):
            weights[0, head, token, earlier] = share / sum(shares)
            expected[0, head, token] += share / sum(shares) * v[0, head, earlier]
    torch.testing.assert_close(attention_written_out(q, k, v, None, 0.0), (expected, weights))
    torch.testing.assert_close(attention_fused(q, k, v, None, 0.0), expected)


@pytest.mark.parametrize("cached", [False, True], ids=["no cache", "cache"])
def test_attention_written_out_equals_fused_and_its_maps_are_causal(model: GPT, cached: bool) -> None:
    ids = random_ids(2, 9)
    fused = logits_of(model, ids)
    caches = [Cache(model.config, 2) if cached else None for _ in range(3)]
    read = 0
    for T in (5, 4) if cached else (9,):
        now, maps = ids[:, read : read + T], list[Tensor]()
        for logits in (
            logits_of(model, now, cache=caches[0]),
            logits_of(model, now, cache=caches[1], fused=False),
            logits_of(model, now, cache=caches[2], maps=maps),
        ):
            torch.testing.assert_close(logits, fused[:, read : read + T], atol=1e-5, rtol=0)
        assert [tuple(weights.shape) for weights in maps] == [(2, 4, T, read + T)] * model.config.n_layer
        for weights in maps:
            torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, T))
            assert (weights.triu(read + 1) == 0).all()
            assert (weights.tril(read) > 0).any(0).any(0).sum() == sum(range(read + 1, read + T + 1))
        read += T


@pytest.mark.parametrize(
    ("fused", "maps", "unused"),
    [(True, None, "attention_written_out"), (False, None, "attention_fused"), (True, [], "attention_fused")],
    ids=["fused", "written out", "with maps"],
)
def test_attention_is_written_out_only_where_that_is_asked_for(
    fused: bool, maps: list[Tensor] | None, unused: str, model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"cpgpt.model.{unused}", None)
    logits_of(model, random_ids(1, 3), fused, maps=maps)


@both_attentions
def test_a_later_id_never_changes_earlier_logits(model: GPT, fused: bool) -> None:
    ids = random_ids(1, 12)
    before = logits_of(model, ids, fused)
    for at in range(12):
        changed = ids.clone()
        changed[0, at] = (changed[0, at] + 1) % model.config.vocab_size
        after = logits_of(model, changed, fused)
        torch.testing.assert_close(after[:, :at], before[:, :at], atol=1e-6, rtol=0)
        assert ((after[:, at:] - before[:, at:]).abs().amax(-1) > 1e-3).all()


# The cache


@both_attentions
@pytest.mark.parametrize("chunks", [[1] * 24, [24], [3, 1, 8, 12]], ids=["one by one", "at once", "in pieces"])
def test_cached_logits_equal_uncached_at_every_position(model: GPT, fused: bool, chunks: list[int]) -> None:
    ids, cache = random_ids(2, 24), Cache(model.config, 2)
    cached = torch.cat([logits_of(model, part, fused, cache=cache) for part in ids.split(chunks, 1)], 1)
    torch.testing.assert_close(cached, logits_of(model, ids), atol=1e-4, rtol=0)


@both_attentions
def test_streams_of_different_lengths_share_a_batch(model: GPT, fused: bool) -> None:
    """Padded prompts, then padded pieces (one stream may rest), then ids one by one: each stream as if it were alone."""
    steps = [(3, 9, 1), (2, 0, 5), (4, 1, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1)]
    ids, padding = random_ids(3, 24), random_ids(3, 24, seed=3)
    expected, cache, read = logits_of(model, ids), Cache(model.config, 3), [0, 0, 0]
    for counts in steps:
        rows = padding[:, : max(counts)].clone()
        for stream, count in enumerate(counts):
            rows[stream, :count] = ids[stream, read[stream] : read[stream] + count]
        same = len(set(counts)) == 1
        logits = logits_of(model, rows, fused, cache=cache, counts=None if same else torch.tensor(counts))
        for stream, count in enumerate(counts):
            now = slice(read[stream], read[stream] + count)
            torch.testing.assert_close(logits[stream, :count], expected[stream, now], atol=1e-4, rtol=0)
            read[stream] += count
        assert cache.lengths.tolist() == read


def test_rows_of_a_cache_are_the_same_memory(model: GPT) -> None:
    ids, cache = random_ids(3, 6), Cache(model.config, 3)
    logits_of(model, ids[:, :4], cache=cache)
    cache.lengths[1] = 0  # stream 1 starts anew, through a view of its row
    logits_of(model, ids[1:2, 2:4], cache=cache.rows(slice(1, 2)))
    assert cache.lengths.tolist() == [4, 2, 4]
    logits = logits_of(model, ids[:, 4:], cache=cache)
    torch.testing.assert_close(logits[[0, 2]], logits_of(model, ids)[[0, 2], 4:], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits[1], logits_of(model, ids[1:2, 2:])[0, 2:], atol=1e-4, rtol=0)


def test_past_the_context_is_an_error(model: GPT) -> None:
    logits_of(model, random_ids(1, 24))  # the whole context fits
    with pytest.raises(ValueError, match="0 tokens read and 25 more do not fit in a context of 24"):
        logits_of(model, random_ids(1, 25))
    cache = Cache(model.config, 2)
    logits_of(model, random_ids(2, 20), cache=cache, counts=torch.tensor([3, 20]))
    with pytest.raises(ValueError, match="20 tokens read and 5 more do not fit in a context of 24"):
        logits_of(model, random_ids(2, 5), cache=cache)
    assert cache.lengths.tolist() == [3, 20]


# The same numbers as the stock architectures


@pytest.mark.parametrize("name", STOCK)
def test_logits_and_gradients_equal_those_of_transformers(name: str) -> None:
    model, ids = randomised(STOCK[name]), random_ids(3, 24)
    stock = AutoModelForCausalLM.from_config(AutoConfig.for_model(**stock_fields(model.config))).eval()
    assert type(stock).__name__ == name.split(",")[0]
    keys = stock.load_state_dict(to_stock(model), strict=False)
    assert keys.missing_keys == (["lm_head.weight"] if model.config.tie_embeddings else [])
    assert keys.unexpected_keys == []

    ours, theirs = model(ids), stock(ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    for logits in (ours, theirs):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    with torch.no_grad():
        for parameter in model.parameters():  # so that `to_stock` puts the gradients, too, into the stock layout
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    gradients = to_stock(model)
    expected = {name: parameter.grad for name, parameter in stock.named_parameters()}
    assert gradients.keys() == expected.keys()
    for key, gradient in gradients.items():
        largest = float(expected[key].abs().max())
        assert largest > 1e-5
        assert (gradient - expected[key]).abs().max() < 1e-3 * min(1.0, largest), key


# Training


SWITCHES: dict[str, list[Any]] = {
    "positions": ["rotary", "learned"],
    "norm": ["rmsnorm", "layernorm"],
    "qk_norm": [True, False],
    "activation": ["swiglu", "gelu", "relu"],
    "bias": [True, False],
    "qkv_bias": [True, False],
    "tie_embeddings": [True, False],
}


@pytest.mark.parametrize("mixture", list(itertools.product(*SWITCHES.values())), ids=lambda mixture: ",".join(map(str, mixture)))
def test_every_mixture_of_switches_trains(mixture: tuple[Any, ...]) -> None:
    torch.manual_seed(0)
    model = GPT(Config(17, block_size=8, n_layer=2, n_head=2, n_embd=16, **dict(zip(SWITCHES, mixture, strict=True))))
    optimizer, ids, losses = torch.optim.SGD(model.parameters(), lr=0.5), torch.randint(17, (4, 9)), []
    for _ in range(4):
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.005
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@both_shapes
def test_residual_projections_start_smaller_by_the_number_of_additions(shape: str) -> None:
    torch.manual_seed(0)
    model = GPT(tiny(shape, n_embd=128, n_layer=4, tie_embeddings=False, block_size=256))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert (parameter == (0 if name.endswith("bias") else 1)).all(), name
        else:
            residual = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
            assert parameter.std().item() == pytest.approx(0.02 / math.sqrt(2 * 4) if residual else 0.02, rel=0.05), name
            assert abs(parameter.mean().item()) < 0.001, name


@both_shapes
def test_a_tied_head_is_the_embedding_and_counts_once(shape: str) -> None:
    tied, untied = GPT(tiny(shape)), GPT(tiny(shape, tie_embeddings=False))
    assert tied.head.weight is tied.embedding.weight
    assert untied.head.weight is not untied.embedding.weight
    assert untied.n_parameters() - tied.n_parameters() == tied.embedding.weight.numel()
    for model in (tied, untied):
        assert model.n_parameters() == sum(tensor.numel() for tensor in to_stock(model).values())


@both_attentions
@pytest.mark.parametrize("where", ["everywhere", "attention only", "residuals only"])
def test_dropout_acts_in_training_mode_only(model: GPT, fused: bool, where: str) -> None:
    dropping, ids = randomised(Config(**{**vars(model.config), "dropout": 0.5})), random_ids(1, 9)
    for module in dropping.modules():
        if isinstance(module, nn.Dropout) and where == "attention only":
            module.p = 0.0
        if isinstance(module, Attention) and where == "residuals only":
            module.dropout = 0.0
    assert torch.equal(logits_of(dropping, ids, fused), logits_of(model, ids, fused))
    dropping.train()
    assert not torch.allclose(logits_of(dropping, ids, fused), logits_of(dropping, ids, fused))


# Settings


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: value} for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd") for value in (0, -1, True)),
        *({name: value} for name in ("block_size", "n_hidden") for value in (-1, 1.5, "8", 10**15)),
        {"positions": "absolute"},
        {"norm": "batchnorm"},
        {"activation": "selu"},
        *({name: value} for name in ("qk_norm", "bias", "qkv_bias", "tie_embeddings") for value in ("no", None)),
        *({name: value} for name in ("norm_eps", "rope_theta") for value in (-1.0, math.nan, math.inf, "8", None)),
        *({"dropout": value} for value in (-0.1, 1.0, math.nan, "8")),
    ],
    ids=str,
)
def test_a_wrong_setting_is_named_with_its_value(wrong: dict[str, Any]) -> None:
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        Config(**{"vocab_size": 10, **wrong})


def test_heads_that_do_not_fit_the_width_are_named() -> None:
    with pytest.raises(ValueError, match="n_embd 30 cannot be split among 4 heads"):
        Config(10, n_embd=30, n_head=4)
    with pytest.raises(ValueError, match="head size n_embd / n_head is 5, it must be even"):
        Config(10, n_embd=20, n_head=4)
    assert Config.classic(10, n_embd=20, n_head=4).head_size == 5


@pytest.mark.parametrize(("activation", "n_hidden"), [("gelu", 416), ("relu", 416), ("swiglu", 320)])
def test_the_feed_forward_has_about_as_many_parameters_whatever_its_activation(activation: str, n_hidden: int) -> None:
    assert tiny("modern", n_embd=104, activation=activation).n_hidden == n_hidden  # 4 x 104; 8/3 x 104 up to a multiple of 64
    assert tiny("modern", n_embd=104, activation=activation, n_hidden=7).n_hidden == 7
