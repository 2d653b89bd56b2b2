"""Which model a Space writes with: the one that `CPGPT_MODEL` names, and what it does when that cannot be had."""

from pathlib import Path
from typing import Any

import pytest

import cpgpt
import tests.house  # noqa: F401 (it puts the Space's folder on the path)
from cpgpt import checkpoint
from cpgpt.publish import push_checkpoint
from tests.hub_server import HubServer
from tests.test_hub import hasty  # noqa: F401

import app  # isort: skip


@pytest.fixture
def friends(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A Hub with the embedded checkpoint as you/friends, tagged v1, which `CPGPT_MODEL` names."""
    push_checkpoint(cpgpt.EMBEDDED, "you/friends", tag="v1")
    monkeypatch.setenv("CPGPT_MODEL", "you/friends@v1")
    return hub


def test_the_model_comes_from_the_hub_with_its_revision(friends: HubServer) -> None:
    writer, notice = app.writer_and_notice()
    assert (writer.name, writer.revision, notice) == ("you/friends", friends.repository("you/friends").head, "")
    assert str(writer.scene(seed=3)) == str(cpgpt.load().scene(seed=3))


def test_a_folder_is_a_model_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = checkpoint.load(cpgpt.EMBEDDED)
    folder = checkpoint.save(tmp_path / "mine", found.model, found.tokenizer, found.facts)
    monkeypatch.setenv("CPGPT_MODEL", str(folder))
    writer, notice = app.writer_and_notice()
    assert (writer.name, notice) == ("mine", "")


FAULTS: dict[str, tuple[str, dict[str, Any] | None, str]] = {
    "no such model": ("you/nobody", None, "you/nobody"),
    "no such revision": ("you/friends@v9", None, "v9"),
    "no name of a model": ("you/a/b", None, "you/a/b"),
    "no hub": ("you/friends", {"kind": "status", "where": "/api/models/you/friends", "times": 99, "status": 503}, "Hub"),
    "a damaged download": (
        "you/friends",
        {"kind": "corrupt", "where": "GET /storage/", "times": 99, "after": 5000},
        "other bytes than the Hub says",
    ),
}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_had_is_said_and_the_embedded_checkpoint_writes(
    fault: str, friends: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted, failing, named = FAULTS[fault]
    monkeypatch.setenv("CPGPT_MODEL", wanted)
    if failing:
        friends.fault(**failing)
    writer, notice = app.writer_and_notice()
    assert notice.startswith(f"The model {wanted} could not be loaded, so the built-in one is writing.")
    assert named in notice
    assert f"CPGPT_MODEL={wanted} could not be loaded" in capsys.readouterr().out  # for the Space's log
    assert (writer.name, writer.revision) == (cpgpt.load().name, None)
    assert writer.scene(seed=3).lines
