"""Defines what readers yield and what a record holds."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgpack

RESERVED = ("image", "captions", "label", "key")  # fields of a record; named texts may not replace them
MAX_LABEL = 2**31 - 1
SCHEMA = {
    "image": "bytes: the image's file (JPEG, PNG, ...)",
    "captions": "list of texts, in the order of the source; a blank one is kept",
    "label": "int, -1 without one",
    "key": "text, unique in the set",
    "NAME": "text or list of texts: captions that the source names (title, ...); also contained in captions",
    "boxes": "list of [x0, y0, x1, y1] in pixels of the image, where the source has boxes with phrases",
    "phrases": "list of a text, or of texts of which one is drawn, for each box",
    "phrase_negatives": "list of lists of texts that are false of a box",
    "negatives": "list of texts that are false of the image",
}

Named = Mapping[str, str | Sequence[str]]  # captions by the name of their source: one text, or several


@dataclasses.dataclass(frozen=True)
class Raw:
    """One example as its source has it; `texts` are captions by name, `captions` those without.

    `match` is the text by which captions of other files are joined, see `columns.match_of`;
    without one `fields` names those that the example has.  `regions` and `negatives` are those of `regions.read`.
    """

    key: str
    image: bytes
    captions: tuple[str, ...] = ()
    texts: Named = dataclasses.field(default_factory=dict)
    label: int = -1
    match: str = ""
    fields: tuple[str, ...] = ()
    regions: tuple[Any, ...] = ()
    negatives: tuple[str, ...] = ()

    @property
    def all_captions(self) -> list[str]:
        """The captions of all names, then those without."""
        return [*(text for texts in self.texts.values() for text in several(texts)), *self.captions]

    def named(self, texts: Iterable[tuple[str, str | Sequence[str]]]) -> "Raw":
        """Returns the example with more named captions; they replace those of the same names."""
        return dataclasses.replace(self, texts={**self.texts, **dict(texts)})


@dataclasses.dataclass(frozen=True)
class Reject:
    """An example that cannot be used: `reason` is one of a few texts that are counted, `detail` is free text."""

    key: str
    reason: str
    detail: str = ""


class Rejected(ValueError):
    """Raised if an example is rejected; the message is "reason: detail"."""

    def of(self, key: str) -> Reject:
        """Returns the entry for the list of rejects."""
        reason, _, detail = str(self).partition(": ")
        return Reject(key, reason, detail)


def digest_of(key: str) -> int:
    """Returns the first 8 bytes of a key's BLAKE2b hash as an integer, the same on every machine.

    Among 12 million keys, the probability that two different ones have the same digest is 4e-6.
    """
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "backslashreplace"), digest_size=8).digest())


def pack(raw: Raw, more: Mapping[str, Any] = MappingProxyType({})) -> bytes:
    """Returns the record of an example: msgpack of {"image", "captions", "label", "key"}, its named texts and `more`.

    `detailclip_jax.data.sources.Records` reads it.  Raises Rejected for an invalid label.
    """
    if not -1 <= raw.label <= MAX_LABEL:
        raise Rejected(f"bad label: {raw.label}")
    named: dict[str, Any] = {name: text for name, text in raw.texts.items() if name not in RESERVED}
    others = {"image": raw.image, "captions": raw.all_captions, "label": raw.label, "key": raw.key}
    packed = msgpack.packb({**named, **others, **more})
    assert packed is not None
    return packed


def several(texts: str | Sequence[str]) -> Sequence[str]:
    """Returns the texts of a name as a sequence."""
    return (texts,) if isinstance(texts, str) else texts


def converted(texts: Named, convert: Callable[[str], str]) -> Named:
    """Returns named texts with a function applied to each text."""
    return {name: convert(text) if isinstance(text, str) else tuple(map(convert, text)) for name, text in texts.items()}


def escaped(key: str) -> str:
    """Returns the text with lone surrogates (bytes of names that are not UTF-8) escaped; different keys stay different.

    Terminal control characters stay in the record; `terminal.printable` escapes them where a key is printed.
    """
    return key if key.isascii() else key.encode("utf-8", "backslashreplace").decode("utf-8")


def valid_text(text: str) -> str:
    """Returns the text with lone surrogates, which UTF-8 cannot encode, replaced."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
