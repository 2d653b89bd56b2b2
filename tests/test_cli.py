"""The command `cpgpt`, with the embedded checkpoint: as a program of the shell uses it, and as somebody at a terminal does."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import cpgpt
from cpgpt import checkpoint
from cpgpt.cli import app
from cpgpt.model import GPT
from tests.commands import ENVIRONMENT, ROOT, run_module, start_module
from tests.conftest import TOKENIZER, tiny

FACTS = cpgpt.load_checkpoint().facts["corpus"]
FIRST, SECOND, THIRD = FACTS["cast"][:3]


def here(*arguments: str, typed: str = "") -> Result:
    """The command in this process: a new one takes seconds to import PyTorch."""
    return CliRunner().invoke(app, arguments, input=typed, env={"COLUMNS": "200", "NO_COLOR": "1"})


def output_of(*arguments: str, typed: str = "") -> str:
    result = here(*arguments, typed=typed)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


@pytest.fixture(scope="module")
def text_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of any text, not of scenes."""
    folder = tmp_path_factory.mktemp("text") / "checkpoint"
    return str(checkpoint.save(folder, GPT(tiny("modern")), TOKENIZER, {"corpus": {"format": "text"}}))


def on_a_terminal(*arguments: str, typed: str = "", colour: bool = True) -> tuple[int, str]:
    """Run the command on a terminal of its own and type; its exit code and all that is on the screen."""
    main, terminal = pty.openpty()
    environment = {**ENVIRONMENT, "TERM": "xterm-256color"}
    if colour:
        del environment["NO_COLOR"]
    command = [sys.executable, "-m", "cpgpt", *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=terminal, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        os.write(main, typed.encode())
        screen, deadline = b"", time.monotonic() + 120
        while time.monotonic() < deadline:
            if select.select([main], [], [], 0.1)[0]:
                try:
                    screen += os.read(main, 65536)
                except OSError:  # the other side is gone
                    break
        code = process.wait(timeout=30)
    os.close(main)
    return code, screen.decode().replace("\r\n", "\n")


def without_colours(screen: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", screen)


# cpgpt scene


def test_it_types_the_scene_that_python_gives_for_the_same_settings() -> None:
    arguments = f"scene {FIRST.lower()} --with {SECOND.lower()},{THIRD} --lines 5-6 --temperature 0.5 --top-p 0.95 --seed 5".split()
    result = run_module("cpgpt", *arguments, "--title", "the flaky test", "--place", FACTS["places"][1])
    assert (result.returncode, result.stderr) == (0, "")
    scene = cpgpt.load().scene(
        FIRST,
        cast=[SECOND, THIRD],
        lines=(5, 6),
        temperature=0.5,
        top_p=0.95,
        seed=5,
        title="the flaky test",
        place=FACTS["places"][1],
    )
    assert result.stdout == str(scene)
    assert scene.speakers[0] == FIRST
    assert set(scene.speakers) == {FIRST, SECOND, THIRD}


def test_without_a_seed_scenes_differ() -> None:
    assert output_of("scene", "--lines", "2") != output_of("scene", "--lines", "2")


def test_many_scenes_have_a_blank_line_between_and_seeds_that_count_up() -> None:
    text = output_of("scene", "--count", "3", "--lines", "2", "--seed", "4")
    expected = cpgpt.load().scenes(3, lines=2, seed=4)
    assert [scene.seed for scene in expected] == [4, 5, 6]
    assert text == "\n".join(map(str, expected))


def test_json_is_a_scene_a_line() -> None:
    rows = output_of("scene", SECOND, "--count", "2", "--lines", "2", "--seed", "4", "--json").splitlines()
    scenes = [cpgpt.Scene.from_dict(json.loads(row)) for row in rows]
    assert scenes == cpgpt.load().scenes(2, SECOND, lines=2, seed=4)
    assert [scene.seed for scene in scenes] == [4, 5]
    drawn = json.loads(output_of("scene", "--lines", "2", "--json"))  # the seed that was drawn is told
    assert cpgpt.load().scene(lines=2, seed=drawn["seed"]).to_dict() == drawn


def test_the_scene_comes_as_it_is_written() -> None:
    with start_module("cpgpt", "scene", "--seed", "1") as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        pieces = 0
        while os.read(process.stdout.fileno(), 65536):
            pieces += 1
    assert pieces > 5


def test_on_a_terminal_speakers_have_colours_and_the_seed_is_told() -> None:
    code, screen = on_a_terminal("scene", "--seed", "3", "--temperature", "0.5")
    scene = cpgpt.load().scene(seed=3, temperature=0.5)
    assert code == 0
    seed = "\n(seed 3: with it and the same settings, the same scene)\n"
    assert without_colours(screen) == str(scene) + seed
    colours = {name: set(re.findall(rf"(\x1b\[[0-9;]*m){name}: ", screen)) for name in scene.speakers}
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == len(scene.speakers) > 1
    code, plain = on_a_terminal("scene", "--seed", "3", "--temperature", "0.5", colour=False)
    assert code == 0
    assert plain == str(scene) + seed


def test_a_reader_that_has_had_enough_ends_it_without_a_word() -> None:
    command = f"{sys.executable} -m cpgpt scene --count 50 --lines 2 | head -1"
    result = subprocess.run(command, shell=True, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


def test_a_model_of_any_text_is_typed_as_far_as_it_was_asked_for(text_checkpoint: str) -> None:
    arguments = ("scene", "--checkpoint", text_checkpoint, "--max-chars", "60", "--seed", "2")
    text = output_of(*arguments)
    assert 50 < len(text) <= 60
    assert text == output_of(*arguments)
    assert text == "".join(cpgpt.load(text_checkpoint).stream_text(max_characters=60, stop=False, seed=2))


# cpgpt chat


def test_a_conversation_through_a_pipe() -> None:
    arguments = ("chat", "--as", FIRST.lower(), "--with", SECOND.lower(), "--seed", "3")
    said = "So, what's the matter with the build?\n\nIt\u2019s “fine” \u2014 really…\n"
    with start_module("cpgpt", *arguments) as process:
        output, errors = process.communicate(said, timeout=120)
    assert (process.returncode, errors) == (0, "")
    writer, history = cpgpt.load(), list[cpgpt.Line]()
    for line in ("So, what's the matter with the build?", "", 'It\'s "fine" - really...'):
        history += [cpgpt.Line(FIRST, line)] if line else []
        history.append(writer.reply(history, SECOND, seed=3))
    answers = [str(line) for line in history if line.speaker == SECOND]
    assert len(answers) == 3
    assert output.splitlines() == answers
    rows = [json.loads(row) for row in output_of(*arguments, "--json", typed=said).splitlines()]
    assert [f"{row['speaker']}: {row['text']}" for row in rows] == answers
    assert {row["seed"] for row in rows} == {3}


def test_a_conversation_on_a_terminal_and_what_cannot_be_said_may_be_said_again() -> None:
    code, screen = on_a_terminal("chat", "--as", FIRST, "--seed", "3", typed="Is it 100 € or not?\nIs it down again?\n\x04")
    assert code == 0
    text = without_colours(screen)
    assert "unknown characters: '€' (U+20AC EURO SIGN)" in text
    answer = cpgpt.load().reply([(FIRST, "Is it down again?")], seed=3)
    assert f"{answer}\n" in text
    assert text.count(f"{FIRST}: ") == 3  # asked three times
    assert text.endswith("\n")
    assert re.search(rf"\x1b\[[0-9;]*m{FIRST}: ", screen)


# What is wrong is named


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scene", "--checkpoint", "no/such/folder"], "error: there is no checkpoint folder no/such/folder"),
        (["scene", "--checkpoint", "training"], "error: training has no config.json"),
        (["scene", "--temperature", "-1"], "error: temperature is -1.0: it must be 0 (greedy) or more"),
        (["scene", "--top-p", "0"], "error: top_p is 0.0: it must be over 0 and at most 1"),
        (["scene", "--seed", "-3"], "error: seed is -3: it must be from 0 to"),
        (["scene", "--count", "0"], "Invalid value for '--count'"),
        (["scene", "--lines", "many"], "error: --lines is 'many': give a number, such as 10, or a range, such as 8-12"),
        (["scene", "--lines", "8-99"], "error: lines is (8, 99): give a number of lines from 2 to"),
        (["scene", FIRST[:-1]], f"error: there is no character '{FIRST[:-1]}', do you mean {FIRST}?: it is one of {FIRST}, "),
        (["scene", FIRST, "--with", f"{SECOND},NOBODY"], "error: there is no character in the cast 'NOBODY'"),
        (["scene", "--place", "the moon"], "error: there is no place 'the moon'"),
        (["scene", "--title", "?!"], "error: title is '?!': give one with a word in it"),
        (["chat"], "Missing option '--as'"),
        (["chat", "--as", "NOBODY"], "error: there is no character 'NOBODY'"),
        (["chat", "--as", FIRST, "--with", "NOBODY"], "error: there is no character 'NOBODY'"),
        (["cast", "--checkpoint", "training"], "error: training has no config.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_an_error_that_names_it(arguments: list[str], message: str) -> None:
    result = here(*arguments, typed="Hm.\n")
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit)
    assert message in result.stderr
    assert result.stdout == ""


def test_an_error_is_one_line_without_a_traceback() -> None:
    result = run_module("cpgpt", "scene", "--temperature", "-1")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "error: temperature is -1.0: it must be 0 (greedy) or more\n"


@pytest.mark.parametrize("arguments", [["cast"], ["chat", "--as", "ANNA"], ["scene", "--json"]], ids=" ".join)
def test_a_model_of_any_text_has_no_cast_no_chat_and_no_scenes(arguments: list[str], text_checkpoint: str) -> None:
    result = here(*arguments, "--checkpoint", text_checkpoint)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "was not trained on scenes" in result.stderr


# The rest


def test_the_cast_and_the_places_are_listed() -> None:
    assert output_of("cast") == f"characters: {', '.join(FACTS['cast'])}\nplaces: {', '.join(FACTS['places'])}\n"


def test_help_and_version() -> None:
    assert "Type a scene" in output_of("--help")
    options = {
        "scene": "--title --place --with --lines --temperature --top-p --seed --count --json --checkpoint --max-chars",
        "chat": "--as --with --title --place --temperature --top-p --seed --json --checkpoint",
    }
    for command, expected in options.items():
        shown = output_of(command, "--help")
        assert all(option in shown for option in expected.split())
    assert output_of("--version") == f"centralperkgpt {cpgpt.__version__}\n"


def test_the_embedded_checkpoint_keeps_its_bounds() -> None:
    loaded = cpgpt.load_checkpoint()
    assert loaded.model.n_parameters() <= 12_000_000
    assert loaded.model.config.block_size >= 1024
    assert sum(file.stat().st_size for file in Path(cpgpt.EMBEDDED).iterdir()) <= 25_000_000
