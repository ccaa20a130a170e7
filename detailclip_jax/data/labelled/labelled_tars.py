"""Reads webdataset tars as clip-benchmark writes and publishes them (repositories clip-benchmark/wds_NAME).

    DIR/classnames.txt                             one class name per line, in label order
    DIR/zeroshot_classification_templates.txt      prompts with {c} for the class name
    DIR/dataset_type.txt                           "retrieval" if images have captions
    DIR/test/nshards.txt                           number of tars
    DIR/test/0.tar, 1.tar, ...                     KEY.webp (png, jpg, jpeg) and KEY.cls or KEY.txt, consecutive

The members are listed once from the headers; an example is then read at its offset.
"""

import os
import pathlib
import tarfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from detailclip_jax.data.labelled.contents import Contents, file_identity, lines_of, split_names
from detailclip_jax.data.sources import BadRecord, Example, MissingData
from detailclip_jax.data.tar_archive import MAX_MEMBER_BYTES, members, samples

IMAGES = ("webp", "png", "jpg", "jpeg")
MAX_DIGITS = 6  # of a label and of the number of tars


class Sample(NamedTuple):
    """The members of one example in tar number `shard`: extension -> (offset, size)."""

    shard: int
    key: str
    members: dict[str, tuple[int, int]]


def read(folder: pathlib.Path, split: str) -> Contents | None:
    """Returns one split of a folder of tars, or None if it has none.

    Raises MissingData that names the tar that is missing, compressed or truncated.
    """
    roots = (folder / name for name in split_names(split))
    root = next((root for root in roots if (root / "nshards.txt").is_file() or (root / "0.tar").is_file()), None)
    if root is None:
        return None
    kind = (*lines_of(folder / "dataset_type.txt"), "classification")[0].lower()
    if kind not in ("classification", "retrieval"):
        raise MissingData(
            f"{folder / 'dataset_type.txt'}: unsupported type {kind}; supported: classification, retrieval"
        )
    classes = () if kind == "retrieval" else lines_of(folder / "classnames.txt")
    if kind == "classification" and not classes:
        raise MissingData(
            f"{folder / 'classnames.txt'} is missing or empty: it must list the class names, one per line"
        )
    source = Tars(shards_of(root), "txt" if kind == "retrieval" else "cls")
    identity = ("tars", kind, *classes, str(len(source)), *file_identity(root, [path.name for path in source.shards]))
    templates = lines_of(folder / "zeroshot_classification_templates.txt")
    return Contents(source, classes, identity, tuple(line for line in templates if line))


def shards_of(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns 0.tar, 1.tar, ...: as many as nshards.txt states, or without that file as many as there are tars."""
    stated = "".join(lines_of(root / "nshards.txt"))
    if stated and not stated.isdigit():
        raise MissingData(f"{root / 'nshards.txt'} contains {stated!r:.40}; expected a number")
    if len(stated) > MAX_DIGITS:
        raise MissingData(f"{root / 'nshards.txt'} contains {stated:.40}; the limit is {10**MAX_DIGITS:,} tars")
    num = int(stated) if stated else len(list(root.glob("*.tar")))
    paths = [root / f"{number}.tar" for number in range(num)]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise MissingData(f"{root}: {', '.join(missing[:10])} are missing, of {num} tars; download them again")
    return paths


def members_of(path: pathlib.Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yields name, offset and size of every file in a tar, except hidden ones."""
    try:
        with path.open("rb") as file:
            for _, member in members(file):
                if member.isfile() and not os.path.basename(member.name).startswith("."):
                    yield member.name, (member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise MissingData(f"{path}: not readable as an uncompressed tar ({error}); download it again") from error


class Tars:
    """A source of the examples in tars; `target` is the extension of their label ("cls") or captions ("txt")."""

    def __init__(self, shards: Sequence[pathlib.Path], target: str):
        self.shards, self.target = list(shards), target
        self.samples = [
            Sample(shard, key, dict(members))
            for shard, path in enumerate(shards)
            for key, members in samples(members_of(path))  # `tar_archive.samples` says which members form one
        ]
        if not self.samples:
            raise MissingData(
                f"{len(self.shards)} tars in {self.shards[0].parent if shards else '?'} contain no example"
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Example:
        sample = self.samples[index]
        example = {"captions": (), "label": -1, "key": f"{self.shards[sample.shard].name}:{sample.key}"}
        image, target = self.member(sample, IMAGES), self.member(sample, (self.target,))
        if self.target == "cls":
            return {**example, "image": image, "label": parse_label(target, example["key"])}
        try:
            return {**example, "image": image, "captions": tuple(target.decode("utf-8-sig").splitlines())}
        except UnicodeDecodeError as error:
            raise BadRecord(f"{example['key']}: the text is not UTF-8: {error}") from error

    def member(self, sample: Sample, extensions: Sequence[str]) -> bytes:
        """Returns the bytes of the first of the extensions that the example has."""
        path = self.shards[sample.shard]
        place = next((sample.members[extension] for extension in extensions if extension in sample.members), None)
        if place is None:
            raise BadRecord(f"{path.name}:{sample.key}: no {' or '.join(extensions)}, only {', '.join(sample.members)}")
        offset, size = place
        if size > MAX_MEMBER_BYTES:
            raise BadRecord(f"{path.name}:{sample.key}: {size:,} bytes, more than {MAX_MEMBER_BYTES:,}")
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise BadRecord(f"{path.name}:{sample.key}: {error.strerror or error}") from error


def parse_label(text: bytes, key: str) -> int:
    """Returns the label in the text; BadRecord if it is not a class number."""
    if not text.strip().isdigit() or len(text.strip()) > MAX_DIGITS:
        raise BadRecord(f"{key}: label {text!r:.40} is not a class number")
    return int(text)
