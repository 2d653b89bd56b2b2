"""The Chat tab: a visitor speaks as one of the cast, another answers. The conversation lives in the visitor's browser only."""

import contextlib
import functools
import re
import unicodedata
from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr

from cpgpt import BusyError, UnknownCharacterError
from house.part import Part
from house.service import BUSY, HISTORY, Service

Message = dict[str, Any]
SAVED = "centralperkgpt-chat"
JOINER = "\u2060"
SPOKEN = re.compile(r"([A-Z][A-Z0-9 .'-]*): (.*\S)", re.DOTALL)


def words(message: Message) -> str:
    """The text of a message: Gradio sends it as a string or as a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        content = " ".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def tidy(text: str) -> str:
    """A line of a screenplay has no line breaks in it, and no joiners of ours (see `shown`)."""
    return " ".join(text.replace(JOINER, "").split())


def shown(text: str) -> str:
    """For Gradio's chatbot, which takes what looks like HTML for HTML: with an invisible joiner in it, it is text."""
    return re.sub("([<&])", rf"\1{JOINER}", text)


def hearing(plain: Callable[[str], str]) -> Callable[[str], str]:
    """What the model can read of what was typed: letters without their accents, and none of the signs that it has never seen.

    `plain` is the tokenizer's.
    """

    @functools.lru_cache(4096)
    def known(character: str) -> str:
        for form in (character, unicodedata.normalize("NFKD", character)[:1]):
            with contextlib.suppress(UnknownCharacterError):
                return plain(form)
        return ""

    return lambda text: tidy("".join(map(known, text)))


def place(event: gr.RetryData | gr.UndoData | gr.EditData) -> int:
    """Which message it is about; Gradio gives a pair where messages come in pairs."""
    return event.index if isinstance(event.index, int) else event.index[0]


def spoken(messages: list[Message], me: str, heard: Callable[[str], str]) -> list[dict[str, str]]:
    """The lines of a conversation. What is not NAME: TEXT, such as a reply that was stopped at once, is nobody's line."""
    lines = []
    for message in messages:
        text = heard(words(message))
        match = SPOKEN.fullmatch(text)
        if match:
            lines.append({"speaker": match[1], "text": match[2]})
        elif message.get("role") == "user" and text:  # its writer took the name away while editing
            lines.append({"speaker": me, "text": text})
    return lines


def settings_of(table: Any, service: Service) -> dict[str, Any]:
    """What the pickers say; they come over the network, so they may say anything."""
    chosen = table if isinstance(table, dict) else {}
    me = chosen.get("me") if chosen.get("me") in service.writer.characters else service.writer.characters[0]
    return {
        "me": me,
        "character": chosen.get("them") or None,
        "place": chosen.get("place") or None,
        "temperature": chosen.get("temperature"),
    }


def kept() -> gr.BrowserState:
    """Where the conversation lives: in the browser, under a fixed key, so that it outlives a restart of the server.

    It must be built outside the tabs: what is in a tab is not there until the tab is opened.
    """
    return gr.BrowserState([], storage_key=SAVED, secret=SAVED)


def chat(service: Service, facts: dict[str, Any], saved: gr.BrowserState) -> None:
    """Builds the tab's content into the blocks that are open."""

    heard = hearing(service.writer.checkpoint.tokenizer.plain)

    async def answer(messages: list[Message], table: Any) -> AsyncIterator[tuple[list[Message], str]]:
        """The messages with the reply growing at their end, and what went wrong, if anything did."""
        settings = settings_of(table, service)
        me = settings.pop("me")
        try:
            with service.reply_stream(spoken(messages, me, heard)[-HISTORY:], settings) as stream:
                async for _ in service.follow(stream):
                    if stream.text:
                        yield [*messages, {"role": "assistant", "content": stream.text}], ""
                    else:
                        yield messages, f"The house is busy: number {stream.waiting} in the queue."
                yield [*messages, {"role": "assistant", "content": stream.text.strip()}], ""
        except BusyError:
            yield messages, BUSY
        except ValueError as error:
            yield messages, str(error)

    def say(typed: str, messages: list[Message], table: Any) -> tuple[list[Message], str, str]:
        line = tidy(typed or "")
        if not line:
            return messages, "", "Type a line first."
        if len(line) > service.longest_line:
            return messages, typed, f"A line has at most {service.longest_line} characters; this one has {len(line)}."
        me = settings_of(table, service)["me"]
        return [*messages, {"role": "user", "content": shown(f"{me}: {line}")}], "", ""

    def again(messages: list[Message], event: gr.RetryData) -> list[Message]:
        return messages[: place(event) + 1]

    def back(messages: list[Message], event: gr.UndoData) -> tuple[list[Message], str]:
        text = tidy(words(messages[place(event)]))
        match = SPOKEN.fullmatch(text)
        return messages[: place(event)], match[2] if match else text

    def edited(messages: list[Message], event: gr.EditData) -> list[Message]:
        index = place(event)
        return [*messages[:index], {"role": "user", "content": shown(tidy(words(messages[index])))}]

    with gr.Row(elem_classes="room", equal_height=False):
        with gr.Column(scale=4, min_width=320, elem_classes="counter"):
            table = Part("table", {}, facts=facts)
        with gr.Column(scale=7, min_width=320):
            bot = gr.Chatbot(
                elem_id="talk",
                label="The conversation",
                show_label=False,
                height=470,
                layout="bubble",
                buttons=["copy"],
                feedback_options=None,
                render_markdown=False,
                latex_delimiters=[],
                allow_tags=True,
                group_consecutive_messages=False,
                placeholder="Say something. Nobody here is very bright, but they always answer.",
            )
            trouble = Part("trouble", "")
            with gr.Row(elem_classes="say"):
                box = gr.Textbox(
                    placeholder="I broke the build again.",
                    label="Your line",
                    show_label=False,
                    max_length=service.longest_line,
                    lines=1,
                    max_lines=4,
                    scale=6,
                    elem_id="line",
                    autofocus=False,
                )
                send = gr.Button("Say it", variant="primary", scale=1, min_width=110, elem_id="send")
            with gr.Row(elem_classes="after-chat"):
                stop = gr.Button("Stop", size="sm", min_width=80)
                clear = gr.Button("Start over", size="sm", min_width=80)
                keep = gr.Button("Save as a scene", size="sm", min_width=80)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    asking: dict[str, Any] = {"concurrency_limit": None, "trigger_mode": "multiple", **quiet}
    answering = []
    for start in (send.click, box.submit):
        said = start(say, [box, bot, table], [bot, box, trouble], queue=False, **quiet)
        answering.append(said.then(answer, [bot, table], [bot, trouble], **asking))
    answering.append(bot.retry(again, bot, bot, queue=False, **quiet).then(answer, [bot, table], [bot, trouble], **asking))
    answering.append(bot.edit(edited, bot, bot, queue=False, **quiet).then(answer, [bot, table], [bot, trouble], **asking))
    for start in (send.click, box.submit):  # whoever speaks into an answer ends it
        start(None, None, None, cancels=answering, api_visibility="private")
    bot.undo(back, bot, [bot, box], queue=False, **quiet)
    stop.click(None, None, None, cancels=answering, api_visibility="private")
    clear.click(lambda: ([], ""), None, [bot, trouble], cancels=answering, queue=False, **quiet)
    # In the browser alone: what was said is kept there, taken from there, and saved from there.
    bot.change(None, bot, saved, js="messages => [messages]", api_visibility="private")
    keep.click(
        None, [bot, table], None, js="(messages, table) => (window.house.saveChat(messages, table), [])", api_visibility="private"
    )
    assert gr.context.Context.root_block is not None
    gr.context.Context.root_block.load(None, saved, bot, js="messages => [messages]", api_visibility="private")
