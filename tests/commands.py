"""Running the project's commands as a user does: in processes of their own, from the project's root."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# One thread: tests run on small machines beside other things. A wide terminal, so that no message is broken into lines.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "COLUMNS": "200",
    "NO_COLOR": "1",
    "HF_HUB_OFFLINE": "1",
}


def start_module(module: str, *arguments: str) -> "subprocess.Popen[str]":
    """`python -m module arguments`, running."""
    command = [sys.executable, "-m", module, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, text=True, stdin=pipe, stdout=pipe, stderr=pipe)


def run_module(module: str, *arguments: str, timeout: float = 240) -> "subprocess.CompletedProcess[str]":
    """`python -m module arguments`, ended: its exit code, what it printed and its errors."""
    with start_module(module, *arguments) as process:
        output, errors = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)
