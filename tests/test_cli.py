"""The command `cpgpt`, with the embedded checkpoint."""

import re
import time
from pathlib import Path

import pytest

import cpgpt
from cpgpt.screenplay import SCENE
from tests.commands import run_module, start_module


def scene(*arguments: str) -> str:
    result = run_module("cpgpt", "scene", *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_it_types_a_scene_of_the_corpus_cast() -> None:
    text = scene("--temperature", "0.5", "--seed", "1")
    cast = cpgpt.load_checkpoint().facts["corpus"]["cast"]
    assert SCENE in text
    assert set(re.findall(r"^([A-Z]+): ", text.replace(SCENE, ""), re.MULTILINE)) <= set(cast)


def test_the_same_seed_gives_the_same_scene_as_in_python() -> None:
    arguments = ("--seed", "5", "--max-chars", "120")
    text = scene(*arguments)
    assert len(text) == 120
    assert text == scene(*arguments) == "".join(cpgpt.stream(cpgpt.load_checkpoint(), seed=5, max_characters=120))
    assert text != scene("--seed", "6", "--max-chars", "120")


def test_without_a_seed_scenes_differ() -> None:
    assert scene("--max-chars", "100") != scene("--max-chars", "100")


def test_the_scene_comes_as_it_is_written() -> None:
    with start_module("cpgpt", "scene", "--seed", "1") as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = time.monotonic()
        rest = process.stdout.read()
        assert len(rest) > 100
        assert time.monotonic() - first > 0.05  # not in one piece


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "no/such/folder"], "error: there is no checkpoint folder no/such/folder"),
        (["--checkpoint", "training"], "error: training has no config.json"),
        (["--temperature", "-1"], "error: temperature is -1.0: it must be 0 (greedy) or more"),
        (["--max-chars", "0"], "error: max_characters is 0: it must be 1 or more"),
        (["--seed", "-3"], "error: seed is -3: it must be 0 or more"),
    ],
)
def test_bad_input_is_an_error_that_names_it(arguments: list[str], message: str) -> None:
    result = run_module("cpgpt", "scene", *arguments)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_help_and_version() -> None:
    assert "Type a scene" in run_module("cpgpt", "--help").stdout
    for option in ("--temperature", "--seed", "--checkpoint", "--max-chars"):
        assert option in run_module("cpgpt", "scene", "--help").stdout
    assert run_module("cpgpt", "--version").stdout == f"centralperkgpt {cpgpt.__version__}\n"


def test_the_embedded_checkpoint_keeps_its_bounds() -> None:
    loaded = cpgpt.load_checkpoint()
    assert loaded.model.n_parameters() <= 12_000_000
    assert loaded.model.config.block_size >= 1024
    assert sum(file.stat().st_size for file in Path(cpgpt.EMBEDDED).iterdir()) <= 25_000_000
