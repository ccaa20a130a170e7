"""Backgrounds of sticker scenes: a ground and distractor shapes without meaning."""

import functools
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

MAX_DISTRACTORS = 6

Field = Callable[[np.random.Generator, int], Float[np.ndarray, "h w"]]


def background(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "h w 3"]:
    """Draws a ground that blends two random colours by one of `FIELDS`, with distractors on it.

    The distractors (blobs, lines and polygons, some with a dark outline like the drawings) keep a segmentation model
    from finding objects by their outlines alone.
    """
    field = FIELDS[rng.integers(len(FIELDS))](rng, size)
    first, second = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    planes = [np.rint(a + field * (b - a)) for a, b in zip(first, second)]
    image = np.asarray(cv2.merge(planes)).astype(np.uint8)
    for _ in range(rng.integers(MAX_DISTRACTORS + 1)):
        DISTRACTORS[rng.integers(len(DISTRACTORS))](rng, image)
    return image


def plain_ground(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "h w 3"]:
    """Draws a ground of one colour without distractors: white in half of the cases, else grey or any colour.

    White is frequent because most drawings have a white ground.
    """
    image = np.full((size, size, 3), 255, np.uint8)
    kind = rng.random()
    if kind < 0.25:
        image[:] = rng.integers(256)
    elif kind < 0.5:
        image[:] = rng.integers(256, size=3)
    return image


@functools.lru_cache(maxsize=8)
def _grid(size: int) -> Float[np.ndarray, "2 h w"]:
    """Returns the coordinates (x, y) of the pixels, from -1/2 to 1/2."""
    line = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    return np.stack(np.meshgrid(line, line))


def _along(rng: np.random.Generator, size: int) -> Float[np.ndarray, "h w"]:
    """Returns the coordinate along a random direction, about -1/2 to 1/2."""
    angle = rng.uniform(0, 2 * np.pi)
    x, y = _grid(size)
    return np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y


def _flat(rng: np.random.Generator, size: int) -> Float[np.ndarray, "h w"]:
    return np.zeros((size, size), np.float32)


def _gradient(rng: np.random.Generator, size: int) -> Float[np.ndarray, "h w"]:
    return np.clip(_along(rng, size) + 0.5, 0, 1)


def _radial(rng: np.random.Generator, size: int) -> Float[np.ndarray, "h w"]:
    x, y = _grid(size)
    centre = rng.uniform(-0.5, 0.5, 2).astype(np.float32)
    return np.minimum(np.hypot(x - centre[0], y - centre[1]) * np.float32(rng.uniform(0.8, 2)), 1)


def _stripes(rng: np.random.Generator, size: int) -> Float[np.ndarray, "h w"]:
    waves = 0.5 + 0.5 * np.sin(_along(rng, size) * np.float32(2 * np.pi * rng.uniform(2, 10)))
    return np.round(waves) if rng.random() < 0.5 else waves


def _checks(rng: np.random.Generator, size: int) -> Float[np.ndarray, "h w"]:
    columns, rows = np.floor(_grid(size) * np.float32(rng.uniform(3, 10)) + np.float32(rng.random()))
    return (columns + rows) % 2


def _clouds(rng: np.random.Generator, size: int) -> Float[np.ndarray, "h w"]:
    cells = int(rng.integers(3, 12))
    noise = rng.random((cells, cells), np.float32)
    return np.clip(cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1)


def _blotches(rng: np.random.Generator, size: int) -> Float[np.ndarray, "h w"]:
    return (_clouds(rng, size) > rng.uniform(0.3, 0.7)).astype(np.float32)


def _grain(rng: np.random.Generator, size: int) -> Float[np.ndarray, "h w"]:
    side = size // int(rng.integers(1, 4))
    noise = rng.random((side, side), np.float32)
    return cv2.resize(noise, (size, size), interpolation=cv2.INTER_LINEAR) * np.float32(rng.uniform(0.3, 1))


FIELDS: tuple[Field, ...] = (_flat, _gradient, _radial, _stripes, _checks, _clouds, _blotches, _grain)


def _colour(rng: np.random.Generator) -> tuple[float, float, float]:
    return tuple(rng.uniform(0, 255, 3).tolist())


def _points(rng: np.random.Generator, size: int, num: int, deviation: float) -> Int[np.ndarray, "num 2"]:
    centre = rng.uniform(0, size, 2)
    return np.rint(centre + rng.uniform(-deviation, deviation, (num, 2)) * size).astype(np.int32)


def _blob(rng: np.random.Generator, image: UInt8[np.ndarray, "h w 3"]) -> None:
    size = len(image)
    axes = np.rint(rng.uniform(0.02, 0.09, 2) * size).astype(int).tolist()
    centre, angle = rng.integers(0, size, 2).tolist(), rng.uniform(0, 180)
    cv2.ellipse(image, centre, axes, angle, 0, 360, _colour(rng), -1, cv2.LINE_AA)
    if rng.random() < 0.5:
        cv2.ellipse(image, centre, axes, angle, 0, 360, (0, 0, 0), _pen(size), cv2.LINE_AA)


def _line(rng: np.random.Generator, image: UInt8[np.ndarray, "h w 3"]) -> None:
    colour = (0.0, 0.0, 0.0) if rng.random() < 0.5 else _colour(rng)
    points = _points(rng, len(image), int(rng.integers(2, 5)), 0.2)
    cv2.polylines(image, [points], False, colour, _pen(len(image)), cv2.LINE_AA)


def _polygon(rng: np.random.Generator, image: UInt8[np.ndarray, "h w 3"]) -> None:
    points = _points(rng, len(image), int(rng.integers(3, 6)), 0.1)
    cv2.fillPoly(image, [points], _colour(rng), cv2.LINE_AA)
    if rng.random() < 0.5:
        cv2.polylines(image, [points], True, (0, 0, 0), _pen(len(image)), cv2.LINE_AA)


def _pen(size: int) -> int:
    """Returns a line width close to that of the drawings' outlines."""
    return max(1, round(size / 64))


DISTRACTORS = (_blob, _line, _polygon)
