"""A checkpoint folder -> a repository on the Hugging Face Hub, and the Space that serves it. Knows nothing of writing.

A push is one commit: all of it arrives, or nothing changes. Pushing the same thing again makes no commit.
"""

import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cpgpt.card import CURVE, EVALUATION, LOG, loss_curve, model_card, read_log, resource
from cpgpt.checkpoint import Checkpoint, load, save, stored_dtype
from cpgpt.hub import NEEDED, OPTIONAL, TIMEOUT, AccessError, HubError, download, explained, patiently

W = TypeVar("W", bound="HubMixin")
Files = dict[str, bytes | Path]  # what is pushed: contents, or the file that holds them, by path in the repository

OTHERS = (*OPTIONAL, "tokenizer_config.json", "generation_config.json", LOG, EVALUATION)  # pushed where a folder has them
CODE = (".py", ".cpp")  # of the package's files, those to be read on a model's page


@dataclass(frozen=True)
class Push:
    """What a push did."""

    repo_id: str
    url: str  # of the repository's page
    commit: str  # the hash of the commit that holds the files now
    changed: bool  # False: the repository had them already, nothing was committed
    files: dict[str, int] = field(default_factory=dict)  # path in the repository, bytes
    notes: tuple[str, ...] = ()  # what the publisher should know


def checkpoint_files(folder: str | os.PathLike[str], repo_id: str, space: str | None = None) -> Files:
    """What `push_checkpoint` pushes: the checkpoint, its card, its training log and loss curve, the model's code to be read.

    Raises:
        FileNotFoundError, CheckpointError: the folder does not hold a whole checkpoint, or its log or evaluation is damaged.
    """
    folder = Path(folder)
    files: Files = {"README.md": model_card(folder, repo_id, space).encode()}  # which loads the checkpoint, all of it
    files |= {name: folder / name for name in (*NEEDED, *OTHERS) if (folder / name).is_file()}
    log = read_log(folder)
    if log:
        files[CURVE] = loss_curve(log)
    package = Path(__file__).parent
    files |= {f"cpgpt/{path.name}": path for path in sorted(package.iterdir()) if path.suffix in CODE}
    return files


def push_checkpoint(
    folder: str | os.PathLike[str],
    repo_id: str,
    private: bool = False,
    commit_message: str | None = None,
    tag: str | None = None,
    token: str | None = None,
    space: str | None = None,
) -> Push:
    """Put a checkpoint folder on the Hub, in one commit; see `checkpoint_files` for what is in it.

    Args:
        repo_id: "user/name", or a name in your own account. The repository is created if it isn't there.
        private: create it so that only you see it.
        tag: a name for this version.
        token: a Hub token with write access; by default the one that `hf auth login` or `HF_TOKEN` left.
        space: the Space that the card links to; by default the one of the same name.

    Raises:
        FileNotFoundError, CheckpointError: see `checkpoint_files`.
        HubError: one of its subclasses, by cause. The repository is as it was.
    """
    repo_id, api = _account(repo_id, token)
    files = checkpoint_files(folder, repo_id, space)

    def ours(path: str) -> bool:
        return path in (*NEEDED, *OTHERS, CURVE) or path.startswith("cpgpt/")

    with explained(repo_id, None, "model", f"pushing to {repo_id}"):
        patiently(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        head = _head(api, repo_id, "model", private)
        tags = {ref.name: ref.target_commit for ref in patiently(lambda: api.list_repo_refs(repo_id)).tags} if tag else {}
        if tag in tags and tags[tag] != head:
            raise HubError(f"{repo_id} has a tag {tag} already, at commit {tags[tag][:8]}: choose another")
        commit = _commit(api, repo_id, "model", files, ours, commit_message or "Push the checkpoint")
        if tags.get(tag, commit) != commit:
            raise HubError(f"{repo_id} is at commit {commit[:8]} now, but its tag {tag} stays at {head[:8]}: push with another tag")
        if tag:
            patiently(lambda: api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True))
    return _push(api, repo_id, "model", commit, head, files)


def space_files(model: str) -> Files:
    """What `push_space` pushes: `space/` with the model in its card, and the package `cpgpt`, which is never installed by name."""
    from huggingface_hub import SpaceCard

    source, package = resource("space"), Path(__file__).parent
    files: Files = {path.relative_to(source).as_posix(): path for path in _tracked(source)}
    files |= {
        f"cpgpt/{path.relative_to(package).as_posix()}": path
        for path in _tracked(package)
        if path.relative_to(package).parts[0] not in ("space", "hub_card.md")
    }
    page = SpaceCard.load(source / "README.md")
    page.data["models"] = [model.partition("@")[0]]
    files["README.md"] = str(page).encode()
    return files


def push_space(
    repo_id: str,
    model: str,
    hardware: str | None = None,
    private: bool = False,
    commit_message: str | None = None,
    token: str | None = None,
) -> Push:
    """Create or update a Space that serves a model of the Hub, in one commit; see `space_files` for what is in it.

    Args:
        repo_id: the Space, "user/name", or a name in your own account.
        model: "user/name", or "user/name@revision". The Space finds it in its variable `CPGPT_MODEL`.
        hardware: what the Space runs on, such as "cpu-basic" (the default, free) or "t4-small".
        private: create it so that only you see it.
        token: a Hub token with write access.

    Raises:
        HubError: one of its subclasses, by cause; `model` is looked for before the Space is touched.
    """
    name, _, revision = model.partition("@")
    repo_id, api = _account(repo_id, token)
    with explained(name, revision or None, "model", f"looking for {name}"):
        served = patiently(lambda: api.model_info(name, revision=revision or None, timeout=TIMEOUT))
    files = space_files(model)
    with explained(repo_id, None, "space", f"pushing to {repo_id}"):
        settings = {"space_hardware": hardware, "space_variables": [{"key": "CPGPT_MODEL", "value": model}]}
        create = functools.partial(api.create_repo, repo_id, repo_type="space", space_sdk="gradio", exist_ok=True)
        patiently(functools.partial(create, private=private, **settings))
        head = _head(api, repo_id, "space", private)
        known = patiently(lambda: api.get_space_variables(repo_id)).get("CPGPT_MODEL")
        if known is None or known.value != model:  # before the commit, so that what it builds finds the model
            patiently(lambda: api.add_space_variable(repo_id, "CPGPT_MODEL", model))
        folders = {path.split("/")[0] + "/" for path in files if "/" in path}
        commit = _commit(
            api, repo_id, "space", files, lambda path: path.startswith(tuple(folders)), commit_message or f"Serve {model}"
        )
        if hardware:
            patiently(lambda: api.request_space_hardware(repo_id, hardware))
    secret = f"{name} is private: give the Space a secret HF_TOKEN that may read it, in its settings"
    return _push(api, repo_id, "space", commit, head, files, (secret,) if served.private else ())


def _account(repo_id: str, token: str | None) -> tuple[str, Any]:
    """The whole name of a repository of ours, and a client that is logged in."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo_id)
    if not (token or get_token()):
        raise AccessError("you are not logged in to the Hub: run `hf auth login` with a token that may write, or set HF_TOKEN")
    api = HfApi(token=token, library_name="cpgpt")
    if "/" not in repo_id:
        with explained(repo_id, None, "model", "asking the Hub whose token this is"):
            repo_id = f"{patiently(api.whoami)['name']}/{repo_id}"
    return repo_id, api


def _head(api: Any, repo_id: str, kind: str, private: bool) -> str:
    """The commit that a repository is at. One that should be private, and isn't, gets nothing from us."""
    info = patiently(lambda: api.repo_info(repo_id, repo_type=kind, timeout=TIMEOUT))
    if private and not info.private:
        raise HubError(f"{repo_id} is there already, and public: make it private in its settings, or choose another name")
    return str(info.sha)


def _commit(api: Any, repo_id: str, kind: str, files: Files, ours: Callable[[str], bool], message: str) -> str:
    """Make a repository hold `files`, in one commit or none; what it has of `ours` beside them is deleted. Returns its commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    def attempt() -> str:
        there = api.list_repo_files(repo_id, repo_type=kind)
        operations: list[Any] = [CommitOperationAdd(path, source) for path, source in files.items()]
        operations += [CommitOperationDelete(path) for path in there if ours(path) and path not in files]
        # Not `upload_folder`, which may make several commits of one folder.
        return str(api.create_commit(repo_id, operations, repo_type=kind, commit_message=message).oid)

    # Tried again after a dropped connection: if the commit was made and only the answer lost, there is nothing left to commit.
    return patiently(attempt)


def _push(api: Any, repo_id: str, kind: str, commit: str, head: str, files: Files, notes: tuple[str, ...] = ()) -> Push:
    url = f"{api.endpoint}/{'spaces/' if kind == 'space' else ''}{repo_id}"
    return Push(repo_id, url, commit, commit != head, sizes(files), notes)


def sizes(files: Files) -> dict[str, int]:
    """Bytes by path."""
    return {path: len(source) if isinstance(source, bytes) else source.stat().st_size for path, source in files.items()}


def _tracked(folder: Path) -> Iterator[Path]:
    """The files below a folder, without what Python and compilers leave there."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if path.is_file() and not hidden and path.suffix not in (".pyc", ".so"):
            yield path


class HubMixin:
    """What a writer can do with the Hub, by the names that `huggingface_hub.ModelHubMixin` and `transformers` have for it.

    A class that has it is made of a checkpoint, its name, its revision, and settings of its own.
    """

    checkpoint: Checkpoint
    folder: Path | None = None  # where the checkpoint came from; None: it was made in memory

    @classmethod
    def from_pretrained(
        cls: type[W],
        repo_id: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **settings: Any,
    ) -> W:
        """A writer with a checkpoint of the Hub, or of a folder if there is one of that name.

        `settings` are the writer's own; see `hub.download` for the other arguments and the errors.
        """
        folder = Path(repo_id).expanduser()
        if folder.is_dir() or not isinstance(repo_id, str) or repo_id.startswith((".", "/", "~")):
            if revision is not None:
                raise ValueError(f"{folder} is a folder, which has no revisions: leave out revision={revision!r}")
            name, commit = folder.resolve().name, None
        else:
            name = repo_id
            folder, commit = download(repo_id, revision, token, cache_dir, local_files_only)
        writer = cls(load(folder), name, commit, **settings)  # type: ignore[call-arg]
        writer.folder = folder
        return writer

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> Path:
        """Write the checkpoint to a folder, its weights stored as they came.

        Training log and evaluation go along if the weights are still those that they belong to.
        """
        folder, came_from = Path(save_directory), self.folder
        dtype = stored_dtype(came_from / "model.safetensors") if came_from else "float32"
        kept = self.checkpoint
        save(folder, kept.model, kept.tokenizer, kept.facts, dtype, kept.drafts)
        if came_from and (came_from / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes():
            for name in (LOG, EVALUATION):
                if (came_from / name).is_file() and came_from.resolve() != folder.resolve():
                    shutil.copyfile(came_from / name, folder / name)
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        commit_message: str | None = None,
        tag: str | None = None,
        token: str | None = None,
        space: str | None = None,
    ) -> Push:
        """Put the checkpoint on the Hub, in one commit; see `push_checkpoint` for arguments and errors."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "checkpoint")
            return push_checkpoint(Path(folder) / "checkpoint", repo_id, private, commit_message, tag, token, space)
