"""Opens a test set by name in the data folder, and reports which known sets are ready."""

import contextlib
import pathlib
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from absl import logging

from detailclip_jax.data.caption_selection import not_blank
from detailclip_jax.data.labelled import folders, karpathy, labelled_tars, long_captions, prepared_records, tfds_sets
from detailclip_jax.data.labelled.contents import Contents, LabelledSet, fingerprint
from detailclip_jax.data.labelled.known_sets import KNOWN, Known, ways_to_get
from detailclip_jax.data.sources import BadRecord, Example, MissingData, Source, beside, evenly, splits_of
from detailclip_jax.runtime.errors import near_path

NUM_CAPTIONS = 5  # per image, if a set has more
NUM_LOOKED = 100  # examples, evenly spaced, of which one must have captions
PATH = "folder:"


class Readiness(NamedTuple):
    """Whether a set can be evaluated; `note` states its problem, or how to get it."""

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
    captioned: bool = False,
) -> LabelledSet:
    """Opens a set in `data_dir`: a known name, a folder in `data_dir`, "folder:PATH", or a path with a slash.

        flowers = open_set("flowers", "/data")              # /data/oxford_flowers102, /data/flowers, /data/wds_...
        birds = open_set("folder:/home/me/birds", "/data")  # /home/me/birds/test/CLASS/*.jpg

    num_captions: captions used per image, of those that are not blank (the protocol uses the first five); None for all.
    captioned: the caller needs captions, not labels: a set of your own with both has no classes then.

    If a known set does not have its published size, a warning is logged.
    Raises MissingData with the searched places and ways to get the set, or with the problem of the data.
    """
    if not name.removeprefix(PATH).strip():
        raise MissingData(f"unknown set {name!r}; known: {', '.join(KNOWN)}")
    known, tried = KNOWN.get(name), places(name, pathlib.Path(data_dir))
    for folder in tried:
        # a reader counts only if it has captions or labels as the known set has them
        read = (contents for contents in readings(folder, split, known) if contents)
        fitting = (contents for contents in read if known is None or known.captioned == is_captioned(contents))
        if contents := next(fitting, None):
            if captioned and known is None and has_captions(contents.source):
                contents = contents._replace(classes=())
            size = len(contents.source)
            expected = None
            if known and split == "test":
                expected = size if size in known.sizes else known.num_test
            source = FirstCaptions(contents.source, num_captions) if is_captioned(contents) else contents.source
            rule = f"captions {num_captions}, none blank" if is_captioned(contents) else ""
            marks = fingerprint((*contents.identity, rule))
            warn_of_size(name, len(source), expected)
            return LabelledSet(name, source, contents.classes, marks, expected, contents.templates)
    raise MissingData(missing(name, split, pathlib.Path(data_dir), tried, captioned))


def ready(data_dir: str | pathlib.Path) -> list[Readiness]:
    """Returns for every known set whether it is present and has its published size.

    for name, is_ready, found, expected, note in ready("/data"): ...
    """
    rows = []
    for known in KNOWN.values():
        here, get = places(known.name, pathlib.Path(data_dir)), " | ".join(ways_to_get(known, data_dir))
        count = lambda name=known.name: len(open_set(name, data_dir).source)  # noqa: E731
        rows.append(readiness(known.name, here, get, count, known.sizes, known.num_test, "images"))
    return rows


def readiness(
    name: str,
    here: Sequence[pathlib.Path],
    get: str,
    count: Callable[[], int],
    sizes: Mapping[int, str],
    usual: int,
    what: str,
) -> Readiness:
    """Returns whether the set in one of the folders `here` has one of its published `sizes`, which have descriptions.

    count: opens the set and returns its size.  get: how to get the set.
    """
    if not any(folder.is_dir() for folder in here):
        return Readiness(name, False, None, usual, get)
    try:
        size = count()
    except OSError as error:  # MissingData, or a folder without read permission
        return Readiness(name, False, None, usual, str(error))
    if size in sizes or not sizes:
        return Readiness(name, True, size, size, sizes.get(size, ""))
    return Readiness(
        name, False, size, usual, f"{size} {what}, not {usual}: incomplete, or a different set of the same name"
    )


def places(name: str, data_dir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders in which a set may be, in order."""
    if name.startswith(PATH):
        return [pathlib.Path(name.removeprefix(PATH)).expanduser()]
    if name in KNOWN:
        return [data_dir / folder for folder in KNOWN[name].folders()]
    if "/" in name:
        return [pathlib.Path(name).expanduser(), data_dir / name]
    return [data_dir / name, data_dir / f"wds_{name}"]


def readings(folder: pathlib.Path, split: str, known: Known | None) -> Iterator[Contents | None]:
    """Yields each reader's result; class folders come last, since every folder looks like them."""
    yield prepared_records.read(folder, split)
    yield labelled_tars.read(folder, split)
    yield tfds_sets.read(folder, split, known.tfds_splits if known else None)
    yield karpathy.read(folder, split)
    if known and split == "test":
        yield long_captions.read(folder, known.name)
    if not (known and known.captioned):
        yield folders.read(folder, split)


def is_captioned(contents: Contents) -> bool:
    """Returns whether the images have captions instead of labels."""
    return not contents.classes


def has_captions(source: Source) -> bool:
    """Returns whether one of some examples that are read has a caption."""
    for part in evenly(len(source), NUM_LOOKED):
        with contextlib.suppress(BadRecord):
            if not_blank(source[part[0]]["captions"]):
                return True
    return False


def warn_of_size(name: str, size: int, expected: int | None, what: str = "test images") -> None:
    """Logs a warning if the size is not the published one: the results are then not comparable."""
    if expected is not None and size != expected:
        logging.warning(
            "%s has %d %s, but the published set has %d: the results are not comparable", name, size, what, expected
        )


def missing(name: str, split: str, data_dir: pathlib.Path, tried: list[pathlib.Path], captioned: bool = False) -> str:
    """Returns the message that lists the searched places, their contents and the ways to get the set."""
    known = KNOWN.get(name)
    captioned = known.captioned if known else captioned
    kind = "captioned" if captioned else "labelled"
    seen = []
    for path in tried:
        lacks = f"holds no {kind} images of split {split} in a known layout" if path.is_dir() else "does not exist"
        if others := splits_of(path):
            lacks += f" (its records have {', '.join(others)}: prepare the split with --split {split})"
        seen.append(f"{path} {lacks}")
    guesses = (near_path(path, tried) for path in tried if known is None and not path.exists())
    guess = next(filter(None, guesses), "")
    if captioned:
        example = captions_of_your_own(tried[0], split)
    elif split == "test":
        example = f"one folder per class: {tried[0]}/CLASS/*.jpg, or {tried[0]}/{split}/CLASS/*.jpg"
    else:
        example = (
            f"two splits, each with one folder per class: {tried[0]}/{split}/CLASS/*.jpg, to learn from, and "
            f"{tried[0]}/test/CLASS/*.jpg, to be measured; class folders without splits are a test split"
        )
    ways = "\n  ".join(ways_to_get(known, data_dir) if known else (example, f"known sets are {', '.join(KNOWN)}"))
    return f"no data of {name!r}: {'; '.join(seen)}{guess or '.'}  Do one of these:\n  {ways}"


def captions_of_your_own(folder: pathlib.Path, split: str) -> str:
    """Returns the command that makes a set with captions in `folder`, or beside a folder that exists, and its name."""
    out = beside(folder) if folder.exists() else shlex.quote(str(folder))
    return (
        f"images with captions: python -m detailclip_jax.prepare csv mine.csv --out {out} --split {split}, where "
        f"mine.csv has the columns image and caption, and retrieval:folder:{out}"
    )


class FirstCaptions:
    """A source with at most `num` captions per image, of those that are not blank; COCO's protocol uses five."""

    def __init__(self, source: Source, num: int | None):
        self.source, self.num = source, num

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        captions = not_blank(example["captions"])
        if not captions:
            raise BadRecord(f"{example['key']}: no caption")
        return {**example, "captions": tuple(captions[: self.num])}
