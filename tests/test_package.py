"""What `pip install` brings, and what importing it costs."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import cpgpt
from tests.commands import ENVIRONMENT, ROOT, run_module


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [name for name in listed.split("\0") if name]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that git tracks, as from a clean checkout."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in tracked():
        (folder / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "src" / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(folder / "src")]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_the_space_and_the_cards_template_and_nothing_else(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert set(names) == {
        name if name.startswith("cpgpt/") else f"cpgpt/{name}" for name in tracked() if re.match("(cpgpt|space)/|hub_card.md", name)
    }
    checkpoint = {Path(name).name for name in names if name.startswith("cpgpt/checkpoints/centralperk/")}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= checkpoint
    assert wheel.name.startswith(f"centralperkgpt-{cpgpt.__version__}-")


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed into a folder of its own."""
    site = tmp_path_factory.mktemp("installed") / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True)
    return site


def python(site: Path, folder: Path, *arguments: str) -> str:
    """What Python prints that runs outside of the checkout, on the installed package."""
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=folder, env={**ENVIRONMENT, "PYTHONPATH": str(site)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_installed_wheel_writes_a_scene(site: Path, tmp_path: Path) -> None:
    code = (
        "import cpgpt; print(cpgpt.__file__); writer = cpgpt.load(); print(type(writer.engine.runner)); print(writer.scene(seed=1))"
    )
    where, runner, text = python(site, tmp_path, "-c", code).split("\n", 2)
    assert where == str(site / "cpgpt" / "__init__.py")
    assert "Kernel" in runner
    assert len(cpgpt.parse(text.removesuffix("\n")).lines) >= 7


@pytest.mark.parametrize("command", [["push", "you/tiny"], ["push-space", "you/page", "--model", "you/tiny"]], ids=" ".join)
def test_the_installed_wheel_pushes_what_the_checkout_pushes(command: list[str], site: Path, tmp_path: Path) -> None:
    installed = python(site, tmp_path, "-m", "cpgpt", *command, "--dry-run")
    assert installed == run_module("cpgpt", *command, "--dry-run").stdout
    assert len(installed.splitlines()) > 10


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
    floors = (
        "tokenizer model sampling screenplay grammar drafts checkpoint kernel runner stream engine card hub publish writer "
        "__init__ terminal cli_hub cli_serve cli __main__"
    )
    order = floors.split()
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
