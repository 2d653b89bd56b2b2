"""Which ids may come next, so that what is written is a scene: a mask on the logits. Knows no model; names come from the caller.

The grammar works on bytes, and a tokenizer says which bytes an id stands for, so characters and subwords are the same to it.
A `State` is a position in a scene. Every state that can be reached can be completed: a step is allowed only if the rest of the line
fits into the room that is left, and a speaker only if the rest of the scene works out (`_completes`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from cpgpt.screenplay import SCENE
from cpgpt.tokenizer import END_OF_TEXT_ID, Tokenizer

NEWLINE, SPACE, OPEN, CLOSE = b"\n ()"
LOWER = frozenset(range(ord("a"), ord("z") + 1))
# Characters: this near to its end a row has no more spaces, so that it ends where a word ends. Short rows have a quarter of them.
LAST_WORD, TITLE_LAST_WORD = 24, 12
WIDE_LETTER, WIDE_OTHER = ord("A"), 128  # the last byte, after a character of several bytes

# What a state is inside of.
OPTIONS, TITLE, SPEECH, DIRECTION, ENDED = range(5)


@dataclass(frozen=True)
class Rules:
    """What a scene may be. `Rules.of(facts)` has those of a checkpoint's corpus.

    Raises:
        ValueError: rules that no scene can keep; the message says why.
    """

    cast: tuple[str, ...]  # who may speak
    places: tuple[str, ...]  # where it may take place
    lead: str | None = None  # speaks first and, where three or more speak, has more lines than anybody else
    everyone: bool = False  # all of the cast speaks
    min_lines: int = 7  # of dialogue
    max_lines: int = 14
    min_speakers: int = 2
    max_line_length: int = 140  # characters, the name included
    title_forms: tuple[str, ...] = ()  # how a title begins
    title_length: tuple[int, int] = (16, 60)  # characters
    max_direction_length: int = 121  # characters, the brackets included
    max_directions: int = 2
    line_ends: str = '.?!"'  # what a line ends with
    alphabet: str = ""  # the characters of the corpus; those of the tokenizer where it is empty

    def __post_init__(self) -> None:
        if not self.cast or not self.places:
            raise ValueError("a scene needs a cast and places")
        if self.lead is not None and self.lead not in self.cast:
            raise ValueError(f"the lead {self.lead} is not in the cast: {', '.join(self.cast)}")
        if not 1 <= self.min_lines <= self.max_lines:
            raise ValueError(f"lines from {self.min_lines} to {self.max_lines}: give at least 1, and no more at least than at most")
        if len(self.cast) < self.min_speakers:
            raise ValueError(f"a cast of {len(self.cast)} ({', '.join(self.cast)}): at least {self.min_speakers} speak in a scene")
        longest = max(map(len, self.cast)) + 4
        if self.max_line_length < longest:
            raise ValueError(f"max_line_length is {self.max_line_length}: with these names it must be {longest} or more")
        low, high = self.title_length
        shortest = max(map(len, self.title_forms), default=0) + 3
        if self.title_forms and not low <= high >= shortest:
            raise ValueError(f"title_length is {self.title_length}: it must be (least, most), the most {shortest} or more")
        if self.max_directions and self.max_direction_length < 4:
            raise ValueError(f"max_direction_length is {self.max_direction_length}: it must be 4 or more, such as (A.) has")
        if not _completes(self, (0,) * len(self.cast), None):
            who = f"all {len(self.cast)} of {', '.join(self.cast)}" if self.everyone else f"{self.min_speakers} speakers"
            most = " with the most lines for the lead" if self.lead and len(self.cast) > 2 else ""
            raise ValueError(f"at most {self.max_lines} lines are too few for {who}{most}: give more lines or a smaller cast")

    @classmethod
    def of(cls, facts: Mapping[str, Any], **changes: Any) -> "Rules":
        """The rules of a checkpoint's corpus (`facts["corpus"]`), with `changes` to any of them."""
        lengths = facts["lengths"]
        rules: dict[str, Any] = {
            "cast": tuple(facts["cast"]),
            "places": tuple(facts["places"]),
            "title_forms": tuple(facts["title_forms"]),
            "alphabet": facts["alphabet"],
            "min_lines": lengths["lines_of_a_scene"]["min"],
            "max_lines": lengths["lines_of_a_scene"]["max"],
            "min_speakers": lengths["speakers_of_a_scene"]["min"],
            "max_line_length": lengths["characters_of_a_line"]["max"],
            "title_length": (lengths["characters_of_a_title"]["min"], lengths["characters_of_a_title"]["max"]),
            "max_direction_length": lengths["characters_of_a_direction"]["max"],
            "max_directions": lengths["directions_of_a_scene"]["high"],
        }
        return cls(**{**rules, **changes})


def last_word(longest: int, usual: int) -> int:
    """How near to the end of a row of at most `longest` characters there are no more spaces."""
    return max(3, min(usual, longest // 4))


def _may_end(rules: Rules, counts: Sequence[int]) -> bool:
    """Whether a scene in which each of the cast has so many lines is whole."""
    speakers = sum(map(bool, counts))
    if sum(counts) < rules.min_lines or speakers < (len(counts) if rules.everyone else rules.min_speakers):
        return False
    if rules.lead is None or speakers < 3:
        return True
    lead = rules.cast.index(rules.lead)
    return all(count < counts[lead] for who, count in enumerate(counts) if who != lead)


def _completes(rules: Rules, counts: Sequence[int], last: int | None) -> bool:
    """Whether a scene can be brought to its end from here: it is tried, in the best way for the lead.

    `counts` are the lines of each of the cast so far, `last` who spoke last. The lead speaks whenever somebody else has just
    spoken; between, whoever has not spoken yet, or else has the fewest lines.
    """
    counts = list(counts)
    lead = rules.cast.index(rules.lead) if rules.lead is not None else None
    while not _may_end(rules, counts):
        if sum(counts) >= rules.max_lines:
            return False
        others = [who for who in range(len(counts)) if who not in (last, lead)]
        must = len([who for who, count in enumerate(counts) if not count and who != lead]) if rules.everyone else 0
        if lead is not None and last != lead and (not counts[lead] or sum(counts) + must < rules.max_lines):
            last = lead
        elif others:
            last = min(others, key=lambda who: counts[who])
        else:
            last = 0  # a cast of one
        counts[last] += 1
    return True


@dataclass(slots=True)
class State:
    """A position in a scene; make one with `Grammar.start`."""

    inside: int
    options: tuple[bytes, ...] = ()  # OPTIONS: one of these is being written
    at: int = 0  # how many bytes of it, or of a title, are there
    room: int = 0  # SPEECH, DIRECTION, TITLE: how many characters more may come before the row ends
    last: int = NEWLINE  # the last byte
    partial: bytes = b""  # of a character of several bytes
    counts: tuple[int, ...] = ()  # lines of each of the cast
    speaker: int | None = None  # who speaks, or spoke last
    directions: int = 0
    after_direction: bool = False

    def copy(self) -> "State":
        return State(  # written out, because it is done for every drafted id
            self.inside,
            self.options,
            self.at,
            self.room,
            self.last,
            self.partial,
            self.counts,
            self.speaker,
            self.directions,
            self.after_direction,
        )


class Grammar:
    """The masks for one set of rules and one tokenizer: `allowed(state)` and `advance(state, id)`."""

    def __init__(self, rules: Rules, tokenizer: Tokenizer) -> None:
        self.rules = rules
        self._bytes = tokenizer.token_bytes
        self._single = np.array([id for id, token in enumerate(self._bytes) if len(token) == 1])  # ids of one byte
        self._single_bytes = np.array([self._bytes[id][0] for id in self._single])
        self._several = [id for id, token in enumerate(self._bytes) if len(token) > 1 and NEWLINE not in token[:-1]]
        single = set(self._single_bytes.tolist())
        for text in (*rules.cast, *rules.places, *rules.title_forms, f"{SCENE}\n()"):
            if not single.issuperset(text.encode()):
                raise ValueError(f"the tokenizer cannot write {text!r}: it is not made for these names")
        alphabet = {c.encode() for c in rules.alphabet} if rules.alphabet else {bytes([byte]) for byte in single if byte < 128}
        self._wide = {c for c in alphabet if len(c) > 1}
        self._wide_of_title = {c for c in self._wide if c.decode().upper() == c.decode()}
        self._narrow = frozenset(c[0] for c in alphabet if len(c) == 1 and c[0] in single) - {NEWLINE}
        self._ends = frozenset(rules.line_ends.encode()) & self._narrow
        if not self._ends:
            raise ValueError(f"line_ends is {rules.line_ends!r}: none of it is in the alphabet")
        self._telling = self._ends | {SPACE, CLOSE}  # the last bytes on which it hangs what may come next in a line
        self._last_word = {
            SPEECH: last_word(rules.max_line_length, LAST_WORD),
            DIRECTION: last_word(rules.max_direction_length, LAST_WORD),
            TITLE: last_word(rules.title_length[1], TITLE_LAST_WORD),
        }
        self._names = [f"{name}: ".encode() for name in rules.cast]
        # Ids of which a line break is a part but not the end: what follows the break hangs on more than the row.
        self._across = [id for id, token in enumerate(self._bytes) if NEWLINE in token[:-1]]
        self._longest = max(map(len, self._bytes))
        self._masks: dict[tuple[Any, ...], tuple[np.ndarray, int | None]] = {}

    def start(self, at: str = "title") -> State:
        """The state before a whole scene ("title"), before its place ("place"), or before its first line ("items")."""
        state = State(OPTIONS, counts=(0,) * len(self.rules.cast))
        if at == "title" and self.rules.title_forms:
            state.options = tuple(f"{form} ".encode() for form in self.rules.title_forms)
        elif at in ("title", "place"):
            state.options = self._place_options(SCENE if at == "title" else "")
        elif at == "items":
            self._start_item(state)
        else:
            raise ValueError(f'at is {at!r}: it must be "title", "place" or "items"')
        return state

    def allowed(self, state: State) -> np.ndarray:
        """The ids (V,) that may come next, as booleans. It is shared: not to be written to."""
        return self._look_up(state)[0]

    def forced(self, state: State) -> int | None:
        """The id that must come next, where there is only one."""
        return self._look_up(state)[1]

    def _look_up(self, state: State) -> tuple[np.ndarray, int | None]:
        key = self._key(state)
        found = self._masks.get(key)
        if found is None:
            mask, next = np.zeros(len(self._bytes), dtype=bool), np.zeros(256, dtype=bool)
            next[list(self._next(state))] = True
            mask[self._single] = next[self._single_bytes]
            if self._several:
                mask[self._several] = [self._takes(state, self._bytes[id]) for id in self._several]
            mask[END_OF_TEXT_ID] = self._may_end(state)
            found = self._masks[key] = mask, _only(mask)
        if self._across:
            mask = found[0].copy()
            mask[self._across] = [self._takes(state, self._bytes[id]) for id in self._across]
            found = mask, _only(mask)
        return found

    def advance(self, state: State, id: int) -> None:
        """Take `state` past an id that was allowed."""
        if id == END_OF_TEXT_ID:
            state.inside = ENDED
        for byte in self._bytes[id]:
            self._step(state, byte)

    def _key(self, state: State) -> tuple[Any, ...]:
        """What the mask of a state hangs on."""
        if state.inside == OPTIONS:
            return (OPTIONS, state.options, state.at, not state.at and self._may_end(state))
        near = max(LAST_WORD, self._longest) + 8
        if state.inside == TITLE:
            low, high = self.rules.title_length
            missing = min(max(0, low - (high - state.room)), self._longest)
            return (TITLE, min(state.room, near), missing, state.last == SPACE, chr(state.last).isalnum(), state.partial)
        last = state.last if state.last in self._telling else 0
        return (state.inside, min(state.room, near), last, state.at > 0, state.partial)

    def _takes(self, state: State, token: bytes) -> bool:
        """Whether all of `token` may come next."""
        if token[0] not in self._next(state):
            return False
        state = state.copy()
        for byte, following in pairwise(token):
            self._step(state, byte)
            if following not in self._next(state):
                return False
        return True

    def _may_end(self, state: State) -> bool:
        at_item = state.inside == OPTIONS and not state.at and state.last == NEWLINE and bool(sum(state.counts))
        return at_item and _may_end(self.rules, state.counts)

    # Which bytes may come next

    def _next(self, state: State) -> Iterable[int]:
        if state.inside == OPTIONS:
            return {option[state.at] for option in state.options}
        if state.inside == ENDED:
            return ()
        if state.partial:
            wide = self._wide_of_title if state.inside == TITLE else self._wide
            return {c[len(state.partial)] for c in wide if c.startswith(state.partial)}
        if state.inside == TITLE:
            return self._next_of_title(state)
        return self._next_of_text(state)

    def _next_of_text(self, state: State) -> set[int]:
        """Of a line or a direction. It ends with one of `line_ends`; a direction's last character is a bracket after that."""
        bracket, begun, at_end = state.inside == DIRECTION, state.at > 0, state.last in self._ends
        if bracket and state.last == CLOSE:
            return {NEWLINE}
        room = state.room - bracket  # what the text itself may have
        in_word = begun and state.last != SPACE
        allowed: set[int] = set()
        if room >= 1 and in_word:
            allowed |= self._ends
        if room >= 2:
            allowed |= self._narrow - {SPACE}
        if room >= 5:
            allowed |= {c[0] for c in self._wide}
        if room >= self._last_word[state.inside] and in_word:
            allowed.add(SPACE)
        if bracket or not begun:
            allowed -= {OPEN, CLOSE}
        if begun and at_end:
            allowed.add(CLOSE if bracket else NEWLINE)
        return allowed

    def _next_of_title(self, state: State) -> set[int]:
        low, high = self.rules.title_length
        allowed: set[int] = set()
        if high - state.room >= low and chr(state.last).isalnum():
            allowed.add(NEWLINE)
        if state.room >= 2 or (state.room == 1 and state.last != SPACE):
            allowed |= {byte for byte in self._narrow - LOWER - {SPACE} if chr(byte).isalnum()}
        if state.room >= 2:
            allowed |= self._narrow - LOWER - {SPACE} if state.last != SPACE else set()
        if state.room >= 5:
            allowed |= {c[0] for c in self._wide_of_title}
        if state.room >= self._last_word[TITLE] and state.last != SPACE:
            allowed.add(SPACE)
        return allowed

    # What a byte does to a state

    def _step(self, state: State, byte: int) -> None:
        if state.inside == OPTIONS:
            state.at += 1
            state.options = tuple(option for option in state.options if option[state.at - 1] == byte)
            state.last = byte
            whole = [option for option in state.options if len(option) == state.at]
            if whole:
                self._chosen(state, whole[0])
            return
        if byte == NEWLINE:
            state.last, state.at = NEWLINE, 0
            if state.inside == TITLE:
                state.inside, state.options = OPTIONS, self._place_options(f"\n{SCENE}")
            else:
                self._end_item(state)
            return
        if byte >= 128:
            state.partial += bytes([byte])
            if state.partial not in self._wide:
                return
            byte = WIDE_LETTER if state.partial.decode().isalnum() else WIDE_OTHER
            state.partial = b""
        state.at += 1
        state.room -= 1
        state.last = byte

    def _chosen(self, state: State, option: bytes) -> None:
        """An option is written out: what follows it."""
        state.at = 0
        if option in self._names:
            state.speaker = self._names.index(option)
            state.inside, state.room = SPEECH, self.rules.max_line_length - len(option.decode())
        elif option == b"(":
            state.inside, state.room = DIRECTION, self.rules.max_direction_length - 1
        elif option.endswith(b"\n\n"):
            self._start_item(state)
        else:
            state.inside, state.room = TITLE, self.rules.title_length[1] - len(option.decode())

    def _place_options(self, before: str) -> tuple[bytes, ...]:
        return tuple(f"{before}{place}\n\n".encode() for place in self.rules.places)

    def _end_item(self, state: State) -> None:
        if state.inside == SPEECH:
            counts = list(state.counts)
            counts[state.speaker or 0] += 1
            state.counts, state.after_direction = tuple(counts), False
        else:
            state.directions += 1
            state.after_direction = True
        self._start_item(state)

    def _start_item(self, state: State) -> None:
        """A line of whoever may speak now, or a direction.

        Nobody speaks twice in a row where anything else is possible, unless something has happened between.
        """
        state.inside, state.at = OPTIONS, 0
        rules, counts = self.rules, state.counts
        if sum(counts) >= rules.max_lines:
            state.options = ()
            return
        lead = rules.cast.index(rules.lead) if rules.lead is not None else None
        speakers = []
        for who in range(len(counts)):
            first = sum(counts) > 0 or lead in (None, who)
            then = (*counts[:who], counts[who] + 1, *counts[who + 1 :])
            if first and _completes(rules, then, who):
                speakers.append(who)
        if not state.after_direction and (len(speakers) > 1 or _may_end(rules, counts)):
            speakers = [who for who in speakers if who != state.speaker]
        state.options = tuple(self._names[who] for who in speakers)
        if state.directions < rules.max_directions and not state.after_direction:
            state.options += (b"(",)


def _only(mask: np.ndarray) -> int | None:
    (ids,) = mask.nonzero()
    return int(ids[0]) if len(ids) == 1 else None
