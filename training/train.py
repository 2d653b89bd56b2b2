"""The training loop: `python -m training.train training/configs/NAME.toml --set key=value`.

Get a batch, forward, backward, clip, step, schedule, evaluate, save. A run writes into its folder:

    checkpoint/          the best model so far by validation loss: a checkpoint that `cpgpt.load` and `transformers` read
    state.safetensors    all that the run needs to go on from its last save, bit for bit (on the CPU)
    log.jsonl            a line for every evaluation

Started again after Ctrl-C, a crash or a kill, the same command goes on. `torchrun --nproc-per-node N -m training.train ...` trains
with N processes, each on its share of every batch.
"""

import contextlib
import ctypes
import json
import math
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from cpgpt import checkpoint
from cpgpt.model import GPT
from cpgpt.sampling import generate
from cpgpt.tokenizer import END_OF_TEXT_ID
from training import prepare
from training.data import IGNORED, Data, Rows, evaluation_batches
from training.settings import Settings, read_settings
from training.state import load_state, save_state

DEFAULT_DATA = "data/centralperk"


# ---- the machine


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Matrix products in bfloat16 where the processor has them: twice as fast on CPUs with AVX512-BF16, more on GPUs."""
    if precision == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        native |= device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
        precision = "bfloat16" if native else "float32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed: else every step gives its activations back to the kernel and takes them again."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no separate mappings for large blocks
        libc.mallopt(-1, 1 << 40)  # M_TRIM_THRESHOLD: never shrink


# ---- the parts of a step


def make_optimizers(model: GPT, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks and AdamW for the rest, or AdamW for all. Only matrices decay.

    Muon turns each update into an orthogonal one, so that all directions of a matrix learn at one pace
    (https://kellerjordan.github.io/posts/muon/).
    """
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    known = {id(p) for p in matrices}
    tables = [p for p in model.parameters() if p.dim() == 2 and id(p) not in known]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    decay, no_decay = {"weight_decay": settings.weight_decay}, {"weight_decay": 0.0}
    groups = [{"params": tables, **decay}, {"params": vectors, **no_decay}]
    if settings.optimizer == "adamw":
        groups.append({"params": matrices, **decay})
    betas = (settings.beta1, settings.beta2)
    adamw = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, fused=True)
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


def loss_of(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats a token; padding does not count."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction=reduction)


class Batches:
    """The rows of every step: short ones first and, for the last share of the steps, long ones."""

    def __init__(self, ids: np.ndarray, settings: Settings) -> None:
        self.settings = settings
        self.long_from = settings.steps - round(settings.steps * settings.long_share)
        self.short = Rows(ids, settings.row_length, settings.seed)
        self.long = Rows(ids, settings.long_row_length, settings.seed) if settings.long_share else self.short

    def row_length(self, step: int) -> int:
        return (self.short if step < self.long_from else self.long).row_length

    def __call__(self, step: int, rank: int, world: int) -> list[tuple[Tensor, Tensor]]:
        """This process's micro-batches of a step: (inputs, targets) each."""
        rows, start, count = self.short, 0, self.settings.batch_size
        if step >= self.long_from:
            rows, start = self.long, self.long_from
            parts = world * self.settings.micro_batches
            count = max(1, round(count * self.settings.row_length / self.long.row_length / parts)) * parts
        share = count // world
        inputs, targets = rows.batch((step - start) * count + rank * share, share)
        return list(zip(inputs.chunk(self.settings.micro_batches), targets.chunk(self.settings.micro_batches), strict=True))


@torch.inference_mode()
def evaluate(model: GPT, ids: np.ndarray, row_length: int, precision: str = "float32") -> tuple[float, int]:
    """The loss in nats, summed over all tokens of a split, and their number; contexts of `row_length` tokens."""
    was_training = model.training
    model.eval()
    device = model.head.weight.device
    total, tokens = 0.0, 0
    for inputs, targets in evaluation_batches(ids, row_length, 8192):
        with autocast(device, precision):
            logits = model(inputs.to(device))
        total += loss_of(logits, targets.to(device), "sum").item()
        tokens += int((targets != IGNORED).sum())
    model.train(was_training)
    return total, tokens


def write_sample(model: GPT, data: Data, settings: Settings) -> str:
    """A text that the model writes from nothing, always with the same random numbers."""
    was_training = model.training
    model.eval()
    steps = generate(
        model,
        [[END_OF_TEXT_ID]],
        [settings.seed],
        max_new_tokens=min(400, model.config.block_size - 1),
        stop_id=END_OF_TEXT_ID if data.meta["format"] == "scenes" else None,
        temperature=settings.sample_temperature,
    )
    ids = [id for (id,) in steps if id is not None]
    model.train(was_training)
    return data.tokenizer.decode(ids)


# ---- the run


class Stop:
    """Ctrl-C and `kill` ask for a stop: the step is finished, the state saved. A second Ctrl-C does not wait."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def anywhere(self, device: torch.device) -> bool:
        """Whether any process was asked to stop."""
        if not dist.is_initialized():
            return self.asked
        flag = torch.tensor(float(self.asked), device=device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())


class Log:
    """The run's log.jsonl. What a killed run logged after its last save is taken back when it goes on."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        path.write_text("".join(kept), encoding="utf-8")

    def add(self, **entry: Any) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


@contextlib.contextmanager
def processes(settings: Settings) -> Iterator[tuple[int, int, torch.device]]:
    """This process's rank, how many there are, and its device; `torchrun` says how many by its environment variables."""
    device = pick_device(settings.device)
    if "WORLD_SIZE" not in os.environ:
        yield 0, 1, device
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield dist.get_rank(), dist.get_world_size(), device
    finally:
        dist.destroy_process_group()


def train(settings: Settings, console: Console | None = None) -> Path:
    """Train, or go on with a run that was stopped; returns the run's folder.

    Raises:
        FileNotFoundError: the data were not prepared.
        ValueError: settings that do not fit the data or the run that the folder holds.
    """
    with processes(settings) as (rank, world, device):
        if settings.batch_size % (world * settings.micro_batches):
            raise ValueError(f"batch_size {settings.batch_size} cannot be shared by {world} processes x micro_batches")
        return _train(settings, console or Console(quiet=rank > 0), rank, world, device)


def _train(settings: Settings, console: Console, rank: int, world: int, device: torch.device) -> Path:
    keep_freed_memory()
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    data = Data.load(Path(settings.data))
    characters_a_token = data.meta["splits"]["train"]["characters"] / data.meta["splits"]["train"]["tokens"]
    batches = Batches(data.splits["train"], settings)

    torch.manual_seed(settings.seed)
    model = GPT(settings.model_config(data.tokenizer.vocab_size)).to(device)
    optimizers = make_optimizers(model, settings)
    full_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    progress = load_state(out / "state.safetensors", model, optimizers, settings, data.meta["sha256"])
    step, best, worse = progress["step"], progress["best"], progress["worse"]
    seconds = progress["seconds"]
    log = Log(out / "log.jsonl", step) if rank == 0 else None
    console.print(
        f"{out}: {model.n_parameters() / 1e6:.2f}M parameters, {settings.steps} steps on {device}"
        + (f", going on at step {step}" if step else "")
    )

    forward: Any = model
    if world > 1:
        forward = torch.nn.parallel.DistributedDataParallel(forward, device_ids=[device.index] if device.type == "cuda" else None)
    compiled = settings.compile == "on" or (settings.compile == "auto" and device.type == "cuda")
    if compiled:
        forward = torch.compile(forward)

    stop, saved, last_loss = Stop(), time.monotonic(), math.nan
    columns = ("{task.percentage:3.0f}%", "step {task.completed:.0f}", "loss {task.fields[loss]:.3f}", "{task.fields[validation]}")
    bar = Progress(
        TextColumn(columns[0]), BarColumn(bar_width=20), *map(TextColumn, columns[1:]), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(), console=console, transient=True, disable=rank > 0,
    )  # fmt: skip
    with bar:
        task = bar.add_task("training", total=settings.steps, completed=step, loss=math.nan, validation="", rate="")
        while step < settings.steps and worse < (settings.patience or math.inf):
            began = time.perf_counter()
            torch.manual_seed(settings.seed * 1_000_003 + step * world + rank)  # dropout depends on the step alone
            portions = batches(step, rank, world)
            # A compiled model on a CPU is a third faster with attention written out, as long as rows are short.
            model.fused = not (compiled and device.type == "cpu" and portions[0][0].size(1) <= 512)
            loss = torch.zeros((), device=device)
            for number, (inputs, targets) in enumerate(portions, 1):
                last = number == len(portions)
                with contextlib.nullcontext() if last or world == 1 else forward.no_sync():
                    with autocast(device, settings.precision):
                        logits = forward(inputs.to(device, non_blocking=True))
                    part = loss_of(logits, targets.to(device, non_blocking=True)) / len(portions)
                    part.backward()
                    loss += part.detach()
            if settings.clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            for optimizer, rates in zip(optimizers, full_rates, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * schedule(step, settings)
                optimizer.step()
                optimizer.zero_grad()
            step += 1
            if step % 10 == 0 or step == settings.steps or world > 1:
                if world > 1:
                    dist.all_reduce(loss)
                    loss /= world
                last_loss = loss.item()
            took = time.perf_counter() - began
            seconds += took
            rate = sum(inputs.numel() for inputs, _ in portions) * world * characters_a_token / took
            bar.update(task, completed=step, loss=last_loss, rate=f"{rate:,.0f} characters/s")

            stopping = stop.anywhere(device)
            if step % settings.evaluate_every == 0 or step == settings.steps:
                if rank == 0 and log is not None:
                    entry = _evaluation(model, data, settings, batches.row_length(step - 1))
                    log.add(
                        step=step, loss=loss.item(), **entry, learning_rate=schedule(step - 1, settings), seconds=round(seconds, 1)
                    )
                    bar.update(task, validation=f"validation {entry['validation']:.4f}")
                    console.print(
                        f"step {step}: loss {loss.item():.4f}, validation {entry['validation']:.4f} nats, "
                        f"{entry['bits_per_character']:.4f} bits per character, {seconds:,.0f} s"
                    )
                    console.print(write_sample(model, data, settings)[:200].rstrip(), style="dim", highlight=False, markup=False)
                    worse = 0 if entry["validation"] < best else worse + 1
                    if entry["validation"] < best:
                        best = entry["validation"]
                        facts = {"corpus": data.meta, "training": {"step": step, **entry, "seconds": round(seconds, 1)}}
                        checkpoint.save(out / "checkpoint", model, data.tokenizer, facts, settings.store)
                if world > 1:
                    shared = torch.tensor([best, worse], dtype=torch.float64, device=device)
                    dist.broadcast(shared, 0)
                    best, worse = shared[0].item(), int(shared[1].item())
                saved = 0.0
            if rank == 0 and (stopping or time.monotonic() - saved > settings.save_seconds):
                progress = {"step": step, "best": best, "worse": worse, "seconds": seconds}
                save_state(out / "state.safetensors", model, optimizers, settings, data.meta["sha256"], progress)
                saved = time.monotonic()
            if stopping:
                console.print(f"stopped at step {step}; the same command goes on from here")
                return out
    console.print(f"best validation loss {best:.4f} nats: {out / 'checkpoint'}")
    return out


def _evaluation(model: GPT, data: Data, settings: Settings, row_length: int) -> dict[str, float]:
    """The validation loss over the whole split, in nats a token and in bits a character."""
    total, tokens = evaluate(model, data.splits["validation"], row_length, settings.precision)
    characters = data.meta["splits"]["validation"]["characters"]
    return {"validation": total / tokens, "bits_per_character": total / characters / math.log(2)}


def main(
    config: Annotated[Path, typer.Argument(help="A file of training/configs, or one of yours.")],
    set: Annotated[list[str] | None, typer.Option(help="key=value: a setting in place of the file's. Can be repeated.")] = None,
) -> None:
    """Train a model and keep the best checkpoint. Ctrl-C saves and exits; the same command goes on."""
    try:
        settings = read_settings(config, set)
        if settings.data == DEFAULT_DATA and not (Path(DEFAULT_DATA) / "meta.json").exists() and "RANK" not in os.environ:
            prepare.prepare_corpus(prepare.CORPUS, Path(DEFAULT_DATA), None, (90.0, 5.0, 5.0))
        out = train(settings)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if (out / "checkpoint").exists() and "RANK" not in os.environ:
        print(f"try it: cpgpt scene --checkpoint {out / 'checkpoint'}")


if __name__ == "__main__":
    typer.run(main)
