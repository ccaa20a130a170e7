"""What the page shows of an image: values of `inference.model.Model`, as lists and texts that JSON can hold."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from detailclip_jax.inference import embeddings
from detailclip_jax.inference.embeddings import Named
from detailclip_jax.inference.model import Model, Square

SHOWN_SIDE = 448  # pixels of the square that the page shows; the networks see `config.model.image_size`
MAX_SIDE = 1024  # pixels of the longer side of the image that heat maps are computed from
MAP_SIDE = 64  # values along the longer side of a heat map
DIGITS = 5  # after the decimal point


class Seen(NamedTuple):
    """What one model computed of one image.

    square: the part of the image that the networks see, at SHOWN_SIDE pixels.
    embedding: [E] of `Model.encode_image`; attention: [h, w] of `Model.attention` (eq. 9).
    patches: [h w, D] of `Model.features`, L2-normalised.
    """

    square: UInt8[np.ndarray, "S S 3"]
    embedding: Float32[np.ndarray, "E"]
    attention: Float32[np.ndarray, "h w"]
    patches: Float32[np.ndarray, "N D"]


def look(models: Sequence[Model], pixels: UInt8[np.ndarray, "H W 3"]) -> tuple[Seen, ...]:
    """Computes what the page shows of an image without captions, one `Seen` per model.

    The image is resized once for each preprocessing, since resizing a photo takes longer than running a small network.
    """
    view, seen = functools.cache(lambda transform: transform.view(pixels)), []
    for model in models:
        size, shorter_side = model.transform.size, model.transform.shorter_side
        shown = model.transform._replace(size=SHOWN_SIDE, shorter_side=round(SHOWN_SIDE * shorter_side / size))
        square = Square(view(model.transform))
        patches = model.features([square]).patches[0]
        patches = patches.reshape(-1, patches.shape[-1])
        patches = patches / np.maximum(np.linalg.norm(patches, axis=1, keepdims=True), 1e-12)
        seen.append(Seen(view(shown), model.encode_image([square])[0], model.attention(square), patches))
    return tuple(seen)


def reduced(pixels: UInt8[np.ndarray, "H W 3"], side: int = MAX_SIDE) -> UInt8[np.ndarray, "h w 3"]:
    """The image with a longer side of at most `side` pixels; smaller images stay as they are."""
    factor = side / max(pixels.shape[:2])
    if factor >= 1:
        return pixels
    height, width = (max(round(length * factor), 1) for length in pixels.shape[:2])
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA))


def described(seen: Seen) -> dict[str, Any]:
    """Attention [N] and the order of removal [N] of the patches, row by row, and the patches along a side."""
    return {
        "side": len(seen.attention),
        "attention": rounded(seen.attention),
        "order": removal_order(seen.attention).tolist(),
    }


def removal_order(attention: Float[np.ndarray, "h w"]) -> Int[np.ndarray, "N"]:
    """The place of each patch in the order of removal, from 0 for the lowest attention (section 3.2.3).

    A mask that removes H patches removes those with a place below H; of equal values the lower index comes first.
    """
    order = np.empty(attention.size, int)
    order[np.argsort(attention.ravel(), kind="stable")] = np.arange(attention.size)
    return order


def compared(
    model: Model, seen: Seen, pixels: UInt8[np.ndarray, "H W 3"], texts: Sequence[str], readout: str | None = None
) -> dict[str, Any]:
    """Cosine of the image with each text, its share after a softmax at the trained scale, and a heat map per text.

    A map has `height` x `width` values, row by row: cosines of `Model.dense` over all of the image, by `readout`, by
    default that of the model.
    """
    cosines = model.encode_text(texts) @ seen.embedding
    factor = MAP_SIDE / max(pixels.shape[:2])
    height, width = (max(round(length * factor), 1) for length in pixels.shape[:2])
    maps = model.dense(pixels, texts, readout, size=(height, width))
    return {
        "cosines": rounded(cosines),
        "shares": rounded(model.shares(cosines)),
        "readout": readout or model.readout,
        "height": height,
        "width": width,
        "maps": [rounded(values) for values in maps],
    }


def neighbours(seen: Seen, x: float, y: float) -> dict[str, Any]:
    """The patch at (x, y), fractions of the square from the top left, and its cosine with every patch [N]."""
    side = len(seen.attention)
    row, column = (min(int(value * side), side - 1) for value in (y, x))
    return {"row": row, "column": column, "cosines": rounded(seen.patches @ seen.patches[row * side + column])}


def nearest(images: Named, wanted: Float32[np.ndarray, "E"], top: int) -> list[dict[str, Any]]:
    """The nearest images of a file of embeddings: number in the file, name and cosine, best first."""
    return [
        {"number": match.number, "name": match.name, "cosine": round(match.cosine, DIGITS)}
        for match in embeddings.nearest(images, wanted, top)
    ]


def rounded(values: Float[np.ndarray, "*shape"]) -> list[float]:
    """The values, row by row, with DIGITS digits after the point."""
    return np.round(np.asarray(values, np.float64).ravel(), DIGITS).tolist()
