"""CLIP's byte-pair tokenizer: converts captions to token ids.

The vocabulary has 49,408 entries: 256 bytes, 256 bytes that end a word, 48,894 merges (assets/bpe_merges.txt.gz, see
the README in its folder), start of text (49406) and end of text (49407).  Source: CLIP's published tokenizer (Radford
et al., arXiv 2103.00020, section 2.4), which the reference implementation also uses.
"""

import functools
import gzip
import heapq
import html
import itertools
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import regex
from jaxtyping import Int32

MERGES = pathlib.Path(__file__).parent / "assets" / "bpe_merges.txt.gz"
SOT, EOT, PAD = 49406, 49407, 0
VOCAB_SIZE = 49408
WORD_END = "</w>"
SPECIAL = {"<|startoftext|>": SOT, "<|endoftext|>": EOT}
LONG_NUMBER = regex.compile(r"&#[0-9]{4301,};?")  # an HTML character reference; `int` raises for more than 4,300 digits
MAX_CHARACTERS = 8192  # of a text; the rest is ignored: 77 tokens are seldom more than 400 characters
MAX_CACHED = 64  # longest word, in letters, whose ids are cached
WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


def clean(text: str) -> str:
    """Repairs a text with ftfy, unescapes HTML twice, collapses and strips white space, converts to lower case.

    clean("  Caf&amp;eacute;\\n ") == "café"
    """
    import ftfy  # brings large tables, which --help of a command does not need

    text = _unescape(_unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _unescape(text: str) -> str:
    """Applies `html.unescape`, which raises for a character number with more digits than Python converts."""
    return html.unescape(LONG_NUMBER.sub("\ufffd", text))


@functools.cache
def _letters() -> tuple[str, ...]:
    """Returns one printable character per byte: itself in printable Latin-1, else the next one from U+0100 on."""
    spare = map(chr, range(256, 512))
    return tuple(letter if letter.isprintable() and letter != " " else next(spare) for letter in map(chr, range(256)))


@functools.cache
def _bytes() -> dict[str, int]:
    """Returns the inverse map, with the space between decoded words."""
    return {letter: byte for byte, letter in enumerate(_letters())} | {" ": ord(" ")}


@functools.cache
def _ranks() -> dict[tuple[str, str], int]:
    """Returns the rank of each merge; the lowest is applied first."""
    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").splitlines()
    return {(left, right): rank for rank, (left, right) in enumerate(line.split(" ") for line in lines)}


@functools.cache
def _vocabulary() -> dict[str, int]:
    """Returns the map from piece to id.  The first 512 ids list printable bytes first, as CLIP's table does."""
    letters = sorted(_letters())
    pieces = [*letters, *(letter + WORD_END for letter in letters), *map("".join, _ranks())]
    return {piece: token for token, piece in enumerate(pieces)} | SPECIAL


@functools.cache
def _pieces() -> dict[int, str]:
    return {token: piece for piece, token in _vocabulary().items()}


def vocabulary() -> dict[str, int]:
    """Returns the map from piece to id, with all 49,408 entries."""
    return dict(_vocabulary())


def merges() -> list[tuple[str, str]]:
    """Returns the merges in the order in which they are applied."""
    return list(_ranks())


class _Merging:
    """Pieces of one word in a linked list, and a heap of the pairs that have a rank.

    The pair of lowest rank is merged first, at all its places from left to right; then the next.  A word of n letters
    takes O(n log n) time; a search through all pairs for each merge would take O(n^2).
    """

    def __init__(self, pieces: list[str]):
        self.pieces: list[str | None] = [*pieces]  # None: merged into the previous piece
        self.after = list(range(1, len(pieces) + 1))
        self.before = list(range(-1, len(pieces) - 1))
        self.heap: list[tuple[int, int]] = []  # (rank, place of the left piece); some are outdated
        for at in range(len(pieces) - 1):
            self.offer(at)
        heapq.heapify(self.heap)

    def rank(self, at: int) -> int | None:
        """Returns the rank of the pair that starts at a place; None if there is none."""
        if self.pieces[at] is None or self.after[at] == len(self.pieces):
            return None
        return _ranks().get((self.pieces[at], self.pieces[self.after[at]]))  # pyright: ignore[reportArgumentType]

    def offer(self, at: int) -> None:
        """Adds the pair at a place to the heap if it has a rank."""
        if (rank := self.rank(at)) is not None:
            heapq.heappush(self.heap, (rank, at))

    def merged(self) -> Iterator[str]:
        """Merges until no pair has a rank; yields the remaining pieces."""
        while self.heap:
            rank = self.heap[0][0]
            for at in self.places(rank):
                if self.rank(at) == rank:
                    self.join(at)
        return (piece for piece in self.pieces if piece is not None)

    def places(self, rank: int) -> list[int]:
        """Removes all places of a rank from the heap and returns them, before a merge can add a lower rank."""
        places: list[int] = []
        while self.heap and self.heap[0][0] == rank:
            places.append(heapq.heappop(self.heap)[1])
        return places

    def join(self, at: int) -> None:
        """Merges the piece at a place with the next one."""
        gone = self.after[at]
        self.pieces[at], self.pieces[gone] = f"{self.pieces[at]}{self.pieces[gone]}", None
        self.after[at] = self.after[gone]
        if self.after[at] < len(self.pieces):
            self.before[self.after[at]] = at
            self.offer(at)
        if self.before[at] >= 0:
            self.offer(self.before[at])


def _ids(word: str) -> tuple[int, ...]:
    """Returns the ids of one word of cleaned text."""
    if word in SPECIAL:
        return (SPECIAL[word],)
    letters = _letters()
    pieces = [letters[byte] for byte in word.encode("utf-8")]
    pieces[-1] += WORD_END
    vocabulary = _vocabulary()
    return tuple(vocabulary[piece] for piece in _Merging(pieces).merged())


_kept_ids = functools.lru_cache(maxsize=2**16)(_ids)


class Tokenizer:
    """Converts captions to token ids of fixed length: SOT, the words, EOT, zeros.

    A caption that is too long loses words but keeps EOT, because the text feature is taken at EOT.  With
    `keep_eot=False` it is cut as in the reference implementation, which also drops EOT, so that its feature is taken at
    position 0 (for reproduction only).  Only the first MAX_CHARACTERS of a text are used, before cleaning, so no text
    takes more than a few hundredths of a second.  `num_truncated` counts the captions cut so far in either way.

    The literal strings "<|startoftext|>" and "<|endoftext|>" in a caption become SOT and EOT, as in CLIP.

        Tokenizer(context_length=6)(["a cat."])    # [[49406, 320, 2368, 269, 49407, 0]]

    `vocab_size` is that of the model which reads the ids.  Raises ValueError for a context without room for SOT, one
    word and EOT, and, for the first text, if the model has another vocabulary than CLIP's.
    """

    def __init__(self, context_length: int = 77, keep_eot: bool = True, vocab_size: int = VOCAB_SIZE):
        if context_length < 3:
            raise ValueError(f"context_length {context_length} is too short: start, text and end need 3 or more")
        self.context_length = context_length
        self.keep_eot = keep_eot
        self.vocab_size = vocab_size
        self.num_truncated = 0

    def check(self) -> None:
        """Raises ValueError if the model has another vocabulary, as the first text does."""
        if self.vocab_size != VOCAB_SIZE:
            raise ValueError(
                f"this model was trained on a vocabulary of {self.vocab_size} tokens, but texts are tokenized with "
                f"CLIP's {VOCAB_SIZE}; give the file of its own tokenizer (import_torch --tokenizer=FILE, or "
                "--config.data.tokenizer=FILE), as docs/pytorch.md shows"
            )

    def encode(self, text: str) -> list[int]:
        """Returns the ids of the first MAX_CHARACTERS of a text, between SOT and EOT, neither cut nor padded."""
        self.check()
        words = WORDS.findall(clean(text[:MAX_CHARACTERS]))
        ids = ((_kept_ids if len(word) <= MAX_CACHED else _ids)(word) for word in words)  # long ones fill the cache
        return [SOT, *itertools.chain.from_iterable(ids), EOT]

    def fit(self, ids: Sequence[int]) -> Int32[np.ndarray, " T"]:
        """Cuts or zero-pads ids to the context length, and counts cuts."""
        row = np.full(self.context_length, PAD, np.int32)
        row[: len(ids)] = ids[: self.context_length]
        if len(ids) > self.context_length:
            self.num_truncated += 1
            row[-1] = EOT if self.keep_eot else row[-1]
        return row

    @property
    def around(self) -> tuple[int, int, int]:
        """The numbers of ids before and after the words, and the id of padding."""
        return 1, 1, PAD

    def row(self, text: str, shift: np.random.Generator | None = None) -> tuple[Int32[np.ndarray, " T"], bool]:
        """Returns the token ids of a text, and whether the text was cut.

        `shift` puts paddings between start and words: 0 to all that `fit` would add, drawn uniformly (DeBias-CLIP).  So
        every position of the context meets words.  Ids without words, or that fill the context, stay as they are.
        """
        ids, before = self.encode(text), self.num_truncated
        num_start, num_end, padding = self.around
        room = self.context_length - len(ids)
        if shift is not None and room > 0 and len(ids) > num_start + num_end:
            ids = [*ids[:num_start], *[padding] * int(shift.integers(room + 1)), *ids[num_start:]]
        row = self.fit(ids)
        # Cut to MAX_CHARACTERS, but the rest fits into the context
        if len(text) > MAX_CHARACTERS and self.num_truncated == before:
            self.num_truncated += 1
        return row, self.num_truncated > before

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "B T"]:
        """Returns the token ids [B, T] of a list of texts."""
        if isinstance(texts, str):
            raise TypeError(f"the tokenizer takes a list of texts, got one text {texts!r}; write [text]")
        texts = list(texts)
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise TypeError(f"the tokenizer takes a list of texts, and {wrong[0]!r:.60} is none")
        rows = [self.row(text)[0] for text in texts]
        return np.stack(rows) if rows else np.zeros((0, self.context_length), np.int32)

    def decode(self, ids: Sequence[int] | Int32[np.ndarray, " T"]) -> str:
        """Returns the text of ids up to EOT, without SOT, EOT and padding; words are separated by one space.

        tokenizer.decode(tokenizer(["a cat."])[0]) == "a cat ."
        """
        words = itertools.takewhile(lambda token: token != EOT, map(int, ids))
        text = "".join(_pieces()[token] for token in words if token != SOT).replace(WORD_END, " ")
        return bytes(_bytes()[letter] for letter in text).decode("utf-8", errors="replace").strip()
