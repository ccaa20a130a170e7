"""Converts a prepared set to a TensorFlow Datasets set: tfds.data_source("detailclip_image_text/NAME").

It is written as array_record, without TensorFlow.  Reading it needs neither this package nor TensorFlow.
"""

import pathlib
import re
from typing import Any

import numpy as np

from detailclip_jax.convert.prepared_set import load
from detailclip_jax.data.sources import Records, tensorflow_datasets

VERSION = "1.0.0"
NAME = re.compile(r"[A-Za-z0-9_]+")


def write(folder: str, name: str, data_dir: str | None = None) -> pathlib.Path:
    """Copies the prepared set in `folder`; returns the folder of the copy.

    Raises MissingData without tensorflow-datasets, and ValueError if a set of that name exists: TensorFlow Datasets
    would keep the old one, whatever its contents.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"--name {name!r}: use letters, digits and _")
    built = builder(folder, name, data_dir)
    if pathlib.Path(built.data_dir).exists():
        raise ValueError(f"{built.data_dir} already exists; remove it, or choose another --name or --data-dir")
    built.download_and_prepare()
    return pathlib.Path(built.data_dir)


def builder(folder: str, name: str, data_dir: str | None = None) -> Any:
    """Returns the builder of detailclip_image_text/NAME for a prepared set; it has not been run."""
    tfds = tensorflow_datasets()
    config = tfds.core.BuilderConfig(name=name, version=VERSION, description=f"prepared from {folder}")
    splits = load(folder)["splits"]

    class DetailclipImageText(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
        """Images with captions, as written by `detailclip_jax.prepare`."""

        VERSION = tfds.core.Version(VERSION)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(builder=self, features=features(tfds))

        def _split_generators(self, dl_manager: Any) -> Any:
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split: str) -> Any:
            records = Records(folder, split)
            for index in range(len(records)):
                example = records[index]
                named = {name: example.get(name, "") for name in ("title", "description")}
                fields = {name: example[name] for name in ("image", "label", "key")}
                yield index, {**named, **fields, "captions": [*example["captions"]]}

    return DetailclipImageText(config=config, data_dir=data_dir, file_format="array_record")


def features(tfds: Any) -> Any:
    """Returns the features of an example: image (encoded), captions, title, description, label, key."""
    text = tfds.features.Text()
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "title": text,
            "description": text,
            "label": tfds.features.Scalar(np.int64),
            "key": text,
        }
    )
