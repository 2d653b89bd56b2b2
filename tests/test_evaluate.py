"""The figures of a checkpoint mean what they say."""

import hashlib
import json
from pathlib import Path

import pytest

from cpgpt.card import read_evaluation
from tests.commands import run_module
from tests.test_prepare import corpus_of, scenes
from tests.test_train import TINY
from training.evaluate import copied_share, known_word_share, parses
from training.prepare import prepare_corpus
from training.settings import make_settings
from training.train import train

SOURCE = "".join(f"sentence number {n} of the source. " for n in range(400))


def test_copied_share_counts_the_characters_of_long_copies_only() -> None:
    copied = SOURCE[1000:1080]
    assert copied_share([copied], SOURCE) == 1
    assert copied_share([copied + "x" * 80], SOURCE) == 0.5
    assert copied_share([SOURCE[500:549] + "#"], SOURCE) == 0  # 49 characters are no copy
    assert copied_share(["#" + SOURCE[500:550]], SOURCE) == 50 / 51
    assert copied_share(["short", ""], SOURCE) == 0
    assert copied_share([copied, "x" * 240], SOURCE) == 0.25


def test_copies_that_overlap_count_once() -> None:
    assert copied_share([SOURCE[100:160] + SOURCE[100:160]], SOURCE) == 1


def test_known_word_share_takes_words_with_their_apostrophes() -> None:
    assert known_word_share(["I DON'T know, zorb!"], "i know what they don't") == 0.75


def test_parse_rate_counts_whole_scenes() -> None:
    text = scenes(1)[0]
    assert parses(text)
    assert not parses(text[:-1])
    assert not parses(text + "\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prepared data and a run on it."""
    folder = tmp_path_factory.mktemp("evaluated")
    prepare_corpus(corpus_of(folder / "corpus", scenes(120)), folder / "data")
    train(make_settings({**TINY, "steps": 100, "evaluate_every": 50, "data": str(folder / "data"), "out": str(folder / "run")}))
    return folder


def test_the_command_prints_every_figure(run: Path) -> None:
    arguments = [str(run / "run" / "checkpoint"), "--data", str(run / "data"), "--scenes", "3"]
    result = run_module("training.evaluate", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert list(figures) == [
        "parameters",
        "validation bits per character",
        "test bits per character",
        "words of the corpus",
        "characters copied in spans of 50 or more",
        "parse rate",
    ]
    assert 0 < figures["test bits per character"] < 5
    table = run_module("training.evaluate", *arguments).stdout
    assert f"{figures['test bits per character']:.4f}" in table


def test_saved_figures_lie_in_the_folder_and_name_the_weights(run: Path) -> None:
    folder = run / "run" / "checkpoint"
    arguments = [str(folder), "--data", str(run / "data"), "--scenes", "2", "--seed", "9"]
    result = run_module("training.evaluate", *arguments, "--json", "--save")
    assert result.returncode == 0, result.stderr
    evaluation = read_evaluation(folder)
    assert json.loads(result.stdout).items() < evaluation.items()
    assert (evaluation["scenes"], evaluation["temperature"], evaluation["seed"]) == (2, 0.8, 9)
    assert evaluation["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert not list(folder.glob(".*"))


def test_a_checkpoint_of_another_text_is_refused(run: Path, tmp_path: Path) -> None:
    prepare_corpus(corpus_of(tmp_path / "corpus", scenes(40)), tmp_path / "data")
    result = run_module("training.evaluate", str(run / "run" / "checkpoint"), "--data", str(tmp_path / "data"))
    assert result.returncode == 1
    assert "was not trained on the text in" in result.stderr
