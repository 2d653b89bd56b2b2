"""Many streams, one model: continuous batching, drafting, cancellation. Knows ids and bytes, nothing about scenes.

One thread makes all the steps while there is anything to write. In a step every running stream reads what it has not read yet,
its prompt or the id drawn last and a draft of what may follow, all in one forward pass; then each draws its next ids. Streams join
and leave between steps. What a stream draws depends on its own ids and seed alone, so it is the same alone, in a crowd, and with or
without drafts: a drafted id is kept only where it is the one that was drawn.
"""

import atexit
import contextlib
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence

import numpy as np

from cpgpt.drafts import Drafts
from cpgpt.grammar import ENDED, Grammar, State
from cpgpt.runner import Runner
from cpgpt.sampling import Sampling, keep_newest, probabilities, sample
from cpgpt.stream import AnyStream, Stream, Work
from cpgpt.tokenizer import END_OF_TEXT_ID, Tokenizer

PROMPT_ROWS = 256  # of prompts, in one step: a long prompt does not keep the others waiting
SHARED = 16  # a shorter beginning in common is sooner read again than copied
ARRIVING = 0.1  # seconds after a stream was submitted in which more are expected


class BusyError(RuntimeError):
    """More streams than there are places, and the waiting room is full."""


class Engine:
    """Writes streams with one model.

    Args:
        places: how many streams are written at once; each takes memory for a whole context as it grows.
        max_waiting: how many more may wait for a place.
        drafts: what proposes the next ids; without it every id takes a step of its own, and the text is the same.

    A server sets `.breath`, in seconds: the pause between two steps while streams keep arriving. Whoever brings them in works on
    the same processors, and the sooner all are in, the sooner the last of them has its first character.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        block_size: int,
        *,
        places: int = 64,
        max_waiting: int = 256,
        drafts: Drafts | None = None,
    ) -> None:
        self.runner, self.block_size, self.drafts = runner, block_size, drafts
        self.places, self.max_waiting = places, max_waiting
        self.breath = 0.0
        self._arrived = 0.0  # when the latest stream was submitted, on the monotonic clock
        self.steps = self.rows = 0  # made, and read in them, since the start
        self._bytes, self._line_breaks = tokenizer.token_bytes, tokenizer.line_break_ids()
        self._everything = np.ones(tokenizer.vocab_size, dtype=bool)
        self._free = list(range(places))
        self._held: list[Work | None] = [None] * places  # whose ids each place has read last
        self._running: list[Work] = []
        self._waiting: deque[Work] = deque()
        self._lock = threading.Lock()  # over the four above and the thread
        self._thread: threading.Thread | None = None
        self._stopped = False
        _engines.add(self)

    @property
    def running(self) -> int:
        """How many streams have a place."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many streams wait for one; the next step gives it to as many as are free."""
        return len(self._waiting)

    def queue_position(self, work: Work) -> int:
        with self._lock, contextlib.suppress(ValueError):
            return self._waiting.index(work) + 1
        return 0

    def submit(
        self,
        prompt: Sequence[int],
        *,
        seed: int,
        sampling: Sampling,
        max_new_tokens: int,
        grammar: Grammar | None = None,
        state: State | None = None,
        stop_id: int | None = END_OF_TEXT_ID,
        text: str = "",
        kind: "type[AnyStream] | None" = None,
    ) -> "AnyStream":
        """Start a stream that continues `prompt`; returns at once.

        Args:
            grammar: masks the logits; `state` is where the prompt has left it.
            stop_id: the id that ends the stream; None if none does.
            text: what the stream gives out before what is drawn.
            kind: the class of what is returned, for those who make more of a text than `Stream` does.

        Raises:
            BusyError: no place is free and the waiting room is full.
            ValueError: an empty prompt, a seed below 0, no tokens to write.
        """
        if not prompt:
            raise ValueError("the prompt is empty: it must have at least one id")
        if seed < 0:
            raise ValueError(f"seed is {seed}: it must be 0 or more")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}: it must be 1 or more")
        work = Work(list(prompt), seed, sampling, grammar, state.copy() if state else None, max_new_tokens, stop_id)
        work.text = text.encode() + self._add_forced(work)
        work.offset = work.read = len(work.ids) - len(keep_newest(work.ids, self.block_size, self._line_breaks))
        with self._lock:
            self._forget_closed()
            if len(self._waiting) >= self.max_waiting + len(self._free):
                raise BusyError(
                    f"busy: {len(self._running)} texts are being written and {len(self._waiting)} wait; try again in a moment"
                )
            self._waiting.append(work)
            self._arrived = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="cpgpt-engine", daemon=True)
                self._thread.start()
        return (kind or Stream)(work, self.queue_position)  # type: ignore[return-value]

    def _loop(self) -> None:
        while True:
            with self._lock:
                self._forget_closed()
                self._admit()
                if not self._running or self._stopped:
                    self._thread = None
                    return
            try:
                self._step()
            except Exception as error:  # the model's own: nobody's text can go on
                for work in self._running:
                    self._end(work, error)
            if self.breath and time.monotonic() - self._arrived < ARRIVING:
                time.sleep(self.breath)

    def stop(self) -> None:
        """Stop between two steps; what is being written stays as it is. For the end of the process."""
        self._stopped, thread = True, self._thread
        if thread is not None:
            thread.join()

    # Who has a place

    def _forget_closed(self) -> None:
        """Free the places of those who have ended or whom nobody listens to."""
        for work in [work for work in self._running if work.closed or work.ended]:
            self._free.append(work.place)
        self._running = [work for work in self._running if not (work.closed or work.ended)]
        if any(work.closed for work in self._waiting):
            self._waiting = deque(work for work in self._waiting if not work.closed)

    def _admit(self) -> None:
        """Give those who wait longest the free places, and what another place has read of their prompts."""
        while self._waiting and self._free:
            work = self._waiting[0]
            wanted = work.ids[work.offset : -1]  # the last id is read in any case: its logits are needed
            shared, source = 0, -1
            for place, holder in enumerate(self._held):
                if holder is None or len(wanted) < SHARED or holder.ids[holder.offset :][:SHARED] != wanted[:SHARED]:
                    continue
                known = _common(holder.ids[holder.offset : holder.read], wanted)
                if not (holder.ended or holder.closed) and _common(holder.ids[holder.offset :], wanted) >= known + SHARED:
                    return  # it is just being read: the next step copies it
                if known > shared:
                    shared, source = known, place
            self._waiting.popleft()
            work.place = source if shared >= SHARED and source in self._free else min(self._free)
            if shared >= SHARED:
                if source != work.place:
                    self._held[work.place] = None
                    try:
                        self.runner.copy(source, work.place, shared)
                    except Exception as error:
                        self._end(work, error)
                        continue
                work.read = work.offset + shared
            self._free.remove(work.place)
            self._held[work.place] = work
            self._running.append(work)
            self._give(work, work.text)

    # One step

    def _step(self) -> None:
        room = PROMPT_ROWS
        planned: list[Work] = []
        for work in self._running:
            try:
                self._plan(work, room)
            except Exception as error:
                self._end(work, error)
                continue
            if work.pending:
                planned.append(work)
                room -= work.pending - 1
        if not planned:
            return
        planned.sort(key=lambda work: work.place)
        ids, places, positions = list[int](), list[int](), list[int]()
        for work in planned:
            ids += work.ids[work.read : work.read + work.pending]
            ids += work.draft
            count, first = work.pending + len(work.draft), work.read - work.offset
            places += [work.place] * count
            positions += range(first, first + count)
        logits = self.runner.forward(*(np.array(column, dtype=np.int32) for column in (ids, places, positions)))
        self.steps += 1
        self.rows += len(ids)
        self._draw(planned, logits)

    def _plan(self, work: Work, room: int) -> None:
        """What `work` reads in this step, of prompts at most `room` rows, and which ids are drafted behind it."""
        while len(work.ids) - work.offset > self.block_size:  # the context is full: its newest half is read again
            full = work.ids[work.offset : work.offset + self.block_size]
            work.offset += self.block_size - len(keep_newest(full, self.block_size // 2, self._line_breaks))
            work.read = work.offset
        work.pending = min(len(work.ids) - work.read, max(1, room))
        work.draft, work.states = [], []
        if work.read + work.pending < len(work.ids):
            return
        work.states = [work.state]
        most = min(work.left - 1, self.block_size - (len(work.ids) - work.offset))
        if self.drafts is None or most < 1:
            return
        # A row more pays where it is likelier to be right than its share of a step's costs, which grows with the crowd.
        least = min(0.6, 2 * self.runner.row_cost * len(self._running))
        draft, expected = self.drafts.propose(work.ids, most, least, work.accepted / work.expected)
        work.expected += expected
        for id in draft:
            state = work.states[-1]
            if state is not None and work.grammar is not None:
                if not work.grammar.allowed(state)[id]:
                    return
                state = state.copy()
                work.grammar.advance(state, id)
            if id == work.stop_id:
                return
            work.draft.append(id)
            work.states.append(state)

    def _draw(self, planned: list[Work], logits: np.ndarray) -> None:
        """Draw what follows, for every stream that has read all its ids."""
        by_sampling: dict[Sampling, list[tuple[Work, int]]] = {}
        allowed: dict[Sampling, list[np.ndarray]] = {}  # masks, a row for each row of logits
        row = 0
        for work in planned:
            row += work.pending
            if work.states:
                try:
                    masks = [
                        self._everything if work.grammar is None or state is None else work.grammar.allowed(state)
                        for state in work.states
                    ]
                except Exception as error:
                    self._end(work, error)
                else:
                    by_sampling.setdefault(work.sampling, []).append((work, row - 1))
                    allowed.setdefault(work.sampling, []).extend(masks)
            else:
                work.read += work.pending
            row += len(work.draft)
        for sampling, works in by_sampling.items():
            rows = [first + i for work, first in works for i in range(len(work.states))]
            some = logits[rows]
            finite = np.isfinite(some).all()
            probs = probabilities(np.where(np.array(allowed[sampling]), some, -np.inf), sampling)
            drawn = sample(probs, np.concatenate([work.uniforms(len(work.states)) for work, _ in works])).tolist()
            for work, _ in works:
                mine, drawn = drawn[: len(work.states)], drawn[len(work.states) :]
                try:
                    if not finite and not np.isfinite(some[: len(mine)]).all():
                        raise FloatingPointError("the model's logits are not numbers: its weights are damaged")
                    self._take(work, mine)
                except Exception as error:
                    self._end(work, error)
                some = some[len(mine) :]

    def _take(self, work: Work, drawn: list[int]) -> None:
        """Add what was drawn to a stream: as long as the draft was right, and one id more; then what must follow."""
        work.read += work.pending
        text = b""
        for id, draft, state in itertools.zip_longest(drawn, work.draft, work.states[1:]):
            text += self._add(work, id, state if id == draft else None)
            if id != draft or work.ended:
                break
            work.read += 1
            work.accepted += 1
        self._give(work, text + self._add_forced(work))

    def _give(self, work: Work, text: bytes) -> None:
        """Give out what was written, up to the last whole character."""
        piece = work.decoder.decode(text, final=work.ended)
        if piece:
            work.pieces.put(piece)
        if work.ended:
            work.pieces.put(None)

    def _add_forced(self, work: Work) -> bytes:
        """Add the ids that must come next: nothing has to be drawn for them."""
        text = b""
        while work.grammar is not None and work.state is not None and not work.ended:
            forced = work.grammar.forced(work.state)
            if forced is None:
                break
            text += self._add(work, forced)
        return text

    def _add(self, work: Work, id: int, state: State | None = None) -> bytes:
        """Add one id; `state` is the grammar's state after it, where it is known already."""
        work.ids.append(id)
        work.left -= 1
        if state is not None:
            work.state = state
        elif work.grammar is not None and work.state is not None:
            work.grammar.advance(work.state, id)
        at_end = work.state is not None and work.state.inside == ENDED
        work.ended = id == work.stop_id or not work.left or at_end
        return self._bytes[id]

    def _end(self, work: Work, error: BaseException) -> None:
        work.ended = True
        work.pieces.put(error)


_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """A thread that is inside of PyTorch when the interpreter goes away aborts the process."""
    for engine in list(_engines):
        engine.stop()


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
