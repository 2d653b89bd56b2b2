"""The Space: starts the page at http://127.0.0.1:7860, or where GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say.

`CPGPT_MODEL` names a model on the Hub, as user/name or user/name@revision, or a checkpoint folder; without it the embedded
checkpoint writes. This file knows how the server is set up; what it serves is in house/.
"""
# ruff: noqa: E402 (settings come before the imports that read them)

import gc
import os
import sys
import threading
from pathlib import Path
from typing import Any

# Read when Gradio is imported and its queue is made: no word to any other host, and no statistics after every event, which cost
# more than the event.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(10**9)

# Nearly all of the half million objects that the imports make are there to stay: to look for others among them, again and again, is
# a fifth of the time that they take.
gc.disable()

# isort: off
import cpgpt
import house  # noqa: F401 (before Gradio: it makes that import quick)
import gradio as gr
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from house import portraits
from house.page import HEAD, STATIC, build
from house.service import Service
from house.theme import theme
# isort: on

gc.enable()

EVENTS = 512  # at once: those being written, those waiting, and room for the short ones
THREADS = max(1, (os.cpu_count() or 1) - 1)  # for the model; one processor is the server's: it has more to do in a crowd
SWITCH = 0.0005  # seconds after which the engine's thread gives way to the server's; Python's usual 5 ms are felt at every event
BREATH = 0.04  # seconds between the engine's steps while visitors keep arriving: 25 characters a second are as fast as people read


def writer_and_notice() -> tuple[cpgpt.SceneWriter, str]:
    """The writer that CPGPT_MODEL names. Where the Hub does not give it, the embedded one, and what to tell the visitors."""
    wanted = os.environ.get("CPGPT_MODEL", "")
    if not wanted or Path(wanted).is_dir():
        return cpgpt.load(wanted or None, threads=THREADS), ""
    repository, _, revision = wanted.partition("@")
    print(f"fetching {wanted} from the Hub", flush=True)
    try:
        return cpgpt.from_hub(repository, revision=revision or None, threads=THREADS), ""
    except (OSError, ValueError) as error:
        print(f"CPGPT_MODEL={wanted} could not be loaded: {error}", flush=True)
        return cpgpt.load(threads=THREADS), f"The model {wanted} could not be loaded, so the built-in one is writing. ({error})"


def launch(writer: cpgpt.SceneWriter, notice: str = "", **options: Any) -> tuple[gr.Blocks, str]:
    """Starts the server in the background; returns its page and its address once it answers."""
    sys.setswitchinterval(SWITCH)
    writer.engine.breath = BREATH
    # Memory is slow at the first touch, and a crowd would touch all of it at one moment: this does so while the page is built.
    threading.Thread(target=lambda: list(writer.texts(range(writer.engine.places), max_characters=1)), daemon=True).start()
    page = build(Service(writer), notice)
    routes = [
        Route("/house/portraits/{name}.svg", portraits.route(writer.characters)),
        Mount("/house", StaticFiles(directory=STATIC)),
    ]
    _, address, _ = page.queue(default_concurrency_limit=None).launch(
        theme=theme(),
        head=HEAD,
        app_kwargs={"routes": routes},
        max_threads=EVENTS,
        mcp_server=True,
        ssr_mode=False,
        pwa=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        favicon_path=str(STATIC / "favicon.png"),
        max_file_size=1,
        quiet=True,
        prevent_thread_lock=True,
        **options,
    )
    return page, address


def main(**options: Any) -> None:
    page, address = launch(*writer_and_notice(), **options)
    gc.freeze()  # what is there now stays: the collector need not look through it while visitors wait
    print(f"centralperkGPT is open at {address}", flush=True)
    page.block_thread()


if __name__ == "__main__":
    main()
