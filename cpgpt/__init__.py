"""centralperkGPT: a small GPT, written from scratch, that writes coffee-house scenes.

    import cpgpt

    writer = cpgpt.load()
    for piece in writer.stream(character="JOEY", seed=7):
        print(piece, end="", flush=True)

Importing this touches no network and reads no weights.
"""

from pathlib import Path
from typing import Any

from cpgpt.checkpoint import Checkpoint, CheckpointError
from cpgpt.checkpoint import load as _load
from cpgpt.engine import BusyError
from cpgpt.hub import HubError
from cpgpt.model import GPT, Cache, Config
from cpgpt.screenplay import Direction, Event, Line, Scene, SceneReader, ScreenplayError, parse
from cpgpt.tokenizer import Tokenizer, UnknownCharacterError
from cpgpt.writer import ReplyStream, SceneStream, SceneWriter

__version__ = "0.1.0"  # also the distribution's; the Space runs this folder without installing it
__all__ = [
    "GPT",
    "BusyError",
    "Cache",
    "Checkpoint",
    "CheckpointError",
    "Config",
    "Direction",
    "Event",
    "HubError",
    "Line",
    "ReplyStream",
    "Scene",
    "SceneReader",
    "SceneStream",
    "SceneWriter",
    "ScreenplayError",
    "Tokenizer",
    "UnknownCharacterError",
    "from_hub",
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
    return SceneWriter.from_pretrained(Path(folder or EMBEDDED), **settings)


def from_hub(
    repo_id: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    **settings: Any,
) -> SceneWriter:
    """A writer with a checkpoint of the Hugging Face Hub, "user/name", or of a folder if there is one of that name.

    `settings` are those of `SceneWriter`; the other arguments and the errors are those of `cpgpt.hub.download`.
    """
    return SceneWriter.from_pretrained(
        repo_id, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only, **settings
    )
