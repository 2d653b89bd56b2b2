"""What the Space does: scenes and replies, a portion at a time, for the page and for the API alike.

It knows the writer and how Gradio tells that somebody has left. It knows nothing of what the page looks like. All visitors share
the writer's engine, which has the places and the waiting room; nothing that a visitor types is logged or kept.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
from gradio.context import LocalContext

from cpgpt import BusyError, Direction, Line, SceneWriter

TICK = 0.1  # seconds between looks at the engine: how soon it is noticed that somebody has left
SOON = 0.02  # the same until the first character
PORTIONS = 320  # a second, for all visitors together: in a crowd, Gradio's way of an event costs more than the model's of its text
MOVES = 20  # a second, in the queue, that are told to those who wait there, all together
TEXT = 500  # characters of any text: what is longer is not even looked at; the writer knows how long each may be
HISTORY = 200  # lines of a chat

BUSY = "The house is full: every table and every chair in the queue is taken. Please try again in a minute."


def left() -> bool:
    """Whether whoever started the running event has gone. Gradio marks the event then, and stops it only at its next yield."""
    blocks, event_id = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    event = blocks._queue.event_ids_to_events.get(event_id) if blocks is not None and event_id is not None else None
    return event is not None and not event.alive


class Service:
    """A writer for many visitors."""

    def __init__(self, writer: SceneWriter) -> None:
        self.writer = writer
        lengths = writer.checkpoint.facts.get("corpus", {}).get("lengths", {})
        self.longest_title: int = lengths.get("characters_of_a_title", {}).get("max", 60)
        self.longest_line: int = lengths.get("characters_of_a_line", {}).get("max", 200)
        self.lines_of_a_scene: dict[str, int] = lengths.get("lines_of_a_scene", {})

    @property
    def checkpoint(self) -> dict[str, str | None]:
        return {"name": self.writer.name, "revision": self.writer.revision}

    def scene_stream(self, settings: dict[str, Any]):  # type: ignore[no-untyped-def]
        """The scene's stream.

        Raises:
            ValueError: the settings are impossible; the message says what would be right.
            BusyError: no place, and no room to wait.
        """
        return self.writer.stream(**scene_arguments(settings))

    def reply_stream(self, history: Any, settings: dict[str, Any]):  # type: ignore[no-untyped-def]
        """The reply's stream; raises the same."""
        return self.writer.stream_reply(history_items(history), **reply_arguments(settings))

    async def follow(self, stream: Any) -> AsyncIterator[None]:
        """Comes round whenever the stream has something new to show, its place in the queue or its text; ends with the stream.

        The more streams there are, the rarer and the larger the portions, and the rarer the news from the queue. It ends early, and
        leaves the closing of the stream to its owner, when the visitor has left.
        """
        shown, place, at = 0, -1, 0.0
        while True:
            piece, now, waiting = stream.take(), time.monotonic(), 0 if shown else stream.waiting
            length = len(stream.text)
            if piece is None:
                return
            interval = max(TICK, self.writer.engine.running / PORTIONS)
            if length > shown and (shown == 0 or now - at >= interval - TICK / 2):
                shown, at = length, now
                yield
            elif waiting and waiting != place and now - at >= max(1, self.writer.engine.waiting / MOVES):
                place, at = waiting, now
                yield
            if left():
                return
            await asyncio.sleep(2 * TICK if waiting else TICK if shown else SOON)

    async def scene(
        self,
        character: str | None = None,
        title: str | None = None,
        place: str | None = None,
        cast: list[str] | None = None,
        lines: int | list[int] | None = None,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
    ) -> AsyncIterator[str | dict[str, Any]]:
        """Write a short coffee-house scene.

        It streams the text so far and ends with the scene as a dictionary: text, title, place, lines (speaker and text), seed,
        settings, checkpoint. The same seed and settings give the same scene.

        Parameters:
            character: who leads the scene and speaks first; without one, whoever the model picks
            title: such as THE ONE WITH THE FLAKY TEST; without one, the model makes it up
            place: where it takes place; without one, wherever the model likes
            cast: who speaks, beside the lead; without it, whoever the model picks
            lines: how many lines of dialogue, a whole number or two of them, the fewest and the most
            temperature: 0 always takes the likeliest character, 0.5 is careful, 0.8 lively, above 1 wild
            top_k: sample among this many likeliest characters
            top_p: sample among the likeliest characters that together have this probability
            min_p: sample among the characters that have at least this share of the likeliest one's probability
            seed: the same seed and settings give the same text; without one it is drawn, and the result has it
        """
        settings = {name: value for name, value in locals().items() if name != "self"}
        with refusing(), self.scene_stream(settings) as stream:
            async for _ in self.follow(stream):
                yield stream.text
            if left():
                return
            yield self.finished_scene(stream, settings)

    def finished_scene(self, stream: Any, settings: dict[str, Any]) -> dict[str, Any]:
        scene = stream.scene
        return {
            "text": str(scene),
            "title": scene.title,
            "place": scene.place,
            "lines": [{"speaker": line.speaker, "text": line.text} for line in scene.lines],
            "seed": stream.seed,
            "settings": settings,
            "checkpoint": self.checkpoint,
        }

    async def reply(
        self,
        history: list[dict[str, str]],
        character: str | None = None,
        title: str | None = None,
        place: str | None = None,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
    ) -> AsyncIterator[str | dict[str, Any]]:
        """Write the next line of a conversation.

        It streams the text so far and ends with the line as a dictionary: speaker, text, seed, settings, checkpoint.

        Parameters:
            history: the lines so far, the newest last, each a dictionary with speaker and text
            character: who answers; without one, whoever the model picks
            title: of the conversation
            place: where it takes place
            temperature: 0 always takes the likeliest character, 0.5 is careful, 0.8 lively, above 1 wild
            top_k: sample among this many likeliest characters
            top_p: sample among the likeliest characters that together have this probability
            min_p: sample among the characters that have at least this share of the likeliest one's probability
            seed: the same seed and settings give the same text; without one it is drawn, and the result has it
        """
        settings = {name: value for name, value in locals().items() if name not in ("self", "history")}
        with refusing(), self.reply_stream(history, settings) as stream:
            async for _ in self.follow(stream):
                yield stream.text
            if left():
                return
            line = stream.line
            yield {
                "speaker": line.speaker,
                "text": line.text,
                "seed": stream.seed,
                "settings": settings,
                "checkpoint": self.checkpoint,
            }

    async def characters(self) -> dict[str, Any]:
        """Who can be in a scene, and where scenes are set."""
        return {"characters": list(self.writer.characters), "places": list(self.writer.places), "checkpoint": self.checkpoint}


@contextmanager
def refusing() -> Iterator[None]:
    """Turns the errors that a caller can mend into Gradio's, which reach the caller and no log."""
    try:
        yield
    except BusyError:
        raise gr.Error(BUSY, print_exception=False) from None
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from None


# What comes over the network is anything: these say what it may be. Ranges and names are the writer's to judge.


def is_kind(value: Any, kinds: type | tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def number(settings: dict[str, Any], name: str, default: float | None = None) -> float | None:
    value = settings.get(name)
    if value is None:
        return default
    if not is_kind(value, (int, float)):
        raise ValueError(f"{name} must be a number")
    return value


def whole(settings: dict[str, Any], name: str) -> int | None:
    """A whole number; as text too, because a browser's numbers end at 2 ** 53."""
    value = settings.get(name)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is not None and not is_kind(value, int):
        raise ValueError(f"{name} must be a whole number")
    return value


def text(settings: dict[str, Any], name: str) -> str | None:
    value = settings.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text")
    if len(value) > TEXT:
        raise ValueError(f"{name} has {len(value)} characters: {TEXT} is the most")
    return value


def names(settings: dict[str, Any], name: str) -> list[str] | None:
    value = settings.get(name)
    if value is None or value == []:
        return None
    if not isinstance(value, list) or len(value) > 20 or not all(isinstance(item, str) and len(item) <= TEXT for item in value):
        raise ValueError(f"{name} must be a list of names")
    return value


def length(settings: dict[str, Any], name: str) -> int | tuple[int, int] | None:
    value = settings.get(name)
    if isinstance(value, list):
        if len(value) != 2 or not all(is_kind(item, int) for item in value):
            raise ValueError(f"{name} must be a whole number, or two: the fewest and the most")
        return (value[0], value[1])
    return whole(settings, name)


def sampling_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "temperature": number(settings, "temperature", 0.8),
        "top_k": whole(settings, "top_k"),
        "top_p": number(settings, "top_p"),
        "min_p": number(settings, "min_p"),
        "seed": whole(settings, "seed"),
    }


def reply_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    words = {name: text(settings, name) for name in ("character", "title", "place")}
    return {**words, **sampling_arguments(settings)}


def scene_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    return {**reply_arguments(settings), "cast": names(settings, "cast"), "lines": length(settings, "lines")}


def history_items(history: Any) -> list[Line | Direction]:
    """Lines as dictionaries with `speaker` and `text` (or `direction`), as `Scene.to_dict` has them."""
    if not isinstance(history, list) or len(history) > HISTORY:
        raise ValueError(f"history must be a list of at most {HISTORY} lines")
    items: list[Line | Direction] = []
    for place, item in enumerate(history, 1):
        if not isinstance(item, dict) or not ({"speaker", "text"} <= item.keys() or "direction" in item):
            raise ValueError(f"line {place} of history must be a dictionary with speaker and text, or with direction")
        if "direction" in item:
            items.append(Direction(text(item, "direction") or ""))
        else:
            items.append(Line(text(item, "speaker") or "", text(item, "text") or ""))
    return items
