"""The rooms of the Space: `service` writes, `page` shows, `static/` is what the browser gets.

Importing this imports Gradio, in two thirds of its time: for each of its components Gradio parses the source and writes a type stub
beside it, at every import. It does not where it finds no source, so until it is imported, it finds none.
"""

import inspect
from typing import Any


def _no_source(object: Any) -> str:
    raise OSError("not while Gradio is imported")


_getfile = inspect.getfile
inspect.getfile = _no_source
try:
    import gradio.component_meta
finally:
    inspect.getfile = _getfile
gradio.component_meta.create_or_modify_pyi = lambda *_: None  # nor beside our own components
