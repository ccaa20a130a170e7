"""CLIP's byte-pair tokenizer: captions to rows of token ids.

The vocabulary has 49,408 entries: 256 bytes, 256 bytes that end a word, 48,894 merges
(assets/bpe_merges.txt.gz, see the README beside it), start of text (49406) and end of text (49407).
Facts: the published tokenizer of CLIP (Radford et al., arXiv 2103.00020, section 2.4), which the reference
implementation uses as well.
"""

import functools
import gzip
import html
import itertools
import pathlib
from collections.abc import Sequence

import ftfy
import numpy as np
import regex
from jaxtyping import Int32

MERGES = pathlib.Path(__file__).parent / "assets" / "bpe_merges.txt.gz"
SOT, EOT, PAD = 49406, 49407, 0
VOCAB_SIZE = 49408
WORD_END = "</w>"
SPECIAL = {"<|startoftext|>": SOT, "<|endoftext|>": EOT}
WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


def clean(text: str) -> str:
    """Repaired by ftfy, HTML-unescaped twice, white space collapsed and stripped, lower-cased.

    clean("  Caf&amp;eacute;\\n ") == "café"
    """
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


@functools.cache
def _letters() -> tuple[str, ...]:
    """One printable character per byte: itself in printable Latin-1, else the next one from U+0100 on."""
    spare = map(chr, range(256, 512))
    return tuple(letter if letter.isprintable() and letter != " " else next(spare) for letter in map(chr, range(256)))


@functools.cache
def _bytes() -> dict[str, int]:
    """The way back, with the space that stands between decoded words."""
    return {letter: byte for byte, letter in enumerate(_letters())} | {" ": ord(" ")}


@functools.cache
def _ranks() -> dict[tuple[str, str], int]:
    """Rank of each merge, lowest first to be applied."""
    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").splitlines()
    return {(left, right): rank for rank, (left, right) in enumerate(line.split(" ") for line in lines)}


@functools.cache
def _vocabulary() -> dict[str, int]:
    """Piece to id.  The first 512 ids list printable bytes first, as CLIP's table does."""
    letters = sorted(_letters())
    pieces = [*letters, *(letter + WORD_END for letter in letters), *map("".join, _ranks())]
    return {piece: token for token, piece in enumerate(pieces)} | SPECIAL


@functools.cache
def _pieces() -> dict[int, str]:
    return {token: piece for piece, token in _vocabulary().items()}


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Every occurrence of the pair becomes one piece, from the left on."""
    merged: list[str] = []
    at = 0
    while at < len(pieces):
        width = 2 if tuple(pieces[at : at + 2]) == pair else 1
        merged.append("".join(pieces[at : at + width]))
        at += width
    return merged


@functools.lru_cache(maxsize=2**16)
def _word_ids(word: str) -> tuple[int, ...]:
    """Ids of one word of cleaned text."""
    if word in SPECIAL:
        return (SPECIAL[word],)
    letters = _letters()
    pieces = [letters[byte] for byte in word.encode("utf-8")]
    pieces[-1] += WORD_END
    ranks = _ranks()
    while len(pieces) > 1:
        pair = min(itertools.pairwise(pieces), key=lambda pair: ranks.get(pair, len(ranks)))
        if pair not in ranks:
            break
        pieces = _merge(pieces, pair)
    return tuple(_vocabulary()[piece] for piece in pieces)


class Tokenizer:
    """Captions to token ids of fixed length: SOT, the words, EOT, zeros.

    A caption that is too long loses words, not its EOT, because the text feature is read there.  With
    `keep_eot=False` it is cut as the reference implementation cuts it: EOT goes too, and such a row's feature
    is then read at position 0 (reproduction only).  `num_truncated` counts the captions cut so far.

    The literal strings "<|startoftext|>" and "<|endoftext|>" in a caption become SOT and EOT, as in CLIP.

        Tokenizer(context_length=6)(["a cat."])    # [[49406, 320, 2368, 269, 49407, 0]]

    Raises ValueError for a context that has no room for SOT, one word and EOT.
    """

    def __init__(self, context_length: int = 77, keep_eot: bool = True):
        if context_length < 3:
            raise ValueError(f"context_length {context_length} has no room for SOT, a word and EOT; use 3 or more")
        self.context_length = context_length
        self.keep_eot = keep_eot
        self.num_truncated = 0

    def encode(self, text: str) -> list[int]:
        """Ids of a text of any length, between SOT and EOT, neither cut nor padded."""
        words = WORDS.findall(clean(text))
        return [SOT, *(token for word in words for token in _word_ids(word)), EOT]

    def fit(self, ids: Sequence[int]) -> Int32[np.ndarray, " T"]:
        """Cuts or zero-pads ids to the context, and counts the cut."""
        row = np.full(self.context_length, PAD, np.int32)
        row[: len(ids)] = ids[: self.context_length]
        if len(ids) > self.context_length:
            self.num_truncated += 1
            row[-1] = EOT if self.keep_eot else row[-1]
        return row

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "B T"]:
        """One row per text."""
        if isinstance(texts, str):
            raise TypeError(f"the tokenizer takes a list of texts, got the text {texts!r}; write [text]")
        rows = [self.fit(self.encode(text)) for text in texts]
        return np.stack(rows) if rows else np.zeros((0, self.context_length), np.int32)

    def decode(self, ids: Sequence[int] | Int32[np.ndarray, " T"]) -> str:
        """The text of ids, up to EOT and without SOT, EOT and padding; words are one space apart.

        tokenizer.decode(tokenizer(["a cat."])[0]) == "a cat ."
        """
        words = itertools.takewhile(lambda token: token != EOT, map(int, ids))
        text = "".join(_pieces()[token] for token in words if token != SOT).replace(WORD_END, " ")
        return bytes(_bytes()[letter] for letter in text).decode("utf-8", errors="replace").strip()
