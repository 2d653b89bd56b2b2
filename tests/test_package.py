"""What `pip install` brings, and what importing it costs."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import cpgpt
from tests.commands import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that git tracks, as from a clean checkout."""
    folder = tmp_path_factory.mktemp("checkout")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, tracked):
        (folder / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "src" / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(folder / "src")]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_the_checkpoint_and_nothing_else(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    checkpoint = {f"cpgpt/checkpoints/centralperk/{file.name}" for file in (ROOT / "cpgpt/checkpoints/centralperk").iterdir()}
    assert {name.rpartition("/")[2] for name in checkpoint} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert {name for name in names if not name.endswith(".py")} == {"cpgpt/kernel.cpp", *checkpoint}
    assert {name for name in names if name.endswith(".py")} == {f"cpgpt/{file.name}" for file in (ROOT / "cpgpt").glob("*.py")}
    assert wheel.name.startswith("centralperkgpt-")


def test_the_installed_wheel_writes_a_scene(wheel: Path, tmp_path: Path) -> None:
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(tmp_path / "site"),
        str(wheel),
    ]
    subprocess.run(install, check=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    code = (
        "import cpgpt; print(cpgpt.__file__); writer = cpgpt.load(); print(type(writer.engine.runner)); print(writer.scene(seed=1))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    where, runner, text = result.stdout.split("\n", 2)
    assert where == str(tmp_path / "site" / "cpgpt" / "__init__.py")
    assert "Kernel" in runner
    assert len(cpgpt.parse(text.removesuffix("\n")).lines) >= 7


IMPORT = """
import sys
def watch(event, arguments):
    if event.startswith("socket.") or (event == "open" and str(arguments[0]).endswith(".safetensors")):
        raise SystemExit(f"{event} {arguments}")
sys.addaudithook(watch)
import cpgpt
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_importing_touches_no_network_no_weights_and_nothing_heavy() -> None:
    result = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert "torch" in loaded
    assert not loaded & {"transformers", "gradio", "huggingface_hub", "typer", "rich", "httpx", "requests", "training"}


def test_rooms_import_only_rooms_above_them() -> None:
    """The order of the design: a module of the package imports only those before it."""
    floors = "tokenizer model sampling screenplay grammar drafts checkpoint kernel runner stream engine writer __init__ terminal "
    order = (floors + "cli_serve cli __main__").split()
    for place, name in enumerate(order):
        source = (ROOT / "cpgpt" / f"{name}.py").read_text()
        used = set(re.findall(r"^\s*from cpgpt\.(\w+) import", source, re.MULTILINE))
        if name != "__init__" and re.search(r"^\s*from cpgpt import", source, re.MULTILINE):
            used.add("__init__")
        assert used <= set(order[:place]), f"cpgpt/{name}.py imports {used - set(order[:place])}"
    assert {file.stem for file in (ROOT / "cpgpt").glob("*.py")} == set(order)
    assert not [
        file for file in (ROOT / "cpgpt").glob("*.py") if re.search(r"^(from|import) training", file.read_text(), re.MULTILINE)
    ]
