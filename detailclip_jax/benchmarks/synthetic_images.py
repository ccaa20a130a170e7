"""Generates images and captions, for a machine without a data set."""

import dataclasses
import functools

import cv2
import numpy as np
from jaxtyping import UInt8

from detailclip_jax.data.sources import Example

LAYERS = ((4, 60.0), (16, 35.0), (64, 20.0), (160, 9.0))  # (number of noise cells along the width, amplitude)
WORDS = ("a", "the", "of", "on", "with", "red", "old", "small", "street", "river", "dog", "people", "light", "photo")
DISTINCT = 64


@dataclasses.dataclass(frozen=True)
class SyntheticImages:
    """JPEG files of noise at several scales: 38 KB for 500 x 375 at quality 85, about as photos of this size.

    SyntheticImages()[3]["image"], SyntheticImages()[3]["captions"]   # bytes, ("street with red ...", "...")
    """

    height: int = 375
    width: int = 500
    quality: int = 85

    def __len__(self) -> int:
        return DISTINCT

    def __getitem__(self, index: int) -> Example:
        """Example `index`, cached, since its generation must not be part of the measurement."""
        data = _encoded(index, self.height, self.width, self.quality)
        return {"image": data, "captions": _captions(index), "label": -1, "key": f"made-up-{index}"}


@functools.cache
def _captions(seed: int) -> tuple[str, ...]:
    return tuple(" ".join(row) for row in np.random.default_rng(seed).choice(WORDS, (2, 10)).tolist())


@functools.cache
def _encoded(seed: int, height: int, width: int, quality: int) -> bytes:
    image = cv2.cvtColor(draw(seed, height, width), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def draw(seed: int, height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
    """Noise whose amplitude decreases with frequency, as in photos."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 128, np.float32)
    for cells, strength in LAYERS:
        noise = rng.standard_normal((max(1, cells * height // width), cells, 3)).astype(np.float32)
        image += strength * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return image.clip(0, 255).astype(np.uint8)
