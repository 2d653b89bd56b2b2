"""Many visitors of the Space at once, each a real `gradio_client`: how soon and how fast their scenes come.

    python -m tests.benchmarks.space                    # 64 visitors
    python -m tests.benchmarks.space --visitors 300     # more than there are places: those who find none wait in the queue

The server is `cpgpt serve` in a process of its own; the visitors are threads of a few more processes on the same machine, so
their own work counts too.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from tests.commands import ROOT

PORT = 7923
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # the clients' own


def visitor(client: Any, start: float, seed: int) -> dict[str, Any]:
    """One visit: seconds to the first character, characters a second from then on, or what went wrong."""
    time.sleep(max(0.0, start - time.time()))
    begin = time.perf_counter()
    first = 0.0
    try:
        job = client.submit(seed=seed, api_name="/scene")
        # To iterate over a job is to look for something new every millisecond. With hundreds of them on one machine its
        # processors would do little else.
        while not job.done():
            if not first and any(job.outputs()):
                first = time.perf_counter() - begin
            time.sleep(0.1 if first or time.perf_counter() - begin > 3 else 0.01)
        seconds = time.perf_counter() - begin
        scene = job.result()
        if not isinstance(scene, dict):
            return {"error": "no end"}
        count = len(scene["text"])
        return {"first": first or seconds, "rate": count / max(seconds - first, 1e-9), "seconds": seconds, "characters": count}
    except Exception as error:  # whatever it is, it is counted
        return {"error": repr(error)[:200]}


def first_character(url: str) -> None:
    """Waits for the first character of a scene, as curl would: the API's plain HTTP, with nothing to be set up on this side."""
    request = urllib.request.Request(f"{url}/gradio_api/call/v2/scene", b"{}", {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        event = json.load(response)["event_id"]
    with urllib.request.urlopen(f"{url}/gradio_api/call/v2/scene/{event}", timeout=30) as events:
        next(line for line in events if line.startswith(b"data: ") and len(line) > len(b'data: [""]\n'))


def visitors(url: str, count: int, first_seed: int, ready: Any, go: Any, results: Any) -> None:
    from gradio_client import Client

    # Plain HTTP: without this every visitor would read certificates first, for 30 ms or more.
    clients = [Client(url, verbose=False, ssl_verify=False) for _ in range(count)]
    ready.release()
    go.wait()
    start = time.time() + 1
    found: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda n=n, client=client: found.append(visitor(client, start, first_seed + n)))
        for n, client in enumerate(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    results.put(found)
    results.close()
    results.join_thread()
    os._exit(0)  # the clients' own threads would wait


def memory(pid: int) -> float:
    """Resident set of a process, in GB."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visitors", type=int, default=64)
    parser.add_argument("--processes", type=int, default=4, help="that the visitors are spread over")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()

    from gradio_client import Client

    began = time.perf_counter()
    command = [sys.executable, "-u", "-m", "cpgpt", "serve", "--port", str(PORT)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if "is open at" in line:
                break
        opened = time.perf_counter() - began
        url = f"http://127.0.0.1:{PORT}"
        first_character(url)
        typing = time.perf_counter() - began
        alone = visitor(Client(url, verbose=False, ssl_verify=False), 0, 1)
        context = multiprocessing.get_context("spawn")
        ready, go, results = context.Semaphore(0), context.Event(), context.Queue()
        each = -(-arguments.visitors // arguments.processes)
        counts = [min(each, arguments.visitors - each * n) for n in range(arguments.processes)]
        crowd = [
            context.Process(target=visitors, args=(url, count, 1000 * n, ready, go, results))
            for n, count in enumerate(counts)
            if count > 0
        ]
        for process in crowd:
            process.start()
        for _ in crowd:
            ready.acquire()
        go.set()
        found = [one for _ in crowd for one in results.get(timeout=300)]
        served = [one for one in found if "error" not in one]
        first, rate = np.array([one["first"] for one in served]), np.array([one["rate"] for one in served])
        figures = {
            "visitors": arguments.visitors,
            "served": len(served),
            "errors": [one["error"] for one in found if "error" in one],
            "seconds from start to open": round(opened, 2),
            "seconds from start to first character": round(typing, 2),
            "alone: seconds to the first character": round(alone["first"], 3),
            "alone: characters a second": round(alone["rate"]),
            "seconds to the first character, median": round(float(np.median(first)), 3),
            "seconds to the first character, p95": round(float(np.percentile(first, 95)), 3),
            "characters a second, least": round(float(rate.min()), 1),
            "characters a second, median": round(float(np.median(rate)), 1),
            "seconds until all were served": round(max(one["seconds"] for one in served), 1),
            "server's memory, GB": round(memory(server.pid), 2),
        }
        if arguments.json:
            print(json.dumps(figures))
        else:
            for name, figure in figures.items():
                print(f"{name:42} {figure}")
    finally:
        server.terminate()
        server.wait(10)


if __name__ == "__main__":
    main()
