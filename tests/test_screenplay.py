"""The scene format: what is read is written back byte for byte, and every fault is named with its line."""

import contextlib
import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpgpt.screenplay import Direction, Event, Fault, Line, Scene, SceneReader, ScreenplayError, parse
from training.prepare import CORPUS
from training.scenes import split_scenes

TEXT = """THE ONE WITH THE FLAKY TEST

SCENE: CENTRAL PERK

(Ross walks in.)
ROSS: It passed on my machine: twice.
MRS. O'NEIL-2: (laughing) It did.
ROSS: See?
"""

one_row = st.text(st.characters(codec="utf-8", exclude_characters="\n"))
headings = st.from_regex(r"[^a-z\n]*[A-Z][^a-z\n]*", fullmatch=True)
names = st.from_regex(r"[A-ZÉŽΔЖ][A-ZÉŽΔЖ0-9 .'-]*", fullmatch=True).filter(lambda name: name != "SCENE")
lines = st.builds(Line, names, one_row.filter(str.strip))
directions = st.builds(Direction, one_row.filter(bool))
scenes = st.builds(
    Scene,
    st.none() | headings.filter(lambda title: not title.startswith("SCENE: ")),
    headings,
    st.lists(lines | directions, min_size=1).filter(lambda items: any(isinstance(item, Line) for item in items)).map(tuple),
)


def test_every_scene_of_the_corpus_is_written_back_byte_for_byte() -> None:
    texts = {file: file.read_text(encoding="utf-8") for file in sorted(CORPUS.glob("*.txt"))}
    assert len(texts) > 100
    for file, text in texts.items():
        found = [scene.text for scene in split_scenes(file, text)]
        assert "\n".join(found) == text, file
        for scene in found:
            assert str(parse(scene)) == scene


def test_a_scene_is_its_title_its_place_and_what_happens() -> None:
    scene = parse(TEXT)
    assert scene == Scene(
        "THE ONE WITH THE FLAKY TEST",
        "CENTRAL PERK",
        (
            Direction("Ross walks in."),
            Line("ROSS", "It passed on my machine: twice."),
            Line("MRS. O'NEIL-2", "(laughing) It did."),
            Line("ROSS", "See?"),
        ),
    )
    assert scene.speakers == ["ROSS", "MRS. O'NEIL-2"]
    assert [line.text for line in scene.lines] == ["It passed on my machine: twice.", "(laughing) It did.", "See?"]
    assert str(scene) == TEXT


def test_the_title_may_be_missing() -> None:
    text = TEXT.split("\n", 2)[2]
    assert text.startswith("SCENE: ")
    assert parse(text) == Scene(None, "CENTRAL PERK", parse(TEXT).items)
    assert str(parse(text)) == text


@given(scene=scenes)
def test_any_scene_is_read_back_from_its_text(scene: Scene) -> None:
    assert parse(str(scene)) == scene


# Scenes as JSON


@given(scene=scenes, seed=st.none() | st.integers(0, 2**64 - 1))
def test_a_scene_goes_through_json_and_comes_back(scene: Scene, seed: int | None) -> None:
    scene = Scene(scene.title, scene.place, scene.items, seed)
    back = Scene.from_dict(json.loads(json.dumps(scene.to_dict())))
    assert back == scene
    assert back.seed == seed
    assert str(back) == str(scene)


def test_json_has_the_fields_that_scripts_count_on() -> None:
    scene = Scene("A TITLE", "HERE", (Direction("So."), Line("ROSS", "Hi.")), 7)
    items = [{"direction": "So."}, {"speaker": "ROSS", "text": "Hi."}]
    assert scene.to_dict() == {"title": "A TITLE", "place": "HERE", "items": items, "seed": 7}
    assert Scene.from_dict({"place": "HERE", "items": items}) == Scene(None, "HERE", scene.items)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "'items'"),
        ({"items": []}, "'place'"),
        ({"place": 5, "items": []}, "place is 5, not a text"),
        ({"title": 5, "place": "HERE", "items": []}, "title is 5, not a text"),
        ({"place": "HERE", "items": [{"speaker": "ROSS"}]}, "'text'"),
        ({"place": "HERE", "items": [{"speaker": None, "text": "Hi."}]}, "speaker is None, not a text"),
        ({"place": "HERE", "items": [7]}, "not a scene"),
        ({"place": "HERE", "items": None}, "not a scene"),
        ([], "not a scene"),
        (None, "not a scene"),
    ],
)
def test_json_that_is_no_scene_says_what_is_wrong_and_what_a_scene_has(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        Scene.from_dict(data)
    assert '"title", "place" and "items"' in str(caught.value)


# Scenes that grow


def fed(text: str, cuts: list[int]) -> tuple[SceneReader, list[Event]]:
    """A reader that was given `text` in pieces, and what it told; texts that follow each other are put together."""
    reader, events = SceneReader(), list[Event]()
    ends = sorted({cut for cut in cuts if cut <= len(text)} | {len(text)})
    for start, end in zip([0, *ends], ends, strict=False):
        for event in reader.feed(text[start:end]):
            if events and event.kind == events[-1].kind == "text":
                events[-1] = Event("text", events[-1].text + event.text)
            else:
                events.append(event)
    return reader, events + reader.end()


def told(scene: Scene) -> list[Event]:
    """What a reader of the whole of `scene` tells."""
    events = [Event("title", scene.title)] if scene.title is not None else []
    events.append(Event("place", scene.place))
    for item in scene.items:
        events.append(Event("speaker", item.speaker) if isinstance(item, Line) else Event("direction"))
        events += [Event("text", item.text), Event("line", item.text)]
    return [*events, Event("scene")]


@given(scene=scenes, cuts=st.lists(st.integers(0, 120)))
def test_a_reader_tells_the_same_in_whatever_pieces_the_text_comes(scene: Scene, cuts: list[int]) -> None:
    reader, events = fed(str(scene), cuts)
    assert events == told(scene)
    assert (reader.title, reader.place, tuple(reader.items)) == (scene.title, scene.place, scene.items)
    assert fed(str(scene), list(range(len(str(scene)))))[1] == events


def test_a_reader_tells_of_each_character_as_soon_as_it_is_known() -> None:
    reader = SceneReader()
    assert reader.feed("SCENE: HERE") == []
    assert reader.feed("\n") == [Event("place", "HERE")]
    assert reader.feed("\nROSS:") == []
    assert reader.feed(" ") == [Event("speaker", "ROSS")]
    assert reader.feed("H") == [Event("text", "H")]
    assert reader.feed("i.\n(") == [Event("text", "i."), Event("line", "Hi."), Event("direction")]
    assert reader.feed("A)") == [Event("text", "A")]  # whether the bracket closes it shows with what follows
    assert reader.feed("b)\n") == [Event("text", ")b"), Event("line", "A)b")]
    assert reader.items == [Line("ROSS", "Hi."), Direction("A)b")]
    assert reader.end() == [Event("scene")]


@given(text=st.text(st.sampled_from("AB: (a.)\n") | st.characters(codec="utf-8"), max_size=40), cut=st.integers(0, 9))
def test_a_reader_accepts_what_parse_accepts_and_nothing_else(text: str, cut: int) -> None:
    for whole in (text, f"SCENE: HERE\n\n{text}"):
        expected = seen = None
        with contextlib.suppress(ScreenplayError):
            expected = told(parse(whole))
        with contextlib.suppress(ScreenplayError):
            seen = fed(whole, [cut])[1]
        assert seen == expected


def test_a_reader_has_the_error_that_parse_has() -> None:
    reader = SceneReader()
    reader.feed("SCENE: HERE\n\nROSS: Hi.\nRo")
    with pytest.raises(ScreenplayError, match=r"^line 4: not a line of dialogue .*'Ross'$"):
        reader.feed("ss\nROSS:")
    with pytest.raises(ScreenplayError, match=r"^line 3: nobody speaks"):
        fed("SCENE: HERE\n\n(So.)\n", [])


# Rows of a scene and rows of none, so that many texts are almost scenes.
rows = st.sampled_from([*TEXT.split("\n"), "ROSS:", "SCENE: ", "(", "()", "Ross: hm.", "SCENE: A: B"]) | one_row


@given(text=st.lists(rows, max_size=9).map("\n".join) | st.lists(rows).map(lambda more: TEXT + "\n".join(more) + "\n"))
def test_any_text_is_a_scene_that_is_written_back_or_has_faults(text: str) -> None:
    try:
        scene = parse(text)
    except ScreenplayError as error:
        at = [fault.line for fault in error.faults]
        assert 1 <= at[0] <= at[-1] <= text.count("\n") + 3
        assert at == sorted(at)
    else:
        assert str(scene) == text


def changed(number: int, *replacement: str) -> str:
    """`TEXT` with other rows in place of row `number`, counted from 1."""
    rows = TEXT.split("\n")
    return "\n".join([*rows[: number - 1], *replacement, *rows[number:]])


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (changed(1, "The one"), 1, "not a title in capitals: 'The one'"),
        (changed(1, ""), 1, "not a title in capitals: ''"),
        (changed(1, "1234"), 1, "not a title in capitals: '1234'"),
        (changed(2), 2, "a blank line must follow the title"),
        (changed(3, "PLACE: CENTRAL PERK"), 3, "not 'SCENE: ' and a place in capitals"),
        (changed(3, "SCENE: Central Perk"), 3, "not 'SCENE: ' and a place in capitals: 'Central Perk'"),
        (changed(3, "SCENE: "), 3, "not 'SCENE: ' and a place in capitals: ''"),
        (changed(4), 4, "a blank line must follow the SCENE: line"),
        (changed(5, "(Ross walks in."), 5, "a stage direction must end with a bracket"),
        (changed(5, "()"), 5, "a stage direction must end with a bracket: '()'"),
        (changed(6, ""), 6, "a blank line"),
        (changed(6, "Ross: Hi."), 6, "not a line of dialogue (NAME: what is said): 'Ross: Hi.'"),
        (changed(6, "José: Hi."), 6, "not a line of dialogue (NAME: what is said): 'José: Hi.'"),
        (changed(6, "JOSé: Hi."), 6, "not a line of dialogue"),
        (changed(6, "7UP: Hi."), 6, "not a line of dialogue"),
        (changed(6, "ROSS:Hi."), 6, "not a line of dialogue"),
        (changed(6, "ROSS:  "), 6, "not a line of dialogue"),
        (changed(6, "SCENE: A BAR"), 6, "not a line of dialogue"),
        (changed(6, "", TEXT.rstrip()), 6, "a blank line"),
        (TEXT + "\n", 9, "a blank line"),
        (TEXT.rstrip(), 8, "the last line must end with a line break"),
        ("\n".join(TEXT.split("\n")[:5]) + "\n", 5, "nobody speaks"),
    ],
)
def test_a_fault_is_named_with_its_line(text: str, line: int, message: str) -> None:
    with pytest.raises(ScreenplayError) as caught:
        parse(text)
    assert str(caught.value).startswith(f"line {line}: {message}")
    assert caught.value.faults[0].line == line
    assert caught.value.faults[0].message.startswith(message)


def test_all_faults_are_listed_and_the_message_names_the_first() -> None:
    text = changed(1, "The one").replace("ROSS: See?\n", "See?")
    with pytest.raises(ScreenplayError, match=r"^line 1: not a title .* \(and 2 more faults\)$") as caught:
        parse(text)
    assert [fault.line for fault in caught.value.faults] == [1, 8, 8]
    assert all(isinstance(fault, Fault) for fault in caught.value.faults)


@pytest.mark.parametrize("text", ["", "\n", "\n\n", "x", "SCENE: A"])
def test_what_is_hardly_a_text_has_faults_from_line_1_on(text: str) -> None:
    with pytest.raises(ScreenplayError, match=r"^line 1: ") as caught:
        parse(text)
    assert min(fault.line for fault in caught.value.faults) == 1


def test_a_long_line_is_read_in_time_that_grows_with_its_length() -> None:
    start = time.monotonic()
    for row in (1, 3):
        with pytest.raises(ScreenplayError, match=f"line {row}: "):
            parse(changed(row, "SCENE: " * (row == 3) + 20_000 * "A" + "a"))
    assert time.monotonic() - start < 1
