"""Random-access sources of images with captions.

An example is a dict: "image" bytes (encoded) or uint8 [H, W, 3], "captions" tuple of texts, "label" int (-1: none)
and "key", a text that names it in logs; a source may add further fields.
"""

import contextlib
import itertools
import json
import numbers
import operator
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from shlex import quote
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import msgpack
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from jaxtyping import Int
from ml_collections import ConfigDict

from detailclip_jax.config.data_path import Component
from detailclip_jax.data.image_operations import SUFFIXES
from detailclip_jax.data.stickers.scene_source import Stickers, canvas_of
from detailclip_jax.runtime import extras
from detailclip_jax.runtime.errors import first_line
from detailclip_jax.runtime.files import written_atomically

Example = dict[str, Any]
DATASET = "dataset.json"  # beside the shards: what `prepare` says of them
PLAN = "plan.json"  # in the folder of an unfinished split, whose name is WORK and the split
WORK = ".prepare-"
CAPTION_FIELDS = ("title", "description", "captions", "caption", "text")  # TFDS fields, in this order
KEY_FIELDS = ("key", "id", "image_id", "file_name", "filename", "image/filename")
BUCKETS = "gs://"  # remote storage that ArrayRecord reads
WAY_OUT = (
    "ArrayRecord reads local files and gs:// only; mount the bucket (S3: mount-s3 BUCKET /mnt/BUCKET) and name that "
    "folder, or copy the shards (aws s3 sync)"
)
ADDRESS = re.compile(r"[a-z0-9+.-]{2,}:/")  # pathlib collapses the two slashes to one
NEEDS = "gs:// needs pip install gcsfs and credentials, as gcloud auth application-default login makes them"
TABLES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet", ".tar": "webdataset"}
MAX_LOOKED = 10_000  # files of a folder that a message looks at
SCHEMA = '{"image": bytes, "captions": [text, ...], "label": int or -1, "key": text}'


@runtime_checkable
class Source(Protocol):
    """Examples by index; reading one must not depend on earlier reads."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


class Picked:
    """The examples of a source at some indices, in this order."""

    def __init__(self, source: Source, indices: Sequence[int] | Int[np.ndarray, "n"]):
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def identity(self) -> str:
        """That of the source; AttributeError if it has none."""
        return self.source.identity  # type: ignore[attr-defined]

    def __getitem__(self, index: SupportsIndex) -> Example:
        return self.source[int(self.indices[operator.index(index)])]


def evenly(size: int, count: int) -> list[range]:
    """Cuts `range(size)` into `count` parts whose lengths differ by at most 1; `size` parts if that is less."""
    count = min(count, size)
    return [range(part * size // count, (part + 1) * size // count) for part in range(count)]


def indices_to_show(size: int, count: int, first: int | None = None) -> list[int]:
    """The indices of a figure's images: `count` of `size`, at equal distances, or those from number `first` on."""
    if first is None:
        return [part[0] for part in evenly(size, count)]
    return list(range(size)[first : first + count])


INT32 = np.iinfo(np.int32)


class MissingData(FileNotFoundError):
    """Raised if data named in the config are missing; the message says where it looked and how to prepare them."""


class NoSplit(MissingData):
    """Raised if there is no such split; one that is there but damaged, unfinished or out of reach is another error."""


class BadRecord(ValueError):
    """Raised for a record that cannot be read; the message gives the reason."""


def label_of(example: Mapping[str, Any], num_classes: int | None = None) -> np.int32:
    """Returns an example's label; BadRecord if int32 cannot hold it, or if it is not below `num_classes`."""
    label = example["label"]
    if not isinstance(label, numbers.Integral) or not INT32.min <= int(label) <= INT32.max:
        raise BadRecord(f"{example['key']}: label {label!r:.40} is not a whole number that int32 holds")
    if num_classes is not None and int(label) >= num_classes:
        raise BadRecord(f"{example['key']}: label {label} is not below model.num_classes {num_classes}")
    return np.int32(label)


def open_set(component: Component, data: ConfigDict, split: str | None = None, image_size: int = 64) -> Source:
    """Opens one set of a run; `data` is `config.data`, and `split` replaces its split.

    "stickers": scenes on a canvas a quarter larger than `image_size`; "records": ArrayRecord shards in the folder
    `path` (see `write_records`); "tfds": `path` is "name", "name:version" or a builder's directory.

    Raises MissingData; NoSplit if the set has no such split.
    """
    split = split or str(data.split)
    if component.kind == "stickers":
        return Stickers(split=split, **{"size": canvas_of(image_size), **data.stickers})
    return (Records if component.kind == "records" else TfdsRecords)(component.path, split)


class Records:
    """The shards `path/split-*.arrayrecord` in the order of their names; every record is a msgpack map.

    `path` is a folder, or gs://BUCKET/FOLDER, which is read without a copy (listing the shards needs gcsfs).

    Raises NoSplit without such shards, and MissingData if they cannot be read or `prepare` has not finished them.
    """

    def __init__(self, path: str | os.PathLike, split: str):
        self.name = f"{path}/{split}"
        check_finished(path, split)
        paths = shards_of(path, split) if path else []
        if not paths:
            raise NoSplit(_missing_records(path, split))
        self._shards = _open(paths)
        if not len(self._shards):
            raise MissingData(f"{len(paths)} shards {self.name}-*.arrayrecord contain no record; write them again")

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        try:
            fields = msgpack.unpackb(self._shards[index])
            return _complete(fields, key=f"{self.name}#{index}")
        except (RuntimeError, ValueError, TypeError, msgpack.UnpackException) as error:
            raise BadRecord(f"{self.name}#{index}: {error}") from error


def shards_of(path: str | os.PathLike, split: str) -> list[pathlib.PurePath]:
    """Returns the sorted shards `path/split-NUMBER.arrayrecord`.

    Shards of another split whose name only starts with `split` are left out.
    """
    name = re.compile(re.escape(split) + r"-\d+\.arrayrecord")
    return sorted(file for file in _folder(path).glob("*.arrayrecord") if name.fullmatch(file.name))


def splits_of(path: str | os.PathLike) -> list[str]:
    """Returns the names of the splits of a folder of records."""
    return sorted({shard.name.rpartition("-")[0] for shard in _folder(path).glob("*-*.arrayrecord")})


def check_finished(path: str | os.PathLike, split: str) -> None:
    """Raises MissingData for a split of a folder that `prepare` has begun and not finished."""
    work = _folder(path) / f"{WORK}{split}"
    try:
        is_begun = bool(path) and (work / PLAN).exists()
    except OSError as error:
        raise MissingData(f"{work} cannot be read: {error.strerror or error}") from error
    described = ()  # the splits that `prepare` has finished
    if is_begun:
        with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
            described = json.loads((work.parent / DATASET).read_text())["splits"]
    if is_begun and split not in described:
        raise MissingData(
            f"the split {split} of {path} is not complete: prepare has not finished it; repeat its command, or "
            f"remove {work} and {split}-*.arrayrecord"
        )


def _folder(path: str | os.PathLike) -> Any:
    """Returns a local or Google Cloud Storage folder; MissingData for other storage, or if it cannot be reached."""
    if "://" not in str(path):
        return pathlib.Path(path)
    if not str(path).startswith(BUCKETS):
        raise MissingData(f"{path}: {WAY_OUT}")
    try:
        epath.Path(path).exists()
    except Exception as error:  # the client library raises many types; ImportError if it is missing
        raise MissingData(f"{path} cannot be listed: {type(error).__name__}: {error} ({NEEDS})") from error
    return epath.Path(path)


def write_records(
    path: str | os.PathLike, examples: Iterable[Mapping[str, Any]], split: str = "train", shard_size: int = 10_000
) -> int:
    """Writes examples as `path/split-00000.arrayrecord`, ... and returns their number.

    A record is a msgpack map {"image": bytes, "captions": [text, ...], "label": int or -1, "key": text}.  "image" is
    the unchanged image file (JPEG, PNG, ...); for YFCC the captions are title and description.  Label, key and captions
    may be omitted.  A shard gets its name when it is complete, so an interrupted call leaves no partial shard.

        write_records("/data/yfcc15m", ({"image": jpeg, "captions": [title, text]} for ...))

    Raises FileExistsError if the split already has shards, and ValueError for an invalid example or a path such as
    gs:// or s3://.
    """
    if ADDRESS.match(str(path)):
        raise ValueError(
            f"{path}: shards are written to local or mounted folders; mount the bucket (gcsfuse, mount-s3), or copy "
            "them when they are finished (gcloud storage rsync -r): training reads gs://"
        )
    folder = pathlib.Path(path)
    if existing := shards_of(folder, split):
        raise FileExistsError(f"{existing[0]} already exists; remove the shards of the split or choose another path")
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for shard, part in itertools.groupby(enumerate(examples), lambda numbered: numbered[0] // shard_size):
        total += _write_shard(folder / f"{split}-{shard:05d}.arrayrecord", part)
    return total


def _write_shard(path: pathlib.Path, numbered: Iterable[tuple[int, Mapping[str, Any]]]) -> int:
    """Writes one shard from an iterator of examples and returns their number."""
    count = 0
    with written_atomically(path) as partial:
        writer = ArrayRecordWriter(str(partial), "group_size:1")  # one record per block: random access
        try:
            for number, example in numbered:
                complete = _complete(example, key=str(number))
                writer.write(msgpack.packb({**complete, "captions": list(complete["captions"])}, default=_as_list))
                count += 1
        finally:
            writer.close()
    return count


def _as_list(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise ValueError(f"a field is {value!r:.40}; records hold texts, numbers, bytes, arrays, and lists of them")


def _complete(fields: Mapping[str, Any], key: str) -> Example:
    """Returns the example with defaults for omitted fields; ValueError that names the first invalid field."""
    example = {"captions": (), "label": -1, "key": key, **fields}
    for name, kind in (("image", bytes), ("label", numbers.Integral), ("key", str)):
        if not isinstance(example.get(name), kind):
            raise ValueError(f"field {name!r} is {example.get(name)!r:.40}; expected {SCHEMA}")
    captions = example["captions"]  # one text is no list, although its letters are texts
    is_list = isinstance(captions, Iterable) and not isinstance(captions, str | bytes | Mapping)
    texts: tuple[Any, ...] = tuple(captions) if is_list else (None,)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"captions {captions!r:.80} are not a list of texts; expected {SCHEMA}")
    return {**example, "label": int(label_of(example)), "captions": texts}


def _open(paths: Sequence[pathlib.PurePath]) -> ArrayRecordDataSource:
    try:
        return ArrayRecordDataSource([str(path) for path in paths])
    except RuntimeError as error:
        broken = []
        for path in map(str, paths):
            try:
                ArrayRecordDataSource(path)
            except RuntimeError:
                broken.append(path)
        raise MissingData(f"{', '.join(broken)}: not readable as ArrayRecord ({error}); write them again") from error


def _missing_records(path: str | os.PathLike, split: str) -> str:
    if not path:
        seen = "data.path is empty"
    elif _folder(path).is_file():
        seen = f"{str(path)!r} is a file, and the path of records is a folder"
    elif not _folder(path).is_dir():
        seen = f"the folder {str(path)!r} does not exist"
    else:
        others = splits_of(path)
        seen = f"{str(path)!r} has " + (f"only the splits {', '.join(others)}" if others else "no shards")
    if command := command_for(pathlib.Path(path), split) if path else "":
        way_out = f"Make them with\n  {command}\nand set --config.data.path to that --out"
    else:
        way_out = (
            f"Set --config.data.path to a folder that python -m detailclip_jax.prepare SOURCE ... --out DIR --split "
            f"{split} has written (--help: sources), or detailclip_jax.data.sources.write_records(path, examples, "
            f"split={split!r}).  Without own data: --config.data.source=stickers"
        )
    return f"no image-text records: looked for {split}-*.arrayrecord, but {seen}.  {way_out}"


def command_for(path: pathlib.Path, split: str) -> str:
    """Returns the command that makes records of a table, of tar shards or of a folder of images; "" for other paths.

    Also "" for a folder that has records, of whatever split.

    command_for(Path("photos"), "train") == "python -m detailclip_jax.prepare imagefolder photos --out photos-records"
    """
    files = [path] if path.is_file() else sorted(path.glob("*"))
    kind = next((TABLES[file.suffix] for file in files if file.suffix in TABLES), None)
    if any(file.suffix == ".arrayrecord" for file in files):
        return ""
    if kind is None and not any(
        file.suffix.lower() in SUFFIXES for file in itertools.islice(path.rglob("*"), MAX_LOOKED)
    ):
        return ""
    options = "" if split == "train" else f" --split {split}"
    return f"python -m detailclip_jax.prepare {kind or 'imagefolder'} {quote(str(path))} --out {beside(path)}{options}"


def beside(path: pathlib.Path) -> str:
    """Returns the folder for the records of a table or folder, next to it and quoted: "photos-records" of "photos"."""
    path = path if path.name else path.resolve()  # "."
    return quote(f"{path.with_suffix('') if path.is_file() else path}-records")


class TfdsSplit:
    """One split of a prepared builder of TensorFlow Datasets, with images still encoded; needs no TensorFlow.

    Raises MissingData if the set is prepared in a format without random access.
    """

    def __init__(self, builder: Any, split: str, name: str):
        self.name = name
        tfds, features = tensorflow_datasets(), builder.info.features
        images = [field for field, kind in features.items() if isinstance(kind, tfds.features.Image)]
        try:
            self._records = builder.as_data_source(split, decoders=dict.fromkeys(images, tfds.decode.SkipDecoding()))
        except NotImplementedError as error:  # raised by TFDS for formats without random access
            raise MissingData(
                f"{builder.data_dir} is prepared in a format without random access; prepare it with "
                f'tfds.builder({builder.name!r}, data_dir=..., file_format="array_record").download_and_prepare()'
            ) from error

    def __len__(self) -> int:
        return len(self._records)

    def fields(self, index: int) -> tuple[Mapping[str, Any], str]:
        """Returns the fields of a record, and its key: that of the first of KEY_FIELDS, else its place in the split.

        Raises BadRecord if the record is damaged.
        """
        try:
            fields = self._records[index]
        except (RuntimeError, ValueError) as error:
            raise BadRecord(f"{self.name}#{index}: {error}") from error
        keys = [field_texts(fields[name])[0] for name in KEY_FIELDS if name in fields]
        return fields, keys[0] if keys else f"{self.name}#{index}"


class TfdsRecords:
    """A data set of TensorFlow Datasets, prepared as array_record; needs no TensorFlow.

    "image" stays encoded; captions come from the fields title, description, captions, caption, text (those that exist,
    in this order), the label from "label".  Every text field is also in the example under its own name.
    """

    def __init__(self, path: str, split: str):
        builder = _tfds_builder(path, split)
        if "image" not in builder.info.features:
            raise MissingData(f"tfds {path!r} has no field 'image'; it has {', '.join(builder.info.features)}")
        self.name = f"{path}/{split}"
        features = builder.info.features.items()
        self.text_fields = [name for name, feature in features if name not in KEY_FIELDS and _is_text(feature)]
        self._split = TfdsSplit(builder, split, self.name)

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> Example:
        fields, key = self._split.fields(index)
        return {
            **{name: tuple(field_texts(fields[name])) for name in self.text_fields},
            "image": fields["image"],
            "captions": tuple(text for name in CAPTION_FIELDS if name in fields for text in field_texts(fields[name])),
            "label": int(label_of({"label": fields.get("label", -1), "key": key})),
            "key": key,
        }


def _tfds_builder(path: str, split: str) -> Any:
    """Returns the builder of a prepared data set; raises MissingData without one, NoSplit if it lacks the split."""
    tfds = tensorflow_datasets()
    if not path:
        raise MissingData("data.path is empty: --config.data.path=NAME, NAME:VERSION or a tfds builder's directory")
    try:
        builder = tfds.builder_from_directory(path) if _folder(path).is_dir() else tfds.builder(path)
    except Exception as error:  # tfds raises many types, with pages of names, for an unknown set
        raise MissingData(f"tfds has no data set {path!r}: {first_line(error)}") from error
    if split.split("[")[0] not in builder.info.splits:
        raise NoSplit(
            f"no tfds data: looked for split {split!r} in {builder.data_dir}, which has "
            f"{', '.join(builder.info.splits) or 'nothing prepared'}.  Prepare it with tfds.builder({builder.name!r}, "
            'file_format="array_record").download_and_prepare()'
        )
    return builder


def tensorflow_datasets() -> Any:
    """Imports the library; raises MissingData that says how to install it."""
    needs = "data sets of tfds need tensorflow-datasets"
    return extras.load("tensorflow_datasets", needs, "data", error=MissingData)


def _is_text(feature: Any) -> bool:
    """Returns whether a field holds a text, texts, or dicts with a "text"."""
    if isinstance(feature, tensorflow_datasets().features.Sequence):
        return _is_text(feature.feature)
    if isinstance(feature, tensorflow_datasets().features.FeaturesDict):
        return "text" in feature and _is_text(feature["text"])
    return isinstance(feature, tensorflow_datasets().features.Text)


def field_texts(value: Any) -> list[str]:
    """Returns all texts of a field: bytes, text, a number, a list of these, or a dict with a "text"."""
    if isinstance(value, Mapping):
        return field_texts(value["text"])
    if isinstance(value, bytes):
        return [value.decode("utf-8", errors="replace")]
    if isinstance(value, np.ndarray | Sequence) and not isinstance(value, str):
        return [text for item in value for text in field_texts(item)]
    return [str(value)]
