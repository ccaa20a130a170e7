"""The tokenizer of a config: CLIP's, or that of a model with a vocabulary of its own, from a file that the user gives.

    tokenizer_of(config)(["a frog"])       # token ids [1, T] by `data.tokenizer`

A file `tokenizer.json` is that of Hugging Face's library `tokenizers`, as in the folder of a SiglipModel. It says how
texts are split and which tokens stand around them. A file `*.model` is that of the library `sentencepiece`, as TIPS
publishes: the words alone. A file `*.txt` is OpenVision's: pieces of words, as BERT has them.
"""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32
from ml_collections import ConfigDict

from detailclip_jax.config.fields import AT_EOT, MEAN
from detailclip_jax.data.tokenizer import MAX_CHARACTERS, PAD, Tokenizer
from detailclip_jax.runtime import extras
from detailclip_jax.runtime.files import TooLarge, read_bytes

CLIP = "clip"  # data.tokenizer for CLIP's byte pairs
MAX_BYTES = 64 * 2**20  # of a tokenizer's file; the largest known is MetaCLIP 2's, 901,629 pieces in 61.3 MB
UNKNOWN = "qzxvkjw \ua66e\U0001f728"  # no word, a letter of one manuscript, and a sign of alchemy
MAX_CONFIG_BYTES = 4 * 2**20  # of the tokenizer_config.json beside it
MAX_LETTER = 16  # tokens of the letter a: one, or two with the mark of a word's start


class Pieces(NamedTuple):
    """What a tokenizer's file says.

    `ids` and `text` convert a text to the ids of its words and back; `before` and `after` are the ids around them.
    `size` is the largest id + 1.
    """

    ids: Callable[[str], Sequence[int]]
    text: Callable[[Sequence[int]], str]
    size: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    padding: int


class FileTokenizer(Tokenizer):
    """Converts texts to the ids of a file, padded to the context length; a text that is too long keeps its end token.

    `pooling` and `end` are those of the text encoder (`text_style`), `digest` that of the file in training, "" if no
    record has it. The file is opened at the first text, or by `check`, so that a model that encodes images alone does
    without it.
    """

    def __init__(
        self,
        file: str,
        context_length: int,
        vocab_size: int,
        pooling: str,
        digest: str = "",
        end: int | None = None,
    ):
        super().__init__(context_length, vocab_size=vocab_size)
        self.file, self.pooling, self.digest, self.end = file, pooling, digest, end

    def check(self) -> None:
        """Raises FileNotFoundError without the file, ValueError if it does not fit or its library is missing."""
        if self.digest and (digest := digest_of(self.file)) != self.digest:
            raise ValueError(
                f"data.tokenizer: the file at {self.file} is not the one this model was trained with (its digest is "
                f"{digest}, not {self.digest}); put that file there, or import the model again with --tokenizer=FILE"
            )
        pieces = pieces_of(self.file)
        if pieces.size > self.vocab_size:
            raise ValueError(
                f"data.tokenizer {self.file} has {pieces.size} tokens, but the model {self.vocab_size}; give the "
                "file of the model's own tokenizer"
            )
        if (num_around := len(pieces.before) + len(pieces.after)) >= self.context_length:
            raise ValueError(
                f"data.tokenizer {self.file} puts {num_around:,} tokens around a text, which leave no room for a word "
                f"in {self.context_length}; give the file of the model's own tokenizer"
            )
        # the pooling "eot" takes the first end token, by default the first of the largest ids; "mean" masks the id PAD
        end = pieces.size - 1 if self.end is None else self.end
        if self.pooling == AT_EOT and self.end is not None and (end not in pieces.after or end in pieces.before):
            raise ValueError(
                f"data.tokenizer {self.file}: texts are pooled at the end token {end}, but here the end is "
                f"{pieces.after or 'none'} and the start {pieces.before or 'none'}; give the file of the model's own "
                "tokenizer"
            )
        if (
            self.pooling == AT_EOT
            and self.end is None
            and (end not in pieces.after or end in pieces.before or pieces.padding > end)
        ):
            raise ValueError(
                f"data.tokenizer {self.file}: text pooling 'eot' takes the largest id of a text for its end token, but "
                f"here the largest is {end}, the end {pieces.after or 'none'}, the start {pieces.before or 'none'} and "
                f"the padding {pieces.padding}; give the file of the model's own tokenizer, or another "
                "model.text_style.pooling"
            )
        if self.pooling == MEAN and pieces.padding != PAD:
            raise ValueError(
                f"data.tokenizer {self.file} fills a text with id {pieces.padding}, but text pooling 'mean' hides id "
                f"{PAD}; give the file of the model's own tokenizer, or another model.text_style.pooling"
            )

    @functools.cached_property
    def _pieces(self) -> Pieces:
        """What the checked file says."""
        self.check()
        return pieces_of(self.file)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the open file out: each process of the data reads it itself."""
        return {name: value for name, value in vars(self).items() if name != "_pieces"}

    def encode(self, text: str) -> list[int]:
        """Returns the ids of the first MAX_CHARACTERS of a text, neither cut nor padded.

        The published code of SigLIP and TIPS, whose poolings are not "eot", converts texts to lower case first. For
        another model the file's normaliser says so.
        """
        text = text[:MAX_CHARACTERS]
        words = self._pieces.ids(text if self.pooling == AT_EOT else text.lower())
        return [*self._pieces.before, *words, *self._pieces.after]

    @property
    def around(self) -> tuple[int, int, int]:
        """The numbers of ids before and after the words, and the id of padding."""
        return len(self._pieces.before), len(self._pieces.after), self._pieces.padding

    def fit(self, ids: Sequence[int]) -> Int32[np.ndarray, " T"]:
        """Cuts or pads ids to the context length, and counts cuts."""
        row = np.full(self.context_length, self._pieces.padding, np.int32)
        row[: len(ids)] = ids[: self.context_length]
        if len(ids) > self.context_length:
            self.num_truncated += 1
            after = self._pieces.after
            row[self.context_length - len(after) :] = after
        return row

    def decode(self, ids: Sequence[int] | Int32[np.ndarray, " T"]) -> str:
        """Returns the text of ids, without padding and the tokens around the words."""
        special = {self._pieces.padding, *self._pieces.before, *self._pieces.after}
        return self._pieces.text([token for token in map(int, ids) if token not in special])


def tokenizer_of(config: ConfigDict, keep_eot: bool = True, length: int = 0) -> Tokenizer:
    """Returns the tokenizer of a config; a file is opened at the first text, or by `check`.

    `length` is the number of tokens of a text; 0: that of the model, `context_length`.

    Raises ValueError for a file of a kind that does not fit the model, or with `keep_eot=False`.
    """
    model, file = config.model, config.data.tokenizer
    length = length or model.context_length
    if file == CLIP:
        return Tokenizer(length, keep_eot, model.vocab_size)
    if not keep_eot:
        raise ValueError(
            f"data.keep_eot=False cuts texts as the reference does, with CLIP's tokenizer; data.tokenizer is {file}: "
            "give --config.data.keep_eot=True"
        )
    pooling = model.text_style.pooling
    if Path(file).suffix == ".model" and pooling != MEAN:
        raise ValueError(
            f"data.tokenizer {file} does not say which tokens stand around a text; give the model's tokenizer.json, "
            "which transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes"
        )
    digest, end = config.data.tokenizer_digest, model.text_style.end
    return FileTokenizer(file, length, model.vocab_size, pooling, digest, end)


def record(config: ConfigDict, keep_eot: bool = True) -> None:
    """Makes the path of a tokenizer's file absolute, and sets its digest unless the config has one.

    Opens the file, and raises as `tokenizer_of` and `FileTokenizer.check` do.  "clip" names no
    file, so its digest is empty.
    """
    data = config.data
    if data.tokenizer == CLIP:
        data.tokenizer_digest = ""
        return
    data.tokenizer = os.path.abspath(data.tokenizer)
    tokenizer_of(config, keep_eot).check()
    data.tokenizer_digest = data.tokenizer_digest or digest_of(data.tokenizer)


def find_file(config: ConfigDict, workdir: Path) -> None:
    """Sets data.tokenizer to the file of this name in `workdir` if there is none at its place any more."""
    copied = workdir / Path(config.data.tokenizer).name
    if config.data.tokenizer_digest and not Path(config.data.tokenizer).is_file() and copied.is_file():
        config.data.tokenizer = str(copied)


def digest_of(file: str) -> str:
    """Returns twelve hexadecimal digits of a hash of a tokenizer's file; raises as `pieces_of` does."""
    path = _file(file)
    return _digest_of(path, _stamp(path))


@functools.lru_cache(maxsize=4)
def _digest_of(path: Path, _stamp: Any) -> str:
    return hashlib.sha256(_content(path, MAX_BYTES)).hexdigest()[:12]


def pieces_of(file: str) -> Pieces:
    """Reads a tokenizer's file, once for as long as it does not change; raises as `FileTokenizer.check` does."""
    path = _file(file)
    beside = path.parent / "tokenizer_config.json"
    return _pieces_of(path, _stamp(path), _stamp(beside) if beside.is_file() else None)


@functools.lru_cache(maxsize=4)
def _pieces_of(path: Path, *_stamps: Any) -> Pieces:
    return READERS[path.suffix](path)


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _file(file: str) -> Path:
    path = Path(file)
    if path.suffix not in READERS:
        raise ValueError(f"data.tokenizer {file!r} is neither {CLIP!r} nor a file of {' or '.join(READERS)}")
    if not path.is_file():
        raise FileNotFoundError(
            f"data.tokenizer {file} is not a file; give that of the model's tokenizer (import_torch --tokenizer=FILE, "
            "or --config.data.tokenizer=FILE), or copy it into the workdir of the model"
        )
    return path


def _content(path: Path, limit: int) -> bytes:
    try:
        return read_bytes(path, limit)
    except TooLarge as error:
        raise ValueError(f"data.tokenizer: {error}; give the file of the model's own tokenizer") from None


def from_json(path: Path) -> Pieces:
    """A file of the library `tokenizers`.

    Its padding and its cut are switched off, since both are those of the model here; special tokens that a text spells
    out are words.
    """
    library = _library("tokenizers")
    content = _content(path, MAX_BYTES)
    with _damage_is_named(path):
        tokenizer = library.Tokenizer.from_str(content.decode())

    def words(text: str) -> Sequence[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    with _damage_is_named(path):
        stored = tokenizer.padding
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        refused = refusal(words, "a")
        letter = () if refused else words("a")
    if len(letter) > MAX_LETTER:  # the "post_processor" may repeat each text any number of times
        raise ValueError(
            f"data.tokenizer: {path} makes {len(letter):,} tokens of the letter a, the limit is {MAX_LETTER}; give the "
            "file of the model's own tokenizer"
        )
    with _damage_is_named(path):
        refused = refused or refusal(words, UNKNOWN)
        special = None if refused else around(tokenizer.encode("a").ids, letter)
    if refused:
        raise ValueError(
            f"data.tokenizer {path} has no token for unknown words, so a text with one is an error of its library "
            f'({refused}); set "unk_token" of the "model" in that file to one of its tokens ("unk_id" of a Unigram)'
        )
    if special is None:
        raise ValueError(
            f"data.tokenizer {path} does not keep the words of the text 'a' in one piece between its start and end "
            "tokens; give the file of the model's own tokenizer"
        )
    padding = stored["pad_id"] if stored else padding_beside(path, tokenizer)
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    named = _damage_is_named(path)  # a text may be the first that the library panics at
    return Pieces(named(words), named(tokenizer.decode), size, *special, padding)


@contextlib.contextmanager
def _damage_is_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises a bare Exception for any damage, or panics in Rust
        raise ValueError(f"data.tokenizer {path} is not a file of the library tokenizers: {error}") from None


def refusal(words: Callable[[str], Sequence[int]], text: str) -> str:
    """Returns the library's error at a text; "" if its words get a token, or are left out."""
    try:
        words(text)
    except Exception as error:  # the library raises a bare Exception
        return str(error)
    return ""


def around(ids: Sequence[int], words: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Returns the ids before and after the words; None if there are no words, or the ids do not contain them.

    around([7, 3, 4, 9], [3, 4]) == ((7,), (9,))
    """
    places = range(len(ids) - len(words) + 1 if words else 0)
    start = next((start for start in places if list(ids[start : start + len(words)]) == list(words)), None)
    return None if start is None else (tuple(ids[:start]), tuple(ids[start + len(words) :]))


def padding_beside(path: Path, tokenizer: Any) -> int:
    """Returns the id that fills a text by the `tokenizer_config.json` beside the file."""
    file, token = path.parent / "tokenizer_config.json", None
    if file.is_file():
        try:
            fields = json.loads(_content(file, MAX_CONFIG_BYTES))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"data.tokenizer: {file} is damaged: {error}; copy it again from its source") from None
        if not isinstance(fields, Mapping):
            raise ValueError(
                f"data.tokenizer: {file} is damaged: it contains a {type(fields).__name__}, not an object; copy it "
                "again from its source"
            )
        token = fields.get("pad_token")
        token = token.get("content") if isinstance(token, Mapping) else token
    padding = tokenizer.token_to_id(token) if isinstance(token, str) else None
    if padding is None:
        raise ValueError(
            f"data.tokenizer {path} does not say which token fills a text; put the tokenizer_config.json of the model, "
            "which has its pad_token, beside it"
        )
    return padding


def from_model(path: Path) -> Pieces:
    """A file of the library `sentencepiece`, without tokens around the words, filled with zeros (TIPS)."""
    library = _library("sentencepiece")
    content = _content(path, MAX_BYTES)
    try:
        processor = library.SentencePieceProcessor(model_proto=content)
    except Exception as error:  # the library raises RuntimeError or OSError for any damage
        raise ValueError(f"data.tokenizer {path} is not a file of sentencepiece: {error}") from None
    if not (processor.is_control(PAD) or processor.is_unused(PAD)):
        raise ValueError(
            f"data.tokenizer {path}: id {PAD}, which fills a text, is the word or unknown piece "
            f"{processor.id_to_piece(PAD)!r}; give the file of the model's own tokenizer"
        )
    return Pieces(processor.encode, processor.decode, processor.get_piece_size(), (), (), PAD)


def from_bert(path: Path) -> Pieces:
    """OpenVision's vocab.txt, one piece a line: BERT's with [bos] and [eos]; a text ends with [eos] and padding."""
    library = _library("tokenizers")
    vocabulary = {piece: number for number, piece in enumerate(_content(path, MAX_BYTES).decode().splitlines())}
    special = "[bos]", "[eos]", "[PAD]", "[UNK]", "[CLS]", "[SEP]"
    if lacking := [piece for piece in special if piece not in vocabulary]:
        raise ValueError(f"data.tokenizer {path} lacks {', '.join(lacking)}; give the vocab.txt of the model")
    start, end, padding = (vocabulary[piece] for piece in special[:3])
    tokenizer = library.BertWordPieceTokenizer(vocabulary, lowercase=True)

    def words(text: str) -> Sequence[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    return Pieces(words, tokenizer.decode, len(vocabulary), (start,), (end, padding), padding)


READERS: dict[str, Callable[[Path], Pieces]] = {".json": from_json, ".model": from_model, ".txt": from_bert}


def _library(name: str) -> Any:
    return extras.load(name, f"data.tokenizer needs the library {name}", package=name, error=ValueError)
