"""To the Hub: one commit or none, and the Space; the real client against a stand-in."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, SpaceCard, constants
from typer.testing import CliRunner

import cpgpt
from cpgpt import checkpoint, publish
from cpgpt.checkpoint import CheckpointError
from cpgpt.cli import app
from cpgpt.hub import AccessError, HubError, RepositoryNotFoundError, UnreachableError, download
from cpgpt.publish import push_checkpoint, push_space
from tests.commands import ENVIRONMENT, ROOT
from tests.conftest import TOKENIZER, randomised, tiny
from tests.hub_server import PART, HubServer
from tests.runs import evaluate
from tests.test_hub import hasty  # noqa: F401

OURS = {"README.md", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"}

# One commit, or none


def test_a_push_is_one_commit_with_everything_in_it(hub: HubServer, folder: Path) -> None:
    evaluate(folder)
    done = push_checkpoint(folder, "you/tiny", tag="v1")
    repository = hub.repository("you/tiny")
    assert [commit.title for commit in repository.commits.values()] == ["initial commit", "Push the checkpoint"]
    assert done.changed
    assert done.commit == repository.head == repository.tags["v1"]
    assert done.url == f"{hub.endpoint}/you/tiny"
    files = repository.files()
    code = {f"cpgpt/{file.name}" for file in (ROOT / "cpgpt").iterdir() if file.suffix in (".py", ".cpp")}
    assert set(files) == OURS | {"log.jsonl", "evaluation.json", "loss.png"} | code | {".gitattributes"}
    for name in ("model.safetensors", "config.json", "log.jsonl", "evaluation.json"):
        assert files[name] == (folder / name).read_bytes()
    assert files["loss.png"].startswith(b"\x89PNG")
    assert done.files == {name: len(data) for name, data in files.items() if name != ".gitattributes"}


def test_the_same_thing_again_makes_no_commit_and_something_else_one(hub: HubServer, folder: Path) -> None:
    first = push_checkpoint(folder, "you/tiny", tag="v1")
    again = push_checkpoint(folder, "you/tiny", tag="v1")
    assert (again.changed, again.commit) == (False, first.commit)
    (folder / "log.jsonl").unlink()
    other = push_checkpoint(folder, "you/tiny", commit_message="Without a log", tag="v2")
    repository = hub.repository("you/tiny")
    assert [commit.title for commit in repository.commits.values()] == ["initial commit", "Push the checkpoint", "Without a log"]
    assert repository.tags == {"v1": first.commit, "v2": other.commit}
    assert not {"log.jsonl", "loss.png"} & set(repository.files())
    assert {"log.jsonl", "loss.png"} <= set(repository.files("v1"))


def test_what_somebody_else_put_there_stays(hub: HubServer, folder: Path) -> None:
    push_checkpoint(folder, "you/tiny")
    hub.repository("you/tiny").put({"notes/mine.txt": b"mine", "cpgpt/no_longer_ours.py": b""})
    push_checkpoint(folder, "you/tiny")
    assert "notes/mine.txt" in hub.repository("you/tiny").files()
    assert "cpgpt/no_longer_ours.py" not in hub.repository("you/tiny").files()


def test_a_name_alone_is_in_ones_own_account(hub: HubServer, folder: Path) -> None:
    assert push_checkpoint(folder, "tiny").repo_id == "you/tiny"
    assert b'from_hub("you/tiny")' in hub.repository("you/tiny").files()["README.md"]


def test_the_embedded_checkpoint_goes_in_parts_and_comes_back(hub: HubServer) -> None:
    push_checkpoint(cpgpt.EMBEDDED, "you/centralperk")
    size = (cpgpt.EMBEDDED / "model.safetensors").stat().st_size
    assert len(hub.seen("PUT /storage/.*/[0-9]+$")) == -(-size // PART) > 1
    assert len(hub.seen("POST /lfs/complete")) == 1
    folder, _ = download("you/centralperk")
    assert (folder / "model.safetensors").read_bytes() == (cpgpt.EMBEDDED / "model.safetensors").read_bytes()
    uploads = hub.seen("(PUT|GET) /storage/")
    assert uploads
    assert not any("authorization" in request.headers for request in uploads)


def test_tags_are_not_moved(hub: HubServer, folder: Path) -> None:
    first = push_checkpoint(folder, "you/tiny", tag="v1").commit
    (folder / "log.jsonl").unlink()
    with pytest.raises(HubError, match=f"but its tag v1 stays at {first[:8]}: push with another tag"):
        push_checkpoint(folder, "you/tiny", tag="v1")
    head = hub.repository("you/tiny").head
    assert hub.repository("you/tiny").tags == {"v1": first} != {"v1": head}
    evaluate(folder)
    with pytest.raises(HubError, match=r"you/tiny has a tag v1 already, at commit .*: choose another"):
        push_checkpoint(folder, "you/tiny", tag="v1")
    assert hub.repository("you/tiny").head == head


def test_private_is_private(hub: HubServer, folder: Path) -> None:
    push_checkpoint(folder, "you/secret", private=True)
    assert hub.repository("you/secret").private
    push_checkpoint(folder, "you/public")
    before = hub.repository("you/public").head
    evaluate(folder)
    with pytest.raises(HubError, match="you/public is there already, and public: make it private in its settings"):
        push_checkpoint(folder, "you/public", private=True)
    assert hub.repository("you/public").head == before


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "you are not logged in to the Hub: run `hf auth login`"),
        ("hf_expired", "does not accept your token"),
        ("hf_reader", "your token may not do this .*: use one that may write to you/tiny"),
        ("hf_stranger", "your token may not do this .*: use one that may write to you/tiny"),
    ],
)
def test_who_may_not_push_is_told_so(
    token: str | None, message: str, hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN"))
    with pytest.raises(AccessError, match=message):
        push_checkpoint(folder, "you/tiny")
    assert not hub.repositories


def test_a_damaged_checkpoint_is_not_pushed(hub: HubServer, folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="has changed since it was saved"):
        push_checkpoint(folder, "you/tiny")
    assert not hub.requests


# Networks


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("kind", "where", "message"),
    [
        ("drop", "PUT /storage/", "pushing to you/tiny: Error while uploading 'model.safetensors' to the Hub"),
        ("status", "PUT /storage/", "pushing to you/tiny: Error while uploading 'model.safetensors' to the Hub"),
        ("status", "POST /lfs/verify", "pushing to you/tiny: Error while uploading 'model.safetensors' to the Hub"),
        ("status", "POST .*/preupload/", "pushing to you/tiny: the Hub is overloaded or down .it answered 500"),
        ("drop", "POST .*/commit/", "pushing to you/tiny: the Hub cannot be reached"),
        ("status", "POST .*/commit/", "pushing to you/tiny: the Hub is overloaded or down .it answered 500"),
    ],
)
def test_an_interrupted_push_changes_nothing_and_can_be_run_again(
    kind: str, where: str, message: str, hub: HubServer, folder: Path
) -> None:
    before = push_checkpoint(folder, "you/tiny").commit
    checkpoint.save(folder, randomised(tiny("classic")), TOKENIZER, checkpoint.load(folder).facts)
    fault = hub.fault(kind, where, times=1000, after=5000)
    with pytest.raises((UnreachableError, HubError), match=message):
        push_checkpoint(folder, "you/tiny")
    assert hub.repository("you/tiny").head == before
    fault.times = 0
    after = push_checkpoint(folder, "you/tiny")
    assert after.changed
    assert hub.repository("you/tiny").files()["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert len(hub.repository("you/tiny").commits) == 3


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("status", "POST .*/create"),
        ("lost", "POST .*/create"),
        ("status", "GET .*/refs"),
        ("drop", "GET .*/tree/"),
        ("status", "POST .*/preupload/"),
        ("lost", "POST .*/objects/batch"),
        ("drop", "PUT /storage/"),
        ("status", "PUT /storage/"),
        ("status", "POST .*/commit/"),
        ("drop", "POST .*/commit/"),
        ("lost", "POST .*/commit/"),
        ("lost", "POST .*/tag/"),
    ],
)
def test_what_goes_wrong_once_is_done_again(kind: str, where: str, hub: HubServer, folder: Path) -> None:
    hub.fault(kind, where)
    push_checkpoint(folder, "you/tiny", tag="v1")
    repository = hub.repository("you/tiny")
    assert repository.files()["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert len(repository.commits) == 2  # also where the commit was made and only the answer lost
    assert repository.tags == {"v1": repository.head}


def test_an_overloaded_hub_gets_the_time_that_it_asks_for(hub: HubServer, folder: Path) -> None:
    hub.fault("status", "POST .*/commit/", status=429, headers={"Retry-After": "1"})
    push_checkpoint(folder, "you/tiny")
    refused, again = hub.seen("POST .*/commit/")
    assert 1 <= again.time - refused.time < 3


# Conventions of `huggingface_hub`


def test_push_to_hub_and_from_pretrained(hub: HubServer, folder: Path) -> None:
    evaluate(folder)
    writer = cpgpt.SceneWriter.from_pretrained(folder, places=1)
    assert (writer.name, writer.revision) == ("checkpoint", None)
    done = writer.push_to_hub("you/tiny", tag="v1")
    files = hub.repository("you/tiny").files()
    for name in ("model.safetensors", "log.jsonl", "evaluation.json"):
        assert files[name] == (folder / name).read_bytes()
    again = cpgpt.from_hub("you/tiny", "v1", places=3)
    assert (again.name, again.revision, again.engine.places) == ("you/tiny", done.commit, 3)
    with pytest.raises(ValueError, match="is a folder, which has no revisions"):
        cpgpt.SceneWriter.from_pretrained(folder, revision="v1")
    assert cpgpt.from_hub(str(folder), places=1).checkpoint.facts == writer.checkpoint.facts
    with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
        cpgpt.from_hub("./nowhere")


def test_figures_of_weights_that_changed_since_do_not_travel(folder: Path, tmp_path: Path) -> None:
    evaluate(folder)
    writer = cpgpt.SceneWriter.from_pretrained(folder, places=1)
    writer.checkpoint.model.head.weight.data += 1
    saved = writer.save_pretrained(tmp_path / "changed")
    assert checkpoint.load(saved).model.head.weight.equal(writer.checkpoint.model.head.weight)
    assert not (saved / "evaluation.json").exists()
    assert not (saved / "log.jsonl").exists()


def test_saving_keeps_how_the_weights_are_stored(tmp_path: Path) -> None:
    saved = cpgpt.load(places=1).save_pretrained(tmp_path / "saved")
    for file in cpgpt.EMBEDDED.iterdir():
        assert (saved / file.name).read_bytes() == file.read_bytes(), file.name


# The Space


def test_a_space_has_all_that_it_runs_on_in_one_commit(hub: HubServer, folder: Path) -> None:
    push_checkpoint(folder, "you/tiny", tag="v1")
    done = push_space("you/page", "you/tiny@v1", hardware="cpu-upgrade")
    space = hub.repository("you/page", "space")
    assert (space.sdk, space.hardware, space.variables) == ("gradio", "cpu-upgrade", {"CPGPT_MODEL": "you/tiny@v1"})
    assert [commit.title for commit in space.commits.values()] == ["initial commit", "Serve you/tiny@v1"]
    assert done.url == f"{hub.endpoint}/spaces/you/page"
    files = space.files()
    page = SpaceCard(files["README.md"].decode())
    assert [page.data.get(name) for name in ("sdk", "models", "app_file")] == ["gradio", ["you/tiny"], "app.py"]
    page.validate(repo_type="space")
    tracked = subprocess.run(
        ["git", "ls-files", "space", "cpgpt"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {path.removeprefix("space/") for path in tracked} | {".gitattributes"} == set(files)
    assert not push_space("you/page", "you/tiny@v1").changed


def test_another_model_changes_the_space(hub: HubServer, folder: Path) -> None:
    push_checkpoint(folder, "you/one")
    push_checkpoint(folder, "you/two", private=True)
    assert push_space("you/page", "you/one").notes == ()
    hub.repository("you/page", "space").put({"cpgpt/no_longer.py": b"", "mine.txt": b"mine"})
    done = push_space("you/page", "you/two")
    space = hub.repository("you/page", "space")
    assert done.changed
    assert space.variables == {"CPGPT_MODEL": "you/two"}
    assert "you/two is private: give the Space a secret HF_TOKEN" in done.notes[0]
    assert "cpgpt/no_longer.py" not in space.files()
    assert "mine.txt" in space.files()


def test_a_space_without_its_model_is_not_made(hub: HubServer) -> None:
    with pytest.raises(RepositoryNotFoundError, match="there is no model you/nothing"):
        push_space("you/page", "you/nothing")
    assert not hub.repositories


def test_the_space_has_the_gradio_that_is_tested_here() -> None:
    version = SpaceCard.load(ROOT / "space" / "README.md").data.get("sdk_version")
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line and ";" not in line
    )
    assert re.fullmatch(r"6\.\d+\.\d+", version)
    assert pinned.get("gradio", version) == version


def test_what_is_pushed_to_the_space_runs_on_what_it_requires(tmp_path: Path) -> None:
    """From a folder of those files alone: the package is the one beside app.py, and imports nothing that is not required."""
    for path, source in publish.space_files("you/tiny").items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(source if isinstance(source, bytes) else source.read_bytes())
    required = set(re.findall(r"^([\w-]+)", (tmp_path / "requirements.txt").read_text(), re.MULTILINE))
    project = (ROOT / "pyproject.toml").read_text()
    dependencies = re.findall(r'"([^"]+)"', re.search(r"\ndependencies = \[(.*?)\]", project, re.DOTALL)[1])  # type: ignore[index]
    extra = re.findall(r'"([^"]+)"', re.search(r"\nspace = \[(.*)\]\n", project)[1])  # type: ignore[index]
    assert set((tmp_path / "requirements.txt").read_text().splitlines()[1:]) <= {*dependencies, *extra}
    for_commands = {"rich", "typer", "matplotlib", "Jinja2"}  # the terminal, and publishing
    assert {re.split("[<>=]", line)[0] for line in dependencies} - required == for_commands
    code = (
        "import sys; sys.modules.update(dict.fromkeys(sys.argv[1:])); import cpgpt; cpgpt.load_checkpoint(); print(cpgpt.__file__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *(for_commands - {"Jinja2"})],  # which torch needs for itself
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{tmp_path}/cpgpt/__init__.py\n"


# The commands


def cpgpt_command(hub: HubServer, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    settings = {**ENVIRONMENT, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": constants.HF_HUB_CACHE, "HF_TOKEN": os.environ["HF_TOKEN"]}
    command = [sys.executable, "-m", "cpgpt", *arguments]
    return subprocess.run(command, cwd=ROOT, env=settings | environment, capture_output=True, text=True, timeout=120)


def test_the_command_pushes_and_says_how_to_use_it(hub: HubServer, folder: Path) -> None:
    result = cpgpt_command(hub, "push", "you/tiny", "--checkpoint", str(folder), "--tag", "v1", "--private")
    assert result.returncode == 0, result.stderr
    repository = hub.repository("you/tiny")
    assert repository.private
    assert result.stdout.startswith(f"{hub.endpoint}/you/tiny: commit {repository.tags['v1'][:8]}, ")
    assert 'cpgpt.from_hub("you/tiny")' in result.stdout
    result = cpgpt_command(hub, "push-space", "you/page", "--model", "you/tiny", "--private")
    assert result.returncode == 0, result.stderr
    assert hub.repository("you/page", "space").private
    assert "note: you/tiny is private" in result.stderr


@pytest.mark.parametrize("command", [["push", "you/tiny"], ["push-space", "you/page", "--model", "you/tiny"]], ids=" ".join)
def test_a_dry_run_lists_files_and_sizes_and_asks_nobody(command: list[str], hub: HubServer) -> None:
    result = CliRunner().invoke(app, [*command, "--dry-run"], env={"HF_TOKEN": None})
    assert result.exit_code == 0, result.output
    size = (cpgpt.EMBEDDED / "model.safetensors").stat().st_size
    assert re.search(rf"^\S*model\.safetensors +{size:,}$", result.stdout, re.MULTILINE)
    assert re.search(r"^cpgpt/model\.py +[\d,]+$", result.stdout, re.MULTILINE)
    assert f"nothing was pushed to {command[1]}\n" in result.stdout
    assert not hub.requests


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["push", "you/tiny", "--checkpoint", "nowhere"], "error: there is no checkpoint folder nowhere"),
        (["push", "a/b/c"], "error: Repo id must be"),
        (["push-space", "you/page", "--model", "you/nothing"], "error: there is no model you/nothing on the Hub"),
    ],
)
def test_errors_are_messages(arguments: list[str], message: str, hub: HubServer) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not hub.repositories


def test_uploads_are_those_of_the_plain_client(hub: HubServer, folder: Path) -> None:
    """What we push is what `HfApi.upload_folder` would make of the same files."""
    push_checkpoint(folder, "you/tiny")
    HfApi().create_repo("you/plain")
    HfApi().upload_folder(repo_id="you/plain", folder_path=folder)
    plain, ours = hub.repository("you/plain").files(), hub.repository("you/tiny").files()
    assert {name: data for name, data in ours.items() if name in plain} == plain
