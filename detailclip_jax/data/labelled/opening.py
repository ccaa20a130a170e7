"""Finding a set by name below the data folder, and saying which ones are ready."""

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from absl import logging

from detailclip_jax.data.labelled import builders, folders, karpathy, records, tars
from detailclip_jax.data.labelled.contents import Contents, LabelledSet, fingerprint
from detailclip_jax.data.labelled.known import KNOWN, Known, ways_to_get
from detailclip_jax.data.sources import BadRecord, Example, MissingData, Source

NUM_CAPTIONS = 5  # of each picture, where a set has more
PATH = "folder:"


class Readiness(NamedTuple):
    """Whether a set can be evaluated; `note` says what is wrong with it, or how to get it."""

    name: str
    ready: bool
    found: int | None
    expected: int
    note: str


def open_set(
    name: str,
    data_dir: str | pathlib.Path,
    split: str = "test",
    num_captions: int | None = NUM_CAPTIONS,
    follow_links: bool = False,
) -> LabelledSet:
    """The set of that name below `data_dir`: a known one, any folder there, "folder:PATH", or a path with a slash.

        flowers = open_set("flowers", "/data")              # /data/oxford_flowers102, /data/flowers, /data/wds_...
        birds = open_set("folder:/home/me/birds", "/data")  # /home/me/birds/test/CLASS/*.jpg

    Of captioned pictures the first `num_captions` are taken, five being the protocol's; all for None.  A known set of
    another size than published is named in the log.  Among files in folders, links may lead out of the split's folder
    only with `follow_links`.

    Raises MissingData with what was looked for and how to get the set, or with what is wrong about what is there.
    """
    if not name.removeprefix(PATH).strip():
        raise MissingData(f"no set is called {name!r}; known sets are {', '.join(KNOWN)}")
    known, tried = KNOWN.get(name), places(name, pathlib.Path(data_dir))
    for folder in tried:
        if contents := contents_of(folder, split, known, follow_links):
            expected = expected_size(known, len(contents.source)) if split == "test" else None
            source = FirstCaptions(contents.source, num_captions) if is_captioned(contents) else contents.source
            marks = fingerprint((*contents.identity, f"captions {num_captions}" if is_captioned(contents) else ""))
            warn_of_size(name, len(source), expected)
            return LabelledSet(name, source, contents.classes, marks, expected, contents.templates)
    raise MissingData(missing(name, split, pathlib.Path(data_dir), tried))


def ready(data_dir: str | pathlib.Path) -> list[Readiness]:
    """Every known set: whether it is there, and as large as published.

    for name, is_ready, found, expected, note in ready("/data"): ...
    """
    return [readiness(known, data_dir) for known in KNOWN.values()]


def readiness(known: Known, data_dir: str | pathlib.Path) -> Readiness:
    """Opens the set and counts."""
    here = [folder for folder in places(known.name, pathlib.Path(data_dir)) if folder.is_dir()]
    if not here:
        return Readiness(known.name, False, None, known.num_test, " | ".join(ways_to_get(known, data_dir)))
    try:
        found = len(open_set(known.name, data_dir).source)
    except OSError as error:  # MissingData, or a folder that may not be read
        return Readiness(known.name, False, None, known.num_test, str(error))
    note = known.sizes.get(found, f"{found} pictures, not {known.num_test}: incomplete, or another set of that name")
    return Readiness(known.name, found in known.sizes, found, expected_size(known, found) or known.num_test, note)


def places(name: str, data_dir: pathlib.Path) -> list[pathlib.Path]:
    """The folders in which a set may lie, in order."""
    if name.startswith(PATH):
        return [pathlib.Path(name.removeprefix(PATH)).expanduser()]
    if name in KNOWN:
        return [data_dir / folder for folder in KNOWN[name].folders()]
    if "/" in name:
        return [pathlib.Path(name).expanduser(), data_dir / name]
    return [data_dir / name, data_dir / f"wds_{name}"]


def contents_of(folder: pathlib.Path, split: str, known: Known | None, follow_links: bool = False) -> Contents | None:
    """What the first reader that knows the folder's layout finds; captions or labels as the known set has them."""
    for contents in readings(folder, split, known, follow_links):
        if contents and (known is None or known.captioned == is_captioned(contents)):
            return contents
    return None


def readings(folder: pathlib.Path, split: str, known: Known | None, follow_links: bool) -> Iterator[Contents | None]:
    """Every reader's finding, one after another; folders of class folders last, as every folder looks like them."""
    yield records.read(folder, split)
    yield tars.read(folder, split)
    yield builders.read(folder, split, known.tfds_splits if known else None)
    yield karpathy.read(folder, split, follow_links)
    if not (known and known.captioned):
        yield folders.read(folder, split, follow_links)


def is_captioned(contents: Contents) -> bool:
    """Whether pictures have captions, not labels."""
    return not contents.classes


def expected_size(known: Known | None, found: int) -> int | None:
    """The published size that was found, or else the usual one."""
    if known is None:
        return None
    return found if found in known.sizes else known.num_test


def warn_of_size(name: str, found: int, expected: int | None) -> None:
    """A set that is not as published gives numbers that compare with nobody's."""
    if expected is not None and found != expected:
        logging.warning("%s has %d test pictures where %d are published: not comparable", name, found, expected)


def missing(name: str, split: str, data_dir: pathlib.Path, tried: list[pathlib.Path]) -> str:
    """What was looked for, what was there, and what helps."""
    known = KNOWN.get(name)
    kind = "captioned" if known and known.captioned else "labelled"
    lacks = f"holds no {kind} pictures of split {split} in a layout that is known"
    seen = "; ".join(f"{path} {lacks if path.is_dir() else 'is not there'}" for path in tried)
    own = f"one folder per class: {tried[0]}/CLASS/*.jpg, or {tried[0]}/{split}/CLASS/*.jpg"
    ways = "\n  ".join(ways_to_get(known, data_dir) if known else (own, f"known sets are {', '.join(KNOWN)}"))
    return f"no data of {name!r}: {seen}.  Any of these helps:\n  {ways}"


class FirstCaptions:
    """A source with at most `num` captions of each picture; those of five are COCO's protocol."""

    def __init__(self, source: Source, num: int | None):
        self.source, self.num = source, num

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        if not example["captions"]:
            raise BadRecord(f"{example['key']}: no caption")
        return {**example, "captions": tuple(example["captions"])[: self.num]}
