"""The machine that a run is on: its device, number format, memory, other processes, and being asked to stop."""

import contextlib
import ctypes
import os
import platform
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Process:
    """One of the processes that train together; the first has rank 0 and does all the writing."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, number: Tensor) -> Tensor:
        """The sum of `number` over all processes."""
        if self.world > 1:
            dist.all_reduce(number)
        return number

    def from_first(self, *numbers: float) -> list[float]:
        """What the first process has."""
        shared = torch.tensor(numbers, dtype=torch.float64 if self.device.type != "mps" else torch.float32, device=self.device)
        if self.world > 1:
            dist.broadcast(shared, 0)
        return shared.tolist()


@contextlib.contextmanager
def process_group(device: str) -> Iterator[Process]:
    """This process among those that `torchrun` has started, or alone."""
    picked = pick_device(device)
    if "WORLD_SIZE" not in os.environ:
        yield Process(0, 1, picked)
        return
    if picked.type == "cuda":
        torch.cuda.set_device(picked)
    dist.init_process_group("nccl" if picked.type == "cuda" else "gloo")
    try:
        yield Process(dist.get_rank(), dist.get_world_size(), picked)
    finally:
        dist.destroy_process_group()


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if name == "cuda" else torch.device(name)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Matrix products in bfloat16 ("auto": where the processor has them; then they are twice as fast on a CPU, more on a GPU)."""
    if precision == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        native |= device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
        precision = "bfloat16" if native else "float32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def wants_compiling(setting: str, device: torch.device) -> bool:
    """Whether to compile the model: "on", "off", or "auto": on CUDA.

    Raises:
        ValueError: "on" for a CPU without a C++ compiler.
    """
    if setting == "on" and device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise ValueError("compile is on, but there is no C++ compiler: install g++ or clang++, or give --set compile=off")
    return setting == "on" or (setting == "auto" and device.type == "cuda")


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed: else every step gives its activations back to the kernel and takes them again."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mappings of their own for large blocks
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD: do not shrink


class Stop:
    """Ctrl-C and `kill` ask for a stop: the step is finished and the state saved. A second Ctrl-C does not wait."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Stop":
        self.before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def anywhere(self, process: Process) -> bool:
        """Whether any process was asked to stop."""
        return bool(process.sum(torch.tensor(float(self.asked), device=process.device)).item()) if process.world > 1 else self.asked
