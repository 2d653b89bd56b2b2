"""Text into what training reads: checks, splits, facts, and that nothing is written from a faulty corpus."""

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from cpgpt.screenplay import parse
from cpgpt.tokenizer import Tokenizer, UnknownCharacterError
from tests.commands import run_module
from training import prepare
from training.data import Data
from training.prepare import CORPUS, SHARES, prepare_corpus, prepare_text, split_of
from training.scenes import read_corpus, title_forms


def scenes(count: int, cast: tuple[str, ...] = ("ANNA", "BELA", "CLEO")) -> list[str]:
    """Scenes in the corpus's format, of another cast in another place."""
    texts = []
    for number in range(count):
        lines = [f"{cast[i % len(cast)]}: This is what I say in line {i} of {number}." for i in range(8)]
        texts.append(
            f"A DAY WITH NUMBER {number}\n\nSCENE: THE {'HARBOR' if number % 3 else 'SHIP'}\n\n(A gull lands.)\n"
            + "\n".join(lines)
            + "\n"
        )
    return texts


def corpus_of(folder: Path, texts: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "one.txt").write_text("\n".join(texts), encoding="utf-8")
    return folder


def documents(data: Data, split: str) -> list[str]:
    ids = data.splits[split]
    assert ids[0] == ids[-1] == 0
    ends = np.flatnonzero(ids == 0).tolist()
    return [data.tokenizer.decode(ids[a + 1 : b].tolist()) for a, b in pairwise(ends)]


def test_our_corpus_has_no_fault() -> None:
    corpus = read_corpus(CORPUS)
    assert corpus.faults == []
    assert len(corpus.scenes) > 5000
    first = CORPUS / "code-01.txt"
    assert "\n".join(found.text for found in corpus.found if found.file == first) == first.read_text()


def test_every_document_comes_back_from_the_arrays_and_a_third_have_no_title(tmp_path: Path) -> None:
    texts = scenes(300)
    prepare_corpus(corpus_of(tmp_path / "corpus", texts), tmp_path / "data", None, SHARES)
    data = Data.load(tmp_path / "data")
    found = {split: documents(data, split) for split in data.splits}
    assert sum(map(len, found.values())) == 300
    untitled = [text for text in found["train"] if text.startswith("SCENE: ")]
    assert 0.25 < len(untitled) / len(found["train"]) < 0.42
    assert not [text for split in ("validation", "test") for text in found[split] if text.startswith("SCENE: ")]
    bodies = {text[text.index("SCENE: ") :] for texts in found.values() for text in texts}
    assert bodies == {text[text.index("SCENE: ") :] for text in texts}
    assert all(np.load(tmp_path / "data" / f"{split}.npy", mmap_mode="r").dtype == np.uint16 for split in found)


def test_a_scene_never_changes_sides_when_others_are_added(tmp_path: Path) -> None:
    sides = []
    for count in (150, 300):
        prepare_corpus(corpus_of(tmp_path / "corpus", scenes(count)), tmp_path / "data", None, SHARES)
        data = Data.load(tmp_path / "data")
        sides.append({text: split for split in data.splits for text in documents(data, split)})
    assert sides[0].items() <= sides[1].items()


def test_the_splits_have_their_shares() -> None:
    counts = [split_of(f"title {n}", SHARES) for n in range(20_000)]
    for split, share in zip(prepare.SPLITS, SHARES, strict=True):
        assert counts.count(split) / 200 == pytest.approx(share, abs=0.7)


def test_cast_places_titles_and_lengths_are_found_in_the_text(tmp_path: Path) -> None:
    texts = scenes(100)
    meta = prepare_corpus(corpus_of(tmp_path / "corpus", texts), tmp_path / "data", None, SHARES)
    assert meta == json.loads((tmp_path / "data" / "meta.json").read_text())
    assert meta["cast"] == ["ANNA", "BELA", "CLEO"]
    assert meta["places"] == ["THE HARBOR", "THE SHIP"]
    assert meta["title_forms"] == ["A DAY WITH NUMBER"]
    assert meta["lengths"]["lines_of_a_scene"] == {"min": 8, "low": 8, "usual": 8, "high": 8, "max": 8}
    assert meta["lengths"]["characters_of_a_scene"]["max"] == max(map(len, texts))
    assert meta["alphabet"] == "".join(sorted(set("".join(texts))))
    assert len(meta["sha256"]) == 64


def test_title_forms_end_where_titles_go_apart() -> None:
    ends = [f"{a} {b}" for a in ("CATS", "DOGS", "OWLS", "BEES", "ANTS", "EELS", "RAYS") for b in ("SING", "DANCE", "SLEEP")]
    assert title_forms([f"THE ONE {'WITH' if i % 3 else 'WHERE'} {end}" for i, end in enumerate(ends)]) == [
        "THE ONE WITH",
        "THE ONE WHERE",
    ]
    assert title_forms(ends) == []


GOOD = scenes(40)
FAULTS = {
    "a name that nobody else has": (12, "BELLA: This is a slip in a name.", "'BELLA' is not in the cast: ANNA, BELA, CLEO"),
    "a place of its own": (3, "SCENE: THE MOON", "'THE MOON' is no place of the others: THE HARBOR, THE SHIP"),
    "another title's form": (1, "THE DAY WITH NUMBER 1", "a title starts with A DAY WITH NUMBER: 'THE DAY WITH NUMBER 1'"),
    "a title used twice": (1, "A DAY WITH NUMBER 0", r"title used at .*one.txt:1 already: A DAY WITH NUMBER 0"),
    "a title too short": (1, "A DAY", "5 characters in the title: 16 to 60 are right"),
    "a dash": (7, "ANNA: A dash \u2014 here.", "characters outside the alphabet: '\u2014'"),
    "an ellipsis": (7, "ANNA: Well...", "an ellipsis"),
    "a long line": (7, f"ANNA: {'very ' * 30}long.", "161 characters: a line has 140 at most"),
    "a direction without a full stop": (5, "(A gull lands)", "a stage direction ends with a full stop and a bracket"),
    "no line of dialogue": (7, "and so on", "not a line of dialogue"),
    "a lower-case title": (1, "A day with number 1", "not a title in capitals"),
    "a blank line inside": (8, "", "a blank line"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_file_and_line_and_nothing_is_written(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row, wrong, message = FAULTS[fault]
    rows = GOOD[1].split("\n")
    rows[row - 1] = wrong
    # In a corpus of 1,000 scenes, so that one scene's name is a rare one.
    corpus = corpus_of(tmp_path / "corpus", [GOOD[0], "\n".join(rows), *scenes(1000)[2:]])
    with pytest.raises(ValueError, match=r"\d+ faults in .*: nothing was written"):
        prepare_corpus(corpus, tmp_path / "data", None, SHARES)
    line = GOOD[0].count("\n") + 1 + row
    assert re.search(rf"{corpus / 'one.txt'}:{line}: .*{message}", capsys.readouterr().out)
    assert not (tmp_path / "data").exists()


def test_every_fault_is_printed_and_the_command_fails(tmp_path: Path) -> None:
    texts = scenes(4)
    bad = [text.replace("line 3", "line \u00e9").replace("(A gull lands.)", "(A gull lands") for text in texts[:2]]
    corpus = corpus_of(tmp_path / "corpus", [*bad, *texts[2:]])
    result = run_module("training.prepare", "--corpus", str(corpus), "--out", str(tmp_path / "data"))
    assert result.returncode != 0
    assert "nothing was written" in result.stderr
    faults = re.findall(r"one\.txt:(\d+): (.*)", result.stdout)
    assert {int(line) for line, _ in faults} == {5, 9, 19, 23}
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("vocab_size", [None, 120])
def test_the_prepared_tokenizer_is_read_by_transformers(vocab_size: int | None, tmp_path: Path) -> None:
    texts = scenes(60)
    meta = prepare_corpus(corpus_of(tmp_path / "corpus", texts), tmp_path / "data", vocab_size, SHARES)
    ours, theirs = Tokenizer.load(tmp_path / "data"), AutoTokenizer.from_pretrained(tmp_path / "data")
    assert meta["vocab_size"] == ours.vocab_size == len(theirs) == (vocab_size or len(meta["alphabet"]) + 1)
    assert theirs(texts[0])["input_ids"] == [0, *ours.encode(texts[0])]


def test_any_text_as_one_document_is_cut_by_position(tmp_path: Path) -> None:
    text = "".join(f"Line {n} of a text, na\u00efvely.\n" for n in range(500))
    (tmp_path / "my.txt").write_text(text, encoding="utf-8")
    prepare_text(tmp_path / "my.txt", tmp_path / "data", None, "whole", (80.0, 15.0, 5.0))
    data = Data.load(tmp_path / "data")
    parts = [documents(data, split) for split in prepare.SPLITS]
    assert "".join(part for (part,) in parts) == text
    assert [len(part) / len(text) for (part,) in parts] == pytest.approx([0.8, 0.15, 0.05], abs=1e-3)


def test_any_text_as_documents_between_blank_lines(tmp_path: Path) -> None:
    poems = [f"Poem {n}\nhas two lines" for n in range(200)]
    (tmp_path / "my.txt").write_text("\n\n".join(poems) + "\n\n\n", encoding="utf-8")
    prepare_text(tmp_path / "my.txt", tmp_path / "data", None, "blank-lines", SHARES)
    data = Data.load(tmp_path / "data")
    found = [text for split in prepare.SPLITS for text in documents(data, split)]
    assert sorted(found) == sorted(f"{poem}\n" for poem in poems)
    assert all(documents(data, split) for split in prepare.SPLITS)


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (b"\xff\xfe\x00", [], "is not UTF-8"),
        (b" \n", [], "is empty"),
        (b"some text\n", ["--split", "90/20"], "--split is '90/20': give three percentages that add up to 100"),
        (b"some text\n", ["--vocab-size", "3"], "vocab_size is 3"),
        (b"some text\n", ["--vocab-size", "500"], "vocab_size is 500: the text has only"),
    ],
)
def test_a_text_that_cannot_be_prepared_says_why(content: bytes, arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_bytes(content)
    result = run_module("training.prepare", "--input", str(tmp_path / "my.txt"), "--out", str(tmp_path / "data"), *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "data").exists()


def test_what_the_tokenizer_does_not_know_is_never_dropped(tmp_path: Path) -> None:
    prepare_corpus(corpus_of(tmp_path / "corpus", scenes(60)), tmp_path / "data", None, SHARES)
    with pytest.raises(UnknownCharacterError, match=r"'\u6f22' .*at position 4"):
        Tokenizer.load(tmp_path / "data").encode("ANNA\u6f22")


def test_scenes_of_the_splits_parse(tmp_path: Path) -> None:
    prepare_corpus(corpus_of(tmp_path / "corpus", scenes(60)), tmp_path / "data", None, SHARES)
    data = Data.load(tmp_path / "data")
    assert [str(parse(text)) for text in documents(data, "train")] == documents(data, "train")
