"""What a reader yields, what a record holds, and which output shard a key belongs to."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import msgpack

RESERVED = ("image", "captions", "label", "key")  # of a record; a named text may not take their place
MAX_LABEL = 2**31 - 1
SCHEMA = {
    "image": "bytes: the picture's file (JPEG, PNG, ...)",
    "captions": "list of texts, in the order of the source; a blank one is kept",
    "label": "int, -1 without one",
    "key": "text, unique in the set",
    "NAME": "text: a caption that the source names (title, description, ...); it also stands in captions",
}


@dataclasses.dataclass(frozen=True)
class Raw:
    """One example as a source has it; `texts` are captions with names, `captions` those without."""

    key: str
    image: bytes
    captions: tuple[str, ...] = ()
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    label: int = -1


@dataclasses.dataclass(frozen=True)
class Reject:
    """What a source names but cannot give: `reason` is one of a few words that are counted, `detail` is free."""

    key: str
    reason: str
    detail: str = ""


class Rejected(ValueError):
    """Raised where one example is refused; the message is "reason: detail"."""

    def of(self, key: str) -> Reject:
        """The entry of the rejected list."""
        reason, _, detail = str(self).partition(": ")
        return Reject(key, reason, detail)


def bucket_of(key: str, num_buckets: int) -> int:
    """The output shard of a key: BLAKE2b's first 8 bytes, big-endian, modulo the number of shards.

    The same on every machine and for every order of the source, unlike Python's `hash`.
    """
    digest = hashlib.blake2b(key.encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % num_buckets


def pack(raw: Raw) -> bytes:
    """The record of an example: msgpack of {"image", "captions", "label", "key"} and its named texts.

    It is what `detailclip_jax.data.sources.Records` reads.  Raises Rejected for a label that is none.
    """
    if not -1 <= raw.label <= MAX_LABEL:
        raise Rejected(f"bad label: {raw.label}")
    named: dict[str, Any] = {name: text for name, text in raw.texts.items() if name not in RESERVED}
    captions = [*raw.texts.values(), *raw.captions]
    packed = msgpack.packb({**named, "image": raw.image, "captions": captions, "label": raw.label, "key": raw.key})
    assert packed is not None
    return packed


def printable(key: str) -> str:
    """The key without what UTF-8 cannot hold (bytes of file names that are no text)."""
    return key.encode("utf-8", "backslashreplace").decode("utf-8")


def valid_text(text: str) -> str:
    """The text without lone surrogates, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
