"""The page: Gradio's blocks, our own parts (HTML here, behaviour in static/), and what happens when a visitor does something.

It knows the service. How a thing looks is in static/house.css, how it behaves in static/*.js.
"""

import html
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr

from cpgpt import BusyError
from house import api, portraits
from house.chat import chat, kept
from house.part import Part
from house.service import BUSY, Service, left

STATIC = Path(__file__).parent / "static"
HEAD = """<meta name="theme-color" content="#4a2c17">
<link rel="stylesheet" href="house/house.css">
<script src="house/memory.js"></script>"""


def facts_for_the_page(service: Service, notice: str) -> dict[str, Any]:
    """What the page's own parts need to know about the checkpoint."""
    writer = service.writer
    cast = []
    for name in writer.characters:
        day, night = portraits.inks(name)
        cast.append({"name": name, "day": day, "night": night})
    return {
        "cast": cast,
        "places": list(writer.places),
        "title_forms": writer.checkpoint.facts.get("corpus", {}).get("title_forms", []),
        "lengths": service.lines_of_a_scene,
        "longest_title": service.longest_title,
        "checkpoint": service.checkpoint,
        "notice": notice,
    }


def build(service: Service, notice: str = "") -> gr.Blocks:
    """The page and the API. `notice` is shown to every visitor: what went wrong at the start, if anything did."""
    facts = facts_for_the_page(service, notice)

    async def write(order: Any) -> AsyncIterator[dict[str, Any]]:
        """The scene for the page: what its stage shows, again and again."""
        order = order if isinstance(order, dict) else {}
        run = str(order.get("run"))[:60]
        try:
            with service.scene_stream(order) as stream:
                seed = str(stream.seed)
                async for _ in service.follow(stream):
                    state = "writing" if stream.text else "waiting"
                    yield {"run": run, "state": state, "place": stream.waiting, "text": stream.text, "seed": seed}
                if not left():
                    yield {"run": run, "state": "done", "place": 0, "text": stream.text, "seed": seed}
        except BusyError:
            yield {"run": run, "state": "refused", "text": "", "error": BUSY}
        except ValueError as error:
            yield {"run": run, "state": "refused", "text": "", "error": str(error)}

    with gr.Blocks(title="centralperkGPT", analytics_enabled=False, fill_width=True) as page:
        conversation = kept()
        Part("masthead", facts=facts)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Scene", id="scene"), gr.Row(elem_classes="room", equal_height=False):
                with gr.Column(scale=4, min_width=320, elem_classes="counter"):
                    order = Part("order", {}, facts=facts)
                with gr.Column(scale=7, min_width=320):
                    stage = Part("stage", {}, facts=facts)
            with gr.Tab("Chat", id="chat"):
                chat(service, facts, conversation)
            with gr.Tab("Use it from code", id="code"):
                Part("code", facts=facts)
            with gr.Tab("About", id="about"):
                gr.HTML(about(service), apply_default_css=False, elem_classes=["part"])
        gr.HTML(foot(service), apply_default_css=False, elem_classes=["part"])
        writing = order.submit(
            write, order, stage, show_progress="hidden", concurrency_limit=None, api_visibility="private", trigger_mode="multiple"
        )
        order.stop(None, None, None, cancels=[writing], api_visibility="private")
        api.publish(service)
    return page


def about(service: Service) -> str:
    """HTML: what this is, the checkpoint's figures and its limits."""
    writer = service.writer
    facts = writer.checkpoint.facts
    training, corpus = facts.get("training", {}), facts.get("corpus", {})
    documents = corpus.get("splits", {}).get("train", {}).get("documents")
    figures = {
        "parameters": f"{writer.checkpoint.model.n_parameters():,}",
        "bits per character on scenes it never saw": f"{training['bits_per_character']:.3f}"
        if "bits_per_character" in training
        else None,
        "scenes it learned from": f"{documents:,}" if documents else None,
        "steps of training": f"{training['step']:,}" if "step" in training else None,
        "characters it knows": f"{writer.checkpoint.tokenizer.vocab_size}",
        "characters of context": f"{writer.checkpoint.model.config.block_size:,}",
    }
    shown = "".join(
        f"<div><dt>{html.escape(what)}</dt><dd>{html.escape(figure)}</dd></div>" for what, figure in figures.items() if figure
    )
    return f"""<div class="prose-page">
<h2>A language model small enough to read</h2>
<p>centralperkGPT is a GPT written from scratch in PyTorch: a few hundred lines of model, a corpus of original scenes written for
it, and a training run of about an hour on two processor cores. It writes one character at a time, and that is what you watch
here.</p>
<dl class="figures">{shown}</dl>
<h3>What it can and cannot do</h3>
<p>The form and the words are right, the plot is not. It has never read anything but its scenes: it knows no facts, remembers
nothing between two scenes, and nobody in them is anybody real. Careful temperatures repeat themselves, wild ones invent words. It
only writes English.</p>
<h3>What it was fed</h3>
<p>Scenes of our own about friends who work in software. No line of any television show is in them.</p>
<h3>What is kept</h3>
<p>Nothing. What you type is used for your scene and forgotten; your conversation is stored in your browser only, and a shared link
carries its settings behind the #, where no server sees them.</p>
</div>"""


def foot(service: Service) -> str:
    revision = service.writer.revision
    name = f"checkpoint <code>{html.escape(service.writer.name)}</code>" + (
        f" at <code>{html.escape(revision[:12])}</code>" if revision else ""
    )
    return f'<footer class="foot">{name} · every line on this page was made up by a machine · MIT licence</footer>'
