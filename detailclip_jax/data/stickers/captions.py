"""Captions of sticker scenes: they name the objects, their numbers and relations, and never the background.

A caption that names the ground would teach the image encoder to attend to the ground.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from detailclip_jax.data.stickers.nouns import NOUNS

TEMPLATES = ("{}", "a picture of {}", "a drawing of {}", "an image of {}", "{} in a picture")
PLAIN_SHARE = 0.5  # share of captions that are the bare phrase, TEMPLATES[0]
RELATION_SHARE = 0.7  # of the captions whose first two groups have a clear relation
MARGIN = 0.1  # of the canvas: smallest distance of centres at which a relation is stated


def captions(
    rng: np.random.Generator,
    nouns: Int[np.ndarray, " n"],
    boxes: Float[np.ndarray, "n 4"],
    size: int,
    num: int = 2,
) -> tuple[str, ...]:
    """Draws `num` true captions of a scene, each with its own order of the nouns and its own template.

        captions(rng, nouns, boxes, 64) -> ("a frog above a camera", "a picture of a camera and a frog")

    `boxes` are xyxy in pixels, one per object; `size` is the side of the canvas.
    """
    groups = {noun: boxes[nouns == noun] for noun in dict.fromkeys(nouns.tolist())}
    return tuple(_caption(rng, groups, MARGIN * size) for _ in range(num))


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


def listed(phrases: Sequence[str]) -> str:
    """Joins phrases: "a frog", "a frog and a camera", "a frog, a camera and a kite"."""
    return " and ".join(part for part in (", ".join(phrases[:-1]), phrases[-1]) if part)


def _caption(rng: np.random.Generator, groups: dict[int, Float[np.ndarray, "_ 4"]], margin: float) -> str:
    order = rng.permutation(list(groups)).tolist()
    phrases = [NOUNS[noun].counted(len(groups[noun])) for noun in order]
    text = listed(phrases)
    if len(order) > 1 and rng.random() < RELATION_SHARE:
        word = relation(groups[order[0]], groups[order[1]], margin)
        text = _related(phrases, word) if word else text
    plain = rng.random() < PLAIN_SHARE
    return TEMPLATES[0 if plain else rng.integers(1, len(TEMPLATES))].format(text)


def _related(phrases: Sequence[str], word: str) -> str:
    """Returns "a frog above a camera", or "a frog above a camera, with a kite" if there are further groups."""
    text = f"{phrases[0]} {word} {phrases[1]}"
    return f"{text}, with {listed(phrases[2:])}" if phrases[2:] else text


def _centres(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 2"]:
    return (boxes[:, :2] + boxes[:, 2:]) / 2
