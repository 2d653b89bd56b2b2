"""The grammar: whatever it allows can be completed, is a scene and keeps the rules, and the corpus's scenes are among it."""

import itertools
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cpgpt
from cpgpt.grammar import ENDED, LAST_WORD, TITLE_LAST_WORD, Grammar, Rules, State, last_word
from cpgpt.screenplay import Direction, Line, Scene, parse
from cpgpt.tokenizer import END_OF_TEXT_ID, Tokenizer
from tests.commands import ROOT
from training.prepare import CORPUS
from training.scenes import Corpus, Found, facts_about, read_corpus

# Another cast, in another alphabet: what of it is several bytes long has several ids, alone or as parts of subwords.
FOREIGN = [
    f"UN JOUR À L'ÉCOLE {chr(65 + number % 26)}{' DÉCONNECTÉ' * (number % 3)}\n\nSCENE: {('LE CAFÉ', 'LE TOIT')[number % 2]}\n\n"
    f"(Zoë regarde la mer.)\nJOSÉ: Où est le câble n° {number} ?\nZOË-2: Là-bas… je crois.\nMRS. O'NEIL: « Voilà ! » Ça y est.\n"
    f"(Le café est prêt.)\nZOË-2: 日本 — c'est loin, José !\nJOSÉ: Où ça ?\nZOË-2: Là.\n"
    for number in range(40)
]


def facts_of(texts: Sequence[str]) -> dict[str, Any]:
    facts = facts_about(Corpus([Found(Path("foreign.txt"), 1, text, parse(text)) for text in texts]))
    return {"format": "scenes", "alphabet": "".join(sorted({c for text in texts for c in text})), **facts}


SCENES = read_corpus(CORPUS).scenes
OURS: dict[str, Any] = cpgpt.load_checkpoint().facts["corpus"]
THEIRS = facts_of(FOREIGN)
WORLDS: dict[str, tuple[dict[str, Any], Tokenizer]] = {
    "characters": (OURS, cpgpt.load_checkpoint().tokenizer),
    "subwords": (OURS, Tokenizer.train([str(scene) for scene in SCENES[::10]], 600)),
    "foreign characters": (THEIRS, Tokenizer.train(FOREIGN)),
    "foreign subwords": (THEIRS, Tokenizer.train(FOREIGN, 200)),
}
each = pytest.mark.parametrize("world", WORLDS)


def rules_of(data: st.DataObject, facts: dict[str, Any]) -> Rules:
    """Any rules that a scene can keep."""
    cast = data.draw(st.lists(st.sampled_from(facts["cast"]), min_size=1, max_size=6, unique=True), "cast")
    least = data.draw(st.integers(1, 9), "min_lines")
    low = data.draw(st.integers(1, 40), "least of a title")
    # The shortest line and title that the rules may ask for, now and then, so that every character counts.
    line = max(map(len, cast)) + 4 + data.draw(st.sampled_from([0, 1, 2, 5, 30, 80]), "max_line_length")
    title = max(low, max(map(len, facts["title_forms"])) + 3 + data.draw(st.sampled_from([0, 1, 9, 30]), "most of a title"))
    changes = {
        "cast": tuple(cast),
        "places": tuple(data.draw(st.lists(st.sampled_from(facts["places"]), min_size=1, unique=True), "places")),
        "lead": data.draw(st.sampled_from([None, *cast]), "lead"),
        "everyone": data.draw(st.booleans(), "everyone"),
        "min_lines": least,
        "max_lines": least + data.draw(st.integers(0, 6), "lines more"),
        "min_speakers": data.draw(st.integers(1, 3), "min_speakers"),
        "max_line_length": line,
        "title_length": (low, title),
        "max_direction_length": data.draw(st.sampled_from([4, 5, 30, 60]), "max_direction_length"),
        "max_directions": data.draw(st.integers(0, 4), "max_directions"),
    }
    try:
        return Rules.of(facts, **changes)
    except ValueError as error:
        if not re.search("too few for|at least . speak in a scene", str(error)):
            raise
        return rules_of(data, facts)


def walk(grammar: Grammar, tokenizer: Tokenizer, at: str, chance: random.Random) -> list[int]:
    """A random allowed path from `at` to the end. At every step something is allowed, and `forced` says when it is one id only."""
    state, ids = grammar.start(at), list[int]()
    # Long rows and short ones, with many spaces or few, in characters of one byte or of several: each path has its own taste.
    taste = np.array([chance.choice([0.05, 1, 1, 20]) * (1 + len(token)) for token in tokenizer.token_bytes])
    taste[list(tokenizer.line_break_ids())] *= chance.choice([0.02, 1, 50])
    while state.inside != ENDED:
        mask = grammar.allowed(state)
        possible = mask.nonzero()[0]
        assert len(possible), f"nothing may follow {tokenizer.decode(ids)!r}"
        assert grammar.forced(state) == (possible[0] if len(possible) == 1 else None)
        if chance.random() < 0.02:  # masks are kept: the one of a grammar that has kept nothing yet is the same
            assert np.array_equal(Grammar(grammar.rules, tokenizer).allowed(state.copy()), mask)
        id = int(chance.choices(possible.tolist(), taste[possible].tolist())[0])
        ids.append(id)
        grammar.advance(state, id)
        assert len(ids) < 5000
    return ids


def broken_rules(scene: Scene, rules: Rules) -> list[str]:
    """What a whole scene does against `rules`."""
    counts = Counter(line.speaker for line in scene.lines)
    rows, broken = [str(item) for item in scene.items], []

    def check(kept: bool, what: str) -> None:
        if not kept:
            broken.append(what)

    check(set(counts) <= set(rules.cast), "somebody else speaks")
    check(not rules.everyone or set(counts) == set(rules.cast), "not everyone speaks")
    check(len(counts) >= rules.min_speakers, "too few speak")
    check(rules.min_lines <= len(scene.lines) <= rules.max_lines, "number of lines")
    check(scene.place in rules.places, "place")
    directions = [item for item in scene.items if isinstance(item, Direction)]
    check(len(directions) <= rules.max_directions, "number of directions")
    check(
        not any(isinstance(a, Direction) and isinstance(b, Direction) for a, b in itertools.pairwise(scene.items)),
        "directions side by side",
    )
    for item, row in zip(scene.items, rows, strict=True):
        longest = rules.max_line_length if isinstance(item, Line) else rules.max_direction_length
        check(len(row) <= longest, "length of a row")
        check(item.text[-1] in rules.line_ends, "end of a row")
        check(item.text[0] != " ", "a space before")
        check(not isinstance(item, Direction) or not set("()") & set(item.text), "a bracket in a direction")
        check(item.text[0] not in "()", "a bracket at the start of a line")
        room = longest - len(row[: row.rstrip(")").rfind(" ")])
        check(room >= last_word(longest, LAST_WORD) or " " not in item.text, "a word that might not have fitted")
        check("  " not in row, "two spaces")
    if rules.lead is not None:
        check(scene.lines[0].speaker == rules.lead, "the lead does not open")
        others = [count for name, count in counts.items() if name != rules.lead]
        check(len(counts) < 3 or counts[rules.lead] > max(others), "the lead has not the most lines")
    if scene.title is not None:
        low, high = rules.title_length
        check(low <= len(scene.title) <= high, "length of the title")
        check(scene.title.startswith(tuple(f"{form} " for form in rules.title_forms)), "form of the title")
        check(scene.title == scene.title.upper(), "a title in small letters")
        check(scene.title[-1].isalnum() and "  " not in scene.title, "end of the title")
    return broken


@each
@settings(max_examples=60)
@given(data=st.data())
def test_every_allowed_path_leads_to_a_scene_that_keeps_the_rules(world: str, data: st.DataObject) -> None:
    facts, tokenizer = WORLDS[world]
    rules = rules_of(data, facts)
    if data.draw(st.booleans(), "alphabet of the tokenizer"):
        rules = replace(rules, alphabet="")
    grammar = Grammar(rules, tokenizer)
    chance = random.Random(data.draw(st.integers(0, 2**32), "path"))
    before = {
        "title": "",
        "place": f"{rules.title_forms[0]} {'X' * (rules.title_length[1] - len(rules.title_forms[0]) - 1)}\n\nSCENE: ",
    }
    before["items"] = f"SCENE: {rules.places[0]}\n\n"
    at = data.draw(st.sampled_from(["title", "place", "items"]), "at")
    ids = walk(grammar, tokenizer, at, chance)
    assert ids[-1] == END_OF_TEXT_ID
    assert END_OF_TEXT_ID not in ids[:-1]
    text = before[at] + tokenizer.decode(ids)
    scene = parse(text)
    assert str(scene) == text
    assert broken_rules(scene, rules) == []
    assert set(text) <= set(facts["alphabet"]) | set("\n X")
    alone = [
        (a, b) for a, b in itertools.pairwise(scene.items) if isinstance(a, Line) and isinstance(b, Line) and a.speaker == b.speaker
    ]
    assert not alone or len(rules.cast) < 3 or rules.lead is not None  # twice in a row only where the counts ask for it


def test_foreign_characters_are_written_and_titles_have_only_large_ones() -> None:
    facts, tokenizer = WORLDS["foreign characters"]
    grammar, chance = Grammar(Rules.of(facts), tokenizer), random.Random(3)
    scenes = [parse(tokenizer.decode(walk(grammar, tokenizer, "title", chance))) for _ in range(30)]
    written = {c for scene in scenes for item in scene.items for c in item.text if ord(c) > 127}
    assert {"à", "À", "…", "日"} <= written
    assert len(written) > 12
    in_titles = {c for scene in scenes for c in (scene.title or "").removeprefix(facts["title_forms"][0]) if ord(c) > 127}
    assert {"É", "日"} <= in_titles
    assert not {c for c in in_titles if c.upper() != c}
    title = tokenizer.encode(f"{facts['title_forms'][0]} A BÉBÉ")
    [line_break], [state] = tokenizer.encode("\n"), [grammar.start()]
    for id in title:
        grammar.advance(state, id)
    assert grammar.allowed(state)[line_break]  # a title may end with any letter
    grammar.advance(state, tokenizer.encode("—")[0])
    for id in tokenizer.encode("—")[1:]:
        grammar.advance(state, id)
    assert not grammar.allowed(state)[line_break]


def allowed_so_far(grammar: Grammar, ids: Sequence[int]) -> int:
    """How many of `ids` are allowed, one after the other."""
    state = grammar.start()
    for number, id in enumerate(ids):
        if not grammar.allowed(state)[id]:
            return number
        grammar.advance(state, id)
    return len(ids)


@pytest.mark.parametrize(("world", "every"), [("characters", 3), ("subwords", 25)])
def test_the_scenes_of_the_corpus_are_allowed_but_for_those_that_break_a_rule_on_purpose(world: str, every: int) -> None:
    facts, tokenizer = WORLDS[world]
    rules = Rules.of(facts)
    grammar, refused, scenes = Grammar(rules, tokenizer), Counter[str](), SCENES[::every]
    for scene in scenes:
        ids = [*tokenizer.encode(str(scene)), END_OF_TEXT_ID]
        if allowed_so_far(grammar, ids) < len(ids):
            reasons = broken_rules(scene, rules)
            if rules.title_length[1] - (scene.title or "").rfind(" ") < last_word(rules.title_length[1], TITLE_LAST_WORD):
                reasons.append("a title's word that might not have fitted")
            happened = None
            for item in scene.items:
                if isinstance(item, Line) and isinstance(happened, Line) and happened.speaker == item.speaker:
                    reasons.append("twice in a row")
                happened = item
            assert reasons, f"nothing is wrong with\n{scene}"
            refused.update(set(reasons))
            refused["all"] += 1
    assert refused["all"] < 0.1 * len(scenes), refused


@pytest.mark.parametrize("world", ["foreign characters", "foreign subwords"])
def test_scenes_of_another_cast_are_allowed(world: str) -> None:
    facts, tokenizer = WORLDS[world]
    ends = f"{Rules.line_ends}"
    grammar = Grammar(Rules.of(facts, line_ends=ends, title_length=(10, 80), max_line_length=140), tokenizer)
    for text in FOREIGN:
        ids = [*tokenizer.encode(text), END_OF_TEXT_ID]
        at = allowed_so_far(grammar, ids)
        assert at == len(ids), (tokenizer.decode(ids[:at]), tokenizer.decode(ids[at:]))


@given(
    size=st.integers(1, 4),
    lead=st.booleans(),
    everyone=st.booleans(),
    min_speakers=st.integers(1, 4),
    lines=st.tuples(st.integers(1, 6), st.integers(0, 3)),
)
def test_rules_are_impossible_only_if_no_order_of_speakers_keeps_them(
    size: int, lead: bool, everyone: bool, min_speakers: int, lines: tuple[int, int]
) -> None:
    cast, least, most = tuple("ABCD"[:size]), lines[0], min(6, sum(lines))

    def possible(order: tuple[str, ...]) -> bool:
        scene = Scene(None, "HERE", tuple(Line(name, "So.") for name in order))
        return not broken_rules(
            scene, Rules((*cast, *"EF"), ("HERE",), lead="A" if lead else None, min_lines=1, min_speakers=1)
        ) and (len(set(order)) >= max(min_speakers, size if everyone else 0) and all(a != b for a, b in itertools.pairwise(order)))

    any_is = any(possible(order) for count in range(least, most + 1) for order in itertools.product(cast, repeat=count))
    try:
        Rules(cast, ("HERE",), "A" if lead else None, everyone, least, most, min_speakers)
    except ValueError:
        assert not any_is
    else:
        assert any_is or size < 3  # two may speak twice in a row where there is no other way


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cast": ()}, "a scene needs a cast and places"),
        ({"places": ()}, "a scene needs a cast and places"),
        ({"lead": "GUS"}, "the lead GUS is not in the cast: ANNA, BELA, CLEO"),
        ({"min_lines": 0}, "lines from 0 to 14: give at least 1"),
        ({"min_lines": 9, "max_lines": 8}, "lines from 9 to 8"),
        ({"min_speakers": 4}, "a cast of 3 (ANNA, BELA, CLEO): at least 4 speak in a scene"),
        ({"min_lines": 1, "max_lines": 2, "everyone": True}, "at most 2 lines are too few for all 3 of ANNA, BELA, CLEO"),
        (
            {"min_lines": 1, "max_lines": 3, "everyone": True, "lead": "ANNA"},
            "at most 3 lines are too few for all 3 of ANNA, BELA, CLEO with the most lines for the lead",
        ),
        ({"min_lines": 1, "max_lines": 1}, "at most 1 lines are too few for 2 speakers"),
        ({"max_line_length": 7}, "max_line_length is 7: with these names it must be 8 or more"),
        (
            {"title_forms": ("A DAY WITH",), "title_length": (5, 12)},
            "title_length is (5, 12): it must be (least, most), the most 13",
        ),
        ({"title_forms": ("A DAY WITH",), "title_length": (30, 20)}, "title_length is (30, 20): it must be (least, most)"),
        ({"max_direction_length": 3}, "max_direction_length is 3: it must be 4 or more"),
    ],
)
def test_rules_that_no_scene_can_keep_are_named(changes: dict[str, Any], message: str) -> None:
    possible: dict[str, Any] = {"cast": ("ANNA", "BELA", "CLEO"), "places": ("THE HARBOR",)}
    Rules(**possible)
    with pytest.raises(ValueError, match=re.escape(message)):
        Rules(**{**possible, **changes})


def test_what_a_grammar_cannot_be_made_of_is_named() -> None:
    facts, tokenizer = WORLDS["characters"]
    with pytest.raises(ValueError, match="line_ends is '#': none of it is in the alphabet"):
        Grammar(Rules.of(facts, line_ends="#"), tokenizer)
    with pytest.raises(ValueError, match="the tokenizer cannot write 'ÅSA': it is not made for these names"):
        Grammar(Rules.of(facts, cast=("ÅSA", "BO")), tokenizer)
    with pytest.raises(ValueError, match=r'at is "?.middle.*must be "title", "place" or "items"'):
        Grammar(Rules.of(facts), tokenizer).start("middle")


def test_a_state_and_its_copy_go_their_own_ways() -> None:
    facts, tokenizer = WORLDS["characters"]
    grammar = Grammar(Rules.of(facts), tokenizer)
    state = grammar.start("items")
    for id in tokenizer.encode(f"{facts['cast'][0]}: So"):
        grammar.advance(state, id)
    before = State(**{name: getattr(state, name) for name in State.__slots__})
    other = state.copy()
    assert other == before
    for id in tokenizer.encode(f" what?\n{facts['cast'][1]}: N"):
        grammar.advance(other, id)
    assert state == before != other


def test_no_name_stands_in_the_code() -> None:
    """The code does not know the cast: it comes from the checkpoint."""
    names = [*OURS["cast"], *OURS["places"]]
    for file in (ROOT / "cpgpt").glob("*.[pc]*"):
        for number, row in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            found = [name for name in names if re.search(rf"\b{re.escape(name)}\b", row, re.IGNORECASE)]
            assert not found or _is_example(file, row), f"{file.name}:{number}: {row}"


def _is_example(file: Path, row: str) -> bool:
    """What shows people how it looks: a docstring's sample of the format, or of a call."""
    samples = {
        "screenplay.py": ("SCENE: CENTRAL PERK", "(Ross walks in with his laptop.)", "ROSS: It passed on my machine."),
        "__init__.py": ('writer.stream(character="JOEY", seed=7)',),
    }
    return any(sample in row for sample in samples.get(file.name, ()))
