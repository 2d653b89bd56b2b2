"""A repository on the Hugging Face Hub -> a checkpoint folder. Knows repositories and the Hub cache, not who writes with them.

`download` brings the three files that a model needs into the shared cache and checks every byte against the Hub's own hashes;
nothing that is downloaded is executed. What can go wrong between here and the Hub has its errors here, for `publish` too.
`huggingface_hub` is imported when a function needs it, so that `import cpgpt` touches no network.
"""

import contextlib
import functools
import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from cpgpt.checkpoint import CheckpointError, read_config
from cpgpt.drafts import FILE as DRAFTS
from cpgpt.model import Config

T = TypeVar("T")

logger = logging.getLogger(__name__)

NEEDED = ("config.json", "tokenizer.json", "model.safetensors")
OPTIONAL = (DRAFTS,)
LARGEST = 16 * 2**20  # bytes, of any file but the weights
TIMEOUT = 10.0  # seconds that the Hub has for an answer
WAITS = (1.0, 3.0)  # seconds before a call is tried again, where the Hub doesn't say
LONGEST_WAIT = 120.0  # seconds; a Hub that asks for more gets an error instead
OVERLOADED = (408, 429, 500, 502, 503, 504)


class HubError(OSError):
    """Something went wrong with a repository on the Hub; the message says what, and what to do."""


class RepositoryNotFoundError(HubError):
    """There is no such repository, or it is private and we may not see it."""


class RevisionNotFoundError(HubError):
    """The repository has no such branch, tag or commit."""


class AccessError(HubError):
    """The token is missing, wrong, or may not do this."""


class UnreachableError(HubError):
    """No network, no Hub at its other end, or not now; and what was asked for is not in the cache."""


class NoCheckpointError(HubError):
    """The repository holds no checkpoint of ours."""


class DamagedDownloadError(HubError):
    """What came is not what the Hub says that it holds."""


# From the Hub


def download(
    repo_id: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> tuple[Path, str]:
    """The folder in the Hub cache that holds the checkpoint of a repository, and the hash of its commit.

    Without a network, and for a commit hash that is cached, the cache answers. A damaged file is downloaded once more.

    Args:
        repo_id: "user/name".
        revision: a branch, a tag or a commit hash; by default the branch "main".
        token: a Hub token; by default the one that `hf auth login` or `HF_TOKEN` left, False for none.
        cache_dir: in place of the shared Hub cache.
        local_files_only: ask nobody, take what is cached.

    Raises:
        ValueError: `repo_id` cannot be the name of a repository.
        HubError: one of its subclasses, by cause.
    """
    from huggingface_hub import HfApi, hf_hub_download, is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo_id)
    cached = _cached(repo_id, revision, cache_dir)
    if cached and cached.name == revision:
        return cached, revision
    if local_files_only or is_offline_mode():
        if cached:
            return cached, cached.name
        off = "local_files_only is set" if local_files_only else "HF_HUB_OFFLINE is set"
        raise UnreachableError(f"{_named(repo_id, revision)} is not in the Hub cache, and {off}: allow the network once")
    api = HfApi(token=token, library_name="cpgpt")
    unreached: tuple[type[Exception], ...] = (HfHubHTTPError, *_network_errors())
    with explained(repo_id, revision, "model", f"looking for {_named(repo_id, revision)}"):
        try:
            info = patiently(lambda: api.model_info(repo_id, revision=revision, files_metadata=True, timeout=TIMEOUT))
        except (RepositoryNotFoundError, RevisionNotFoundError):
            raise
        except unreached as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            if cached is None or not (status is None or status in OVERLOADED):
                raise
            logger.warning("the Hub cannot be reached (%s): using %s as cached, commit %s", first_line(error), repo_id, cached.name)
            return cached, cached.name
    commit = str(info.sha)
    listed = {sibling.rfilename: sibling for sibling in info.siblings or []}
    for name in NEEDED:
        if name not in listed:
            raise NoCheckpointError(f"{_named(repo_id, revision)} holds no checkpoint of centralperkGPT: it has no {name}")

    fetch = functools.partial(_fetch, repo_id, commit, token=token, cache_dir=cache_dir)
    folder = fetch(listed["config.json"], LARGEST).parent
    try:
        _, config = read_config(folder / "config.json")
    except CheckpointError as error:
        raise NoCheckpointError(f"{_named(repo_id, revision)} holds no checkpoint of centralperkGPT: {error}") from error
    fetch(listed["tokenizer.json"], LARGEST)
    optional = [name for name in OPTIONAL if name in listed]
    for name in optional:
        fetch(listed[name], LARGEST)
    fetch(listed["model.safetensors"], _largest_weights(config))  # last: a commit that has its weights is whole
    # Once more, together: where two files had one ETag, the cache holds the last of them for both.
    for name in (*NEEDED, *optional):
        if not _same(folder / name, listed[name]):
            raise _damaged(folder / name, f"{name} of {repo_id} came")
    if revision != commit:  # now that the commit is whole, its branch or tag may lead to it without a network
        with explained(repo_id, revision, "model", f"looking for {_named(repo_id, revision)}"):
            where: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir, "etag_timeout": TIMEOUT}
            patiently(functools.partial(hf_hub_download, repo_id, "config.json", **where))
    return folder, commit


def _fetch(repo_id: str, commit: str, listed: Any, largest: int, token: str | bool | None, cache_dir: str | Path | None) -> Path:
    """The cached file that the Hub lists as `listed`, downloaded if it isn't there, with the content that the Hub says."""
    from huggingface_hub import hf_hub_download

    name = listed.rfilename
    if (listed.size or 0) > largest:
        raise NoCheckpointError(f"{name} of {repo_id} has {listed.size:,} bytes: more than the {largest:,} that it can need")
    where: dict[str, Any] = {"revision": commit, "token": token, "cache_dir": cache_dir, "etag_timeout": TIMEOUT}
    for force in (False, True):
        with explained(repo_id, commit, "model", f"downloading {name} of {repo_id}"):
            path = Path(patiently(functools.partial(hf_hub_download, repo_id, name, force_download=force, **where)))
        if _same(path, listed):
            return path
        logger.warning("%s of %s is not what the Hub says that it holds", name, repo_id)
    raise _damaged(path, f"{name} of {repo_id} came twice")


def _damaged(path: Path, what: str) -> DamagedDownloadError:
    """Take a damaged file out of the cache; returns the error."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)  # a link, where the system has links
    return DamagedDownloadError(
        f"{what} with other bytes than the Hub says that it holds, and was deleted: try again later, or from another network"
    )


def _cached(repo_id: str, revision: str | None, cache_dir: str | Path | None) -> Path | None:
    """The cached folder of a revision, if it is whole."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(repo_id, name, cache_dir=cache_dir, revision=revision) for name in NEEDED]
    return Path(found[0]).parent if isinstance(found[0], str) and all(isinstance(path, str) for path in found) else None


def _same(path: Path, listed: Any) -> bool:
    """Whether a file has the content that the Hub lists: by its sha256 where it is a large one, by git's hash otherwise."""
    data = path.read_bytes()
    if listed.lfs is not None:
        return hashlib.sha256(data).hexdigest() == listed.lfs.sha256
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == listed.blob_id


def _largest_weights(config: Config) -> int:
    """More bytes than the stored weights of such a model can have."""
    attention = 4 * config.n_embd * (config.n_embd + 2)
    feed_forward = 3 * (config.n_embd + 2) * (config.n_hidden + 2)
    tables = (2 * config.vocab_size + config.block_size + 4) * config.n_embd
    return 4 * (config.n_layer * (attention + feed_forward) + tables) + 2**20 + 4096 * config.n_layer


# What can go wrong


def _network_errors() -> tuple[type[Exception], ...]:
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled

    return httpx2.TransportError, OfflineModeIsEnabled


def patiently(call: Callable[[], T]) -> T:
    """The result of a call, tried again where the Hub was overloaded or the connection broke, after the time the Hub asks for."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    for wait in (*WAITS, None):
        try:
            return call()
        except HfHubHTTPError as error:
            asked = error.response.headers.get("Retry-After", "")
            seconds = float(asked) if re.fullmatch(r"\d+", asked) else wait
            if error.response.status_code not in OVERLOADED or wait is None or seconds is None or seconds > LONGEST_WAIT:
                raise
            logger.warning("the Hub answered %s: trying again in %g s", error.response.status_code, seconds)
        except (httpx2.ReadError, httpx2.WriteError, httpx2.CloseError, httpx2.RemoteProtocolError) as error:
            if wait is None:
                raise
            seconds = wait
            logger.warning("the connection to the Hub broke (%s): trying again in %g s", first_line(error), seconds)
        time.sleep(seconds)
    raise AssertionError("the last try returns or raises")


@contextlib.contextmanager
def explained(repo_id: str, revision: str | None, kind: str, doing: str) -> Iterator[None]:
    """Errors of the Hub's client as ours, which say what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise AccessError(f"{repo_id} is gated: ask for access on its page, then log in with `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        seen = "your token may not see it"
        if error.response.status_code == 401:  # the Hub's answer to those without a token
            seen = "it is private: log in with `hf auth login`, or give a token"
        raise RepositoryNotFoundError(f"there is no {kind} {repo_id} on the Hub, or {seen}") from error
    except errors.RevisionNotFoundError as error:
        raise RevisionNotFoundError(f"{repo_id} has no branch, tag or commit {revision!r}: leave it out for the newest") from error
    except errors.LocalEntryNotFoundError as error:  # the client's word for: not reached, and not cached
        raise UnreachableError(f"{doing}: the Hub cannot be reached ({first_line(error.__cause__ or error)})") from error
    except errors.HfHubHTTPError as error:
        status, said = error.response.status_code, error.response.headers.get("X-Error-Message", first_line(error))
        if status == 401:
            raise AccessError(f"{doing}: the Hub does not accept your token ({said}): log in again with `hf auth login`") from error
        if status == 403:
            raise AccessError(f"{doing}: your token may not do this ({said}): use one that may write to {repo_id}") from error
        if status in OVERLOADED:
            raise UnreachableError(f"{doing}: the Hub is overloaded or down (it answered {status}): try again later") from error
        raise HubError(f"{doing}: the Hub answered {status} ({said})") from error
    except _network_errors() as error:
        raise UnreachableError(
            f"{doing}: the Hub cannot be reached ({first_line(error)}): check the network, or HF_ENDPOINT if you set it"
        ) from error
    except RuntimeError as error:  # an upload, by its file's name
        cause = first_line(error.__cause__ or error)
        raise HubError(f"{doing}: {first_line(error)} ({cause}). Nothing was changed; try again") from error
    except OSError as error:
        if isinstance(error, HubError) or error.errno is not None:
            raise
        raise DamagedDownloadError(f"{doing}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its name where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _named(repo_id: str, revision: str | None) -> str:
    return f"{repo_id}@{revision}" if revision else repo_id
