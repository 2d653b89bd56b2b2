"""The training loop: it learns, it stops and goes on exactly, it splits over processes."""

import json
import math
import random
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from cpgpt import checkpoint
from cpgpt.model import GPT
from tests.commands import run_module, start_module
from tests.test_prepare import corpus_of, scenes
from training.evaluate import loss_of, loss_over
from training.prepare import prepare_corpus
from training.settings import make_settings
from training.train import make_optimizers, schedule, train

TINY: dict[str, Any] = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "row_length": 48,
    "batch_size": 8,
    "steps": 40,
    "warmup_steps": 4,
    "evaluate_every": 10,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare_corpus(corpus_of(folder / "corpus", scenes(200)), folder / "data")
    return folder / "data"


def log_of(out: Path) -> list[dict[str, Any]]:
    """The run's log without what may differ between two equal runs."""
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in entries]


def weights_of(out: Path) -> bytes:
    """The final weights, optimizer states and best checkpoint, bit for bit."""
    state = safetensors.torch.load_file(out / "state.safetensors")
    return safetensors.torch.save(state) + (out / "checkpoint" / "model.safetensors").read_bytes()


def configuration(folder: Path, data: Path, **settings: Any) -> Path:
    values = {**TINY, "data": str(data), "out": str(folder / "run"), **settings}
    path = folder / "mine.toml"
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    return path


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("shape", ["modern", "classic"])
def test_it_learns_keeps_the_best_checkpoint_and_logs(shape: str, optimizer: str, data: Path, tmp_path: Path) -> None:
    out = train(
        make_settings({**TINY, "shape": shape, "optimizer": optimizer, "data": str(data), "out": str(tmp_path), "store": "float16"})
    )
    log = log_of(out)
    assert [entry["step"] for entry in log] == [10, 20, 30, 40]
    assert log[-1]["validation"] < log[0]["validation"] < math.log(77)
    assert (out / "checkpoint" / "log.jsonl").read_bytes() == (out / "log.jsonl").read_bytes()
    best = min(log, key=lambda entry: entry["validation"])
    loaded = checkpoint.load(out / "checkpoint")
    assert loaded.facts["training"]["validation"] == best["validation"]
    assert loaded.facts["corpus"]["cast"] == ["ANNA", "BELA", "CLEO"]
    # What the log says is what the checkpoint has.
    total, tokens = loss_over(loaded.model, np.load(data / "validation.npy"), TINY["row_length"])
    assert total / tokens == pytest.approx(best["validation"], abs=0.02)


def test_the_validation_loss_is_that_of_every_token_read_one_document_at_a_time(data: Path, tmp_path: Path) -> None:
    out = train(make_settings({**TINY, "steps": 10, "data": str(data), "out": str(tmp_path), "row_length": 700, "batch_size": 2}))
    model = checkpoint.load(out / "checkpoint").model
    ids = torch.from_numpy(np.load(data / "validation.npy").astype(np.int64))
    ends = (ids == 0).nonzero()[:, 0].tolist()
    with torch.inference_mode():
        losses = [loss_of(model(ids[None, a:b]), ids[None, a + 1 : b + 1], "sum").item() for a, b in pairwise(ends)]
    total, tokens = loss_over(model, ids.numpy(), 700)
    assert tokens == len(ids) - 1
    assert total == pytest.approx(sum(losses), rel=1e-5)


def test_rates_go_up_stay_and_go_down_to_zero() -> None:
    settings = make_settings({"steps": 100, "warmup_steps": 10, "decay_share": 0.5})
    rates = [schedule(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:51] == [1.0] * 42
    assert rates[75] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.02)


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    settings = make_settings({"n_layer": 2, "n_head": 2, "n_embd": 32, "bias": True})
    built = GPT(settings.model_config(50))
    adamw, muon = make_optimizers(built, settings)
    of_muon = {id(p) for group in muon.param_groups for p in group["params"]}
    of_adamw = [p for group in adamw.param_groups for p in group["params"]]
    assert of_muon == {id(p) for p in built.blocks.parameters() if p.dim() == 2}
    assert of_muon | {id(p) for p in of_adamw} == {id(p) for p in built.parameters()}
    assert all(p.dim() == 2 for group in adamw.param_groups if group["weight_decay"] for p in group["params"])


def killed_until_done(config: Path, out: Path, moments: random.Random, kills: int) -> int:
    """Start the run again and again, killing it at random moments after its first save; returns how often it was killed."""
    done = 0
    while done < kills:
        before = (out / "state.safetensors").stat().st_mtime_ns if (out / "state.safetensors").exists() else 0
        with start_module("training.train", str(config)) as process:
            while process.poll() is None:
                time.sleep(0.002)
                state = out / "state.safetensors"
                if state.exists() and state.stat().st_mtime_ns != before:
                    time.sleep(moments.uniform(0, 0.25))
                    break
            if process.poll() is not None:
                return done
            process.kill()
            assert process.wait() == -signal.SIGKILL
            done += 1
    assert run_module("training.train", str(config)).returncode == 0
    return done


def test_killed_at_random_moments_it_ends_with_the_same_bits(data: Path, tmp_path: Path) -> None:
    # Dropout, both lengths of rows and several saves a second: everything that has a state takes part.
    settings = {"dropout": 0.1, "long_row_length": 96, "long_share": 0.3, "save_seconds": 0.0, "steps": 80, "n_embd": 64}
    (tmp_path / "whole").mkdir()
    whole = configuration(tmp_path / "whole", data, **settings)
    assert run_module("training.train", str(whole)).returncode == 0
    (tmp_path / "killed").mkdir()
    killed = configuration(tmp_path / "killed", data, **settings)
    out = tmp_path / "killed" / "run"
    assert killed_until_done(killed, out, random.Random(5), kills=4) >= 2
    assert log_of(out) == log_of(tmp_path / "whole" / "run")
    assert weights_of(out) == weights_of(tmp_path / "whole" / "run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_exits_cleanly(number: int, data: Path, tmp_path: Path) -> None:
    config = configuration(tmp_path, data, steps=100_000, evaluate_every=50_000, save_seconds=0.1)
    with start_module("training.train", str(config)) as process:
        while not (tmp_path / "run" / "state.safetensors").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "stopped at step" in output
    assert "Traceback" not in errors
    assert "going on at step" in run_module("training.train", str(config), "--set", "steps=1").stdout


def test_two_processes_have_the_loss_curve_of_one_with_the_same_batch(data: Path, tmp_path: Path) -> None:
    # Without Muon and bfloat16, which turn a rounding in the last digit into one in the third.
    settings = {"optimizer": "adamw", "learning_rate": 0.003, "precision": "float32", "micro_batches": 2}
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = (configuration(tmp_path / name, data, **settings) for name in ("one", "two"))
    assert run_module("training.train", str(one)).returncode == 0
    result = run_module("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "training.train", str(two))
    assert result.returncode == 0, result.stderr
    curves = [[(entry["loss"], entry["validation"]) for entry in log_of(tmp_path / name / "run")] for name in ("one", "two")]
    assert len(curves[0]) == 4
    assert curves[0] == pytest.approx(np.array(curves[1]), abs=1e-3)


def test_a_batch_that_cannot_be_shared_is_an_error(data: Path, tmp_path: Path) -> None:
    config = configuration(tmp_path, data, batch_size=7)
    result = run_module("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "training.train", str(config))
    assert result.returncode != 0
    assert "batch_size 7 cannot be shared by 2 processes" in result.stderr


def test_it_stops_early_when_nothing_gets_better(data: Path, tmp_path: Path) -> None:
    out = train(
        make_settings(
            {**TINY, "learning_rate": 0.0, "muon_learning_rate": 0.0, "patience": 2, "data": str(data), "out": str(tmp_path)}
        )
    )
    assert [entry["step"] for entry in log_of(out)] == [10, 20, 30]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda out: {"n_embd": 64}, r"other settings \(model was .*delete it, or choose another folder"),
        (lambda out: {"seed": 9}, r"other settings \(seed was 1 and is 9"),
        (lambda out: (out / "state.safetensors").write_bytes(b"nothing") and {}, "state.safetensors is damaged"),
    ],
)
def test_a_run_that_cannot_go_on_says_why(
    break_it: Callable[[Path], dict[str, Any]], message: str, data: Path, tmp_path: Path
) -> None:
    settings = {**TINY, "steps": 2, "data": str(data), "out": str(tmp_path)}
    train(make_settings(settings))
    with pytest.raises(ValueError, match=message):
        train(make_settings({**settings, **break_it(tmp_path)}))


def test_text_that_was_not_prepared_is_an_error_that_says_how(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no prepared text: run `python -m training.prepare --out .*/nowhere` first"):
        train(make_settings({**TINY, "data": str(tmp_path / "nowhere"), "out": str(tmp_path)}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_cuda_compiled_in_bfloat16_it_learns_as_on_the_cpu(data: Path, tmp_path: Path) -> None:
    settings = {**TINY, "data": str(data)}
    cpu = log_of(train(make_settings({**settings, "out": str(tmp_path / "cpu")})))
    cuda = log_of(train(make_settings({**settings, "out": str(tmp_path / "cuda"), "device": "cuda"})))
    assert cuda[-1]["validation"] == pytest.approx(cpu[-1]["validation"], abs=0.05)
