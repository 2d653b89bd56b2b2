"""Text to ids and back, over the `tokenizers` library. Knows nothing about scenes or models.

Characters are byte-level BPE (Radford et al. 2019) with no merges; subwords are the same with merges. Either way the vocabulary
holds the bytes that the training text uses, and `<|endoftext|>` as id 0, which starts every document and ends it.
"""

import functools
import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
FILES = ("tokenizer.json", "tokenizer_config.json")

# What word processors, phones and browsers type in place of the plain character.
PLAIN = {
    '"': "\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\u2036",
    "'": "\u2018\u2019\u201a\u201b\u2039\u203a\u2032\u2035\u0060\u00b4\u02bc",
    "-": "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2043",
    "...": "\u2026",
    " ": "\t\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000",
    "\n": "\r\u0085\u2028\u2029",
    "": "\u00ad\u200b\u200c\u200d\u2060\ufeff",
}

# What NFKD takes off a letter and may be dropped. Not the strokes that change what a sign means, such as that of a "not equal".
ACCENTS = "[\u0300-\u0333\u0339-\u036f]"

# Byte-level BPE writes a printable byte as the character of that number, and the others, in order, as those from 256 on.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + i): byte for i, byte in enumerate(byte for byte in range(256) if byte not in _PRINTABLE)
}
_BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


class UnknownCharacterError(ValueError):
    """Text holds characters that the tokenizer has no ids for. `.characters` lists them as (position, character)."""

    def __init__(self, characters: list[tuple[int, str]], alphabet: str) -> None:
        self.characters = characters
        named = [f"{c!r} (U+{ord(c):04X} {unicodedata.name(c, 'unnamed')}) at position {i}" for i, c in characters[:5]]
        more = f" and {len(characters) - 5} more" if len(characters) > 5 else ""
        super().__init__(f"unknown characters: {', '.join(named)}{more}; the alphabet is {alphabet!r}")


class Tokenizer:
    """Text <-> ids. Make one with `Tokenizer.train(texts)` or `Tokenizer.load(folder)`.

    Text outside the alphabet is made plain first (typographic quotes, dashes, ellipses, spaces, accents); what is still unknown
    raises `UnknownCharacterError`, never disappears. `decode(encode(text)) == plain(text)` for every text that encodes.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        backend.encode_special_tokens = True  # "<|endoftext|>" typed by a user is text like any other
        vocabulary = backend.get_vocab(with_added_tokens=True)
        if vocabulary.get(END_OF_TEXT) != END_OF_TEXT_ID:
            raise ValueError(f"{END_OF_TEXT} has id {vocabulary.get(END_OF_TEXT)} in this tokenizer: it must be {END_OF_TEXT_ID}")
        self._bytes = {token for token in vocabulary if len(token) == 1}  # in byte-level BPE each byte is written as one letter

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int | None = None) -> "Tokenizer":
        """A tokenizer for `texts`: of characters, or of `vocab_size` subwords.

        Raises:
            ValueError: `vocab_size` is smaller than the number of bytes in use, or larger than the text has subwords for.
        """
        texts = list(texts)
        letters = sorted({letter for text in texts for letter in _byte_letters(set(text))})
        if vocab_size is not None and vocab_size <= len(letters):
            raise ValueError(
                f"vocab_size is {vocab_size}: the text has {len(letters)} bytes, so it must be at least {len(letters) + 1}"
            )
        vocabulary = {token: id for id, token in enumerate([END_OF_TEXT, *letters])}
        backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        end = AddedToken(END_OF_TEXT, special=True, normalized=False)
        if vocab_size is not None:
            trainer = trainers.BpeTrainer(
                vocab_size=vocab_size, special_tokens=[end], initial_alphabet=letters, show_progress=False
            )
            backend.train_from_iterator(texts, trainer)
            if backend.get_vocab_size() < vocab_size:
                raise ValueError(f"vocab_size is {vocab_size}: the text has only {backend.get_vocab_size()} subwords")
        backend.add_special_tokens([end])
        backend.normalizer = _normalizer({character for text in texts for character in text})
        # Programs that read tokenizer.json themselves start every prompt as ours does.
        backend.post_processor = processors.TemplateProcessing(
            single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, END_OF_TEXT_ID)]
        )
        return cls(backend)

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    @property
    def alphabet(self) -> str:
        """The characters that encode as they are, sorted; of those of several bytes, none is listed."""
        return "".join(sorted(c for c in map(chr, range(128)) if self._knows(c)))

    def _knows(self, text: str) -> bool:
        return all(letter in self._bytes for letter in _byte_letters(text))

    def plain(self, text: str) -> str:
        """`text` as it will be encoded: what has a plain form in the alphabet is put into it.

        Raises:
            UnknownCharacterError: names each character that has none, and its position in `text`.
        """
        normalizer = self.backend.normalizer
        half = {c for c in set(text) if "\ud800" <= c <= "\udfff"}  # half a character, which has no bytes
        foreign = half | {c for c in set(text) - half if not self._knows(normalizer.normalize_str(c) if normalizer else c)}
        if foreign:
            raise UnknownCharacterError([(i, c) for i, c in enumerate(text) if c in foreign], self.alphabet)
        return normalizer.normalize_str(text) if normalizer else text

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; the caller adds `END_OF_TEXT_ID` where a document starts.

        Raises:
            UnknownCharacterError: see `plain`.
        """
        self.plain(text)
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; `<|endoftext|>` is left out.

        Raises:
            ValueError: an id that is not in the vocabulary.
        """
        wrong = sorted({id for id in ids if not 0 <= id < self.vocab_size})
        if wrong:
            raise ValueError(f"no such ids: {wrong[:5]}; the vocabulary has ids 0 to {self.vocab_size - 1}")
        return self.backend.decode(list(ids), skip_special_tokens=True)

    @functools.cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes that each id stands for, UTF-8; none for `<|endoftext|>`. A character of several bytes may be several ids."""
        tokens = [b""] * self.vocab_size
        for token, id in self.backend.get_vocab(with_added_tokens=False).items():
            if id != END_OF_TEXT_ID:
                tokens[id] = bytes(_BYTES[letter] for letter in token)
        return tokens

    def line_break_ids(self) -> frozenset[int]:
        """The ids whose text ends a line."""
        return frozenset(id for id, token in enumerate(self.token_bytes) if token.endswith(b"\n"))

    def files(self) -> dict[str, str]:
        """The contents of `tokenizer.json` and `tokenizer_config.json`, for the `tokenizers` library and `transformers`."""
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
        }
        return {
            "tokenizer.json": self.backend.to_str(pretty=True) + "\n",
            "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        }

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Tokenizer":
        """The tokenizer of `folder/tokenizer.json`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a tokenizer, or has no `<|endoftext|>` with id 0.
        """
        path = Path(folder) / "tokenizer.json"
        data = path.read_bytes()
        try:
            backend = Backend.from_str(data.decode())
        except Exception as error:  # `tokenizers` raises bare Exception
            raise ValueError(f"{path} is not a tokenizer: {error}") from error
        try:
            return cls(backend)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _byte_letters(text: str | Iterable[str]) -> str:
    """The bytes of `text`, each as the letter that byte-level BPE writes for it."""
    return "".join(piece for piece, _ in _BYTE_LEVEL.pre_tokenize_str("".join(text)))


def _normalizer(alphabet: set[str]) -> normalizers.Normalizer:
    """What makes text plain: replacements for characters that `alphabet` lacks and, where it has no accents, no accents."""
    steps: list[normalizers.Normalizer] = [normalizers.Replace("\r\n", "\n")] if "\r" not in alphabet else []
    for plain, fancy in PLAIN.items():
        missing = "".join(c for c in fancy if c not in alphabet)
        if missing:
            steps.append(normalizers.Replace(Regex(f"[{missing}]"), plain))
    if all(ord(c) < 128 for c in alphabet):
        steps += [normalizers.NFKD(), normalizers.Replace(Regex(ACCENTS), "")]
    return normalizers.Sequence(steps)
