"""centralperkGPT: a small GPT, written from scratch, that writes coffee-house scenes.

    import cpgpt

    writer = cpgpt.load()
    for piece in writer.stream(character="JOEY", seed=7):
        print(piece, end="", flush=True)

Importing this touches no network and reads no weights.
"""

from importlib import metadata
from pathlib import Path
from typing import Any

from cpgpt.checkpoint import Checkpoint, CheckpointError
from cpgpt.checkpoint import load as _load
from cpgpt.engine import BusyError
from cpgpt.model import GPT, Cache, Config
from cpgpt.screenplay import Direction, Event, Line, Scene, SceneReader, ScreenplayError, parse
from cpgpt.tokenizer import Tokenizer, UnknownCharacterError
from cpgpt.writer import ReplyStream, SceneStream, SceneWriter

__version__ = metadata.version("centralperkgpt")
__all__ = [
    "GPT",
    "BusyError",
    "Cache",
    "Checkpoint",
    "CheckpointError",
    "Config",
    "Direction",
    "Event",
    "Line",
    "ReplyStream",
    "Scene",
    "SceneReader",
    "SceneStream",
    "SceneWriter",
    "ScreenplayError",
    "Tokenizer",
    "UnknownCharacterError",
    "load",
    "load_checkpoint",
    "parse",
]

EMBEDDED = Path(__file__).parent / "checkpoints" / "centralperk"


def load_checkpoint(folder: str | Path | None = None) -> Checkpoint:
    """The checkpoint in `folder`, or the one that comes with the package; see `cpgpt.checkpoint.load` for the errors."""
    return _load(EMBEDDED if folder is None else folder)


def load(folder: str | Path | None = None, **settings: Any) -> SceneWriter:
    """A writer with the checkpoint in `folder`, or with the one that comes with the package.

    `settings` are those of `SceneWriter`; the errors are those of `cpgpt.checkpoint.load`.
    """
    return SceneWriter(load_checkpoint(folder), Path(folder or EMBEDDED).resolve().name, **settings)
