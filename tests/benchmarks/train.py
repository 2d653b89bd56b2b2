"""How soon our recipe is where nanoGPT's ends: `python -m tests.benchmarks.train [--text FILE]`.

nanoGPT's recipe for a CPU (karpathy/nanoGPT, README) and `training/configs/shakespeare_cpu.toml`
train one after the other on the same text and split, the first 90 % and the last 10 %. Both losses are measured over the whole
validation split in contexts of 64. The clock counts training steps, from the batch to the optimizer, and no evaluation.
"""

import dataclasses
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cpgpt.model import GPT, Config
from training import prepare
from training.data import Data
from training.evaluate import loss_of, loss_over
from training.settings import read_settings
from training.train import train

CONFIG = Path(__file__).parents[2] / "training" / "configs" / "shakespeare_cpu.toml"
STEPS = 2000


@dataclasses.dataclass(frozen=True)
class Run:
    name: str
    parameters: int
    steps: int
    characters: int  # read in training
    seconds: float
    validation: float  # nats a character


def nanogpt(data: Data, steps: int) -> Run:
    """nanoGPT's published CPU settings: 4 layers, 4 heads, 128 wide, context 64, batch 12, AdamW 1e-3 to 1e-4."""
    torch.manual_seed(1337)
    sizes = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "bias": False, "qkv_bias": False}
    model = GPT(Config.classic(data.tokenizer.vocab_size, **sizes))
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    ids = data.splits["train"]
    random = np.random.default_rng(1337)
    began = time.perf_counter()
    for step in track(range(steps), "nanoGPT's recipe", console=Console(stderr=True), transient=True):
        progress = (step - 100) / (steps - 100)
        rate = 1e-3 * (step + 1) / 101 if step < 100 else 1e-4 + 0.5 * (1 + math.cos(math.pi * progress)) * (1e-3 - 1e-4)
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = random.integers(len(ids) - 65, size=12)
        rows = torch.from_numpy(np.stack([ids[start : start + 65].astype(np.int64) for start in starts]))
        loss_of(model(rows[:, :-1]), rows[:, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - began
    total, tokens = loss_over(model, data.splits["validation"], 64)
    return Run("nanoGPT's recipe", model.n_parameters(), steps, steps * 12 * 64, seconds, total / tokens)


def ours(folder: Path, out: Path, target: float, overrides: list[str]) -> Run:
    """Our training loop as it is; where its log first shows a validation loss of `target` or less."""
    settings = read_settings(CONFIG, [f'data="{folder}"', f'out="{out}"', *overrides])
    data = Data.load(folder)
    parameters = GPT(settings.model_config(data.tokenizer.vocab_size)).n_parameters()
    train(settings, Console(stderr=True, quiet=True))
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    reached = next((entry for entry in log if entry["validation"] <= target), None)
    if reached is None:
        raise SystemExit(
            f"ours ended at a validation loss of {min(e['validation'] for e in log):.4f} and never reached {target:.4f}"
        )
    characters = reached["step"] * settings.batch_size * settings.row_length
    return Run(f"ours ({settings.shape})", parameters, reached["step"], characters, reached["seconds"], reached["validation"])


def main(
    text: Annotated[Path | None, typer.Option(help="A UTF-8 text, e.g. tinyshakespeare.", show_default="our corpus")] = None,
    steps: Annotated[int, typer.Option(min=101, help="Steps of nanoGPT's recipe; 2000 are its own.")] = STEPS,
    runs: Annotated[int, typer.Option(min=1, help="Runs of ours, with different seeds; the median counts.")] = 3,
    set: Annotated[list[str] | None, typer.Option(help="key=value: a setting of ours to try.")] = None,
) -> None:
    """Time nanoGPT's recipe and ours to the same validation loss."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if text is None:
            text = folder / "corpus.txt"
            text.write_text(
                "\n".join(file.read_text(encoding="utf-8") for file in sorted(prepare.CORPUS.glob("*.txt"))), encoding="utf-8"
            )
        prepare.prepare_text(text, folder / "data", None, "whole", (90.0, 10.0, 0.0))
        data = Data.load(folder / "data")
        theirs = nanogpt(data, steps)
        mine = [
            ours(folder / "data", folder / f"run{n}", theirs.validation, [f"seed={n}", *(set or [])]) for n in range(1, runs + 1)
        ]
    mine.sort(key=lambda run: run.seconds)
    table = Table(title=f"{text.name}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}")
    for column in ("recipe", "parameters", "steps", "characters read", "seconds", "validation loss"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    for run in [theirs, *mine]:
        row = (f"{run.parameters:,}", f"{run.steps:,}", f"{run.characters:,}", f"{run.seconds:.1f}", f"{run.validation:.4f}")
        table.add_row(run.name, *row)
    Console().print(table)
    print(f"nanoGPT / ours: {theirs.seconds / mine[len(mine) // 2].seconds:.1f}x")


if __name__ == "__main__":
    typer.run(main)
