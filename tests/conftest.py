"""What several test modules share: a tiny tokenizer, tiny models of both shapes with weights that hide no fault, a stand-in Hub."""

import os
import tempfile

from tests.hub_server import Account, HubServer, listener

os.environ["OMP_NUM_THREADS"] = "1"  # a machine that tests may have other things to do

# Before `huggingface_hub` is imported: no test may touch the network, the user's cache or the user's token. The only Hub that there
# is listens here, once a test asks for it.
HUB_SOCKET = listener()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{HUB_SOCKET.getsockname()[1]}"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="cpgpt-tests-")
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_XET"] = os.environ["HF_HUB_DISABLE_UPDATE_CHECK"] = "1"
os.environ.pop("HF_TOKEN", None)

import atexit
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings

from cpgpt.model import GPT, Config
from cpgpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tests.engines import Watched

atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
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


TOKENS = {"hf_you": Account("you"), "hf_reader": Account("you", write=False), "hf_stranger": Account("stranger")}


@pytest.fixture(scope="session")
def hub_server() -> Iterator[HubServer]:
    with HubServer(TOKENS, HUB_SOCKET) as server:
        yield server


@pytest.fixture
def hub(hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """An empty Hub, for a client that is logged in as `you`, online, and has nothing in its cache."""
    from huggingface_hub import constants

    hub_server.forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_you")
    return hub_server


@pytest.fixture
def watched() -> Iterator["Watched"]:
    """A runner whose steps are made one at a time."""
    from cpgpt.runner import PlainRunner
    from tests.engines import Watched

    runner = Watched(PlainRunner(randomised(tiny("modern", block_size=600)), 8))
    yield runner
    runner.set_free()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small checkpoint as training leaves it."""
    from tests.runs import trained

    return trained(tmp_path / "run")
