"""What users call: every scene parses and keeps what was asked for, the same seed gives the same one, and slips are named."""

import copy
import itertools
import random
import re
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest

import cpgpt
from cpgpt import BusyError, Checkpoint, Direction, Line, Scene, SceneWriter, UnknownCharacterError, checkpoint, parse
from cpgpt.model import GPT, Config
from cpgpt.screenplay import SCENE
from cpgpt.tokenizer import END_OF_TEXT_ID
from tests.conftest import TOKENIZER, randomised, tiny
from tests.test_grammar import WORLDS

LOADED = cpgpt.load_checkpoint()
FACTS = LOADED.facts["corpus"]
FIRST, SECOND, THIRD, FOURTH = FACTS["cast"][:4]
PLACE = FACTS["places"][1]
FORM = FACTS["title_forms"][0]


@pytest.fixture(scope="module")
def writer() -> SceneWriter:
    return cpgpt.load()


def without_weights(world: str, shape: str = "modern", **sizes: Any) -> SceneWriter:
    """A writer of another corpus whose model knows nothing: what it writes is the grammar's alone."""
    facts, tokenizer = WORLDS[world]
    config = getattr(Config, shape)(tokenizer.vocab_size, **{"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 120, **sizes})
    return SceneWriter(Checkpoint(randomised(config), tokenizer, {"corpus": facts}), "another")


# Scenes


def test_a_scene_keeps_all_that_was_asked_for(writer: SceneWriter) -> None:
    scene = writer.scene(
        SECOND.lower(),
        title="the flaky   Test",
        place=f" {PLACE.lower()} ",
        cast=[THIRD.title(), SECOND, FIRST],
        lines=(6, 8),
        temperature=1.2,
        top_p=0.95,
        seed=7,
    )
    assert scene.title == f"{FORM} THE FLAKY TEST"
    assert scene.place == PLACE
    assert set(scene.speakers) == {FIRST, SECOND, THIRD}
    assert scene.speakers[0] == SECOND
    counts = Counter(line.speaker for line in scene.lines)
    assert counts[SECOND] > max(counts[FIRST], counts[THIRD])
    assert 6 <= len(scene.lines) <= 8
    assert scene.seed == 7
    assert parse(str(scene)) == scene


def test_lines_may_be_a_number_and_a_title_whole(writer: SceneWriter) -> None:
    scene = writer.scene(title=f"{FACTS['title_forms'][1]} nobody laughs", lines=3, seed=1)
    assert scene.title == f"{FACTS['title_forms'][1]} NOBODY LAUGHS"
    assert len(scene.lines) == 3


def test_without_a_wish_a_scene_is_as_long_as_those_of_the_corpus(writer: SceneWriter) -> None:
    scene, lengths = writer.scene(seed=2), FACTS["lengths"]
    assert lengths["lines_of_a_scene"]["min"] <= len(scene.lines) <= lengths["lines_of_a_scene"]["max"]
    assert (scene.title or "").startswith(tuple(FACTS["title_forms"]))
    assert scene.place in writer.places
    assert set(scene.speakers) <= set(writer.characters)
    assert max(len(str(line)) for line in scene.lines) <= lengths["characters_of_a_line"]["max"]


def test_a_writer_says_what_it_is(writer: SceneWriter) -> None:
    assert writer.characters == tuple(FACTS["cast"])
    assert writer.places == tuple(FACTS["places"])
    assert (writer.name, writer.revision) == ("centralperk", None)
    assert writer.checkpoint.model.config == LOADED.model.config
    assert (writer.engine.running, writer.engine.waiting) == (0, 0)


def test_every_scene_parses_at_every_temperature(writer: SceneWriter) -> None:
    """10,000 of them: `python -m tests.benchmarks.scenes`."""
    chance, asked = random.Random(5), list[tuple[Any, ...]]()
    for number in range(200):
        cast = chance.sample(writer.characters, chance.randint(2, 4))
        lead = chance.choice([None, *cast])
        lines = (low := chance.randint(6, 7), low + chance.randint(0, 1))
        temperature = 0.1 + 1.9 * number / 199
        asked.append((lead, cast, lines, writer.stream(lead, cast=cast, lines=lines, temperature=temperature, seed=number)))
    for lead, cast, (least, most), stream in asked:
        scene = stream.scene
        assert str(scene) == stream.text
        assert set(scene.speakers) == set(cast)
        assert least <= len(scene.lines) <= most
        assert lead is None or scene.speakers[0] == lead
        assert all(line.text[-1] in '.?!"' for line in scene.lines)


def test_temperature_0_always_takes_the_likeliest(writer: SceneWriter) -> None:
    scenes = writer.scenes(3, FIRST, lines=2, temperature=0, seed=1)
    assert scenes[0] == scenes[1] == scenes[2] == writer.scene(FIRST, lines=2, temperature=0)
    assert scenes[0] == writer.scene(FIRST, lines=2, temperature=1.5, top_k=1)
    assert scenes[0] != writer.scene(FIRST, lines=2, temperature=1.5)
    assert scenes[0] == writer.scene(FIRST, lines=2, temperature=1e-9)


# The same seed


def test_a_seed_that_was_drawn_makes_the_scene_again(writer: SceneWriter) -> None:
    scenes = [writer.scene(lines=2) for _ in range(3)]
    assert len({scene.seed for scene in scenes}) == 3
    assert [writer.scene(lines=2, seed=scene.seed) for scene in scenes] == scenes
    assert len(set(map(str, scenes))) == 3
    stream = writer.stream(lines=2)
    assert stream.scene.seed == stream.seed


def test_the_same_seed_gives_the_same_scene_alone_together_and_from_any_thread(writer: SceneWriter) -> None:
    settings: dict[str, Any] = {"lines": 2, "temperature": 1.0}
    together = writer.scenes(12, SECOND, seed=40, **settings)
    assert [scene.seed for scene in together] == list(range(40, 52))
    assert [writer.scene(SECOND, seed=40 + n, **settings) for n in range(3)] == together[:3]
    found: dict[int, Scene] = {}

    def write(seed: int) -> None:
        found[seed] = writer.scene(SECOND, seed=seed, **settings)

    threads = [threading.Thread(target=write, args=(40 + n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[40 + n] for n in range(12)] == together
    few = cpgpt.load(places=2)  # most of them have to wait
    assert few.scenes(12, SECOND, seed=40, **settings) == together
    assert all(few.characters)


def test_more_scenes_than_there_are_places_and_waiting_room_are_written_all_the_same() -> None:
    small = without_weights("characters")
    small.engine.places = small.engine.places
    few = SceneWriter(small.checkpoint, places=3, max_waiting=0)
    scenes = few.scenes(20, lines=2, seed=0)
    assert len(scenes) == 20
    assert scenes == small.scenes(20, lines=2, seed=0)
    streams = [few.stream() for _ in range(3)]
    with pytest.raises(BusyError, match="busy"):
        few.stream()
    for stream in streams:
        stream.close()


def test_same_seed_same_scene_with_and_without_drafting() -> None:
    """500 of them, of short lines: the long ones are made of the same steps."""
    facts = copy.deepcopy(FACTS)
    facts["lengths"]["lines_of_a_scene"] |= {"min": 1, "max": 2}
    facts["lengths"]["speakers_of_a_scene"]["min"] = 1
    facts["lengths"]["characters_of_a_line"]["max"] = 60
    short = Checkpoint(LOADED.model, LOADED.tokenizer, {"corpus": facts}, LOADED.drafts)
    few, many = SceneWriter(short, places=4), SceneWriter(short, places=64, drafts=False)
    assert few.engine.drafts is not None
    for number, temperature in enumerate((0, 0.5, 0.8, 1.0, 1.5)):
        count = 1 if not temperature else 125 if number < 4 else 124
        settings: dict[str, Any] = {"temperature": temperature, "seed": 1000 * number, "top_p": 0.98 if number == 2 else None}
        assert few.scenes(count, **settings) == many.scenes(count, **settings)
    assert few.engine.steps > 0
    assert few.engine.rows > 1.2 * many.engine.rows  # they were there, and some of them were wrong


# One character at a time


def test_a_stream_gives_out_the_scene_one_character_at_a_time(writer: SceneWriter) -> None:
    with writer.stream(FIRST, title="the flaky test", place=PLACE, lines=2, seed=3) as stream:
        beginning = f"{FORM} THE FLAKY TEST\n\n{SCENE}{PLACE}\n\n{FIRST}: "
        characters = list(itertools.islice(stream, len(beginning)))
        assert "".join(characters) == beginning
        assert stream.text == beginning
        characters += stream
    assert all(len(character) == 1 for character in characters)
    assert str(stream.scene) == "".join(characters) == stream.text
    assert stream.scene == writer.scene(FIRST, title="the flaky test", place=PLACE, lines=2, seed=3)
    assert stream.scene is stream.scene


def test_a_scene_that_was_closed_or_went_wrong_is_none(writer: SceneWriter) -> None:
    stream = writer.stream(seed=3)
    next(stream)
    stream.close()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed before its end, after 1 characters"):
            _ = stream.scene
    model = copy.deepcopy(LOADED.model)
    model.norm.weight.data[3] = float("nan")
    damaged = SceneWriter(Checkpoint(model, LOADED.tokenizer, LOADED.facts))
    stream = damaged.stream()
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="its weights are damaged"):
            _ = stream.scene


# Conversations


def test_a_reply_is_a_line_of_whoever_was_asked(writer: SceneWriter) -> None:
    history = [(FIRST.lower(), "Is the build broken again?"), Direction("The phone rings."), Line(SECOND, "It's not mine.")]
    line = writer.reply(history, THIRD.lower(), seed=5)
    assert line.speaker == THIRD
    assert line.text[-1] in '.?!"'
    assert line == writer.reply(history, THIRD, seed=5)
    assert line == writer.reply(tuple(history), THIRD, seed=5)
    assert line != writer.reply(history[:1], THIRD, seed=5)
    scene = Scene(
        None,
        writer.places[0],
        (Line(FIRST, "Is the build broken again?"), Direction("The phone rings."), Line(SECOND, "It's not mine.")),
    )
    assert line == writer.reply(scene, THIRD, seed=5)
    assert writer.reply([], THIRD, seed=5).speaker == THIRD  # who begins a conversation
    assert writer.reply([(THIRD, "So.")], THIRD, seed=5).speaker == THIRD  # or goes on


def test_without_a_name_anybody_but_the_last_speaker_answers(writer: SceneWriter) -> None:
    speakers = {writer.reply([(FIRST, "So, who broke the build?")], seed=seed, temperature=1.5).speaker for seed in range(30)}
    assert FIRST not in speakers
    assert len(speakers) > 2


def test_title_and_place_of_a_conversation_count(writer: SceneWriter) -> None:
    def prompt(*arguments: Any, **settings: Any) -> str:
        with writer.stream_reply(*arguments, seed=1, **settings) as stream:
            return writer.tokenizer.decode(
                stream._work.ids[: stream._work.ids.index(END_OF_TEXT_ID, 1)] if False else stream._work.ids
            )

    said = (Line(FIRST, "So."),)
    assert prompt(said).startswith(f"{SCENE}{writer.places[0]}\n\n{FIRST}: So.\n")
    assert prompt(said, title="the fire", place=PLACE).startswith(f"{FORM} THE FIRE\n\n{SCENE}{PLACE}\n\n{FIRST}: So.\n")
    scene = Scene(f"{FORM} THE FIRE", PLACE, said)
    assert prompt(scene).startswith(f"{FORM} THE FIRE\n\n{SCENE}{PLACE}\n\n{FIRST}: So.\n")
    assert prompt(scene, place=writer.places[2]).startswith(f"{FORM} THE FIRE\n\n{SCENE}{writer.places[2]}\n\n")


def test_a_reply_is_streamed_with_the_name_first(writer: SceneWriter) -> None:
    stream = writer.stream_reply([(FIRST, "Is it down?")], SECOND, seed=2)
    text = "".join(stream)
    assert text.removesuffix("\n") == str(stream.line)
    assert stream.line == writer.reply([(FIRST, "Is it down?")], SECOND, seed=2)
    assert stream.seed == 2


@pytest.mark.parametrize("count", [3, 60, 400])
def test_of_a_long_conversation_the_newest_lines_that_fit_are_read(writer: SceneWriter, count: int) -> None:
    history = [(writer.characters[n % 3], f"This is line {n}, and I stand by it.") for n in range(count)]
    with writer.stream_reply(history, title="the long talk", seed=1) as stream:
        ids = stream._work.ids[1 : stream._work.ids.index(END_OF_TEXT_ID, 1) if END_OF_TEXT_ID in stream._work.ids[1:] else None]
    text = writer.tokenizer.decode(ids)
    header = f"{FORM} THE LONG TALK\n\n{SCENE}{writer.places[0]}\n\n"
    assert text.startswith(header)
    rows = [f"{name}: {said}" for name, said in history]
    read = text.removeprefix(header).split("\n")
    kept = next(n for n in range(count + 1) if read[: count - n] == rows[n:])  # whole lines, the oldest are missing
    longest = FACTS["lengths"]["characters_of_a_line"]["max"]
    used = len(header) + sum(len(row) + 1 for row in rows[kept:])
    assert used + longest + 2 <= writer.block_size  # the answer fits behind them
    assert kept == 0 or used + len(rows[kept - 1]) + 1 + longest + 2 > writer.block_size  # and one line more would not
    assert (kept == 0) == (count == 3)


def test_in_the_smallest_context_a_conversation_goes_on() -> None:
    tiny_writer = without_weights("characters", block_size=16)
    assert tiny_writer.reply([(FIRST, "This is what I said.")] * 9, SECOND, seed=1).speaker == SECOND
    assert parse(str(tiny_writer.scene(lines=2, seed=1)))


# Any Unicode


def test_what_phones_and_word_processors_type_becomes_plain(writer: SceneWriter) -> None:
    scene = writer.scene(title="the “naïve” café’s\u00a0bill…", lines=2, seed=1)
    assert scene.title == f'{FORM} THE "NAIVE" CAFE\'S BILL...'
    assert writer.reply([(FIRST, "“So…” —\tit’s\nfine?")], SECOND, seed=4) == writer.reply(
        [(FIRST, '"So..." - it\'s fine?')], SECOND, seed=4
    )


@pytest.mark.parametrize("typed", ["日本", "100 €", "🙂", "a\ud800b", "½"])
def test_what_cannot_be_plain_is_named(writer: SceneWriter, typed: str) -> None:
    for attempt in (
        lambda: writer.stream(title=f"the {typed}"),
        lambda: writer.stream_reply([(FIRST, typed)]),
        lambda: writer.stream_reply([Direction(typed)]),
        lambda: writer.stream_text(typed),
    ):
        with pytest.raises(UnknownCharacterError, match="unknown characters: "):
            attempt()


# Slips


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"character": "Jo"}, "there is no character 'Jo'"),
        ({"character": FIRST[:-1].lower()}, f"do you mean {FIRST}?: it is one of {', '.join(FACTS['cast'])}"),
        ({"character": 7}, "there is no character 7"),
        ({"character": ""}, "there is no character ''"),
        ({"cast": [FIRST, "Nobody"]}, "there is no character in the cast 'Nobody'"),
        ({"cast": FIRST}, f"cast is '{FIRST}': it must be a list of names, such as ['{FIRST}', '{SECOND}']"),
        ({"cast": 7}, "cast is 7: it must be a list of names"),
        ({"cast": []}, "at least 2 speak in a scene"),
        ({"character": FIRST, "cast": []}, f"a cast of 1 ({FIRST}): at least 2 speak in a scene"),
        ({"cast": [FIRST, FIRST.lower()]}, f"a cast of 1 ({FIRST}): at least 2 speak in a scene"),
        ({"cast": FACTS["cast"], "lines": 5}, f"at most 5 lines are too few for all {len(FACTS['cast'])}"),
        ({"character": FIRST, "cast": [SECOND, THIRD], "lines": 3}, "with the most lines for the lead"),
        ({"place": "the moon"}, f"there is no place 'the moon': it is one of {', '.join(FACTS['places'])}"),
        ({"place": FACTS["places"][0][:-1]}, f"do you mean {FACTS['places'][0]}?"),
        ({"title": ""}, f"title is '': give one with a word in it, such as {FORM.lower()} the flaky test"),
        ({"title": " \u200b?! "}, "give one with a word in it"),
        ({"title": FORM}, "give one with a word in it"),
        ({"title": 7}, "title is 7: it must be a text"),
        ({"title": "x" * 60}, f"characters: {FACTS['lengths']['characters_of_a_title']['max']} is the most"),
        *(
            (
                {"lines": lines},
                f"lines is {lines!r}: give a number of lines from 2 to {FACTS['lengths']['lines_of_a_scene']['max']}",
            )
            for lines in (0, 1, -3, 99, (8, 6), (1, 5), (5, 99), (5,), (5, 6, 7), 5.5, "8", "8-12", True, (5, "6"), [])
        ),
        *(
            ({"temperature": temperature}, f"temperature is {temperature!r}: it must be 0 (greedy) or more")
            for temperature in (-0.1, float("nan"), float("inf"), "hot", None, True)
        ),
        ({"top_k": 0}, "top_k is 0: it must be a whole number, 1 or more"),
        ({"top_p": 1.5}, "top_p is 1.5: it must be over 0 and at most 1"),
        ({"min_p": -1}, "min_p is -1: it must be over 0 and at most 1"),
        *(
            ({"seed": seed}, f"seed is {seed!r}: it must be a whole number from 0 to {2**64 - 1}")
            for seed in (-1, 2**64, 1.5, "7", float("nan"))
        ),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_named_with_what_can(writer: SceneWriter, settings: dict[str, Any], message: str) -> None:
    for write in (writer.stream, writer.scene, lambda **all: writer.scenes(2, **all)):
        with pytest.raises(ValueError, match=re.escape(message)):
            write(**settings)
    assert (writer.engine.running, writer.engine.waiting) == (0, 0)


def test_numbers_of_numpy_are_numbers(writer: SceneWriter) -> None:
    expected = writer.scene(lines=(2, 3), temperature=0.75, top_k=9, seed=7)
    low, high, k, seed = np.array([2, 3, 9, 7])
    assert writer.scene(lines=(low, high), temperature=np.float32(0.75), top_k=k, seed=seed) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("history", "settings", "message"),
    [
        ([("Nobody", "Hi.")], {}, "there is no speaker 'Nobody'"),
        ([(FIRST, "")], {}, "the line '' is empty: write something"),
        ([(FIRST, " \u200b ")], {}, "is empty: write something"),
        ([(FIRST, "x" * 200)], {}, f"has 200 characters: {FACTS['lengths']['characters_of_a_line']['max']} is the most"),
        ([Direction("x" * 200)], {}, f"characters: {FACTS['lengths']['characters_of_a_direction']['max']} is the most"),
        ("Hi.", {}, "history is 'Hi.': give a scene, or a list of lines, directions and (speaker, text) pairs"),
        (7, {}, "history is 7: give a scene"),
        ([7], {}, "7 is not a line, a direction or a (speaker, text) pair"),
        ([(FIRST, "a", "b")], {}, "is not a line, a direction or a (speaker, text) pair"),
        (["Hi."], {}, "'Hi.' is not a line, a direction or a (speaker, text) pair"),
        ([(FIRST, None)], {}, "is not a line, a direction or a (speaker, text) pair"),
        ([], {"character": "Nobody"}, "there is no character 'Nobody'"),
        ([], {"place": "the moon"}, "there is no place 'the moon'"),
        (Scene(None, "THE MOON", ()), {}, "there is no place 'THE MOON'"),
        ([], {"title": "?"}, "give one with a word in it"),
        ([], {"temperature": -1}, "temperature is -1"),
        ([], {"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_answered_is_named(writer: SceneWriter, history: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        writer.reply(history, **settings)


@pytest.mark.parametrize("count", [0, -1])
def test_no_scenes_are_named(writer: SceneWriter, count: int) -> None:
    with pytest.raises(ValueError, match=f"count is {count}: it must be 1 or more"):
        writer.scenes(count)


# Other checkpoints


@pytest.mark.parametrize("shape", ["modern", "classic"])
@pytest.mark.parametrize("world", ["foreign characters", "foreign subwords", "subwords"])
def test_a_checkpoint_of_another_cast_writes_scenes_of_it(world: str, shape: str) -> None:
    other = without_weights(world, shape)
    facts = WORLDS[world][0]
    lead, friend = facts["cast"][:2]
    for scene in other.scenes(6, lead.lower(), cast=[friend], lines=(2, 4), temperature=1.5, seed=1):
        assert set(scene.speakers) == {lead, friend}
        assert scene.place in facts["places"]
        assert parse(str(scene)) == scene
    title = other.scene(title=facts["title_forms"][0] + " x", lines=2).title
    assert title == f"{facts['title_forms'][0]} X"
    assert other.reply([(lead, "So.")], friend).speaker == friend


def test_a_corpus_whose_titles_share_nothing_writes_scenes_without_titles() -> None:
    facts, tokenizer = WORLDS["characters"]
    model = GPT(Config.modern(tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=32, block_size=120))
    other = SceneWriter(Checkpoint(model, tokenizer, {"corpus": {**facts, "title_forms": []}}))
    assert other.scene(lines=2).title is None
    assert other.scene(lines=2, title="the flaky test").title == "THE FLAKY TEST"
    with pytest.raises(ValueError, match="give one with a word in it$"):
        other.scene(title="")


def test_a_checkpoint_of_any_text_writes_text_and_no_scenes(tmp_path: Any) -> None:
    checkpoint.save(tmp_path / "mine", GPT(tiny("modern")), TOKENIZER, {"corpus": {"format": "text"}})
    other = cpgpt.load(tmp_path / "mine")
    assert not other.writes_scenes
    assert (other.characters, other.places) == ((), ())
    for attempt in (other.scene, other.stream, lambda: other.reply([]), lambda: other.scene("ROSS"), lambda: other.scenes(2)):
        with pytest.raises(ValueError, match="the checkpoint mine was not trained on scenes: use stream_text, or load another"):
            attempt()
    text = "".join(other.stream_text("So, ", max_characters=40, stop=False, seed=3))
    assert len(text) <= 40
    assert text == "".join(other.stream_text("So, ", max_characters=40, stop=False, seed=3))
    assert text != "".join(other.stream_text("So, ", max_characters=40, stop=False, seed=4))
    assert [*other.texts([3, 4], prompt="So, ", max_characters=40, stop=False)][0] == text
    with pytest.raises(ValueError, match="max_characters is 0: it must be 1 or more"):
        other.stream_text(max_characters=0)


def test_a_text_has_as_many_characters_as_were_asked_for_in_any_alphabet() -> None:
    facts, tokenizer = WORLDS["foreign characters"]
    model = GPT(Config.modern(tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=32, block_size=60))
    other = SceneWriter(Checkpoint(model, tokenizer, {"corpus": {"format": "text"}}))
    for seed in range(5):
        assert len("".join(other.stream_text(max_characters=30, stop=False, seed=seed, temperature=2.0))) == 30
