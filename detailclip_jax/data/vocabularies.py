"""The tokenizer of a config: CLIP's, or that of a model with a vocabulary of its own, from a file that the user gives.

    tokenizer_of(config)(["a frog"])       # token ids [1, T] by `data.tokenizer`

A file `tokenizer.json` is that of Hugging Face's library `tokenizers`, as in the folder of a SiglipModel. It says how
texts are split and which tokens stand around them. A file `*.model` is that of the library `sentencepiece`, as TIPS
publishes: the words alone. All of these models were trained on texts in lower case.
"""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32
from ml_collections import ConfigDict

from detailclip_jax.data.tokenizer import MAX_CHARACTERS, PAD, Tokenizer

CLIP = "clip"  # data.tokenizer for CLIP's byte pairs
MEAN = "mean"  # text_style.pooling of TIPS


class Pieces(NamedTuple):
    """What a tokenizer's file says.

    `ids` and `text` convert a text to the ids of its words and back; `before` and `after` are the ids around them.
    """

    ids: Callable[[str], Sequence[int]]
    text: Callable[[Sequence[int]], str]
    size: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    padding: int


class FileTokenizer(Tokenizer):
    """Converts texts to the ids of a file, padded to the context length; a text that is too long keeps its end token.

    Raises ValueError if the file has more ids than the model.
    """

    def __init__(self, file: str, context_length: int, vocab_size: int):
        super().__init__(context_length, vocab_size=vocab_size)
        self.file = file
        if self._pieces.size > vocab_size:
            raise ValueError(
                f"data.tokenizer {file} has {self._pieces.size} tokens, but the model {vocab_size}; give the "
                "file of the model's own tokenizer"
            )

    @property
    def _pieces(self) -> Pieces:
        """What the file says; each process of the data reads it once."""
        return pieces_of(self.file)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of the first MAX_CHARACTERS of a text in lower case, neither cut nor padded."""
        before, after = self._pieces.before, self._pieces.after
        return [*before, *self._pieces.ids(text[:MAX_CHARACTERS].lower()), *after]

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


def tokenizer_of(config: ConfigDict, keep_eot: bool = True) -> Tokenizer:
    """Returns the tokenizer of a config.

    Raises FileNotFoundError or ValueError for a file that is missing or of another kind, and ImportError without the
    library that reads it.
    """
    model, file = config.model, config.data.tokenizer
    if file == CLIP:
        return Tokenizer(model.context_length, keep_eot, model.vocab_size)
    if Path(file).suffix == ".model" and model.text_style.pooling != MEAN:
        raise ValueError(
            f"data.tokenizer {file} does not say which tokens stand around a text; give the model's tokenizer.json, "
            "which transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes"
        )
    return FileTokenizer(file, model.context_length, model.vocab_size)


@functools.lru_cache(maxsize=4)
def pieces_of(file: str) -> Pieces:
    """Reads a tokenizer's file; raises as `tokenizer_of` does."""
    path = Path(file)
    if path.suffix not in READERS:
        raise ValueError(f"data.tokenizer {file!r} is neither {CLIP!r} nor a file of {' or '.join(READERS)}")
    if not path.is_file():
        raise FileNotFoundError(
            f"data.tokenizer {file} is not a file; give that of the model's tokenizer (import_torch --tokenizer=FILE, "
            "or --config.data.tokenizer=FILE)"
        )
    return READERS[path.suffix](path)


def from_json(path: Path) -> Pieces:
    """A file of the library `tokenizers`."""
    library = _library("tokenizers")
    try:
        tokenizer = library.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for any damage
        raise ValueError(f"data.tokenizer {path} is not a file of the library tokenizers: {error}") from None
    words = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
    before, after = around(tokenizer.encode("a").ids, words("a"))
    size, padding = tokenizer.get_vocab_size(), padding_of(path, tokenizer)
    return Pieces(words, tokenizer.decode, size, before, after, padding)


def around(ids: Sequence[int], words: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the ids before and after the words.

    around([7, 3, 4, 9], [3, 4]) == ((7,), (9,))
    """
    places = range(len(ids) - len(words) + 1)
    start = next(start for start in places if list(ids[start : start + len(words)]) == list(words))
    return tuple(ids[:start]), tuple(ids[start + len(words) :])


def padding_of(path: Path, tokenizer: Any) -> int:
    """Returns the id that fills a text: of the file, or of the `tokenizer_config.json` beside it."""
    if tokenizer.padding is not None:
        return tokenizer.padding["pad_id"]
    beside = path.parent / "tokenizer_config.json"
    token = json.loads(beside.read_text()).get("pad_token") if beside.is_file() else None
    token = token.get("content") if isinstance(token, dict) else token
    found = tokenizer.token_to_id(token) if isinstance(token, str) else None
    if found is None:
        raise ValueError(
            f"data.tokenizer {path} does not say which token fills a text; put the tokenizer_config.json of the model, "
            "which has its pad_token, beside it"
        )
    return found


def from_model(path: Path) -> Pieces:
    """A file of the library `sentencepiece`, without tokens around the words, filled with zeros (TIPS)."""
    library = _library("sentencepiece")
    try:
        processor = library.SentencePieceProcessor(model_file=str(path))
    except Exception as error:  # the library raises RuntimeError or OSError for any damage
        raise ValueError(f"data.tokenizer {path} is not a file of sentencepiece: {error}") from None
    return Pieces(processor.encode, processor.decode, processor.get_piece_size(), (), (), PAD)


READERS: dict[str, Callable[[Path], Pieces]] = {".json": from_json, ".model": from_model}


def _library(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise ImportError(f"data.tokenizer needs the library {name}; pip install {name}") from None
