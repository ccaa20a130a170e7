"""Reads FineHARD: files with one JSON array of images, each with a long and a short caption and boxes with phrases.

An image is {"f_path", "caption", "short_caption", "bbox_info"}; `regions` has the form of its boxes.
"""

import json
import os
from collections.abc import Iterator

from detailclip_jax.convert import regions
from detailclip_jax.convert.columns import text_of
from detailclip_jax.convert.examples import Rejected
from detailclip_jax.convert.files import open_text
from detailclip_jax.convert.job import Request
from detailclip_jax.convert.rows import Row, contained

CAPTIONS = ("caption", "short_caption")


def rows_of(request: Request) -> Iterator[Row]:
    """Yields the images of the files; ValueError for a file that is no JSON array of objects with an f_path."""
    for path in request.paths:
        try:
            with open_text(path) as file:
                images = json.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is not one JSON array: {error}; prepare jsonl reads an object per line"
            ) from error
        if not isinstance(images, list) or not all(isinstance(each, dict) and "f_path" in each for each in images[:1]):
            raise ValueError(f"{path} is no array of images with f_path, caption, short_caption and bbox_info")
        for number, image in enumerate(images):
            key = f"{os.path.basename(path)}#{number}"
            try:
                image_path = text_of(image["f_path"])
                if not image_path:
                    raise Rejected("bad row: no f_path")
                key = image_path
                texts = {name: text_of(image[name]) for name in CAPTIONS if name in image}
                boxes, negatives = regions.read(image)
            except (Rejected, KeyError, TypeError) as error:
                yield Row(key, refused=str(error) if isinstance(error, Rejected) else f"bad row: {error!r}")
                continue
            yield contained(Row(key, [(key,)], (), texts, regions=boxes, negatives=negatives))
