"""centralperkGPT: a small GPT, written from scratch, that writes coffee-house scenes.

    from cpgpt import load_checkpoint, stream

    for piece in stream(load_checkpoint(), seed=7):
        print(piece, end="", flush=True)

Importing this touches no network and reads no weights.
"""

from pathlib import Path

from cpgpt.checkpoint import Checkpoint, CheckpointError
from cpgpt.checkpoint import load as _load
from cpgpt.hub import HubError
from cpgpt.model import GPT, Cache, Config
from cpgpt.screenplay import Direction, Line, Scene, ScreenplayError, parse
from cpgpt.tokenizer import Tokenizer, UnknownCharacterError
from cpgpt.writer import stream, write

__version__ = "0.1.0"  # also the distribution's; the Space runs this folder without installing it
__all__ = [
    "GPT",
    "Cache",
    "Checkpoint",
    "CheckpointError",
    "Config",
    "Direction",
    "HubError",
    "Line",
    "Scene",
    "ScreenplayError",
    "Tokenizer",
    "UnknownCharacterError",
    "load_checkpoint",
    "parse",
    "stream",
    "write",
]

EMBEDDED = Path(__file__).parent / "checkpoints" / "centralperk"


def load_checkpoint(folder: str | Path | None = None) -> Checkpoint:
    """The checkpoint in `folder`, or the one that comes with the package; see `cpgpt.checkpoint.load` for the errors."""
    return _load(EMBEDDED if folder is None else folder)
