"""The API's endpoints, with what type hints cannot say about their arguments: choices and ranges.

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
    name, place = {"type": "string", "enum": list(writer.characters)}, {"type": "string", "enum": list(writer.places)}
    spoken = {"speaker": {"type": "string"}, "text": {"type": "string", "maxLength": service.longest_line}}
    line = {"type": "object", "properties": spoken, "required": ["speaker", "text"]}
    whole = {"type": "integer", "minimum": 0}
    share = {"type": "number", "minimum": 0, "maximum": 1}
    setting: dict[str, Schema] = {
        "character": name,
        "title": {"type": "string", "maxLength": service.longest_title},
        "place": place,
        "temperature": {"type": "number", "minimum": 0},
        "top_k": {"type": "integer", "minimum": 1},
        "top_p": share,
        "min_p": share,
        "seed": whole,
    }
    company: dict[str, Schema] = {
        "cast": {"type": "array", "items": name},
        "lines": {"anyOf": [whole, {"type": "array", "items": whole}]},
    }
    history: dict[str, Schema] = {"history": {"type": "array", "items": line, "maxItems": HISTORY}}
    endpoint(service.scene, {**setting, **company}, "the text so far; at the end the scene as a dictionary")
    endpoint(service.reply, {**setting, **history}, "the text so far; at the end the line as a dictionary")
    endpoint(service.characters, {}, "characters, places and checkpoint")


def endpoint(function: Callable[..., Any], types: dict[str, Schema], returns: str) -> None:
    """One of them; what its arguments mean is in the docstring of `function`."""
    dependency = gr.api(function, api_name=function.__name__, concurrency_limit=None)
    assert Context.root_block is not None
    added: Any = Context.root_block.fns[dependency["id"]]
    _, meanings, _ = gr.utils.get_function_description(function)
    for (name, *_), block in zip(gr.utils.get_function_params(function), added.inputs, strict=True):
        block._api_info = {**types[name], "description": meanings[name], "additional_description": meanings[name]}
        block.label = name
    for block in added.outputs:
        block._api_info = {"type": "object", "description": returns}
        block.label = "result"
