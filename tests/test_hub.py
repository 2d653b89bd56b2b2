"""From the Hub: the real client against a stand-in, which answers as the Hub does or goes wrong as networks do."""

import json
import logging
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, constants

from cpgpt import checkpoint, hub
from cpgpt.hub import AccessError, DamagedDownloadError, NoCheckpointError, RepositoryNotFoundError, UnreachableError, download
from cpgpt.model import GPT
from tests.commands import ENVIRONMENT
from tests.conftest import TOKENIZER, randomised, tiny
from tests.hub_server import HubServer

WEIGHTS = "GET /storage/"  # where large files come from
NEEDED = {"config.json", "tokenizer.json", "model.safetensors"}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint.save(tmp_path_factory.mktemp("saved") / "tiny", randomised(tiny("modern")), TOKENIZER, {"one": 1})


@pytest.fixture
def remote(hub: HubServer, saved: Path) -> HubServer:
    """A Hub that has a checkpoint, as you/tiny, beside files that nobody needs."""
    HfApi().create_repo("you/tiny")
    hub.repository("you/tiny").put({**contents(saved), "cpgpt/model.py": b"raise SystemExit", "README.md": b"hello"})
    hub.requests.clear()
    return hub


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits between tries, ours and the client's."""
    monkeypatch.setattr(hub, "WAITS", (0.01, 0.02))
    sleep = time.sleep
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: sleep(min(seconds, 0.02)))


# What comes


def test_a_checkpoint_comes_as_it_was_put_and_only_the_files_that_are_needed(remote: HubServer, saved: Path) -> None:
    folder, commit = download("you/tiny")
    assert commit == remote.repository("you/tiny").head
    assert {name: data for name, data in contents(saved).items() if name in NEEDED} == contents(folder)
    assert folder.is_relative_to(constants.HF_HUB_CACHE)
    assert torch.equal(checkpoint.load(folder).model.head.weight, randomised(tiny("modern")).head.weight)
    assert not remote.seen("GET .*(py|md)$")


def test_drafts_come_along_where_a_checkpoint_has_them(remote: HubServer) -> None:
    remote.repository("you/tiny").put({"drafts.safetensors": b"drafts"})
    assert contents(download("you/tiny")[0])["drafts.safetensors"] == b"drafts"


def test_no_token_goes_to_the_storage_that_files_are_redirected_to(remote: HubServer) -> None:
    download("you/tiny")
    assert all("authorization" in request.headers for request in remote.seen("/api/models/you/tiny"))
    (stored,) = remote.seen(WEIGHTS)
    assert "authorization" not in stored.headers


def test_branch_tag_and_commit_hash_are_revisions(remote: HubServer) -> None:
    repository = remote.repository("you/tiny")
    first = repository.head
    HfApi().create_tag("you/tiny", tag="v1")
    HfApi().create_branch("you/tiny", branch="try")
    checkpoint_of_now = contents(download("you/tiny")[0])
    repository.put({"config.json": checkpoint_of_now["config.json"].replace(b'"one": 1', b'"one": 2')})
    assert [download("you/tiny", revision)[1] for revision in ("v1", "try", first)] == [first] * 3
    folder, second = download("you/tiny")
    assert second == repository.head != first
    assert checkpoint.load(folder).facts == {"one": 2}
    assert checkpoint.load(download("you/tiny", "v1")[0]).facts == {"one": 1}


def test_what_is_cached_comes_without_the_hub(remote: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, commit = download("you/tiny")
    remote.requests.clear()
    assert download("you/tiny", commit) == (folder, commit)
    assert download("you/tiny", local_files_only=True) == (folder, commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download("you/tiny") == (folder, commit)
    assert not remote.requests
    for revision in ("v9", "0" * 40):
        with pytest.raises(UnreachableError, match=f"you/tiny@{revision} is not in the Hub cache, and HF_HUB_OFFLINE is set"):
            download("you/tiny", revision)
    with pytest.raises(UnreachableError, match="local_files_only is set: allow the network once"):
        download("you/other", local_files_only=True)


def test_a_cached_checkpoint_is_not_downloaded_again(remote: HubServer) -> None:
    first = download("you/tiny")
    remote.requests.clear()
    assert download("you/tiny") == first
    assert not remote.seen("GET /(storage|api/resolve-cache)")


def test_a_cache_of_ones_own(remote: HubServer, tmp_path: Path) -> None:
    folder, _ = download("you/tiny", cache_dir=tmp_path / "mine")
    assert folder.is_relative_to(tmp_path / "mine")


NO_NETWORK = """
import logging, sys
from cpgpt import hub
logging.basicConfig()
print(hub.download("you/tiny")[1])
for name in ("you/other",):
    try: hub.download(name)
    except hub.UnreachableError as error: print(error)
"""


def test_without_a_network_the_cache_answers_and_says_so(remote: HubServer) -> None:
    _, commit = download("you/tiny")
    closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": constants.HF_HUB_CACHE, "HF_HUB_OFFLINE": "0"}
    result = subprocess.run(
        [sys.executable, "-c", NO_NETWORK], env=ENVIRONMENT | closed, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{commit}\nlooking for you/other: the Hub cannot be reached (")
    assert "check the network, or HF_ENDPOINT if you set it" in result.stdout
    assert f"the Hub cannot be reached ([Errno 111] Connection refused): using you/tiny as cached, commit {commit}" in result.stderr


# What may not come


@pytest.mark.parametrize(
    ("token", "error", "message"),
    [
        (
            None,
            RepositoryNotFoundError,
            "no model you/tiny on the Hub, or it is private: log in with `hf auth login`, or give a token",
        ),
        ("hf_stranger", RepositoryNotFoundError, "no model you/tiny on the Hub, or your token may not see it"),
        ("hf_expired", AccessError, "does not accept your token .* log in again with `hf auth login`"),
    ],
)
def test_a_private_repository_is_for_its_owner(
    token: str | None, error: type[Exception], message: str, remote: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.repository("you/tiny").private = True
    assert download("you/tiny")[1] == remote.repository("you/tiny").head
    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE + "-of-another")
    (monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN"))
    with pytest.raises(error, match=message):
        download("you/tiny")
    assert download("you/tiny", token="hf_reader")[1] == remote.repository("you/tiny").head


def test_what_is_not_there_is_named(remote: HubServer) -> None:
    with pytest.raises(RepositoryNotFoundError, match="there is no model you/nothing on the Hub"):
        download("you/nothing")
    with pytest.raises(hub.RevisionNotFoundError, match="you/tiny has no branch, tag or commit 'v7': leave it out for the newest"):
        download("you/tiny", "v7")
    with pytest.raises(ValueError, match="Repo id must"):
        download("not/a/name")


def test_a_repository_of_something_else_is_refused_before_its_weights_come(remote: HubServer) -> None:
    repository = remote.repository("you/tiny")
    repository.put({"config.json": b'{"model_type": "gpt2"}'})
    with pytest.raises(NoCheckpointError, match=r'you/tiny holds no checkpoint of centralperkGPT: .* has no "cpgpt"'):
        download("you/tiny")
    HfApi().create_repo("you/empty")
    with pytest.raises(NoCheckpointError, match=r"you/empty holds no checkpoint of centralperkGPT: it has no config\.json"):
        download("you/empty")
    assert not remote.seen(WEIGHTS)


# Networks


@pytest.mark.parametrize("chunk", [4096, constants.DOWNLOAD_CHUNK_SIZE], ids=["goes on", "starts over"])
def test_a_connection_that_breaks_is_taken_up_again(
    chunk: int, remote: HubServer, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", chunk)  # what the client has written of a file, it goes on from
    remote.fault("drop", WEIGHTS, after=20_000)
    folder, _ = download("you/tiny")
    assert contents(folder)["model.safetensors"] == contents(saved)["model.safetensors"]
    first, second = remote.seen(WEIGHTS)
    assert "range" not in first.headers
    assert ("range" in second.headers) == (chunk == 4096)


@pytest.mark.usefixtures("hasty")
def test_a_connection_that_keeps_breaking_is_an_error_and_leaves_no_half_file(
    remote: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    fault = remote.fault("drop", WEIGHTS, after=0, times=1000)
    with pytest.raises(UnreachableError, match=r"downloading model.safetensors of you/tiny: the Hub cannot be reached"):
        download("you/tiny")
    sizes = [file.stat().st_size for file in Path(constants.HF_HUB_CACHE).rglob("*") if file.is_file() and not file.is_symlink()]
    assert max(sizes) < 10_000  # tokenizer.json is the largest
    with pytest.raises(UnreachableError):
        download("you/tiny", local_files_only=True)
    fault.times = 0
    assert checkpoint.load(download("you/tiny")[0])


def test_a_process_killed_while_downloading_leaves_nothing_that_loads(remote: HubServer, saved: Path) -> None:
    remote.fault("stall", WEIGHTS, after=20_000)
    online = {"HF_HUB_CACHE": constants.HF_HUB_CACHE, "HF_HUB_OFFLINE": "0"}
    code = "from cpgpt.hub import download; download('you/tiny')"
    with subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT | online) as process:
        while not remote.seen(WEIGHTS):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.1)
        process.kill()
    with pytest.raises(UnreachableError):
        download("you/tiny", local_files_only=True)
    assert contents(download("you/tiny")[0])["model.safetensors"] == contents(saved)["model.safetensors"]


@pytest.mark.parametrize(
    ("where", "times"), [("GET /api/models/you/tiny", 1), ("HEAD /you/tiny/resolve/.*fig.json", 2), (WEIGHTS, 1)]
)
def test_an_overloaded_hub_gets_the_time_that_it_asks_for(where: str, times: int, remote: HubServer) -> None:
    remote.fault("status", where, times=times, status=429, headers={"Retry-After": "1"})  # the client asks for a HEAD twice
    assert download("you/tiny")
    refused, again = remote.seen(where)[times - 1 : times + 1]
    assert 1 <= again.time - refused.time < 3


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("where", ["GET /api/models/you/tiny", WEIGHTS])
def test_a_broken_hub_is_tried_again_and_then_named(where: str, remote: HubServer) -> None:
    remote.fault("status", where, status=500)
    assert download("you/tiny", cache_dir=constants.HF_HUB_CACHE + "-one")
    remote.fault("status", where, status=503, times=1000)
    doing = "downloading model.safetensors of" if where == WEIGHTS else "looking for"
    with pytest.raises(
        UnreachableError, match=f"{doing} you/tiny: the Hub is overloaded or down .it answered 503.: try again later"
    ):
        download("you/tiny")


def test_a_hub_that_asks_for_hours_is_not_waited_for(remote: HubServer) -> None:
    remote.fault("status", "GET /api/models", status=429, headers={"Retry-After": "7200"})
    with pytest.raises(UnreachableError, match="answered 429"):
        download("you/tiny")


def test_a_hub_that_does_not_answer_is_not_waited_for(
    remote: HubServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub, "TIMEOUT", 0.3)
    remote.fault("slow", "GET /api/models/you/tiny", seconds=1)
    with pytest.raises(UnreachableError, match=r"looking for you/tiny: the Hub cannot be reached \(timed out"):
        download("you/tiny")
    cached = download("you/tiny")
    remote.fault("slow", "GET /api/models/you/tiny", seconds=1)
    with caplog.at_level(logging.WARNING):
        assert download("you/tiny") == cached
    assert "the Hub cannot be reached (timed out): using you/tiny as cached" in caplog.text


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_a_byte_that_changes_on_the_way_is_found_and_the_file_fetched_again(name: str, remote: HubServer, saved: Path) -> None:
    where = WEIGHTS if name == "model.safetensors" else f"GET /api/resolve-cache/.*/{name}"
    remote.fault("corrupt", where, after=1000)
    folder, _ = download("you/tiny")
    assert contents(folder)[name] == contents(saved)[name]
    assert len(remote.seen(where)) == 2


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_a_file_that_keeps_changing_is_named_and_not_kept(name: str, remote: HubServer) -> None:
    where = WEIGHTS if name == "model.safetensors" else f"GET /api/resolve-cache/.*/{name}"
    remote.fault("corrupt", where, after=1000, times=2)
    with pytest.raises(DamagedDownloadError, match=f"{name} of you/tiny came twice with other bytes"):
        download("you/tiny")
    with pytest.raises(UnreachableError):
        download("you/tiny", local_files_only=True)
    assert checkpoint.load(download("you/tiny")[0])


def test_a_wrong_etag_changes_nothing_in_what_is_read(remote: HubServer, saved: Path) -> None:
    remote.fault("etag", "HEAD .*/tokenizer.json", times=1000)
    folder, _ = download("you/tiny")
    assert {name: data for name, data in contents(saved).items() if name in NEEDED} == contents(folder)


def test_files_that_the_client_takes_for_each_other_are_found(remote: HubServer) -> None:
    fault = remote.fault("etag", "HEAD .*(json|safetensors)$", times=1000)  # the same for all: all have one place in the cache
    with pytest.raises(DamagedDownloadError, match=r"(config|tokenizer)\.json of you/tiny came with other bytes"):
        download("you/tiny")
    fault.times = 0
    with pytest.raises(UnreachableError):
        download("you/tiny", local_files_only=True)
    assert checkpoint.load(download("you/tiny")[0])


# Hostile repositories


def config_with(saved: Path, **changes: Any) -> bytes:
    data = json.loads((saved / "config.json").read_bytes())
    data["cpgpt"]["config"] |= changes
    for name in ("max_position_embeddings", "num_hidden_layers", "hidden_size", "head_dim", "intermediate_size"):
        del data[name]
    del data["cpgpt"]["sha256"]
    return json.dumps(data).encode()


HOSTILE = """
import json, resource, sys, time
from cpgpt import checkpoint, hub
import huggingface_hub
checkpoint.load(hub.download("you/good")[0])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    started = time.process_time()
    try:
        checkpoint.load(hub.download(f"you/{name}")[0])
        print(json.dumps([name, "loaded", "", time.process_time() - started]))
    except (hub.HubError, checkpoint.CheckpointError) as error:
        print(json.dumps([name, type(error).__name__, str(error), time.process_time() - started]))
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def test_a_hostile_repository_is_refused_at_once_and_in_little_memory(hub: HubServer, saved: Path, tmp_path: Path) -> None:
    header = json.dumps({"embedding": {"dtype": "F32", "shape": [2_500_000_000], "data_offsets": [0, 10_000_000_000]}}).encode()
    claims_10_gb = struct.pack("<Q", len(header)) + header
    claims_long_header = struct.pack("<Q", 10_000_000_000) + b"{"
    hostile: dict[str, dict[str, bytes]] = {
        "good": {},
        "claims-10-gb": {"model.safetensors": claims_10_gb},
        "claims-a-10-gb-header": {"model.safetensors": claims_long_header},
        "pickle": {"model.safetensors": b"\x80\x04\x95" + b"cos\nsystem\n(S'touch pwned'\ntR." * 30},
        "a-billion-layers": {"config.json": config_with(saved, n_layer=10**9)},
        "sixteen-million-layers": {"config.json": config_with(saved, n_layer=2**24)},
        "endless-context": {"config.json": config_with(saved, block_size=2**24)},
        "wide": {"config.json": config_with(saved, n_embd=2**24, n_hidden=2**24)},
        "nested-config": {"config.json": b"[" * 200_000},
        "nested-inside": {"config.json": b'{"cpgpt": {"config": ' * 50_000},
        "nested-tokenizer": {"tokenizer.json": b'{"a":' * 200_000},
        "nested-header": {"model.safetensors": struct.pack("<Q", 200_000) + b"[" * 200_000},
        "pickled-drafts": {"drafts.safetensors": b"\x80\x04\x95" + b"cos\nsystem\n(S'touch pwned'\ntR."},
        "large-drafts": {"drafts.safetensors": b"\0" * (17 * 2**20)},
        "large-config": {"config.json": b" " * (17 * 2**20)},
        "large-weights": {"model.safetensors": b"\0" * (20 * 2**20)},
    }
    for name, files in hostile.items():
        HfApi().create_repo(f"you/{name}")
        hub.repository(f"you/{name}").put({**contents(saved), **files})
    hub.repository("you/pickle").put({"../../../escaped.txt": b"x", "/absolute.txt": b"x", "cpgpt/../../../escaped.py": b"x"})
    online = {"HF_HUB_CACHE": str(tmp_path / "a" / "b" / "c" / "cache"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", HOSTILE, *list(hostile)[1:]]
    result = subprocess.run(command, env=ENVIRONMENT | online, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    *outcomes, kilobytes = map(json.loads, result.stdout.splitlines())
    assert [name for name, *_ in outcomes] == list(hostile)[1:]
    for name, kind, message, seconds in outcomes:
        assert kind in ("NoCheckpointError", "CheckpointError"), (name, kind)
        assert any(file in message for file in (*NEEDED, "drafts.safetensors")), (name, message)
        assert seconds < 1, (name, seconds)
    assert kilobytes < 200_000
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(online["HF_HUB_CACHE"])]
    assert outside == []
    assert not hub.seen("GET .*escaped")


def test_large_files_are_refused_before_they_are_downloaded(remote: HubServer, saved: Path) -> None:
    remote.repository("you/tiny").put({"model.safetensors": b"\0" * (20 * 2**20)})
    with pytest.raises(NoCheckpointError, match=r"model.safetensors of you/tiny has 20,971,520 bytes: more than the \d"):
        download("you/tiny")
    assert not remote.seen(WEIGHTS)


@pytest.mark.parametrize("shape", ["classic", "modern"])
def test_no_model_of_ours_is_too_large_for_its_configuration(shape: str, tmp_path: Path) -> None:
    for changes in ({}, {"n_layer": 9, "n_head": 1, "n_embd": 2}, {"tie_embeddings": False, "bias": True, "qkv_bias": True}):
        config = tiny(shape, **changes)
        folder = checkpoint.save(tmp_path, GPT(config), TOKENIZER)
        assert (folder / "model.safetensors").stat().st_size <= hub._largest_weights(config)
