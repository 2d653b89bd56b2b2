"""A training run <-> one safetensors file: weights, optimizer states, counters. Written atomically, no pickle."""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cpgpt.model import GPT
from training.settings import Settings

# Settings that may change between the two halves of a run.
FREE = {
    "out",
    "data",
    "device",
    "precision",
    "compile",
    "save_seconds",
    "patience",
    "evaluate_every",
    "sample_temperature",
    "store",
}


def save_state(
    path: Path, model: GPT, optimizers: list[torch.optim.Optimizer], settings: Settings, corpus: str, progress: dict[str, Any]
) -> None:
    """Write everything that `load_state` needs; `corpus` is the text's sha256, `progress` any JSON."""
    tensors = {f"model/{name}": p.detach() for name, p in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"optimizer/{number}/{index}/{name}"] = torch.as_tensor(value)
    facts = {"settings": dataclasses.asdict(settings), "corpus": corpus, "progress": progress}
    data = safetensors.torch.save({k: v.cpu().contiguous() for k, v in tensors.items()}, {"facts": json.dumps(facts)})
    fresh = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with open(fresh, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def load_state(path: Path, model: GPT, optimizers: list[torch.optim.Optimizer], settings: Settings, corpus: str) -> dict[str, Any]:
    """Put a saved run's weights and optimizer states into place; returns its progress, a new run's where nothing was saved.

    Raises:
        ValueError: the file is damaged, or the run was started with other settings or another text.
    """
    if not path.exists():
        return {"step": 0, "best": math.inf, "worse": 0, "seconds": 0.0}
    try:
        with safetensors.safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete {path.parent} to start over") from error
    now = json.loads(json.dumps(dataclasses.asdict(settings)))
    changed = [f"{k} was {facts['settings'].get(k)!r} and is {v!r}" for k, v in now.items() if facts["settings"].get(k) != v]
    changed = [change for change in changed if change.split()[0] not in FREE]
    if facts["corpus"] != corpus:
        changed.append("the text has changed")
    if changed:
        raise ValueError(
            f"{path.parent} holds a run with other settings ({'; '.join(changed)}): "
            "delete it, or choose another folder with --set out=FOLDER"
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model/{name}"])
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            kind, *where = key.split("/")
            if kind == "optimizer" and int(where[0]) == number:
                state.setdefault(int(where[1]), {})[where[2]] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return facts["progress"]
