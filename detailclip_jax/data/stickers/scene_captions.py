"""Captions of sticker scenes: they name the objects, their numbers and relations, and never the background.

A caption that names the ground would teach the image encoder to attend to the ground.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from detailclip_jax.data.stickers.hold_outs import held_out
from detailclip_jax.data.stickers.nouns import NOUNS, NUMBERS

TEMPLATES = ("{}", "a picture of {}", "a drawing of {}", "an image of {}", "{} in a picture")
PLAIN_SHARE = 0.5  # share of captions that are the bare phrase, TEMPLATES[0]
RELATION_SHARE = 0.7  # of the captions whose first two groups have a clear relation
MARGIN = 0.1  # of the canvas: smallest distance of centres at which a relation is stated
LARGER = 2.0  # smallest ratio of the areas of two boxes at which one object is called larger
TOTALS = {**NUMBERS, 5: "five"}  # scenes with a stated fact have up to five objects
SIDES = ("above", "below", "to the left of", "to the right of")
OPPOSITE = {"above": "below", "to the left of": "to the right of", "larger than": "smaller than"}
OPPOSITE |= {after: before for before, after in OPPOSITE.items()}

Groups = dict[int, Float[np.ndarray, "_ 4"]]  # the boxes of a scene by noun


def captions(
    rng: np.random.Generator,
    nouns: Int[np.ndarray, " n"],
    boxes: Float[np.ndarray, "n 4"],
    size: int,
    num: int = 2,
    hold_out: bool = False,
) -> tuple[str, ...]:
    """Draws `num` true captions of a scene, each with its own order of the nouns and its own template.

        captions(rng, nouns, boxes, 64) -> ("a frog above a camera", "a picture of a camera and a frog")

    `boxes` are xyxy in pixels, one per object; `size` is the side of the canvas.  With `hold_out` no relation is stated
    whose direction is held out of one of the nouns.
    """
    groups = _groups(nouns, boxes)
    return tuple(_caption(rng, groups, MARGIN * size, hold_out) for _ in range(num))


def words() -> tuple[str, ...]:
    """Returns texts that together have every word and mark of the captions of scenes, long ones included."""
    nouns = [noun.counted(count) for noun in NOUNS for count in (1, *NUMBERS)]
    templates = [template.format("") for template in TEMPLATES]
    return (*nouns, *templates, *OPPOSITE, "there is one object. there are two objects", "only", "and, with")


def long_caption(nouns: Int[np.ndarray, " n"], boxes: Float[np.ndarray, "n 4"], size: int) -> str:
    """Returns all that is known of a scene, one fact per sentence; arguments as in `captions`.

        long_caption(nouns, boxes, 64) == (
            "there are two objects. a frog. a camera. a frog is above a camera. a camera is below a frog. "
            "a frog is larger than a camera. a camera is smaller than a frog."
        )

    It draws no random number: the caption rules "crops" and "diverse" draw from its sentences.
    """
    groups = _groups(nouns, boxes)
    total = sum(map(len, groups.values()))
    phrases = {noun: NOUNS[noun].counted(len(boxes)) for noun, boxes in groups.items()}
    sentences = [f"there are {TOTALS[total]} objects" if total > 1 else "there is one object", *phrases.values()]
    if len(groups) == 1:
        sentences += [f"only {phrase}" for phrase in phrases.values()]
    for first, second in itertools.combinations(groups, 2):
        pair = groups[first], groups[second]
        for word in filter(None, (relation(*pair, MARGIN * size), size_relation(*pair))):
            sentences.append(f"{phrases[first]} {_verb(pair[0])} {word} {phrases[second]}")
            sentences.append(f"{phrases[second]} {_verb(pair[1])} {OPPOSITE[word]} {phrases[first]}")
    return "".join(f"{sentence}. " for sentence in sentences).rstrip()


def _groups(nouns: Int[np.ndarray, " n"], boxes: Float[np.ndarray, "n 4"]) -> Groups:
    return {noun: boxes[nouns == noun] for noun in dict.fromkeys(nouns.tolist())}


def _verb(boxes: Float[np.ndarray, "n 4"]) -> str:
    return "is" if len(boxes) == 1 else "are"


def prompts(noun: int) -> tuple[str, ...]:
    """Returns the possible captions of a scene with a single object, `noun`."""
    return tuple(template.format(NOUNS[noun].counted(1)) for template in TEMPLATES)


def relation(first: Float[np.ndarray, "a 4"], second: Float[np.ndarray, "b 4"], margin: float) -> str | None:
    """Returns the relation of `first` to `second` by the centres of their boxes, or None if it is not clear.

    "above": every centre of `first` is at least `margin` pixels higher than every centre of `second`, and the groups
    differ more in height than horizontally.  "below", "to the left of" and "to the right of" are defined alike.
    """
    gaps = _centres(first)[:, None] - _centres(second)[None]  # [a, b, xy]
    axis = int(np.argmax(np.abs(gaps.mean((0, 1)))))
    before, after = (("to the left of", "to the right of"), ("above", "below"))[axis]
    if gaps[..., axis].max() <= -margin:
        return before
    return after if gaps[..., axis].min() >= margin else None


def direction(side: str) -> str:
    """Returns the first of the two words for a direction: "above" for "below"."""
    return SIDES[SIDES.index(side) // 2 * 2]


def size_relation(first: Float[np.ndarray, "a 4"], second: Float[np.ndarray, "b 4"]) -> str | None:
    """Returns the relation of the sizes of two groups, or None if it is not clear.

    "larger than": the box of each object of `first` has at least `LARGER` times the area of each one of `second`.
    "smaller than" is defined alike.
    """
    ratios = _areas(first)[:, None] / _areas(second)[None]
    if ratios.min() >= LARGER:
        return "larger than"
    return "smaller than" if ratios.max() <= 1 / LARGER else None


def listed(phrases: Sequence[str]) -> str:
    """Joins phrases: "a frog", "a frog and a camera", "a frog, a camera and a kite"."""
    return " and ".join(part for part in (", ".join(phrases[:-1]), phrases[-1]) if part)


def _caption(rng: np.random.Generator, groups: Groups, margin: float, hold_out: bool) -> str:
    order = rng.permutation(list(groups)).tolist()
    phrases = [NOUNS[noun].counted(len(groups[noun])) for noun in order]
    text = listed(phrases)
    if len(order) > 1 and rng.random() < RELATION_SHARE:
        word = relation(groups[order[0]], groups[order[1]], margin)
        if word and not (hold_out and any(held_out(noun, direction(word)) for noun in order[:2])):
            text = f"{phrases[0]} {word} {phrases[1]}"
            text += f", with {listed(phrases[2:])}" if phrases[2:] else ""
    plain = rng.random() < PLAIN_SHARE
    return TEMPLATES[0 if plain else rng.integers(1, len(TEMPLATES))].format(text)


def _centres(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 2"]:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _areas(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    return (boxes[:, 2:] - boxes[:, :2]).prod(-1)
