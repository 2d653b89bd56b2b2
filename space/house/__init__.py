"""The rooms of the Space: `service` writes, `page` shows, `static/` is what the browser gets.

Importing this imports Gradio, without two things that it does for others. For each of its components it parses the source and
writes a type stub beside it, at every import: a third of the import's time. And at every event it looks for matplotlib, to turn its
windows off: a fifth of the event's time.
"""

import contextlib
import inspect
from typing import Any


def _no_source(object: Any) -> str:
    raise OSError("not while Gradio is imported")


_getfile = inspect.getfile
inspect.getfile = _no_source
try:
    import gradio.component_meta  # Gradio writes no stub where it finds no source
    import gradio.utils
finally:
    inspect.getfile = _getfile
gradio.component_meta.create_or_modify_pyi = lambda *_: None  # nor beside our own components
setattr(gradio.utils, "MatplotlibBackendMananger", contextlib.nullcontext)  # noqa: B010 (a type checker does not let a class be replaced)
