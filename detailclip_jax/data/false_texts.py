"""Captions that state one fact of a scene, and false captions of an image, for training (`data.negatives`).

A record's field "negatives" has texts that are false of the image. Scenes with a stated fact (`stickers.statements`)
have two for each true text: the fact exchanged, and a noun. False texts are in arrays of their own, "false" and
"false_valid": what reads captions reads true ones only.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32
from ml_collections import ConfigDict

from detailclip_jax.config.data_path import components
from detailclip_jax.config.sizes import mean_batch_size
from detailclip_jax.data.caption_selection import STATES, not_blank, texts
from detailclip_jax.data.mixture import members_of
from detailclip_jax.data.source_checks import NUM_FOR_BLANK, checked_examples
from detailclip_jax.data.sources import Source
from detailclip_jax.data.stickers.scene_source import NUM_FALSE, STATED
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.views import captioned_crop

FIELD = "negatives"
PARTS = {"negatives": FIELD, "images": "image"}  # data.shuffled: the field that an example gets from another one


class Ramp(NamedTuple):
    """The share of statements of a side that are relations, by the position in the stream.

    It rises linearly between two positions; scenes without a unary form always state the relation.
    """

    first: float = 0.0
    last: float = 0.0

    def at(self, position: int) -> float:
        """Returns the share at a position."""
        if position >= self.last:
            return 1.0
        if position <= self.first:
            return 0.0
        return (position - self.first) / (self.last - self.first)


RELATIONS = Ramp()  # from the first position on


def ramp_of(config: ConfigDict) -> Ramp:
    """Returns the ramp of a run's config; all are relations if the length of the run is not known."""
    num = (config.total_steps or 0) * mean_batch_size(config)
    return Ramp(*(share * num for share in config.data.relations))


def stated(
    example: Mapping[str, Any],
    relations: float,
    rng: np.random.Generator,
    num_false: int = NUM_FALSE,
    ordinary_ratio: float = 0.0,
) -> dict[str, Any]:
    """Returns an example with one of its statements as the only caption, and with its first `num_false` false texts.

    `relations` is the probability of the last form, where there are two, and `ordinary_ratio` that of one of the
    scene's ordinary captions, which has no false texts, in place of the statement. A scene without statements always
    gets an ordinary caption.
    """
    false: Sequence[str] = ()
    if forms := example.get("states"):
        true, *false = forms[0 if len(forms) > 1 and rng.random() >= relations else -1]
    if not forms or (ordinary_ratio and rng.random() < ordinary_ratio):
        ordinary = not_blank(example["captions"])
        true, false = ordinary[rng.integers(len(ordinary))], ()
    return {**example, "captions": (true,), FIELD: tuple(false[:num_false])}


def with_parts_of(example: Mapping[str, Any], other: Mapping[str, Any], which: str) -> dict[str, Any]:
    """Returns an example with the false texts or the image of another one, for control experiments."""
    return {**example, PARTS[which]: other.get(PARTS[which], ())}


def first_or_drawn(words: Sequence[str], num: int, rng: np.random.Generator) -> list[str]:
    """Returns `num` texts: all in their order, filled up with "", or `num` drawn ones if there are more."""
    if len(words) > num:
        filled = not_blank(words)
        words = [filled[at] for at in rng.permutation(len(filled))[:num]]
    return [*words, *[""] * (num - len(words))]


def arrays_of(
    example: Mapping[str, Any], num: int, tokenizer: Tokenizer, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], int]:
    """Returns the arrays of `num` false texts of an example, and how many of these were cut."""
    rows, filled, num_cut = rows_of(first_or_drawn(texts(example.get(FIELD)), num, rng), tokenizer)
    return {"false": rows, "false_valid": filled}, num_cut


def rows_of(words: Sequence[str], tokenizer: Tokenizer) -> tuple[Int32[np.ndarray, "K T"], Bool[np.ndarray, " K"], int]:
    """Returns the token ids of texts, which of them are not blank, and how many were cut."""
    rows, cut = zip(*(tokenizer.row(text) for text in words))
    return np.stack(rows), np.array([bool(text.strip()) for text in words]), sum(cut)


def check(config: ConfigDict) -> None:
    """Raises ValueError, with the fields to set, for settings of false texts that contradict others.

    Such are statements that would not stay true, more texts than a scene has, and controls without what they exchange.
    """
    data, crop = config.data, captioned_crop(config.views.crops)
    stickers = [one.kind == "stickers" for one in components(data)]
    if data.caption == STATES:
        if not all(stickers) or data.stickers.scenes != STATED:
            raise ValueError(
                f"data.caption {STATES!r} is for stickers whose scenes are drawn for a stated fact: set "
                f"--config.data.source=stickers --config.data.stickers.scenes={STATED}"
            )
        seen = config.views.crops[crop]
        kind = seen.get("kind", "random")
        if kind != "whole" or seen.flip:
            raise ValueError(
                f"data.caption {STATES!r} states numbers and sides, which are true of the whole scene alone: set "
                f"--config.views.crops.{crop}.kind=whole --config.views.crops.{crop}.flip=0 (now {kind!r} and "
                f"{seen.flip:g})"
            )
    if any(stickers) and data.negatives > NUM_FALSE:
        raise ValueError(
            f"data.negatives {data.negatives}: a scene of stickers has at most {NUM_FALSE} false texts; set it to "
            f"{NUM_FALSE} or less"
        )
    if data.ordinary_ratio and data.caption != STATES:
        raise ValueError(
            f"data.ordinary_ratio {data.ordinary_ratio:g} is for the caption rule {STATES!r}, and "
            f"data.caption is {data.caption!r}, whose captions are all ordinary: set it to 0"
        )
    if any(data.relations) and data.caption != STATES:
        raise ValueError(
            f"data.relations {tuple(data.relations)} is for the caption rule {STATES!r}, and data.caption is "
            f"{data.caption!r}: leave data.relations out, or set --config.data.caption={STATES}"
        )
    if data.shuffled == "negatives" and not data.negatives:
        raise ValueError(
            "data.shuffled 'negatives' exchanges false texts, and data.negatives is 0: set --config.data.negatives to "
            "their number, or --config.data.shuffled=''"
        )
    if data.shuffled == "images" and data.regions:
        raise ValueError(
            f"data.shuffled 'images' gives an example another image, in which its boxes (data.regions {data.regions}) "
            "are wrong: set --config.data.regions=0, or --config.data.shuffled=''"
        )


def check_source(source: Source, data: ConfigDict) -> None:
    """Raises ValueError if no checked example of any set has false texts, and the run asks for them.

    A run with regions may have those of phrases alone.
    """
    if data.negatives and data.caption != STATES:
        examples = (each for member in members_of(source) for each in checked_examples(member.source, NUM_FOR_BLANK))
        of_phrases = lambda each: data.regions and any(each.get("phrase_negatives") or ())  # noqa: E731
        if not any(of_phrases(each) or not_blank(texts(each.get(FIELD))) for each in examples):
            raise ValueError(
                f"data.negatives {data.negatives}: none of {NUM_FOR_BLANK} examples, spread over the set, has the "
                f"field {FIELD!r}, a list of texts that are false of its image; prepare the set with it "
                "(docs/records.md), or set data.negatives to 0.  Stickers have false texts with "
                f"--config.data.caption={STATES}"
            )
