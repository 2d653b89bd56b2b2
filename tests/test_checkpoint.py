"""Checkpoints: what is saved loads, here and in `transformers`; what is damaged says so; a folder is never half old, half new."""

import contextlib
import hashlib
import json
import math
import multiprocessing
import random
import re
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cpgpt import checkpoint
from cpgpt.checkpoint import DTYPES, CheckpointError, replaced_folder
from cpgpt.model import GPT
from cpgpt.tokenizer import Tokenizer
from tests.conftest import TEXT, TOKENIZER, random_ids, randomised, tiny

FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
CONFIGS = {
    "classic": tiny("classic"),
    "classic, untied, relu": tiny("classic", tie_embeddings=False, activation="relu"),
    "modern": tiny("modern", rope_theta=500.0),
    "modern, untied": tiny("modern", tie_embeddings=False),
    "mixture": tiny("modern", norm="layernorm", activation="gelu", bias=True),
}
SHAPES = [name for name in CONFIGS if name != "mixture"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoint.save(tmp_path / "saved", GPT(CONFIGS["modern"]), TOKENIZER)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


# Save and load


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_saved_loads(name: str, dtype: str, tmp_path: Path) -> None:
    model, facts = randomised(CONFIGS[name]), {"corpus": {"cast": ["JOEY", "ZOË"]}, "loss": 1.25}
    assert checkpoint.save(str(tmp_path / "a" / "b"), model, TOKENIZER, facts, dtype) == tmp_path / "a" / "b"
    loaded = checkpoint.load(str(tmp_path / "a" / "b"))
    assert (loaded.model.config, loaded.facts, loaded.model.training) == (model.config, facts, False)
    assert loaded.tokenizer.files() == TOKENIZER.files()
    assert loaded.model.state_dict().keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.model.state_dict()[key], tensor.to(DTYPES[dtype]).float(), rtol=0, atol=0)
    assert (loaded.model.head.weight is loaded.model.embedding.weight) == model.config.tie_embeddings
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    if dtype == "float32":
        torch.testing.assert_close(loaded.model(random_ids(2, 9)), model(random_ids(2, 9)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", SHAPES)
def test_transformers_reads_the_same_folder(name: str, dtype: str, tmp_path: Path) -> None:
    folder, ids = checkpoint.save(tmp_path / "saved", randomised(CONFIGS[name]), TOKENIZER, dtype=dtype), random_ids(2, 24)
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, output_loading_info=True)
    stock, report = loaded
    assert not any(report.values()), report
    torch.testing.assert_close(stock(ids).logits, checkpoint.load(folder).model(ids), atol=1e-4, rtol=0)
    assert AutoTokenizer.from_pretrained(folder, trust_remote_code=False).encode(TEXT) == [0, *TOKENIZER.encode(TEXT)]
    assert stock.generation_config.eos_token_id == stock.generation_config.bos_token_id == 0
    assert sorted(contents(folder)) == FILES


@pytest.mark.parametrize("name", CONFIGS)
def test_a_tied_head_is_stored_once(name: str, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, GPT(CONFIGS[name]), TOKENIZER)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert any("head" in key for key in tensors) != CONFIGS[name].tie_embeddings
    assert sum(tensor.numel() for tensor in tensors.values()) == GPT(CONFIGS[name]).n_parameters()


def test_loading_leaves_the_global_random_numbers_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    checkpoint.load(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_dtype_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype is 'int8': it must be one of float32, bfloat16, float16"):
        checkpoint.save(tmp_path / "saved", GPT(CONFIGS["modern"]), TOKENIZER, dtype="int8")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["config", "sha256"])
def test_facts_cannot_take_the_place_of_what_loading_needs(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=name):
        checkpoint.save(tmp_path / "saved", GPT(CONFIGS["modern"]), TOKENIZER, {name: {}})
    assert not list(tmp_path.iterdir())


# Damage


@contextlib.contextmanager
def edited_config(folder: Path) -> Iterator[dict[str, Any]]:
    config = json.loads((folder / "config.json").read_text())
    yield config
    (folder / "config.json").write_text(json.dumps(config))


@contextlib.contextmanager
def edited_weights(folder: Path) -> Iterator[dict[str, torch.Tensor]]:
    """The sha256 is made right again, so that nothing but the edit is to be found."""
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load(file.read_bytes())
    yield tensors
    file.write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))
    with edited_config(folder) as config:
        config["cpgpt"]["sha256"]["model.safetensors"] = hashlib.sha256(file.read_bytes()).hexdigest()


def refused(folder: Path, *words: str, error: type[Exception] = CheckpointError) -> None:
    """Loading fails, soon, and the message has all the words."""
    start = time.monotonic()
    with pytest.raises(error, match="".join(f"(?=.*{re.escape(word)})" for word in words)):
        checkpoint.load(folder)
    assert time.monotonic() - start < 5


def first(tensors: dict[str, torch.Tensor]) -> str:
    return min(tensors)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    refused(folder, str(folder), f"no {name}", error=FileNotFoundError)
    refused(folder / "nowhere", "no checkpoint folder", str(folder / "nowhere"), error=FileNotFoundError)


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
def test_files_for_other_programs_only_may_be_missing(name: str, folder: Path) -> None:
    (folder / name).unlink()
    checkpoint.load(folder)


@pytest.mark.parametrize("left", [0, 4, 8, 100, -1000, -1])
def test_truncated_weights_are_not_a_whole_file(left: int, folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    refused(folder, str(file), "not a whole safetensors file")


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.file,)


def test_a_pickle_is_refused_and_never_opened(folder: Path, tmp_path: Path) -> None:
    torch.save({"embedding.weight": Bomb(tmp_path / "boom")}, folder / "model.safetensors")
    refused(folder, "model.safetensors", "not a whole safetensors file")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "no model.safetensors", error=FileNotFoundError)
    assert not (tmp_path / "boom").exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)  # the bomb is a real one
    assert (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"cpgpt":' * 100_000, "not JSON"),
        (b"9" * 100_000, "not JSON"),
        (b"[]", 'no "cpgpt"'),
        (b"null", 'no "cpgpt"'),
        (b'{"model_type": "gpt2", "n_layer": 12}', 'no "cpgpt"'),
        (b'{"cpgpt": 1}', 'no "cpgpt"'),
        (b'{"cpgpt": {"config": [], "sha256": {}}}', 'no "cpgpt" with a "config"'),
        (b'{"cpgpt": {"config": {}, "sha256": 1}}', 'no "cpgpt" with a "config"'),
        (b'{"cpgpt": {"config": {}}}', "vocab_size"),
        (b'{"cpgpt": {"config": {"vocab_size": 9, "n_expert": 2}}}', "n_expert"),
    ],
    ids=lambda value: str(value[:20]),
)
def test_a_config_that_is_not_ours_is_named(content: bytes, words: str, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    refused(folder, str(folder / "config.json"), words)


@pytest.mark.parametrize("name", SHAPES)
def test_a_changed_config_value_is_named(name: str, tmp_path: Path) -> None:
    for field, value in checkpoint.stock_fields(CONFIGS[name]).items():
        other = not value if isinstance(value, bool) else value * 2 + 1 if isinstance(value, (int, float)) else "other"
        folder = checkpoint.save(tmp_path, GPT(CONFIGS[name]), TOKENIZER)
        with edited_config(folder) as config:
            config[field] = other
        refused(folder, str(folder / "config.json"), field, repr(other), repr(value))


@pytest.mark.parametrize(("field", "value"), [("n_head", 2), ("norm_eps", 0.1), ("dropout", 0.5), ("block_size", 12)])
def test_a_value_changed_in_our_part_only_is_named(field: str, value: float, folder: Path) -> None:
    with edited_config(folder) as config:
        config["cpgpt"]["config"][field] = value
    refused(folder, str(folder / "config.json"), repr(value))


@pytest.mark.parametrize("field", vars(CONFIGS["modern"]))
def test_nonsense_in_our_part_is_a_checkpoint_error_or_harmless(field: str, folder: Path) -> None:
    nonsense: list[object] = [None, "x", -1, 1.5, math.inf, math.nan, 10**15, 10**30, [], {}]
    for value in nonsense:
        with edited_config(folder) as config:
            config["cpgpt"]["config"][field] = value
            for key in config.keys() - {"cpgpt"}:  # so that the stock fields give nothing away
                del config[key]
        with contextlib.suppress(CheckpointError):
            checkpoint.load(folder)


@pytest.mark.parametrize("n_layer", [10**4, 10**9])
def test_too_many_layers_are_refused_before_anything_is_built(n_layer: int, folder: Path) -> None:
    with edited_config(folder) as config:
        config["num_hidden_layers"] = config["cpgpt"]["config"]["n_layer"] = n_layer
    refused(folder, str(folder), str(n_layer))


def test_a_context_that_asks_for_a_huge_table_of_angles_is_refused(folder: Path) -> None:
    with edited_config(folder) as config:
        config["max_position_embeddings"] = config["cpgpt"]["config"]["block_size"] = 2**24
    refused(folder, str(folder / "config.json"), "a context of 16777216 tokens needs a table of")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(first(tensors)), ["lacks tensor {first}"]),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), ["has an unknown tensor 'extra'"]),
        (lambda tensors: tensors.update({first(tensors): torch.zeros(3)}), ["{first}", "shape [3]"]),
        (lambda tensors: tensors.update({first(tensors): tensors[first(tensors)].long()}), ["{first}", "I64", "float32"]),
        (lambda tensors: tensors.update({first(tensors): tensors[first(tensors)].double()}), ["{first}", "F64", "float32"]),
    ],
    ids=["missing", "extra", "shape", "int64", "float64"],
)
def test_a_wrong_tensor_is_named(change: Callable[[dict[str, torch.Tensor]], object], words: list[str], folder: Path) -> None:
    name = first(safetensors.torch.load_file(folder / "model.safetensors"))
    with edited_weights(folder) as tensors:
        change(tensors)
    refused(folder, str(folder / "model.safetensors"), *(word.format(first=repr(name)) for word in words))


def test_a_header_that_lies_about_sizes_is_refused(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    refused(folder, "model.safetensors", "not a whole safetensors file")


@pytest.mark.parametrize(("name", "at"), [("model.safetensors", -2), ("model.safetensors", -1000), ("tokenizer.json", -1)])
def test_one_changed_byte_is_found(name: str, at: int, folder: Path) -> None:
    data = bytearray((folder / name).read_bytes())
    data[at] ^= 0x2A if name.endswith("json") else 1  # a line break becomes a space
    (folder / name).write_bytes(data)
    refused(folder, str(folder / name), "has changed since it was saved", "sha256")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (Tokenizer.train(["abc"]).files()["tokenizer.json"].encode(), "has 4 ids, but config.json says vocab_size"),
        (b"{}", "not a tokenizer"),
        (b"\xff\xfe", "not a tokenizer"),
        (TOKENIZER.files()["tokenizer.json"].replace("<|endoftext|>", "<s>").encode(), "id None"),
    ],
    ids=["another size", "foreign", "not UTF-8", "another id 0"],
)
def test_a_tokenizer_that_does_not_fit_is_named(content: bytes, words: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    refused(folder, str(folder / "tokenizer.json"), words)


# Writing


def fail_half_way(folder: Path, error: type[BaseException]) -> None:
    with replaced_folder(folder) as fresh:
        (fresh / "config.json").write_text("half a conf")
        raise error


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_while_writing_leaves_everything_as_it_was(there: bool, error: type[BaseException], tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    if there:
        checkpoint.save(folder, GPT(CONFIGS["modern"]), TOKENIZER)
    before = contents(folder) if there else None
    with pytest.raises(error):
        fail_half_way(folder, error)
    assert [file.name for file in tmp_path.iterdir()] == (["saved"] if there else [])
    assert before is None or contents(folder) == before


def test_saving_over_a_folder_keeps_foreign_files_and_replaces_ours(folder: Path) -> None:
    (folder / "README.md").write_text("a card")
    (folder / "logs").mkdir()
    (folder / "logs" / "log.jsonl").write_text("{}")
    before, model = contents(folder), GPT(CONFIGS["mixture"])
    checkpoint.save(folder, model, TOKENIZER, dtype="float16")
    assert sorted(file.name for file in folder.iterdir()) == sorted([*FILES, "README.md", "logs"])
    assert (folder / "README.md").read_text() == "a card"
    assert (folder / "logs" / "log.jsonl").read_text() == "{}"
    assert contents(folder)["model.safetensors"] != before["model.safetensors"]
    assert checkpoint.load(folder).model.config == model.config
    assert [file.name for file in folder.parent.iterdir()] == ["saved"]


def test_saving_through_a_link_replaces_the_folder_that_it_points_to(folder: Path) -> None:
    link = folder.with_name("link")
    link.symlink_to(folder)
    checkpoint.save(link, GPT(CONFIGS["mixture"]), TOKENIZER)
    assert link.is_symlink()
    assert checkpoint.load(folder).model.config == checkpoint.load(link).model.config == CONFIGS["mixture"]
    assert sorted(file.name for file in folder.parent.iterdir()) == ["link", "saved"]


def save_for_ever(folder: Path) -> None:
    model, version = GPT(CONFIGS["modern"]), 0
    while True:
        version += 1
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, version % 100)
        checkpoint.save(folder, model, TOKENIZER, {"version": version})


def test_a_process_killed_while_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path / "saved", GPT(CONFIGS["classic"]), TOKENIZER, {"version": 0})
    generator, versions = random.Random(0), set()
    for _ in range(12):
        process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(folder,))
        process.start()
        time.sleep(generator.uniform(0.02, 0.12))
        process.kill()
        process.join()
        if not folder.exists():  # killed between the two renames: the old folder is there, beside where it was
            [old] = tmp_path.glob(".saved-*-old")
            old.rename(folder)
        loaded = checkpoint.load(folder)
        versions.add(loaded.facts["version"])
        if loaded.facts["version"]:
            assert all((parameter == loaded.facts["version"] % 100).all() for parameter in loaded.model.parameters())
        for left in tmp_path.glob(".saved-*"):
            shutil.rmtree(left)
    assert len(versions) > 1
