"""How fast scenes are written, beside other ways to run the same checkpoint: `python -m tests.benchmarks.generate`.

One stream: the original's way (no cache, the whole context at every step), `transformers` with its cache, CTranslate2 in float32
and in its fastest type, ours without and with drafts. Then many streams at once, beside `transformers` with a batch. Runs are
interleaved and medians count. Ours writes scenes with the grammar, the others free text, all of 600 characters.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import cpgpt
from cpgpt.grammar import Grammar, Rules
from cpgpt.sampling import Sampling, probabilities, sample, uniforms
from cpgpt.tokenizer import END_OF_TEXT, END_OF_TEXT_ID

CHARACTERS = 600
TEMPERATURE = 0.8

# A process of its own tells its memory, and how long it takes from `import torch` to the first character.
ALONE = """
import json, re, sys, time
from pathlib import Path
import torch
began = time.perf_counter()
import cpgpt
writer = cpgpt.load(places=int(sys.argv[1]))
streams = [writer.stream(seed=1)]
next(streams[0])
first = time.perf_counter() - began
streams += [writer.stream(seed=seed) for seed in range(2, int(sys.argv[1]) + 1)]
for stream in streams:
    stream.read()
most = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())  # Linux
print(json.dumps({"seconds": first, "megabytes": int(most[1]) / 1024}))
"""


def original(model: cpgpt.GPT, seed: int) -> None:
    """The original's loop: the whole context goes through the model for every character."""
    ids, randoms = [END_OF_TEXT_ID], uniforms(seed, 0, CHARACTERS)
    with torch.inference_mode():
        for n in range(CHARACTERS):
            logits = model(torch.tensor([ids[-model.config.block_size :]]))[:, -1].numpy()
            ids += sample(probabilities(logits, Sampling(TEMPERATURE)), randoms[n : n + 1]).tolist()


def transformers_way(folder: Path) -> Callable[[int, int], None]:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder)

    def generate(seed: int, batch: int = 1) -> None:
        torch.manual_seed(seed)
        prompt = torch.full((batch, 1), END_OF_TEXT_ID)
        how: dict[str, Any] = {"do_sample": True, "temperature": TEMPERATURE, "max_length": None}
        model.generate(
            prompt, attention_mask=torch.ones_like(prompt), min_new_tokens=CHARACTERS, max_new_tokens=CHARACTERS, top_k=0, **how
        )

    return generate


def ctranslate2_way(converted: Path, compute_type: str, threads: int) -> Callable[[int], None]:
    import ctranslate2

    generator = ctranslate2.Generator(str(converted), device="cpu", compute_type=compute_type, intra_threads=threads)

    def generate(seed: int) -> None:
        generator.generate_batch(
            [[END_OF_TEXT]],
            min_length=CHARACTERS,
            max_length=CHARACTERS,
            sampling_topk=0,
            sampling_temperature=TEMPERATURE,
            include_prompt_in_result=False,
        )

    return generate


def convert(folder: Path, converted: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(folder)).convert(str(converted))


def seconds_of(way: Callable[..., Any], *arguments: int) -> float:
    began = time.perf_counter()
    way(*arguments)
    return time.perf_counter() - began


def start(writer: cpgpt.SceneWriter, seed: int) -> cpgpt.SceneStream:
    """A scene of more than 600 characters."""
    return writer.stream(lines=(13, 14), temperature=TEMPERATURE, seed=seed)


def one(writer: cpgpt.SceneWriter, seed: int) -> None:
    with start(writer, seed) as stream:
        for _ in zip(range(CHARACTERS), stream, strict=False):
            pass


def crowd(writer: cpgpt.SceneWriter, streams: int, seed: int) -> dict[str, float]:
    """Many scenes at once, looked after by one thread; each is closed at 600 characters."""
    began = time.perf_counter()
    running = {n: start(writer, seed + n) for n in range(streams)}
    first, last, got = dict[int, float](), dict[int, float](), dict[int, int].fromkeys(running, 0)
    while running:
        time.sleep(0.004)
        for n, stream in list(running.items()):
            piece, now = stream.take(), time.perf_counter() - began
            got[n] += len(piece or "")
            if piece:
                first.setdefault(n, now)
            if piece is None or got[n] >= CHARACTERS:
                last[n] = now
                running.pop(n).close()
    return {
        "total": sum(got.values()) / max(last.values()),
        "slowest": min(got[n] / last[n] for n in got),
        "first": float(np.percentile(list(first.values()), 95)),
    }


def grammar_share(writer: cpgpt.SceneWriter, seed: int) -> float:
    """The share of its time that one stream spends on the grammar: a mask, a copy and an advance for every id that a step reads."""
    grammar, rows = Grammar(Rules.of(writer.facts), writer.tokenizer), writer.engine.rows
    began = time.perf_counter()
    text = writer.stream(seed=seed).read()
    seconds, rows = time.perf_counter() - began, writer.engine.rows - rows
    ids = [*writer.tokenizer.encode(text), END_OF_TEXT_ID]
    for _ in range(2):  # the first time, the masks are made
        state, began = grammar.start(), time.perf_counter()
        for id in ids:
            grammar.allowed(state)
            grammar.forced(state)
            state = state.copy()
            grammar.advance(state, id)
    return (time.perf_counter() - began) / len(ids) * rows / seconds


def main(
    folder: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder.", show_default="the embedded one")
    ] = cpgpt.EMBEDDED,
    runs: Annotated[int, typer.Option(min=1, help="Interleaved runs of each way.")] = 3,
    streams: Annotated[str, typer.Option(help="How many at once, with commas between.")] = "1,8,32,64,100",
) -> None:
    """Time ours and others' ways to write 600 characters with one checkpoint."""
    counts = [int(count) for count in streams.split(",")]
    console = Console(stderr=True)
    threads = torch.get_num_threads()
    loaded = cpgpt.load_checkpoint(folder)
    drafting, plain = (cpgpt.SceneWriter(loaded, drafts=drafts, places=max(counts)) for drafts in (True, False))
    theirs = transformers_way(folder)
    with tempfile.TemporaryDirectory() as name:
        convert(folder, Path(name) / "converted")
        import ctranslate2

        kinds = sorted(ctranslate2.get_supported_compute_types("cpu"))
        made = {(kind, n): ctranslate2_way(Path(name) / "converted", kind, n) for kind in kinds for n in {1, threads}}
        trials = {key: seconds_of(way, 0) for key, way in track(made.items(), "CTranslate2", console=console)}
    fastest = min(trials, key=lambda key: trials[key])
    float32 = min((key for key in trials if key[0] == "float32"), key=lambda key: trials[key])

    ways: dict[str, Callable[[int], None]] = {
        "the original's way": lambda seed: original(loaded.model, seed),
        "transformers": lambda seed: theirs(seed, 1),
        f"CTranslate2, float32, {float32[1]} threads": made[float32],
        f"CTranslate2, {fastest[0]}, {fastest[1]} threads": made[fastest],
        "ours, plain": lambda seed: one(plain, seed),
        "ours, drafting": lambda seed: one(drafting, seed),
    }
    for way in ways.values():
        way(0)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for run in track(range(runs), "one stream", console=console):
        for name, way in ways.items():
            seeds = range(100 * run, 100 * run + (4 if name.startswith("ours") else 1))  # some scenes take longer
            taken[name].append(statistics.mean(seconds_of(way, seed) for seed in seeds))
    rates = {name: CHARACTERS / statistics.median(seconds) for name, seconds in taken.items()}
    table = Table(title=f"One stream of {CHARACTERS} characters; {threads} threads, PyTorch {torch.__version__}")
    for column in ("way", "characters/s", "ours is so many times as fast"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, rate in rates.items():
        table.add_row(name, f"{rate:,.0f}", f"{rates['ours, drafting'] / rate:.1f}")
    Console().print(table)

    share = statistics.median(grammar_share(drafting, seed) for seed in range(5))
    print(f"the grammar's share of a stream's time: {share:.1%}\n")

    crowds: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    batches: dict[int, list[float]] = {count: [] for count in counts}
    for run in track(range(runs), "many streams", console=console):
        for count in counts:
            crowds[count].append(crowd(drafting, count, 1000 * run))
            if run == 0:  # it takes minutes, and is steady
                batches[count].append(count * CHARACTERS / seconds_of(theirs, run, count))
    best = max(statistics.median(rates) for rates in batches.values())
    table = Table(title="Many streams at once")
    columns = ("streams", "total characters/s", "slowest stream", "first character, p95", "transformers' total", "ours / its best")
    for column in columns:
        table.add_column(column, justify="right")
    for count in counts:
        median = {key: statistics.median(each[key] for each in crowds[count]) for key in ("total", "slowest", "first")}
        row = (f"{median['total']:,.0f}", f"{median['slowest']:,.0f}", f"{median['first']:.3f} s")
        table.add_row(str(count), *row, f"{statistics.median(batches[count]):,.0f}", f"{median['total'] / best:.1f}")
    Console().print(table)

    alone = [
        json.loads(subprocess.run([sys.executable, "-c", ALONE, "64"], capture_output=True, text=True, check=True).stdout)
        for _ in range(runs)
    ]
    seconds, megabytes = (statistics.median(each[key] for each in alone) for key in ("seconds", "megabytes"))
    print(f"a process with 64 streams: {megabytes:.0f} MB at most; from `import torch` to the first character: {seconds:.2f} s")


if __name__ == "__main__":
    typer.run(main)
