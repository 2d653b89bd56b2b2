"""A training run to test with: what it leaves, without the training."""

import json
from pathlib import Path

import cpgpt
from cpgpt import checkpoint
from tests.conftest import TOKENIZER, randomised, tiny

LOG = [
    {"step": 1234, "loss": 1.5151, "validation": 1.6161, "bits_per_character": 2.3232, "seconds": 777.0, "sample": "ROSS: One.\n"},
    {"step": 5678, "loss": 1.1212, "validation": 1.3434, "bits_per_character": 1.9191, "seconds": 3330.0, "sample": "ROSS: Two.\n"},
]


def trained(out: Path) -> Path:
    """A small checkpoint as training leaves it, with a log."""
    corpus = cpgpt.load_checkpoint().facts["corpus"]
    facts = {"corpus": corpus, "training": {name: value for name, value in LOG[1].items() if name != "sample"}}
    saved = checkpoint.save(out / "checkpoint", randomised(tiny("modern")), TOKENIZER, facts)
    (saved / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in LOG))
    return saved


def evaluate(folder: Path, **changes: object) -> None:
    """What `training.evaluate --save` would leave, with figures that cannot come from anywhere else."""
    ours, _ = checkpoint.read_config(folder / "config.json")
    figures = {"parameters": 1, "validation bits per character": 1.4747, "test bits per character": 1.5959}
    shares = {"words of the corpus": 0.871, "characters copied in spans of 50 or more": 0.0313, "parse rate": 0.643}
    how = {"scenes": 41, "temperature": 0.85, "seed": 1, "sha256": ours["sha256"]["model.safetensors"]}
    (folder / "evaluation.json").write_text(json.dumps({**figures, **shares, **how, **changes}))
