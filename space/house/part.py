"""A part of the page that is ours: its markup is parts/NAME.html, its behaviour `mount` in static/NAME.js."""

from pathlib import Path
from typing import Any

import gradio as gr

PARTS = Path(__file__).parent / "parts"


class Part(gr.HTML):
    """`mount(element, part)` gets `part.props` (its `value` is what events send and receive), `part.trigger` and `part.watch`."""

    EVENTS = gr.HTML.EVENTS

    def __init__(self, name: str, value: Any = None, **props: Any) -> None:
        code = f"import(new URL('house/{name}.js', document.baseURI)).then(m => m.mount(element, {{props, trigger, watch}}))"
        super().__init__(
            value=value,
            html_template=(PARTS / f"{name}.html").read_text(encoding="utf-8"),
            js_on_load=code,
            apply_default_css=False,
            elem_id=name,
            elem_classes=["part"],
            **props,
        )

    def preprocess(self, payload: Any) -> Any:
        return payload

    def postprocess(self, value: Any) -> Any:
        return value

    def get_block_name(self) -> str:
        return "html"
