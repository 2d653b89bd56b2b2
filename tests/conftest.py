"""What several test modules share: a tiny tokenizer, and tiny models of both shapes with weights that hide no fault."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # a machine that tests may have other things to do
os.environ["HF_HUB_OFFLINE"] = "1"  # before `transformers` is imported: no test may touch the network

from typing import Any

import pytest
import torch
from hypothesis import settings

from cpgpt.model import GPT, Config
from cpgpt.tokenizer import Tokenizer

torch.set_num_threads(1)
# A busy machine has slow moments, and a gate should not find its examples by chance.
settings.register_profile("cpgpt", deadline=None, derandomize=True, database=None)
settings.load_profile("cpgpt")

TEXT = 'THE ONE WITH THE TEST\n\nSCENE: CENTRAL PERK\n\n(Joey\'s "coat" is <wet>...)\nROSS: So, is it a quiz | a joke - or what?\n'
TOKENIZER = Tokenizer.train([TEXT])
SHAPES = {"classic": Config.classic, "modern": Config.modern}


def tiny(shape: str, **changes: Any) -> Config:
    sizes = {"block_size": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}  # sizes that differ, so that none passes for another
    return SHAPES[shape](TOKENIZER.vocab_size, **{**sizes, **changes})


def randomised(config: Config) -> GPT:
    """A model whose every parameter, the biases and the norms too, matters to the logits."""
    model, generator = GPT(config).eval(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator) + (1 if parameter.dim() == 1 else 0))
    return model


def random_ids(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randint(TOKENIZER.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session", params=SHAPES)
def model(request: pytest.FixtureRequest) -> GPT:
    """A tiny model of each shape. It is shared: a test that changes it makes its own with `randomised`."""
    return randomised(tiny(request.param))
