"""What `import cpgpt` costs beyond `import torch`: `python -m tests.benchmarks.imports`. Medians of interleaved runs."""

import statistics
import subprocess
import sys
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

STATEMENTS = ("import torch", "import cpgpt")


def seconds(statement: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - began


def main(runs: Annotated[int, typer.Option(min=1, help="Of each; one more of each is not counted.")] = 10) -> None:
    """Time both imports in fresh processes, in turn."""
    times: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    for _ in track(range(runs + 1), "importing", console=Console(stderr=True), transient=True):
        for statement in STATEMENTS:
            times[statement].append(seconds(statement))
    medians = [statistics.median(times[statement][1:]) for statement in STATEMENTS]
    for statement, median in zip(STATEMENTS, medians, strict=True):
        print(f"{statement}: {median:.2f} s")
    print(f"cpgpt beyond torch: {medians[1] - medians[0]:.2f} s")


if __name__ == "__main__":
    typer.run(main)
