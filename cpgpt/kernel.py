"""Builds `kernel.cpp` for this machine and calls it: the modern shape's forward pass on a CPU. Knows nothing about text.

It is compiled once, with the machine's C++ compiler, into the user's cache folder. Without a compiler there is the plain PyTorch
path (`runner.py`), which is always right and several times slower.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cpgpt.model import GPT, MODERN, Config

SOURCE = Path(__file__).with_name("kernel.cpp")
FLAGS = ("-O3", "-march=native", "-std=gnu++17", "-shared", "-fPIC", "-pthread")
HEAD_SIZES = (16, 32, 48, 64, 96, 128)
LANES = 16
MOST_THREADS = 4  # more have too little to do between two meetings


class KernelError(RuntimeError):
    """The kernel cannot be had here; the message says why."""


def why_not(config: Config) -> str | None:
    """Why the kernel cannot run a model of this shape; None if it can."""
    for name, value in MODERN.items():
        if name != "norm_eps" and getattr(config, name) != value:
            return f"{name} is {getattr(config, name)!r}: the kernel is for the modern shape only"
    if config.head_size not in HEAD_SIZES:
        return f"the head size is {config.head_size}: the kernel has {', '.join(map(str, HEAD_SIZES))}"
    if config.n_embd % LANES or config.n_hidden % LANES:
        return f"n_embd {config.n_embd} and n_hidden {config.n_hidden} must be multiples of {LANES}"
    return None


def compiler() -> str:
    """The C++ compiler: $CXX, or the first there is of c++, g++ and clang++.

    Raises:
        KernelError: there is none.
    """
    wanted = os.environ.get("CXX")
    found = next(filter(None, map(shutil.which, [wanted] if wanted else ["c++", "g++", "clang++"])), None)
    if found is None:
        raise KernelError(f"$CXX is {wanted!r}: there is no such compiler" if wanted else "no C++ compiler: install g++ or clang++")
    return found


def cache_folder() -> Path:
    """Where what was built is kept: $CPGPT_CACHE, or `cpgpt` in the user's cache folder."""
    if "CPGPT_CACHE" in os.environ:
        return Path(os.environ["CPGPT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cpgpt"


def processor() -> str:
    """What the compiler's -march=native hangs on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor()) + platform.machine()


def available_processors() -> int:
    """How many processors this process may use: $OMP_NUM_THREADS, as for PyTorch, or those there are."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    return (
        int(named)
        if named.isdigit() and int(named)
        else len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )


def build() -> Path:
    """The shared library, compiled now unless it was before. Takes about two seconds.

    Raises:
        KernelError: there is no compiler, or it failed.
    """
    found = compiler()
    version = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    key = hashlib.sha256("\0".join([SOURCE.read_text(encoding="utf-8"), *FLAGS, version, processor()]).encode()).hexdigest()[:16]
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        usable = os.access(folder, os.W_OK)
    except OSError:
        usable = False
    if not usable:
        folder = Path(tempfile.mkdtemp(prefix="cpgpt-"))
    library = folder / f"kernel-{key}.so"
    if not library.exists():
        fresh = library.with_name(f".{library.name}-{os.getpid()}")
        result = subprocess.run([found, *FLAGS, "-o", str(fresh), str(SOURCE)], capture_output=True, text=True)
        if result.returncode:
            raise KernelError(f"{found} could not build {SOURCE.name}: {result.stderr.strip()[:2000]}")
        fresh.replace(library)
    return library


@functools.cache
def _library() -> ctypes.CDLL:
    path = build()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:  # damaged, or built on another system that shares the folder
        raise KernelError(f"{path} cannot be loaded, delete it: {error}") from error
    library.forward.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, *[ctypes.c_void_p] * 4]
    library.forward.restype = None
    library.make_team.argtypes, library.make_team.restype = [ctypes.c_int32], ctypes.c_void_p
    return library


@functools.cache
def _team(threads: int) -> int:
    """The address of so many threads, which the models of this process share."""
    return int(_library().make_team(threads))


def _structure(name: str, **fields: Any) -> Any:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


# As in kernel.cpp.
_WEIGHTS = ("qkv", "out", "gate_up", "down", "attention_norm", "q_norm", "k_norm", "feed_forward_norm")
_Layer = _structure("Layer", **dict.fromkeys(_WEIGHTS, ctypes.c_void_p))
_SIZES = ("n_layer", "n_head", "n_embd", "n_hidden", "vocab_size", "block_size", "weights_are_halves")
_POINTERS = ("embedding", "cos", "sin", "layers", "norm", "head", "keys", "values")
_Model = _structure(
    "Model",
    **dict.fromkeys(_SIZES, ctypes.c_int32),
    norm_eps=ctypes.c_float,
    **dict.fromkeys(_POINTERS, ctypes.c_void_p),
    **dict.fromkeys(("places", "capacity"), ctypes.c_int32),
)


class Kernel:
    """A model's weights, packed, and the keys and values of `places` streams.

    Raises:
        KernelError: the model has another shape, or the kernel cannot be built here.
    """

    row_cost = 0.15

    def __init__(self, model: GPT, places: int, threads: int | None = None) -> None:
        config = model.config
        reason = why_not(config)
        if reason:
            raise KernelError(reason)
        self._forward = _library().forward
        self._team = _team(threads or min(MOST_THREADS, available_processors()))
        self.vocab_size = config.vocab_size
        # What the kernel reads lies in one piece, for which the system takes large pages: more than is needed costs nothing.
        numbers = sum(tensor.numel() for tensor in model.state_dict().values()) + model.cos.numel() + model.sin.numel()
        self._memory, self._used = np.zeros(8 * numbers + 2**20, dtype=np.uint8), 0
        matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
        halves = all(torch.equal(matrix.half().float(), matrix) for matrix in matrices)
        self._dtype = torch.float16 if halves else torch.float32
        layers = (_Layer * config.n_layer)(*(self._layer(block) for block in model.blocks))
        capacity = -(-config.block_size // LANES) * LANES
        # Pages of the pool are taken from the system as they are first written to.
        self.keys, self.values = (
            np.zeros((config.n_layer, places, config.n_head, capacity * config.head_size), dtype=np.float16) for _ in range(2)
        )
        self._layers = layers
        self._model = _Model(
            **{name: getattr(config, name) for name in _SIZES[:-1]},
            weights_are_halves=halves,
            norm_eps=config.norm_eps,
            embedding=self._floats(model.embedding.weight),
            cos=self._floats(model.cos),
            sin=self._floats(model.sin),
            layers=ctypes.addressof(layers),
            norm=self._floats(model.state_dict()["norm.weight"]),
            head=self._packed(model.head.weight),
            keys=self.keys.ctypes.data,
            values=self.values.ctypes.data,
            places=places,
            capacity=capacity,
        )

    def _layer(self, block: Any) -> Any:
        gate_up = torch.cat([block.feed_forward.gate.weight, block.feed_forward.up.weight])
        return _Layer(
            qkv=self._packed(block.attention.qkv.weight),
            out=self._packed(block.attention.out.weight),
            gate_up=self._packed(gate_up),
            down=self._packed(block.feed_forward.down.weight),
            attention_norm=self._floats(block.attention_norm.weight),
            q_norm=self._floats(block.attention.q_norm.weight),
            k_norm=self._floats(block.attention.k_norm.weight),
            feed_forward_norm=self._floats(block.feed_forward_norm.weight),
        )

    def _keep(self, array: np.ndarray) -> int:
        """Copy `array` into the kernel's memory; returns its address."""
        start = self._used + -(self._memory.ctypes.data + self._used) % 64
        self._used = start + array.nbytes
        self._memory[start : self._used].view(array.dtype)[:] = array.reshape(-1)
        return int(self._memory.ctypes.data) + start

    def _floats(self, tensor: Tensor) -> int:
        return self._keep(tensor.detach().cpu().numpy().astype(np.float32))

    def _packed(self, matrix: Tensor) -> int:
        """(outputs, inputs) in panels of 16 outputs, (outputs / 16, inputs, 16), filled up with zeros."""
        outputs, inputs = matrix.shape
        padded = torch.zeros(-(-outputs // LANES) * LANES, inputs, dtype=self._dtype)
        padded[:outputs] = matrix.detach().cpu()
        return self._keep(padded.view(-1, LANES, inputs).transpose(1, 2).contiguous().numpy())

    def forward(self, ids: np.ndarray, places: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Logits (n, V) of what follows each of `ids` (n,), read at `positions` (n,) of the streams at `places` (n,), all int32.

        The rows of one stream follow each other, in the order of their positions. Other threads may run meanwhile, and may call
        this for other places.
        """
        logits = np.empty((len(ids), self.vocab_size), dtype=np.float32)
        pointers = (array.ctypes.data for array in (ids, places, positions, logits))
        self._forward(ctypes.addressof(self._model), self._team, len(ids), *pointers)
        return logits

    def copy(self, source: int, target: int, count: int) -> None:
        """Give the place `target` what `source` has read at its first `count` positions."""
        numbers = -(-count // LANES) * LANES * (self._model.n_embd // self._model.n_head)
        for pool in (self.keys, self.values):
            pool[:, target, :, :numbers] = pool[:, source, :, :numbers]
