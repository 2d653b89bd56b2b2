"""The settings of a training run: one frozen dataclass, read from a TOML file and `key=value` pairs."""

import dataclasses
import difflib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from cpgpt.model import Config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# The names of the model's fields, which a configuration may set beside the training's own.
MODEL_FIELDS = {field.name for field in dataclasses.fields(Config)} - {"vocab_size"}


@dataclass(frozen=True)
class Settings:
    """What a run is made of. Lengths are in tokens (characters, unless the data were prepared as subwords)."""

    # where
    data: str = "data/centralperk"  # a folder that `training.prepare` wrote
    out: str = ""  # the run's folder; empty: runs/ and the configuration's name

    # the model: `shape` sets every switch of `cpgpt.model.Config`; any field of it can be set beside it
    shape: str = "modern"
    model: dict[str, Any] = dataclasses.field(default_factory=dict)

    # how long, and on what
    steps: int = 1000
    batch_size: int = 24  # rows a step, over all processes, at `row_length`
    row_length: int = 256
    long_row_length: int = 0  # the last `long_share` of the steps read rows of this length, as many tokens a step as before
    long_share: float = 0.0
    micro_batches: int = 1  # a step's rows go through the model in so many portions
    seed: int = 1

    # how to step
    optimizer: str = "muon"  # "muon": Muon for the matrices of the blocks, AdamW for the rest; "adamw": AdamW for all
    learning_rate: float = 0.006  # AdamW's
    muon_learning_rate: float = 0.03
    muon_iterations: int = 5  # of Newton-Schulz
    momentum: float = 0.95
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1  # of the matrices
    clip: float = 1.0  # the largest norm of the gradient; 0: no limit
    warmup_steps: int = 50
    decay_share: float = 0.5  # the last share of the steps, in which the rates fall to zero in a straight line

    # watching
    evaluate_every: int = 100  # steps
    patience: int = 0  # stop after so many evaluations without a new best; 0: never
    sample_temperature: float = 0.8
    save_seconds: float = 120.0  # how often the state is saved between evaluations

    # the machine
    device: str = "auto"  # auto, cpu, cuda, mps
    precision: str = "auto"  # auto, float32, bfloat16 (autocast); auto: bfloat16 where the processor multiplies it
    compile: str = "auto"  # auto, on, off; auto: on CUDA only
    store: str = "float32"  # the weights in the checkpoint: float32, bfloat16, float16

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "row_length", "micro_batches", "muon_iterations", "evaluate_every")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        for name in ("long_share", "decay_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be from 0 to 1")
        choices = {
            "shape": ("modern", "classic"),
            "optimizer": ("muon", "adamw"),
            "device": ("auto", "cpu", "cuda", "mps"),
            "precision": ("auto", "float32", "bfloat16"),
            "compile": ("auto", "on", "off"),
            "store": ("float32", "bfloat16", "float16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}: it must be one of {', '.join(allowed)}")
        if self.batch_size % self.micro_batches:
            raise ValueError(f"batch_size {self.batch_size} cannot be cut into {self.micro_batches} micro_batches")
        if self.long_share and self.long_row_length < self.row_length:
            raise ValueError(f"long_row_length is {self.long_row_length}: it must be at least row_length, {self.row_length}")

    def model_config(self, vocab_size: int) -> Config:
        """The model that these settings describe; its context is that of the longest rows unless `block_size` is set."""
        longest = self.long_row_length if self.long_share else self.row_length
        shape = Config.classic if self.shape == "classic" else Config.modern
        return shape(vocab_size, **{"block_size": longest, **self.model})


def read_settings(path: Path, overrides: list[str] | None = None) -> Settings:
    """The settings of a TOML file, then of `key=value` pairs, whose values are read as TOML too.

    Raises:
        FileNotFoundError: no such file; the message names the configurations beside it.
        ValueError: an unknown key (the message names the nearest known one), a value of the wrong type or out of range.
    """
    if not path.exists():
        known = ", ".join(sorted(str(file) for file in path.parent.glob("*.toml")))
        raise FileNotFoundError(f"no configuration {path}" + (f"; there are {known}" if known else ""))
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    for override in overrides or []:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"--set {override}: write --set key=value")
        values[key.strip()] = _value(value.strip())
    values.setdefault("out", f"runs/{path.stem}")
    return make_settings(values)


def make_settings(values: dict[str, Any]) -> Settings:
    """Settings from a flat dictionary of our fields and the model's; see `read_settings` for what it raises."""
    types = {name: kind for name, kind in get_type_hints(Settings).items() if name != "model"}
    ours: dict[str, Any] = {}
    model: dict[str, Any] = {}
    for key, value in values.items():
        if key not in types and key not in MODEL_FIELDS:
            nearest = difflib.get_close_matches(key, [*types, *MODEL_FIELDS], n=1, cutoff=0.0)[0]
            raise ValueError(f"unknown setting {key!r}: did you mean {nearest!r}?")
        if key in MODEL_FIELDS:
            model[key] = value
            continue
        kind = types[key]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ValueError(f"{key} is {value!r}: it must be {'a whole number' if kind is int else f'a {kind.__name__}'}")
        ours[key] = value
    return Settings(model=model, **ours)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a word without quotes
