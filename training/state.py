"""A training run <-> one safetensors file: weights, optimizer states, counters. Written atomically, no pickle."""

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cpgpt.model import GPT
from training.settings import Settings

# What may change when a run goes on: where and how it runs, what is watched, and how much longer it goes on. (The rates are
# constant until they decay, so that a run can be made longer or shorter at any time before.)
WHERE_AND_HOW = {"data", "out", "device", "precision", "compile", "store"}
WATCHING = {"evaluate_every", "patience", "sample_temperature", "save_seconds"}
HOW_LONG = {"steps", "decay_share", "long_share"}


@dataclass
class RunProgress:
    """How far a run is."""

    step: int = 0  # steps done
    best: float = math.inf  # the best validation loss, nats a token
    worse: int = 0  # evaluations since
    seconds: float = 0.0  # spent in steps


def save_state(
    path: Path, model: GPT, optimizers: list[torch.optim.Optimizer], settings: Settings, corpus: str, run: RunProgress
) -> None:
    """Write everything that `load_state` needs; `corpus` is the text's sha256, `run` how far it is."""
    tensors = {f"model/{name}": p.detach() for name, p in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"optimizer/{number}/{index}/{name}"] = torch.as_tensor(value)
    facts = {"settings": dataclasses.asdict(settings), "corpus": corpus, "progress": dataclasses.asdict(run)}
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


def load_state(path: Path, model: GPT, optimizers: list[torch.optim.Optimizer], settings: Settings, corpus: str) -> RunProgress:
    """Put a saved run's weights and optimizer states into place; returns how far it is, a new run where nothing was saved.

    Raises:
        ValueError: the file is damaged, or the run was started with other settings or another text.
    """
    if not path.exists():
        return RunProgress()
    try:
        with safetensors.safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete {path.parent} to start over") from error
    now = json.loads(json.dumps(dataclasses.asdict(settings)))
    before = facts["settings"]
    fixed = now.keys() - WHERE_AND_HOW - WATCHING - HOW_LONG
    changed = [f"{name} was {before.get(name)!r} and is {now[name]!r}" for name in sorted(fixed) if before.get(name) != now[name]]
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
    return RunProgress(**facts["progress"])
