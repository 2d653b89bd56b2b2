"""The rooms of the Space: `service` writes, `page` shows, `static/` is what the browser gets.

Importing this imports Gradio, without three things that it does for others. For each of its components it parses the source and
writes a type stub beside it, at every import: a third of the import's time. At every event it looks for matplotlib, to turn its
windows off: a fifth of the event's time. And for every new visitor it works out the configuration of every component, for deep
links, which the page has none of: half of the time that a crowd spends at the door.
"""

import contextlib
import inspect
import types
from typing import Any


def _no_source(object: Any) -> str:
    raise OSError("not while Gradio is imported")


_getfile = inspect.getfile
inspect.getfile = _no_source
try:
    import gradio.component_meta  # Gradio writes no stub where it finds no source
    import gradio.state_holder
    import gradio.utils
finally:
    inspect.getfile = _getfile
gradio.component_meta.create_or_modify_pyi = lambda *_: None  # nor beside our own components
setattr(gradio.utils, "MatplotlibBackendMananger", contextlib.nullcontext)  # noqa: B010 (a type checker does not let a class be replaced)


class _Session(gradio.state_holder.SessionState):
    """Gradio's, without the components' configurations."""

    def __init__(self, blocks: Any) -> None:
        super().__init__(types.SimpleNamespace(default_config=blocks.default_config, blocks={}))  # type: ignore[arg-type]

    def _update_config(self, key: int) -> None:
        pass

    def _update_value_in_config(self, key: int, value: Any) -> None:
        pass


setattr(gradio.state_holder, "SessionState", _Session)  # noqa: B010
