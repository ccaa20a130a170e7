"""Boxes of an example with phrases: where they lie in its views, and which of them count (`data.regions`).

A record has "boxes" (xyxy, pixels of its image), "phrases" (one text for each box, or several of which one is drawn)
and perhaps "phrase_negatives" (false texts for each box).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32
from ml_collections import ConfigDict

from detailclip_jax.config import sizes
from detailclip_jax.config.fields import AT_EOT
from detailclip_jax.data.caption_selection import not_blank, texts
from detailclip_jax.data.false_texts import first_or_drawn, rows_of
from detailclip_jax.data.mixture import members_of
from detailclip_jax.data.source_checks import NUM_FOR_BLANK, checked_examples
from detailclip_jax.data.sources import BadRecord, Source
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.views import captioned_crop
from detailclip_jax.data.vocabularies import tokenizer_of

LEAST_SHARE, LEAST_SPAN = 0.9, 1.5  # of a box's area in the view; of its sides, in patches
LEAST_LENGTH = 3  # tokens of a phrase: start, a word and end
FORM = '"boxes": [[x0, y0, x1, y1], ...] in pixels, "phrases": [text, ...], "phrase_negatives": [[text, ...], ...]'

Boxes = Float32[np.ndarray, "n 4"]


class BoxedPhrases(NamedTuple):
    """The boxes of a record with their phrases and false phrases."""

    boxes: Boxes
    phrases: list[list[str]]
    negatives: list[list[str]]


class RegionDraw(NamedTuple):
    """How regions are drawn: `number` of an example, from views of `size` pixels and `side` patches along a side."""

    number: int
    crop: str
    size: int
    side: int
    tokenizer: Tokenizer  # of phrases

    def of(
        self,
        example: Mapping[str, Any],
        views: Mapping[str, Float32[np.ndarray, "V 4"]],
        num_false: int,
        rng: np.random.Generator,
    ) -> tuple[dict[str, np.ndarray], int]:
        """Returns the arrays of an example's regions, and how many of their texts were cut.

        `views` are the boxes of its views by name. The regions are drawn from the boxes that count in at least one
        view. Raises BadRecord for fields of another form.
        """
        record = read(example)
        cut, counts = usable(in_views(record.boxes, views[self.crop]), self.side)
        drawn = rng.permutation(np.flatnonzero(counts.any(0)))[: self.number]
        shape = len(cut), self.number
        boxes, valid = np.zeros((*shape, 4), np.float32), np.zeros(shape, bool)
        boxes[:, : len(drawn)] = np.where(counts[..., None], cut * self.size, 0)[:, drawn]
        valid[:, : len(drawn)] = counts[:, drawn]
        words = [  # of each box a phrase, drawn if it has several, and the false ones
            [*first_or_drawn(record.phrases[at], 1, rng), *first_or_drawn(record.negatives[at], num_false, rng)]
            for at in drawn
        ]
        words += [[""] * (1 + num_false)] * (self.number - len(drawn))
        rows, filled, num_cut = rows_of([text for each in words for text in each], self.tokenizer)
        arrays = {
            "regions": boxes,
            "regions_valid": valid,
            "region_text": rows.reshape(self.number, 1 + num_false, -1),
            "region_text_valid": filled.reshape(self.number, 1 + num_false),
        }
        return arrays, num_cut


def region_draw_of(config: ConfigDict) -> RegionDraw | None:
    """Returns how the regions of a run's config are drawn; None without them."""
    if not config.data.regions:
        return None
    crop, patch = captioned_crop(config.views.crops), sizes.size_of(config.model).patch_size
    size, tokenizer = config.views.crops[crop].size, tokenizer_of(config, config.data.keep_eot, phrase_length(config))
    return RegionDraw(config.data.regions, crop, size, size // patch, tokenizer)


def check(config: ConfigDict) -> None:
    """Raises ValueError for a length of phrases that the model does not read, and for regions of native views."""
    length, most = config.data.phrase_length, config.model.context_length
    if length and not LEAST_LENGTH <= length <= most:
        raise ValueError(
            f"data.phrase_length {length} must be 0 or from {LEAST_LENGTH} to model.context_length, {most}"
        )
    if length and config.model.text_style.pooling != AT_EOT:
        raise ValueError(
            f"data.phrase_length {length}: model.text_style.pooling {config.model.text_style.pooling!r} also reads the "
            "padding of a text, which then has one length; set data.phrase_length to 0"
        )
    if config.data.regions and config.views.native:
        raise ValueError(f"data.regions {config.data.regions} needs square views; set it to 0, or views.native to ()")


def phrase_length(config: ConfigDict) -> int:
    """Returns the largest number of tokens of a phrase."""
    return config.data.phrase_length or config.model.context_length


def read(example: Mapping[str, Any]) -> BoxedPhrases:
    """Returns the boxes of an example that have a phrase; raises BadRecord for fields of another form."""
    try:
        if isinstance(phrases := example.get("phrases", ()), str):
            raise ValueError("one text in place of a list")
        phrases = [list(texts(each)) for each in phrases]
        boxes = example.get("boxes", ()) if phrases else ()
        negatives = [list(texts(each)) for each in example.get("phrase_negatives") or [()] * len(phrases)]
        array = np.asarray(boxes, np.float32).reshape(len(boxes), 4)
        if not (len(array) == len(phrases) == len(negatives) and np.isfinite(array).all()):
            raise ValueError("other numbers of boxes and phrases, or a box that is not finite")
    except (TypeError, ValueError) as error:
        raise BadRecord(f"{example['key']}: boxes and phrases do not fit together; expected {FORM}") from error
    is_box = np.all(array[:, 2:] > array[:, :2], axis=-1)
    kept = [at for at in np.flatnonzero(is_box) if not_blank(phrases[at])]
    return BoxedPhrases(array[kept], [not_blank(phrases[at]) for at in kept], [not_blank(negatives[at]) for at in kept])


def in_views(boxes: Boxes, views: Float32[np.ndarray, "V 4"]) -> Float32[np.ndarray, "V n 4"]:
    """Returns the places of boxes in views, xyxy in shares of the views' sides: (0, 0, 1, 1) is all of a view.

    Both are in pixels of the image. The box of a mirrored view has x0 > x1, and a box lies mirrored in it.
    """
    corner, far = views[:, None, :2], views[:, None, 2:]
    ends = (boxes[:, :2] - corner) / (far - corner), (boxes[:, 2:] - corner) / (far - corner)
    return np.concatenate([np.minimum(*ends), np.maximum(*ends)], -1)


def usable(boxes: Float[Any, "*n 4"], side: int) -> tuple[Float[Any, "*n 4"], Bool[Any, "*n"]]:
    """Cuts boxes (shares of a map of `side` x `side` patches) to the map, and returns which of them count.

    A box counts if 90 % of its area are on the map and it spans 1.5 patches in both directions.
    """
    cut = boxes.clip(0, 1)
    sides, whole = (x[..., 2:] - x[..., :2] for x in (cut, boxes))
    return cut, (sides.prod(-1) >= LEAST_SHARE * whole.prod(-1)) & (sides.min(-1) * side >= LEAST_SPAN)


def check_regions(source: Source, number: int) -> None:
    """Raises ValueError if no checked example of any set has boxes with phrases, and the run asks for regions."""
    examples = (each for member in members_of(source) for each in checked_examples(member.source, NUM_FOR_BLANK))
    if number and not any(each.get("phrases") for each in examples):
        raise ValueError(
            f"data.regions {number}: none of {NUM_FOR_BLANK} examples, spread over the set, has boxes with phrases; "
            f"prepare the set with them ({FORM}; docs/records.md), or set data.regions to 0"
        )
