"""The card of a model: every figure comes from the checkpoint, its log or its evaluation, and the Hub takes it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import cpgpt
from cpgpt import card, checkpoint
from cpgpt.checkpoint import CheckpointError
from cpgpt.publish import push_checkpoint
from tests.commands import ROOT
from tests.conftest import TOKENIZER, randomised, tiny
from tests.hub_server import HubServer
from tests.runs import LOG, evaluate


def card_of(folder: Path) -> ModelCard:
    return ModelCard(card.model_card(folder, "you/tiny"))


def test_every_figure_of_the_card_comes_from_the_log_or_the_evaluation(folder: Path) -> None:
    evaluate(folder)
    text = str(card_of(folder))
    for entry in LOG:
        assert (
            f"| {entry['step']:,} | {entry['loss']:.3f} | {entry['validation']:.4f} | {entry['bits_per_character']:.4f} |" in text
        )
    for figure in ("1.4747", "1.5959", "87.1%", "3.1%", "64.3%", "on 41 texts at temperature\n0.85", "5,678 steps in 56 minutes"):
        assert figure in text, figure
    assert text.count("3.1%") == 2  # the table, and what it memorises
    assert "ROSS: Two." in text
    template = re.sub(r"```.*?```", "", (ROOT / "hub_card.md").read_text(), flags=re.DOTALL)
    assert not re.findall(r"\d+", re.sub(r"\{\{ .*? \}\}|\{%.*? -?%\}", "", template, flags=re.DOTALL))  # none is typed by hand


def test_the_cards_metadata_say_what_it_is(folder: Path) -> None:
    evaluate(folder)
    data: Any = card_of(folder).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "transformers", "text-generation")
    assert {result.metric_name: result.metric_value for result in data.eval_results} == {
        "bits per character, validation": 1.4747,
        "bits per character, test": 1.5959,
    }
    prompts = [example["text"] for example in data.widget]
    assert "THE ONE WITH" in prompts
    assert "SCENE: CENTRAL PERK\n\nROSS:" in prompts


def test_the_hub_checks_the_card_and_a_wrong_one_is_not_pushed(
    hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_checkpoint(folder, "you/tiny")
    assert hub.seen("POST /api/validate-yaml")
    ModelCard(hub.repository("you/tiny").files()["README.md"].decode()).validate()
    wrong = tmp_path / "hub_card.md"
    wrong.write_text("---\n{{ card_data }}\nlicense: my own\n---\n")
    monkeypatch.setattr(card, "resource", lambda name: wrong)
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        push_checkpoint(folder, "you/tiny")


def test_the_cards_of_a_bare_and_of_a_mixed_checkpoint(tmp_path: Path) -> None:
    bare = checkpoint.save(tmp_path / "bare", randomised(tiny("modern")), TOKENIZER)
    text = str(card_of(bare))
    assert "The checkpoint says nothing about its training." in text
    assert "was not run on it" in text
    assert "scene(" not in text
    assert "ROSS" not in text
    mixed = checkpoint.save(tmp_path / "mixed", randomised(tiny("modern", norm="layernorm")), TOKENIZER)
    assert card_of(mixed).data.get("library_name") == "pytorch"
    assert "transformers" not in str(card_of(mixed))


def test_a_long_log_is_thinned_to_a_table_that_ends_where_it_ends(folder: Path) -> None:
    entries = [{**LOG[0], "step": step} for step in range(1, 101)]
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    rows = re.findall(r"^\| (\d+) \| 1\.515", str(card_of(folder)), re.MULTILINE)
    assert len(rows) <= card.ROWS
    assert rows[-1] == "100"


def test_figures_of_other_weights_are_refused(folder: Path) -> None:
    evaluate(folder)
    checkpoint.save(folder, randomised(tiny("classic")), TOKENIZER)  # which keeps what else is in the folder
    with pytest.raises(CheckpointError, match=r"evaluation\.json was measured on other weights than .*: run `python -m training"):
        card.model_card(folder, "you/tiny")
    (folder / "evaluation.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"evaluation\.json is not an evaluation"):
        card.model_card(folder, "you/tiny")
    (folder / "evaluation.json").unlink()
    (folder / "log.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(CheckpointError, match=r"log\.jsonl, line 1 is not an entry of a training log"):
        card.model_card(folder, "you/tiny")


def test_the_embedded_checkpoint_has_its_log_and_its_evaluation() -> None:
    text = card.model_card(cpgpt.EMBEDDED, "you/centralperk")
    training = cpgpt.load_checkpoint().facts["training"]
    assert f"{card.read_evaluation(cpgpt.EMBEDDED)['test bits per character']:.4f}" in text
    assert f"| {training['step']:,} |" in text
    best = min(card.read_log(cpgpt.EMBEDDED), key=lambda entry: entry["validation"])
    assert best["step"] == training["step"]
    assert best["validation"] == pytest.approx(training["validation"])
