"""The tokenizer: what goes in comes out, and nothing disappears."""

# ruff: noqa: RUF001 - characters that look like others are what it is about

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from cpgpt.tokenizer import END_OF_TEXT, END_OF_TEXT_ID, Tokenizer, UnknownCharacterError
from tests.conftest import TEXT, TOKENIZER

FOREIGN = 'Le café est très "chaud". Straße, 日本の日 - ok? |<>\n'
TOKENIZERS = {
    "characters": TOKENIZER,
    "subwords": Tokenizer.train([TEXT, *["\n\n"] * 9], vocab_size=TOKENIZER.vocab_size + 12),
    "foreign characters": Tokenizer.train([FOREIGN]),
    "foreign subwords": Tokenizer.train([FOREIGN, FOREIGN], vocab_size=Tokenizer.train([FOREIGN]).vocab_size + 12),
}
ALPHABETS = {name: sorted(set(FOREIGN if "foreign" in name else TEXT)) for name in TOKENIZERS}
each = pytest.mark.parametrize("name", TOKENIZERS)


def joined(tokenizer: Tokenizer, ids: list[int]) -> str:
    return b"".join(tokenizer.token_bytes[id] for id in ids).decode()


@each
@given(data=st.data())
def test_text_in_the_alphabet_comes_back_as_it_was(name: str, data: st.DataObject) -> None:
    tokenizer, text = TOKENIZERS[name], data.draw(st.text(st.sampled_from(ALPHABETS[name])))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text == tokenizer.plain(text)
    assert joined(tokenizer, ids) == text
    assert END_OF_TEXT_ID not in ids


@each
@given(text=st.text(st.sampled_from("aeio tn'\"-.\n") | st.sampled_from("éñ“”‘’—…\u00a0\t\r\u200b`ﬁ①") | st.characters()))
def test_any_text_comes_back_plain_or_is_refused(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    try:
        ids = tokenizer.encode(text)
    except UnknownCharacterError as error:
        unknown = error.characters
        assert unknown
        assert all(text[position] == character for position, character in unknown)
    else:
        assert tokenizer.decode(ids) == joined(tokenizer, ids) == tokenizer.plain(text)


@each
def test_end_of_text_is_id_0_and_decodes_to_nothing(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    assert tokenizer.backend.token_to_id(END_OF_TEXT) == END_OF_TEXT_ID == 0
    assert tokenizer.decode([0, *tokenizer.encode("ok"), 0]) == "ok"
    assert joined(tokenizer, [0, *tokenizer.encode("ok"), 0]) == "ok"


@each
def test_each_id_stands_for_its_bytes(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    assert len(tokenizer.token_bytes) == tokenizer.vocab_size
    assert tokenizer.token_bytes[END_OF_TEXT_ID] == b""
    assert all(tokenizer.token_bytes[1:])
    assert len(set(tokenizer.token_bytes)) == tokenizer.vocab_size
    if "subwords" not in name:
        assert set(tokenizer.token_bytes[1:]) == {bytes([byte]) for byte in "".join(ALPHABETS[name]).encode()}


@pytest.mark.parametrize("vocab_size", [None, 24])
def test_end_of_text_typed_by_a_user_is_text(vocab_size: int | None) -> None:
    text = f"text {END_OF_TEXT} nonsense {END_OF_TEXT}"
    tokenizer = Tokenizer.train([text], vocab_size)
    ids = tokenizer.encode(text)
    assert END_OF_TEXT_ID not in ids
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("typed", "plain"),
    [
        ("“so” „so‟ «so»", '"so" "so" "so"'),
        ("it’s ‘it‛ ‚it‹ `it´", "it's 'it' 'it' 'it'"),
        ("a – b — c ‑ d − e", "a - b - c - d - e"),
        ("so…", "so..."),
        ("a\u00a0b\u202fc\u3000d\te", "a b c d e"),
        ("a\r\nb\rc\u2028d\u0085e", "a\nb\nc\nd\ne"),
        ("a\u200bb\u00adc\ufeff", "abc"),
        ("àéîõü ñ ç Å e\u0301", "aeiou n c A e"),
        ("ｎｏ ﬁ", "no fi"),
        ("“é”\u00a0it’s\u2009—\u200b…", '"é" it\'s -...'),  # an alphabet with accents keeps them
    ],
)
def test_typographic_text_becomes_plain(typed: str, plain: str) -> None:
    tokenizer = Tokenizer.train([plain])
    assert tokenizer.plain(typed) == plain
    assert tokenizer.decode(tokenizer.encode(typed)) == plain


def test_what_the_training_text_has_is_not_made_plain() -> None:
    text = "“café”…\t—\r\n"
    tokenizer = Tokenizer.train([text])
    assert tokenizer.plain(text) == text == tokenizer.decode(tokenizer.encode(text))


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("日", [(0, "日")]),
        ("a % b & c %", [(2, "%"), (6, "&"), (10, "%")]),
        ("…“é\u200b\r\n%", [(6, "%")]),  # what comes before becomes longer, shorter, and vanishes
        ("a½b", [(1, "½")]),  # decomposes into what is unknown
        ("a ≠ b", [(2, "≠")]),  # its stroke is no accent: without it, the opposite is said
        ("\u093e\uff9e\u20dd", [(0, "\u093e"), (1, "\uff9e"), (2, "\u20dd")]),  # marks that are characters of their own
        ("🙂" * 9, [(i, "🙂") for i in range(9)]),
        ("a\ud800b", [(1, "\ud800")]),  # half a character, as broken JSON brings it
    ],
)
def test_unknown_characters_are_named_with_their_positions(text: str, unknown: list[tuple[int, str]]) -> None:
    tokenizer = Tokenizer.train(["abce 12=.'\"-\n"])
    for method in (tokenizer.encode, tokenizer.plain):
        with pytest.raises(UnknownCharacterError) as caught:
            method(text)
        assert caught.value.characters == unknown
        for position, character in unknown[:5]:
            assert f"{character!r} (U+{ord(character):04X}" in str(caught.value)
            assert f"at position {position}" in str(caught.value)
        assert ("and 4 more" in str(caught.value)) == (len(unknown) == 9)


def test_the_alphabet_is_what_encodes_as_it_is() -> None:
    assert Tokenizer.train(["banana é\n"]).alphabet == "\n abn"


def test_vocab_size_is_refused_unless_the_text_has_that_many_subwords() -> None:
    text = "abab ab"  # three characters, and the subwords "ab", "abab" and " ab"
    assert [Tokenizer.train([text], size).vocab_size for size in (4, 5, 7)] == [4, 5, 7]
    with pytest.raises(ValueError, match=r"vocab_size is 3: .* at least 4|vocab_size is 3: .* over 3$"):
        Tokenizer.train([text], 3)
    with pytest.raises(ValueError, match=r"vocab_size is 8: .* only 7"):
        Tokenizer.train([text], 8)


@each
@pytest.mark.parametrize("beyond", [0, 1000])
def test_ids_out_of_range_do_not_decode(name: str, beyond: int) -> None:
    tokenizer = TOKENIZERS[name]
    for wrong in (tokenizer.vocab_size + beyond, -1 - beyond):
        with pytest.raises(ValueError, match=f"no such ids: \\[{wrong}\\]"):
            tokenizer.decode([1, wrong])


@each
def test_line_break_ids_are_those_whose_text_ends_a_line(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ends = {id for id in range(tokenizer.vocab_size) if tokenizer.decode([id]).endswith("\n")}
    assert tokenizer.line_break_ids() == ends
    assert len(ends) == (2 if name == "subwords" else 1)


@each
def test_transformers_reads_the_saved_files(name: str, tmp_path: Path) -> None:
    tokenizer, text = TOKENIZERS[name], "".join(ALPHABETS[name]) + "ok — ok\n"
    for file, content in tokenizer.files().items():
        (tmp_path / file).write_text(content, encoding="utf-8")
    stock = AutoTokenizer.from_pretrained(tmp_path)
    assert stock.encode(text) == [0, *tokenizer.encode(text)]
    assert stock.decode(stock.encode(text), skip_special_tokens=True) == tokenizer.plain(text)
    assert (stock.eos_token_id, stock.bos_token_id, len(stock)) == (0, 0, tokenizer.vocab_size)


@each
def test_a_saved_tokenizer_loads_as_it_was(name: str, tmp_path: Path) -> None:
    for file, content in TOKENIZERS[name].files().items():
        (tmp_path / file).write_text(content, encoding="utf-8")
    loaded, text = Tokenizer.load(tmp_path), "".join(ALPHABETS[name]) + "ok — ok"
    assert loaded.files() == TOKENIZERS[name].files()
    assert loaded.encode(text) == TOKENIZERS[name].encode(text)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"not JSON", b"[" * 100_000, b"\xff\xfe", TOKENIZER.files()["tokenizer.json"].encode()[:-9]],
    ids=["empty", "object", "list", "text", "nested", "not UTF-8", "truncated"],
)
def test_garbage_is_not_a_tokenizer(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_with_another_id_0_is_refused_with_its_file(tmp_path: Path) -> None:
    foreign = TOKENIZER.files()["tokenizer.json"].replace(END_OF_TEXT, "<s>")
    (tmp_path / "tokenizer.json").write_text(foreign)
    with pytest.raises(ValueError, match=r"tokenizer\.json.*id None"):
        Tokenizer.load(tmp_path)


def test_a_missing_tokenizer_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
