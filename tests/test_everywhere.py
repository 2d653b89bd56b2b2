"""The embedded checkpoint, pushed and downloaded again, reads the same in other people's programs."""

import subprocess
import sys
from pathlib import Path

import ctranslate2
import pytest
import safetensors
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import cpgpt
from cpgpt.publish import push_checkpoint
from tests.commands import ENVIRONMENT
from tests.conftest import TOKENS
from tests.hub_server import HubServer

PROMPT = "THE ONE WITH"
REPO = "you/centralperk"
SCRIPTS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def everywhere(hub_server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> HubServer:
    """The Hub with the embedded checkpoint on it, for a client that is not logged in and has an empty cache."""
    hub_server.forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        push_checkpoint(cpgpt.EMBEDDED, REPO, token=next(iter(TOKENS)))
    return hub_server


@pytest.fixture(autouse=True)
def online(everywhere: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def ours() -> list[int]:
    """The 300 likeliest ids after the prompt, by our model, each from a pass over all before it."""
    loaded = cpgpt.load_checkpoint()
    ids = [0, *loaded.tokenizer.encode(PROMPT)]
    start = len(ids)
    with torch.inference_mode():
        while len(ids) < start + 300:
            ids.append(int(loaded.model(torch.tensor([ids]))[0, -1].argmax()))
    assert 0 not in ids[1:]  # no end of a text among them, at which programs would stop
    return ids[start:]


def command(*arguments: str, **environment: str) -> str:
    settings = {**ENVIRONMENT, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": constants.HF_HUB_CACHE, **environment}
    result = subprocess.run([*arguments], env=settings, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_transformers_has_our_logits_and_our_greedy_text(ours: list[int]) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(REPO), AutoTokenizer.from_pretrained(REPO)
    assert type(model).__module__.startswith("transformers.models.")  # no code of ours
    loaded = cpgpt.load_checkpoint()
    assert tokenizer(PROMPT)["input_ids"] == [0, *loaded.tokenizer.encode(PROMPT)]
    ids = torch.tensor([[0, *loaded.tokenizer.encode(PROMPT), *ours]])
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, loaded.model(ids), atol=1e-4, rtol=0)
    write = pipeline("text-generation", model=REPO)
    (written,) = write(PROMPT, max_new_tokens=300, do_sample=False)
    assert written["generated_text"] == PROMPT + loaded.tokenizer.decode(ours)


def test_ctranslate2_converts_it_and_has_our_greedy_text(ours: list[int], tmp_path: Path) -> None:
    command(str(SCRIPTS / "ct2-transformers-converter"), "--model", REPO, "--output_dir", str(tmp_path / "converted"))
    generator = ctranslate2.Generator(str(tmp_path / "converted"), compute_type="float32", intra_threads=1)
    tokenizer = cpgpt.load_checkpoint().tokenizer
    prompt = [tokenizer.backend.id_to_token(id) for id in (0, *tokenizer.encode(PROMPT))]
    (result,) = generator.generate_batch([prompt], max_length=300, sampling_topk=1, include_prompt_in_result=False)
    assert result.sequences_ids[0] == ours


def test_hf_download_brings_it_safetensors_alone_reads_it_and_hf_upload_makes_the_same_repository(
    everywhere: HubServer, tmp_path: Path
) -> None:
    folder = tmp_path / "downloaded"
    command(str(SCRIPTS / "hf"), "download", REPO, "--local-dir", str(folder))
    files = everywhere.repository(REPO).files()
    assert {name: (folder / name).read_bytes() for name in files} == files
    with safetensors.safe_open(folder / "model.safetensors", "np") as file:
        numbers = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118 (it is no mapping)
    assert numbers == cpgpt.load_checkpoint().model.n_parameters()
    command(str(SCRIPTS / "hf"), "upload", "you/again", str(folder), HF_TOKEN=next(iter(TOKENS)))
    assert everywhere.repository("you/again").files() == files
