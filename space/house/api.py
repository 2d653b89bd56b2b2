"""The API's endpoints, with what type hints cannot say about their arguments: choices, ranges, meanings.

`/gradio_api/info`, the API page and the MCP tools all show these.
"""

from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.context import Context

from house.service import HISTORY, Service

Schema = dict[str, Any]


def publish(service: Service) -> None:
    """Adds `/scene`, `/reply` and `/characters` to the page that is being built. The engine limits how many run, not Gradio."""
    writer = service.writer
    sampling: dict[str, Schema] = {
        "temperature": {
            "type": "number",
            "minimum": 0,
            "description": "0: always the likeliest; 0.5 careful, 0.8 lively, above 1 wild",
        },
        "top_k": {"type": "integer", "minimum": 1, "description": "sample among this many likeliest characters"},
        "top_p": {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 1,
            "description": "sample among the likeliest that make up this share",
        },
        "min_p": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "description": "sample among those at least this likely, relative to the likeliest",
        },
        "seed": {
            "type": "integer",
            "minimum": 0,
            "description": "the same seed and settings give the same text; without one, a new one is drawn",
        },
    }
    name = {"type": "string", "enum": list(writer.characters)}
    setting: dict[str, Schema] = {
        "character": {**name, "description": "who speaks first and leads the scene; without one, whoever the model picks"},
        "title": {"type": "string", "maxLength": service.longest_title, "description": "such as THE ONE WITH THE FLAKY TEST"},
        "place": {"type": "string", "enum": list(writer.places), "description": "where it takes place"},
    }
    lines = {
        "description": "how many lines: a whole number, or two, the fewest and the most",
        "anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}],
    }
    cast = {"type": "array", "items": name, "description": "who may speak; without it, whoever the model picks"}
    line = {
        "type": "object",
        "properties": {"speaker": {"type": "string"}, "text": {"type": "string", "maxLength": service.longest_line}},
        "required": ["speaker", "text"],
    }
    history = {"type": "array", "items": line, "maxItems": HISTORY, "description": "the lines so far, each with speaker and text"}
    answerer = {**name, "description": "who answers; without one, whoever the model picks"}

    endpoint(
        service.scene,
        {**setting, "cast": cast, "lines": lines, **sampling},
        "the text so far; at the end the scene as a dictionary",
    )
    endpoint(
        service.reply,
        {**setting, "history": history, "character": answerer, **sampling},
        "the text so far; at the end the line as a dictionary",
    )
    endpoint(service.characters, {}, "characters, places and checkpoint")


def endpoint(function: Callable[..., Any], arguments: dict[str, Schema], returns: str) -> None:
    dependency = gr.api(function, api_name=function.__name__, concurrency_limit=None)
    assert Context.root_block is not None
    added: Any = Context.root_block.fns[dependency["id"]]
    parameters = gr.utils.get_function_params(function)
    for (name, *_), block in zip(parameters, added.inputs, strict=True):
        schema = arguments[name]
        block._api_info = {**schema, "additional_description": schema["description"]}
        block.label = name
    for block in added.outputs:
        block._api_info = {"type": "object", "description": returns}
        block.label = "result"
