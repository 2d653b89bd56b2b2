"""What users call: a `SceneWriter` writes scenes and answers. It puts checkpoint, grammar and engine together.

Knows nothing about terminals or pages.
"""

import difflib
import functools
import itertools
import numbers
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cpgpt.checkpoint import Checkpoint
from cpgpt.engine import Engine
from cpgpt.grammar import Grammar, Rules
from cpgpt.publish import HubMixin
from cpgpt.runner import make_runner
from cpgpt.sampling import Sampling
from cpgpt.screenplay import SCENE, Direction, Line, Scene, parse
from cpgpt.stream import AnyStream, Stream
from cpgpt.tokenizer import END_OF_TEXT_ID

TEMPERATURE = 0.8
MAX_TOKENS = 1_000_000  # of a scene: its grammar ends it long before
MAX_CHARACTERS = 2_000  # where a text ends that does not end by itself
SEEDS = 2**32  # a seed that is drawn is below this, one that is given below 2**64
History = Scene | Sequence[Line | Direction | tuple[str, str]]


class SceneStream(Stream):
    """A scene while it is written: an iterator of its characters and a context manager."""

    @functools.cached_property
    def scene(self) -> Scene:
        """The whole scene; waits for its end.

        Raises:
            RuntimeError: the stream was closed before its end.
        """
        scene = parse(self.read())
        return Scene(scene.title, scene.place, scene.items, self.seed)


class ReplyStream(Stream):
    """A line of dialogue while it is written, the speaker's name first; the last character is a line break."""

    @functools.cached_property
    def line(self) -> Line:
        """The whole line; waits for its end.

        Raises:
            RuntimeError: the stream was closed before its end.
        """
        speaker, _, text = self.read().rstrip("\n").partition(": ")
        return Line(speaker, text)


class SceneWriter(HubMixin):
    """Writes scenes with one checkpoint; `cpgpt.load()` makes one.

    All that is being written, by however many threads, shares one engine (`.engine`): open as many streams as you like.

    Args:
        checkpoint: what `cpgpt.load_checkpoint` gives.
        name: what the checkpoint is called where people see it.
        revision: the commit of the repository that it comes from.
        places: how many streams are written at once; more wait in order.
        max_waiting: how many may wait; one more is a `BusyError`.
        drafts: use the checkpoint's drafts, if it has any; the text is the same, and comes sooner.
        threads: that compute; by default as many as there are processors, up to four. The text is the same with any number.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        name: str = "",
        revision: str | None = None,
        *,
        places: int = 64,
        max_waiting: int = 256,
        drafts: bool = True,
        threads: int | None = None,
    ) -> None:
        self.checkpoint, self.name, self.revision = checkpoint, name, revision
        self.tokenizer, self.block_size = checkpoint.tokenizer, checkpoint.model.config.block_size
        self.facts: dict[str, Any] = checkpoint.facts.get("corpus", {})
        self.writes_scenes = self.facts.get("format") == "scenes"
        self.characters: tuple[str, ...] = tuple(self.facts.get("cast", ()))
        self.places: tuple[str, ...] = tuple(self.facts.get("places", ()))
        self.engine = Engine(
            make_runner(checkpoint.model, places, threads),
            self.tokenizer,
            self.block_size,
            places=places,
            max_waiting=max_waiting,
            drafts=checkpoint.drafts if drafts else None,
        )
        self._grammar = functools.lru_cache(64)(functools.partial(Grammar, tokenizer=self.tokenizer))

    def stream(
        self,
        character: str | None = None,
        *,
        title: str | None = None,
        place: str | None = None,
        cast: Sequence[str] | None = None,
        lines: int | tuple[int, int] | None = None,
        temperature: float = TEMPERATURE,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
    ) -> SceneStream:
        """Write a scene, and give out its characters as they come. Names may be in any case.

        Args:
            character: the lead, who opens the scene and, where three or more speak, has the most lines.
            title: the scene's title; "the flaky test" becomes "THE ONE WITH THE FLAKY TEST".
            place: where it takes place, one of `.places`.
            cast: who speaks, beside the lead; each of them does. Without it, whoever the model picks.
            lines: how many lines of dialogue, a number or (least, most).
            temperature: 0 always takes the likeliest character, 0.5 is careful, 0.8 lively, above 1 wild.
            top_k, top_p, min_p: see `cpgpt.sampling.Sampling`.
            seed: the same seed, settings and checkpoint give the same scene. Without one it is drawn; `.seed` of the result has it.

        Raises:
            ValueError: an argument that cannot be; the message says what can.
            BusyError: too many streams at once.
        """
        self._check_scenes()
        rules: dict[str, Any] = self._cast(character, cast) | self._lines(lines)
        text, at = "", "title"
        if place is not None:
            rules["places"] = (one_of("place", place, self.places),)
        if title is not None:
            text, at = f"{self._title(title)}\n\n{SCENE}", "place"
            if place is not None:
                text, at = f"{text}{rules['places'][0]}\n\n", "items"
        return self._submit(SceneStream, text, at, self._rules(**rules), Sampling(temperature, top_k, top_p, min_p), seed)

    def scene(self, character: str | None = None, **settings: Any) -> Scene:
        """Write a scene; the settings are those of `stream`, and so are the errors. `.seed` of the scene makes it again."""
        return self.stream(character, **settings).scene

    def streams(
        self, count: int, character: str | None = None, *, seed: int | None = None, **settings: Any
    ) -> Iterator[SceneStream]:
        """Write `count` scenes, together, and give out their streams in order.

        Args:
            seed: of the first scene; the next has one more, and so on.
            settings: those of `stream`, for all of them; the errors are the same.
        """
        if count < 1:
            raise ValueError(f"count is {count}: it must be 1 or more")
        first = self._seed(seed)
        return self._together(lambda n: self.stream(character, seed=n, **settings), range(first, first + count))

    def scenes(self, count: int, character: str | None = None, **settings: Any) -> list[Scene]:
        """Write `count` scenes, together; each is what `scene` gives for its seed. The settings are those of `streams`."""
        return [stream.scene for stream in self.streams(count, character, **settings)]

    def stream_reply(
        self,
        history: History,
        character: str | None = None,
        *,
        title: str | None = None,
        place: str | None = None,
        temperature: float = TEMPERATURE,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
    ) -> ReplyStream:
        """Write the next line of a conversation, and give out its characters as they come.

        Args:
            history: what was said and done so far, the newest last: a scene, or lines, directions and (speaker, text) pairs. What
                does not fit into the model's context is left out, the oldest lines first.
            character: who answers; without one, whoever the model picks among those who did not speak last.
            title, place: of the conversation; those of the scene, if `history` is one.
            temperature, top_k, top_p, min_p, seed: see `stream`, also for the errors.
        """
        if isinstance(history, Scene):
            title, place, history = title or history.title, place or history.place, history.items
        if isinstance(history, str) or not isinstance(history, Sequence):
            raise ValueError(f"history is {history!r}: give a scene, or a list of lines, directions and (speaker, text) pairs")
        self._check_scenes()
        place = one_of("place", place, self.places) if place is not None else self.places[0] if self.places else ""
        items = [self._item(item) for item in history]
        if character is not None:
            cast: tuple[str, ...] = (one_of("character", character, self.characters),)
        else:
            before = [item.speaker for item in items if isinstance(item, Line)][-1:]
            cast = tuple(name for name in self.characters if name not in before)
        rules = self._rules(cast=cast, min_lines=1, max_lines=1, min_speakers=1, max_directions=0)
        sampling = Sampling(temperature, top_k, top_p, min_p)
        header = f"{self._title(title)}\n\n" if title is not None else ""
        ids = [self.tokenizer.encode(text) for text in (f"{header}{SCENE}{place}\n\n", *(f"{item}\n" for item in items))]
        room = self.block_size - 1 - len(ids[0]) - (rules.max_line_length + 1)
        newest = itertools.takewhile(lambda used: used <= room, itertools.accumulate(map(len, reversed(ids[1:]))))
        ids[1:] = ids[len(ids) - len(list(newest)) :]
        return self._submit(ReplyStream, list(itertools.chain(*ids)), "items", rules, sampling, seed)

    def reply(self, history: History, character: str | None = None, **settings: Any) -> Line:
        """Write the next line of a conversation; everything is as in `stream_reply`."""
        return self.stream_reply(history, character, **settings).line

    def stream_text(
        self,
        prompt: str = "",
        *,
        max_characters: int = MAX_CHARACTERS,
        stop: bool = True,
        temperature: float = TEMPERATURE,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Continue any text without a grammar: what the model alone makes of it, in characters as they come.

        Args:
            prompt: the text's beginning, which is not given out again.
            max_characters: where to end a text that does not end by itself.
            stop: end at `<|endoftext|>`; False is for a model of one endless text, which never learned where to end.
        """
        if max_characters < 1:
            raise ValueError(f"max_characters is {max_characters}: it must be 1 or more")
        stream: Stream = self.engine.submit(
            [END_OF_TEXT_ID, *self.tokenizer.encode(prompt)],
            seed=self._seed(seed),
            sampling=Sampling(temperature),
            max_new_tokens=4 * max_characters,  # a character has four bytes at most, and `islice` ends it
            stop_id=END_OF_TEXT_ID if stop else None,
        )
        return itertools.islice(stream, max_characters)

    def texts(self, seeds: Sequence[int], **settings: Any) -> Iterator[str]:
        """A text for each seed, written together, without a grammar; the settings are those of `stream_text`."""
        return ("".join(stream) for stream in self._together(lambda seed: self.stream_text(seed=seed, **settings), seeds))

    # From what users give to what the engine takes

    def _submit(
        self, kind: type[AnyStream], prompt: str | list[int], at: str, rules: Rules, sampling: Sampling, seed: int | None
    ) -> AnyStream:
        """Start a stream after `prompt`: a text that it gives out too, or ids."""
        grammar = self._grammar(rules)
        return self.engine.submit(
            [END_OF_TEXT_ID, *(self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)],
            seed=self._seed(seed),
            sampling=sampling,
            max_new_tokens=MAX_TOKENS,
            grammar=grammar,
            state=grammar.start(at),
            text=prompt if isinstance(prompt, str) else "",
            kind=kind,
        )

    def _together(self, start: Callable[[int], Any], seeds: Sequence[int]) -> Iterator[Any]:
        """Streams in the order of their seeds, as many at a time as there are places."""
        started: deque[Any] = deque()
        for seed in seeds:
            if len(started) == self.engine.places:
                yield started.popleft()
            started.append(start(seed))
        yield from started

    def _check_scenes(self) -> None:
        if not self.writes_scenes:
            raise ValueError(f"the checkpoint {self.name} was not trained on scenes: use stream_text, or load another")

    def _rules(self, **changes: Any) -> Rules:
        return Rules.of(self.facts, **changes)

    def _cast(self, character: str | None, cast: Sequence[str] | None) -> dict[str, Any]:
        lead = None if character is None else one_of("character", character, self.characters)
        if cast is None:
            return {"lead": lead}
        if isinstance(cast, str) or not isinstance(cast, Sequence):
            raise ValueError(f"cast is {cast!r}: it must be a list of names, such as {list(self.characters[:2])}")
        names = ([lead] if lead else []) + [one_of("character in the cast", name, self.characters) for name in cast]
        names = list(dict.fromkeys(names))
        if len(names) < 2:
            raise ValueError(f"a cast of {len(names)} ({', '.join(names)}): at least 2 speak in a scene")
        fewest = min(len(names), self.facts["lengths"]["speakers_of_a_scene"]["min"])
        return {"lead": lead, "cast": tuple(names), "everyone": True, "min_speakers": fewest}

    def _lines(self, lines: int | tuple[int, int] | None) -> dict[str, int]:
        if lines is None:
            return {}
        most = self.facts["lengths"]["lines_of_a_scene"]["max"]
        pair: tuple[Any, ...] = (lines, lines) if _is_whole(lines) else tuple(lines) if isinstance(lines, Sequence) else ()
        if len(pair) != 2 or not all(map(_is_whole, pair)) or not 2 <= pair[0] <= pair[1] <= most:
            raise ValueError(f"lines is {lines!r}: give a number of lines from 2 to {most}, or (least, most)")
        return {"min_lines": int(pair[0]), "max_lines": int(pair[1])}

    def _title(self, title: str) -> str:
        """A user's title in the corpus's form."""
        forms, most = self.facts["title_forms"], self.facts["lengths"]["characters_of_a_title"]["max"]
        if not isinstance(title, str):
            raise ValueError(f"title is {title!r}: it must be a text")
        plain = " ".join(self.tokenizer.plain(title.upper()).split())
        if plain in forms or not any(character.isalnum() for character in plain):
            such = f", such as {forms[0].lower()} the flaky test" if forms else ""
            raise ValueError(f"title is {title!r}: give one with a word in it{such}")
        if forms and not plain.startswith(tuple(f"{form} " for form in forms)):
            plain = f"{forms[0]} {plain}"
        if len(plain) > most:
            raise ValueError(f"the title {plain!r} has {len(plain)} characters: {most} is the most")
        return plain

    def _item(self, item: Any) -> Line | Direction:
        """A line or a direction of a conversation, in the alphabet and within the corpus's length."""
        if isinstance(item, Direction):
            return Direction(self._text(item.text, "characters_of_a_direction"))
        if isinstance(item, Line):
            item = (item.speaker, item.text)
        if isinstance(item, str) or not isinstance(item, Sequence) or len(item) != 2 or not isinstance(item[1], str):
            raise ValueError(f"{item!r} is not a line, a direction or a (speaker, text) pair")
        speaker, text = item
        return Line(one_of("speaker", speaker, self.characters), self._text(text, "characters_of_a_line"))

    def _text(self, text: str, length: str) -> str:
        most = self.facts["lengths"][length]["max"]
        plain = " ".join(self.tokenizer.plain(text).split())
        if not plain:
            raise ValueError(f"the line {text!r} is empty: write something")
        if len(plain) > most:
            raise ValueError(f"the line {plain[:30]!r}... has {len(plain)} characters: {most} is the most")
        return plain

    def _seed(self, seed: int | None) -> int:
        if seed is None:
            return secrets.randbelow(SEEDS)
        if not _is_whole(seed) or not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed!r}: it must be a whole number from 0 to {2**64 - 1}")
        return int(seed)


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def one_of(what: str, name: str, names: Sequence[str]) -> str:
    """The one of `names` that `name` is in any case.

    Raises:
        ValueError: it is none of them.
    """
    wanted = " ".join(str(name).upper().split())
    for known in names:
        if known.upper() == wanted:
            return known
    near = difflib.get_close_matches(wanted, names, n=1)
    raise ValueError(f"there is no {what} {name!r}{f', do you mean {near[0]}?' if near else ''}: it is one of {', '.join(names)}")
