"""The training loop: `python -m training.train training/configs/NAME.toml --set key=value`.

Get a batch, forward, backward, clip, step, schedule, evaluate, save. A run writes into its folder:

    checkpoint/          the best model so far by validation loss: a checkpoint that `cpgpt` and `transformers` read
    state.safetensors    all that the run needs to go on from its last save, bit for bit (on the CPU)
    log.jsonl            a line for every evaluation: losses, seconds, a sample; a copy lies beside the checkpoint

Started again after Ctrl-C, a crash or a kill, the same command goes on. `torchrun --standalone --nproc-per-node N -m training.train
...` trains with N processes, each on its share of every batch.
"""

import contextlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from cpgpt import SceneWriter, checkpoint
from cpgpt.card import LOG
from cpgpt.checkpoint import write_atomically
from cpgpt.model import GPT
from training.data import Batches, Data
from training.evaluate import loss_of, loss_over
from training.machine import Process, Stop, autocast, keep_freed_memory, process_group, wants_compiling
from training.prepare import OUT, prepare_corpus
from training.settings import Settings, read_settings
from training.state import RunProgress, load_state, save_state


def make_optimizers(model: GPT, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks and AdamW for the rest, or AdamW for all. Only matrices decay.

    Muon makes each update orthogonal, so that all directions of a matrix learn at one pace
    (https://kellerjordan.github.io/posts/muon/).
    """
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    in_blocks = {id(p) for p in matrices}
    tables = [p for p in model.parameters() if p.dim() == 2 and id(p) not in in_blocks]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    decay, no_decay = {"weight_decay": settings.weight_decay}, {"weight_decay": 0.0}
    groups = [{"params": tables, **decay}, {"params": vectors, **no_decay}]
    if settings.optimizer == "adamw":
        groups.append({"params": matrices, **decay})
    adamw = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), fused=True)
    if settings.optimizer == "adamw":
        return [adamw]
    muon = torch.optim.Muon(
        matrices,
        lr=settings.muon_learning_rate,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        ns_steps=settings.muon_iterations,
    )
    return [adamw, muon]


def schedule(step: int, settings: Settings) -> float:
    """The share of the full learning rates at a step: up in a straight line, constant, down to zero in a straight line."""
    up = (step + 1) / max(1, settings.warmup_steps)
    down = (settings.steps - step) / max(1.0, settings.steps * settings.decay_share)
    return min(1.0, up, down)


def train(settings: Settings, console: Console | None = None) -> Path:
    """Train, or go on with a run that was stopped; returns the run's folder.

    Raises:
        FileNotFoundError: the data were not prepared.
        ValueError: settings that do not fit the data, the processes or the run that the folder holds.
    """
    with process_group(settings.device) as process, Stop() as stop:
        if settings.batch_size % (process.world * settings.micro_batches):
            raise ValueError(f"batch_size {settings.batch_size} cannot be shared by {process.world} processes x micro_batches")
        return _train(settings, process, stop, console or Console(quiet=not process.first))


def _train(settings: Settings, process: Process, stop: Stop, console: Console) -> Path:
    keep_freed_memory()
    data = Data.load(Path(settings.data))
    batches = Batches(data.splits["train"], settings)
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    model = GPT(settings.model_config(data.tokenizer.vocab_size)).to(process.device)
    optimizers = make_optimizers(model, settings)
    full_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    run = load_state(out / "state.safetensors", model, optimizers, settings, data.meta["sha256"])
    going_on = f", going on at step {run.step}" if run.step else ""
    console.print(f"{out}: {model.n_parameters() / 1e6:.2f}M parameters, {settings.steps} steps on {process.device}{going_on}")
    if process.first:
        forget_after(run.step, out / LOG)

    forward: Any = model
    if process.world > 1:
        forward = torch.nn.parallel.DistributedDataParallel(model)
    compiled = wants_compiling(settings.compile, process.device)
    if compiled:
        forward = torch.compile(forward)

    saved, loss = time.monotonic(), math.nan
    with Watch(settings, console, run.step) as watch:
        while run.step < settings.steps and run.worse < (settings.patience or math.inf):
            began = time.perf_counter()
            torch.manual_seed(settings.seed * 1_000_003 + run.step * process.world + process.rank)  # dropout: by the step alone
            portions = batches(run.step, process.rank, process.world)
            # On a CPU, PyTorch's fused attention is slow backward: with short rows, a step is a third faster written out.
            model.fused = process.device.type != "cpu" or portions[0][0].size(1) > (512 if compiled else 64)
            step_loss = torch.zeros((), device=process.device)
            for number, (inputs, targets) in enumerate(portions, 1):
                more = process.world > 1 and number < len(portions)  # gradients are shared with the last portion's
                with forward.no_sync() if more else contextlib.nullcontext():
                    step_loss += backward(forward, inputs.to(process.device), targets.to(process.device), len(portions), settings)
            if settings.clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            for optimizer, rates in zip(optimizers, full_rates, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * schedule(run.step, settings)
                optimizer.step()
                optimizer.zero_grad()
            run.step += 1
            last = run.step == settings.steps
            # Reading the loss waits for the GPU.
            if process.device.type == "cpu" or run.step % 10 == 0 or last or run.step % settings.evaluate_every == 0:
                loss = process.sum(step_loss).item() / process.world
            seconds = time.perf_counter() - began
            run.seconds += seconds
            tokens = sum(inputs.numel() for inputs, _ in portions) * process.world
            watch.step(run.step, loss, tokens * data.characters_per_token / seconds)

            stopping, saving = stop.anywhere(process), time.monotonic() - saved > settings.save_seconds
            if last or run.step % settings.evaluate_every == 0:
                if process.first:
                    row_length = batches.row_length(run.step - 1)
                    entry = {"step": run.step, "loss": loss, **validate(model, data, row_length, settings.precision)}
                    keep_if_best(model, data, settings, run, entry)
                    sample = write_sample(model, data, settings)
                    append({**entry, "seconds": round(run.seconds, 1), "sample": sample}, out / LOG)
                    if (out / "checkpoint").exists():  # the log travels with it, so that its card can show the whole run
                        write_atomically(out / "checkpoint" / LOG, (out / LOG).read_text(encoding="utf-8"))
                    watch.evaluation(entry, run.seconds, sample)
                run.best, worse = process.from_first(run.best, run.worse)
                run.worse, saving = int(worse), True
            if process.first and (saving or stopping):
                save_state(out / "state.safetensors", model, optimizers, settings, data.meta["sha256"], run)
                saved = time.monotonic()
            if stopping:
                console.print(f"stopped at step {run.step}; the same command goes on from here")
                return out
    console.print(f"best validation loss {run.best:.4f} nats: {out / 'checkpoint'}")
    return out


def backward(forward: Any, inputs: Tensor, targets: Tensor, portions: int, settings: Settings) -> Tensor:
    """One portion of a batch forward and backward; gradients add up to those of the whole batch's mean loss."""
    with autocast(inputs.device, settings.precision):
        logits = forward(inputs)
    loss = loss_of(logits, targets) / portions
    loss.backward()
    return loss.detach()


def validate(model: GPT, data: Data, row_length: int, precision: str) -> dict[str, float]:
    """The loss over the whole validation split, in nats a token and in bits a character."""
    total, tokens = loss_over(model, data.splits["validation"], row_length, precision)
    return {"validation": total / tokens, "bits_per_character": total / data.characters("validation") / math.log(2)}


def keep_if_best(model: GPT, data: Data, settings: Settings, run: RunProgress, entry: dict[str, float]) -> None:
    """Save the checkpoint if no evaluation before was better."""
    run.worse += 1
    if entry["validation"] < run.best:
        run.best, run.worse = entry["validation"], 0
        facts = {"corpus": data.meta, "training": {**entry, "seconds": round(run.seconds, 1)}}
        checkpoint.save(Path(settings.out) / "checkpoint", model, data.tokenizer, facts, settings.store, data.drafts)


def write_sample(model: GPT, data: Data, settings: Settings) -> str:
    """The beginning of a text that the model writes from nothing, always with the same random numbers."""
    model.eval()
    writer = SceneWriter(checkpoint.Checkpoint(model, data.tokenizer), places=1)
    (text,) = writer.texts([settings.seed], temperature=settings.sample_temperature, max_characters=240)
    model.train()
    return text


def append(entry: dict[str, Any], log: Path) -> None:
    with open(log, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def forget_after(step: int, log: Path) -> None:
    """Take back what a killed run logged after its last save: it will be logged again."""
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    log.write_text("".join(kept), encoding="utf-8")


class Watch:
    """The progress line, and a few lines for every evaluation."""

    def __init__(self, settings: Settings, console: Console, step: int) -> None:
        fields = ("step {task.completed:.0f}", "loss {task.fields[loss]:.3f}", "{task.fields[best]}", "{task.fields[rate]}")
        percentage = TextColumn("{task.percentage:3.0f}%")
        self.progress = Progress(
            percentage, BarColumn(20), *map(TextColumn, fields), TimeRemainingColumn(), console=console, transient=True
        )
        self.task = self.progress.add_task("", total=settings.steps, completed=step, loss=math.nan, best="", rate="")

    def __enter__(self) -> "Watch":
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def step(self, step: int, loss: float, rate: float) -> None:
        self.progress.update(self.task, completed=step, loss=loss, rate=f"{rate:,.0f} characters/s")

    def evaluation(self, entry: dict[str, float], seconds: float, sample: str) -> None:
        nats, bits = f"{entry['validation']:.4f} nats", f"{entry['bits_per_character']:.4f} bits per character"
        self.progress.update(self.task, best=f"validation {entry['validation']:.4f}")
        self.progress.console.print(
            f"step {entry['step']}: loss {entry['loss']:.4f}, validation {nats}, {bits}, {seconds:,.0f} s", highlight=False
        )
        self.progress.console.print(sample.rstrip(), style="dim", highlight=False, markup=False)


def main(
    config: Annotated[Path, typer.Argument(help="A file of training/configs, or one of yours.")],
    set: Annotated[list[str] | None, typer.Option(help="key=value: a setting in place of the file's. Can be repeated.")] = None,
) -> None:
    """Train a model and keep the best checkpoint. Ctrl-C saves and exits; the same command goes on."""
    alone = "RANK" not in os.environ
    try:
        settings = read_settings(config, set)
        if alone and Path(settings.data) == OUT and not (OUT / "meta.json").exists():
            prepare_corpus()
        out = train(settings)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if alone and (out / "checkpoint").exists():
        print(f"try it: cpgpt scene --checkpoint {out / 'checkpoint'}")


if __name__ == "__main__":
    typer.run(main)
