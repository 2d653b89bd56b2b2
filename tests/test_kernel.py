"""The two runners: each has the model's logits, the kernel bit for bit the same in whatever company, and either writes."""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import cpgpt
from cpgpt import kernel
from cpgpt.kernel import HEAD_SIZES, Kernel, KernelError, why_not
from cpgpt.model import GPT, Config
from cpgpt.runner import PlainRunner, Runner, make_runner
from tests.commands import ENVIRONMENT, ROOT
from tests.conftest import randomised, tiny
from training.prepare import CORPUS
from training.scenes import read_corpus

EMBEDDED = cpgpt.load_checkpoint()
SCENES = [str(scene) for scene in read_corpus(CORPUS).scenes[::350]]
RUNNERS: dict[str, Callable[[GPT, int], Runner]] = {"plain": PlainRunner, "kernel": Kernel}
# Keys and values are kept as halves by the kernel, with 11 bits: so exact are its logits, and they are some 10 apart.
TOLERANCE = {"plain": 1e-4, "kernel": 1e-2}


def shaped(n_head: int, head_size: int, **changes: Any) -> Config:
    sizes = {"n_head": n_head, "n_embd": n_head * head_size, "n_hidden": 80, "n_layer": 2, "block_size": 50, **changes}
    return Config.modern(77, **sizes)


MODELS: dict[str, Callable[[], GPT]] = {
    "embedded": lambda: EMBEDDED.model,
    **{f"heads of {size}": lambda size=size: normal(shaped(2, size)) for size in HEAD_SIZES},  # type: ignore[misc]
    "context of 33, untied": lambda: normal(shaped(3, 16, block_size=33, tie_embeddings=False)),
    "context of 200": lambda: normal(shaped(1, 32, block_size=200)),  # longer than what goes through the layers together
    "halves": lambda: normal(shaped(2, 32), halves=True),
}
each_model = pytest.mark.parametrize("made", MODELS)
each_runner = pytest.mark.parametrize("name", RUNNERS)


def normal(config: Config, halves: bool = False) -> GPT:
    """A model with weights as a trained one has them: its logits are some 10 apart."""
    model, generator = GPT(config).eval(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            size = 1 / math.sqrt(parameter.size(-1)) if parameter.dim() == 2 else 0.1
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator) + (1 if parameter.dim() == 1 else 0))
            if halves:
                parameter.copy_(parameter.half())
    return model


def some_ids(model: GPT, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, count).astype(np.int32)


def read(runner: Runner, ids: np.ndarray, place: int = 0, first: int = 0) -> np.ndarray:
    """The logits of `ids`, read in a row from position `first`."""
    n = len(ids)
    return runner.forward(ids, np.full(n, place, dtype=np.int32), np.arange(first, first + n, dtype=np.int32))


def whole(model: GPT, ids: np.ndarray) -> np.ndarray:
    """The logits that the model itself has, without any cache."""
    with torch.inference_mode():
        return model(torch.from_numpy(ids.astype(np.int64))[None])[0].numpy()


# The logits


@each_runner
@each_model
def test_a_runner_has_the_logits_of_the_model(made: str, name: str) -> None:
    model = MODELS[made]()
    texts = [np.array([0, *EMBEDDED.tokenizer.encode(text)], dtype=np.int32) for text in SCENES[:4]] if made == "embedded" else []
    for ids in texts or [some_ids(model, model.config.block_size, seed) for seed in range(3)]:
        runner = RUNNERS[name](model, 3)
        expected = whole(model, ids)
        assert np.ptp(expected) > 5  # else the tolerance would say nothing
        np.testing.assert_allclose(read(runner, ids, place=1), expected, rtol=0, atol=TOLERANCE[name])


@each_runner
@pytest.mark.parametrize("made", ["context of 33, untied", "halves"])
def test_streams_may_read_in_any_order_and_in_any_pieces(made: str, name: str) -> None:
    model = MODELS[made]()
    runner, chance = RUNNERS[name](model, 6), np.random.default_rng(3)
    texts = [some_ids(model, model.config.block_size, seed) for seed in range(6)]
    expected, done = [whole(model, ids) for ids in texts], [0] * 6
    while any(done[place] < len(texts[place]) for place in range(6)):
        columns: list[list[int]] = [[], [], []]
        rows = list[tuple[int, int]]()
        for place in sorted(chance.choice(6, size=chance.integers(1, 7), replace=False).tolist()):
            count = min(int(chance.choice([1, 1, 2, 9])), len(texts[place]) - done[place])
            for position in range(done[place], done[place] + count):
                for column, value in zip(columns, (int(texts[place][position]), place, position), strict=True):
                    column.append(value)
                rows.append((place, position))
            done[place] += count
        if rows:
            logits = runner.forward(*(np.array(column, dtype=np.int32) for column in columns))
            for row, (place, position) in zip(logits, rows, strict=True):
                np.testing.assert_allclose(row, expected[place][position], rtol=0, atol=TOLERANCE[name])


@each_runner
def test_a_copied_place_goes_on_as_the_one_it_was_copied_from(name: str) -> None:
    model = MODELS["halves"]()
    ids, runner = some_ids(model, 40), RUNNERS[name](model, 4)
    read(runner, ids, place=2)
    read(runner, some_ids(model, 50, 9), place=0)  # what was there before is of no consequence
    for count in (1, 15, 16, 17, 39):
        runner.copy(2, 0, count)
        np.testing.assert_array_equal(read(runner, ids[count:], 0, count), read(runner, ids[count:], 2, count))
        other = np.concatenate([ids[:count], some_ids(model, 10, count)])
        np.testing.assert_allclose(read(runner, other[count:], 0, count), whole(model, other)[count:], rtol=0, atol=TOLERANCE[name])


def test_the_kernel_costs_nothing_in_bits_per_character() -> None:
    runner, bits, characters = Kernel(EMBEDDED.model, 1), [0.0, 0.0], 0
    for text in SCENES:
        ids = np.array([0, *EMBEDDED.tokenizer.encode(text)], dtype=np.int32)
        characters += len(ids) - 1
        for which, logits in enumerate((whole(EMBEDDED.model, ids), read(runner, ids))):
            loss = F.cross_entropy(torch.from_numpy(logits[:-1]), torch.from_numpy(ids[1:].astype(np.int64)), reduction="sum")
            bits[which] += loss.item() / math.log(2)
    assert characters > 8_000
    assert 0.5 < bits[0] / characters < 2
    assert abs(bits[0] - bits[1]) / characters < 0.0002


# Bit for bit


@pytest.mark.parametrize("made", ["embedded", "heads of 48", "halves"])
def test_the_kernels_logits_are_the_same_bits_in_whatever_company(made: str) -> None:
    model = MODELS[made]()
    size = min(150, model.config.block_size)
    ids, runner = some_ids(model, size), Kernel(model, 9)
    alone = read(runner, ids)
    one_by_one = np.concatenate([read(runner, ids[i : i + 1], 1, i) for i in range(size)])
    np.testing.assert_array_equal(one_by_one, alone)
    for threads in (1, 2, 3):
        np.testing.assert_array_equal(read(Kernel(model, 1, threads), ids), alone)
    chance, at = np.random.default_rng(1), 0
    while at < size:  # beside up to eight others, each with a few rows: every size of a tile comes up
        count, others = int(chance.integers(1, 8)), chance.permutation([0, *range(3, 9)])[: chance.integers(0, 7)].tolist()
        count = min(count, size - at)
        rows = {2: (ids[at : at + count], at)} | {
            place: (some_ids(model, int(chance.integers(1, 7)), place), int(chance.integers(0, 9))) for place in others
        }
        order = sorted(rows)
        logits = runner.forward(
            np.concatenate([rows[place][0] for place in order]),
            np.concatenate([np.full(len(rows[place][0]), place, dtype=np.int32) for place in order]),
            np.concatenate([np.arange(rows[place][1], rows[place][1] + len(rows[place][0]), dtype=np.int32) for place in order]),
        )
        before = sum(len(rows[place][0]) for place in order if place < 2)
        np.testing.assert_array_equal(logits[before : before + count], alone[at : at + count])
        at += count


def test_two_threads_may_use_a_kernel_at_once() -> None:
    model = EMBEDDED.model
    runner, texts = Kernel(model, 2), [some_ids(model, 120, seed) for seed in range(2)]
    expected = [read(Kernel(model, 1), ids) for ids in texts]
    both, wrong = threading.Barrier(2), list[int]()

    def work(place: int) -> None:
        both.wait()
        for _ in range(5):
            for i in range(0, 120, 8):
                logits = read(runner, texts[place][i : i + 8], place, i)
                if not np.array_equal(logits, expected[place][i : i + 8]):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Which runner, and how it is built


def test_a_modern_model_has_the_kernel_and_any_other_the_plain_runner() -> None:
    assert isinstance(make_runner(EMBEDDED.model, 2), Kernel)
    for config in (
        tiny("classic"),
        tiny("modern"),
        tiny("modern", qk_norm=False, n_embd=64),
        tiny("modern", n_embd=64, n_hidden=40),
    ):
        assert isinstance(make_runner(randomised(config), 2), PlainRunner)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (tiny("classic"), "positions is 'learned': the kernel is for the modern shape only"),
        (tiny("modern", n_embd=64, norm="layernorm"), "norm is 'layernorm': the kernel"),
        (tiny("modern"), "the head size is 8: the kernel has 16, 32, 48, 64, 96, 128"),
        (tiny("modern", n_embd=64, n_hidden=40), "n_embd 64 and n_hidden 40 must be multiples of 16"),
    ],
)
def test_a_shape_that_the_kernel_does_not_have_is_named(config: Config, reason: str) -> None:
    assert (why_not(config) or "").startswith(reason)
    with pytest.raises(KernelError, match=reason.split(":")[0]):
        Kernel(GPT(config), 1)
    assert why_not(tiny("modern", n_embd=64, norm_eps=1e-5)) is None


WRITE = """
import json, logging, cpgpt
logging.basicConfig(format="%(levelname)s %(message)s")
writer = cpgpt.load()
scene = writer.scene(lines=2, temperature=0, place=writer.places[1])
print(json.dumps([type(writer.engine.runner).__name__, str(scene)]))
"""


def test_without_a_compiler_the_plain_runner_writes_the_same_scene_and_says_that_it_is_slow(tmp_path: Path) -> None:
    variables = {**ENVIRONMENT, "CPGPT_CACHE": str(tmp_path), "CXX": "no-such-compiler"}
    result = subprocess.run([sys.executable, "-c", WRITE], cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
    writer = cpgpt.load()
    assert isinstance(writer.engine.runner, Kernel)
    scene = writer.scene(lines=2, temperature=0, place=writer.places[1])
    assert json.loads(result.stdout) == ["PlainRunner", str(scene)]
    assert "WARNING writing will be several times slower than it could be: $CXX is 'no-such-compiler'" in result.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"CXX": "no-such-compiler"}, "$CXX is 'no-such-compiler': there is no such compiler"),
        ({"CXX": "", "PATH": "/nowhere"}, "no C++ compiler: install g++ or clang++"),
        ({"CXX": "false"}, "false could not build kernel.cpp"),
    ],
)
def test_why_it_cannot_be_built_is_named(
    variables: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**variables, "CPGPT_CACHE": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(KernelError, match=re.escape(message)):
        kernel.build()
    assert list(tmp_path.iterdir()) == []


def test_the_two_runners_write_the_same_scenes() -> None:
    """At temperatures above 0 a random number may fall between the two's probabilities: once in some thousand characters."""
    writers = [cpgpt.load(places=8), cpgpt.load(places=8)]
    writers[1].engine.runner = PlainRunner(writers[1].checkpoint.model, 8)
    scenes = [writer.scenes(8, lines=(2, 3), temperature=0.6, seed=1) for writer in writers]
    assert sum(a == b for a, b in zip(*scenes, strict=True)) >= 6


def test_it_is_built_once_and_never_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from cpgpt.kernel import build; print(build())"
    variables = {**os.environ, "CPGPT_CACHE": str(tmp_path / "new" / "cache")}
    command = [sys.executable, "-c", code]
    racing = [subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate()[0].strip() for process in racing}
    assert [process.returncode for process in racing] == [0, 0]
    [path] = (tmp_path / "new" / "cache").iterdir()
    assert paths == {str(path)}
    before = path.stat().st_mtime_ns
    monkeypatch.setenv("CPGPT_CACHE", str(path.parent))
    assert kernel.build() == path
    assert path.stat().st_mtime_ns == before
    monkeypatch.setattr(kernel, "FLAGS", ("-O0", *kernel.FLAGS[1:]))  # other settings, another library
    assert kernel.build() != path
    assert len(list(path.parent.iterdir())) == 2


def test_a_library_that_cannot_be_loaded_is_named_and_the_plain_runner_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library = tmp_path / kernel.build().name
    library.write_bytes(b"nothing")
    monkeypatch.setenv("CPGPT_CACHE", str(tmp_path))
    monkeypatch.setattr(kernel, "_library", kernel._library.__wrapped__)  # one that has loaded nothing yet
    assert isinstance(make_runner(EMBEDDED.model, 1), PlainRunner)
    assert f"{library} cannot be loaded, delete it" in caplog.text


def test_where_nothing_can_be_kept_it_is_built_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CPGPT_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(kernel, "FLAGS", ("-O0", *kernel.FLAGS[1:]))
    assert kernel.build().is_file()
