"""What is told about a checkpoint on its page: figures, loss curve, model card. Knows a folder, not the Hub.

Every figure comes from the folder: `config.json`, the training's `log.jsonl`, the evaluation's `evaluation.json` (the last two
where it has them). The words are in `hub_card.md`.
"""

import io
import json
import os
from pathlib import Path
from typing import Any

from cpgpt.checkpoint import CheckpointError, load, model_type, read_config

LOG, EVALUATION, CURVE = "log.jsonl", "evaluation.json", "loss.png"
ROWS = 16  # of the training log, in the card's table


def resource(name: str) -> Path:
    """A file or folder of the project that is not code: inside an installed package, beside the package in a checkout."""
    inside, beside = Path(__file__).parent / name, Path(__file__).parents[1] / name
    return inside if inside.exists() else beside


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of the training log, one an evaluation; none if the folder has no log.

    Raises:
        CheckpointError: a line is not what training writes.
    """
    path = folder / LOG
    if not path.exists():
        return []
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            numbers = [entry[name] for name in ("step", "loss", "validation", "bits_per_character", "seconds")]
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{path}, line {number} is not an entry of a training log: {error!r}") from error
        if not all(isinstance(value, int | float) for value in numbers):
            raise CheckpointError(f"{path}, line {number} is not an entry of a training log: {numbers}")
        entries.append(entry)
    return entries


def read_evaluation(folder: Path) -> dict[str, Any]:
    """What `python -m training.evaluate --save` wrote; empty if it did not.

    Raises:
        CheckpointError: the file is damaged, or belongs to other weights than the folder's.
    """
    path = folder / EVALUATION
    if not path.exists():
        return {}
    try:
        evaluation = json.loads(path.read_text(encoding="utf-8"))
        weights = evaluation["sha256"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} is not an evaluation: run `python -m training.evaluate {folder} --save`") from error
    ours, _ = read_config(folder / "config.json")
    if weights != ours.get("sha256", {}).get("model.safetensors"):
        raise CheckpointError(
            f"{path} was measured on other weights than {folder / 'model.safetensors'}: "
            f"run `python -m training.evaluate {folder} --save` again, or delete it"
        )
    return evaluation


def loss_curve(log: list[dict[str, Any]]) -> bytes:
    """A PNG of training and validation loss by step. The same log gives the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    steps = [entry["step"] for entry in log]
    axes.plot(steps, [entry["loss"] for entry in log], color="#b08968", label="training, the last batch")
    axes.plot(steps, [entry["validation"] for entry in log], color="#6f1d1b", marker="o", markersize=4, label="validation")
    axes.set(xlabel="step", ylabel="loss, nats a token")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture, metadata={"Software": None})  # which would name the version
    return picture.getvalue()


def model_card(folder: str | os.PathLike[str], repo_id: str, space: str | None = None) -> str:
    """The filled-in `hub_card.md` of a checkpoint folder: metadata and text of a `huggingface_hub.ModelCard`.

    Args:
        repo_id: where the checkpoint will be, "user/name".
        space: the Space in which the model can be tried; by default the one of the same name.

    Raises:
        FileNotFoundError, CheckpointError: see `checkpoint.load`, `read_log` and `read_evaluation`.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    folder = Path(folder)
    loaded = load(folder)
    config, corpus = loaded.model.config, loaded.facts.get("corpus", {})
    kind, log, evaluation = model_type(config), read_log(folder), read_evaluation(folder)
    scenes = corpus.get("format") == "scenes"
    if scenes:
        corpus_name = "original scenes of " + ", ".join(name.title() for name in corpus["cast"])
    else:
        corpus_name = "a text of the publisher's own"
    results = [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type="cpgpt-corpus",
            dataset_name=f"{corpus_name}, {split} split",
            dataset_split=split,
            metric_type="bits_per_character",
            metric_name=f"bits per character, {split}",
            metric_value=round(evaluation[f"{split} bits per character"], 4),
        )
        for split in ("validation", "test")
        if f"{split} bits per character" in evaluation
    ]
    data = ModelCardData(
        language="en" if scenes else None,
        license="mit" if scenes else None,
        library_name="transformers" if kind != "cpgpt" else "pytorch",
        pipeline_tag="text-generation",
        tags=["centralperkgpt", "cpgpt", "from-scratch", "character-level" if _characters(loaded.tokenizer) else "subwords"],
        model_name=repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
        widget=_widget(corpus) if scenes and kind != "cpgpt" else None,
    )
    card = ModelCard.from_template(
        data,
        template_str=resource("hub_card.md").read_text(encoding="utf-8"),
        repo_id=repo_id,
        space=space or repo_id,
        scenes=scenes,
        corpus=corpus,
        config=config,
        parameters=loaded.model.n_parameters(),
        characters=_characters(loaded.tokenizer),
        kind=kind,
        training=loaded.facts.get("training", {}),
        log=log,
        rows=_thinned(log),
        curve=CURVE if log else None,
        sample=next((entry["sample"].rstrip() for entry in reversed(log) if entry.get("sample")), None),
        evaluation=evaluation,
    )
    return str(card)


def _characters(tokenizer: Any) -> bool:
    """Whether an id is a character: byte-level BPE without merges."""
    return not json.loads(tokenizer.backend.to_str())["model"]["merges"]


def _widget(corpus: dict[str, Any]) -> list[dict[str, str]]:
    """Prompts to try on the model's page: beginnings as the corpus has them."""
    titles = [{"text": form, "example_title": form.capitalize()} for form in corpus["title_forms"]]
    place = corpus["places"][0]
    leads = [{"text": f"SCENE: {place}\n\n{name}:", "example_title": f"{name.title()} speaks first"} for name in corpus["cast"][:3]]
    return titles + leads


def _thinned(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most `ROWS` lines of the log, evenly spread, the last one included."""
    every = -(-len(log) // ROWS)
    return [entry for number, entry in enumerate(reversed(log)) if number % every == 0][::-1] if log else []
