"""A map of an image per text: cosines of text embeddings and patch features of a training-free read-out.

`models.readouts` has the formulas; here is how each published read-out resizes an image, cuts it into windows and
combines their maps. Lengths are for a model of 224 px; for another image size they scale with it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, UInt8
from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.config import sizes
from detailclip_jax.data.resizing import resize
from detailclip_jax.inference.windows import Axis, axis, combine, combine_shares, cut
from detailclip_jax.kernels.products import matmul_precision
from detailclip_jax.losses.clip import l2_normalise
from detailclip_jax.models import readouts
from detailclip_jax.models.networks import Networks
from detailclip_jax.models.patchify import normalise_pixels
from detailclip_jax.models.readouts import READOUTS
from detailclip_jax.models.stacking import unstack
from detailclip_jax.runtime.errors import unknown
from detailclip_jax.types import Array, Float, Params

PUBLISHED_SIZE = 224  # image size of the models that the lengths below are for
LONG_SIDE = 2048  # the longer side of a resized image is at most this


class Pipeline(NamedTuple):
    """How an image is resized and cut for a read-out; lengths in pixels for a model of 224 px.

    short_side: of the resized image, which keeps its shape if the longer side stays within LONG_SIDE.
    window, stride: of square windows; window None encodes the image at once.
    scale: factor of the cosines before a softmax over texts.
    pad: completes incomplete patches at the border; otherwise their pixels are not used.
    squash: both sides become `short_side`, whatever the shape.
    antialias: the resize is bicubic with antialiasing, as Pillow's, and the longer side is rounded down; otherwise it
        is bilinear without antialiasing, as OpenCV's, and the longer side is rounded to the nearest.
    window_softmax: an evaluation takes the softmax over names in each window, before overlaps are averaged.
    """

    short_side: int = 336
    window: int | None = 224
    stride: int = 112
    scale: float = 40.0
    pad: bool = False
    squash: bool = False
    antialias: bool = False
    window_softmax: bool = False


SCLIP = Pipeline()
CLEARCLIP = Pipeline(short_side=448, window=448, stride=224, scale=50.0, pad=True)
GEM = Pipeline(short_side=448, window=None, scale=100.0, squash=True, antialias=True)
# Of a model of 448 px: 448 px, windows of 448 every 336 (google-deepmind/tips, TIPS_zeroshot_segmentation.ipynb).
TIPS = Pipeline(short_side=224, window=224, stride=168, scale=1.0, antialias=True, window_softmax=True)
# The published code of sclip, naclip, clearclip, gem and tips; the others use that of sclip, as does its paper.
PIPELINES = {**dict.fromkeys(READOUTS, SCLIP), "clearclip": CLEARCLIP, "gem": GEM, "tips": TIPS}


def check_readout(readout: str) -> None:
    """Raises ValueError with the nearest names for an unknown read-out."""
    if readout not in READOUTS:
        raise ValueError(unknown("read-out", readout, READOUTS))


def default_readout(config: ConfigDict) -> str:
    """Returns the read-out of a model for which none was chosen on masks, see `Method.readout`."""
    return methods.build(config).readout


class ImageLayout(NamedTuple):
    """How one image is cut: (height, width) of the resized image, and its windows along both axes."""

    size: tuple[int, int]
    antialias: bool
    down: Axis
    across: Axis

    def windows(self, image: UInt8[np.ndarray, "H W 3"]) -> list[UInt8[np.ndarray, "h w 3"]]:
        """The windows of the resized image, all of one shape."""
        if self.antialias:
            image = resize(image, *self.size, "bicubic")
        elif image.shape[:2] != self.size:
            image = np.asarray(cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_LINEAR))
        return cut(image, self.down, self.across)

    def maps(
        self, features: Float32[np.ndarray, "n h w D"], texts: Float32[np.ndarray, "T E"]
    ) -> Float32[np.ndarray, "T H W"]:
        """Cosines of the windows' features with the texts, as maps of the output size."""
        return combine(cosines(features, texts), self.down, self.across)

    def shares(
        self, features: Float32[np.ndarray, "n h w D"], texts: Float32[np.ndarray, "T E"]
    ) -> Float32[np.ndarray, "T H W"]:
        """The softmax of these cosines over the texts, taken in each window, as maps of the output size."""
        return combine_shares(cosines(features, texts), self.down, self.across)


def cosines(
    features: Float32[np.ndarray, "n h w D"], texts: Float32[np.ndarray, "T E"]
) -> Float32[np.ndarray, "n h w T"]:
    """Cosines of unit vectors: patch features and texts.

    Where a text is wider than a patch (dino.txt), its last D entries are those that patches are trained to match.
    """
    width = features.shape[-1]
    if texts.shape[-1] != width:
        texts = mean_of_templates(texts[:, -width:], 1)
    return features @ texts.T


def layout(
    shape: Sequence[int], pipeline: Pipeline, model: ConfigDict, out: tuple[int, int] | None = None
) -> ImageLayout:
    """The layout of an image of `shape` (height, width, ...) for the model of `config.model`.

    Maps have the size `out`, by default that of the image.
    """
    patch_size = sizes.size_of(model).patch_size
    height, width = size = resized(shape, pipeline, model.image_size / PUBLISHED_SIZE)
    window, stride = windows_of(pipeline, model)
    rows, columns = out or tuple(shape[:2])
    down = axis(height, rows, patch_size, window, stride, pipeline.pad)
    across = axis(width, columns, patch_size, window, stride, pipeline.pad)
    return ImageLayout(size, pipeline.antialias, down, across)


def windows_of(pipeline: Pipeline, model: ConfigDict) -> tuple[int | None, int]:
    """Window and stride in pixels for the model of `config.model`; a window has a whole number of patches."""
    ratio, patch_size = model.image_size / PUBLISHED_SIZE, sizes.size_of(model).patch_size
    window = pipeline.window and max(round(pipeline.window * ratio / patch_size), 1) * patch_size
    return window, max(round(pipeline.stride * ratio), 1)


def resized(shape: Sequence[int], pipeline: Pipeline, ratio: float = 1.0) -> tuple[int, int]:
    """(height, width) of the resized image; `ratio` is the model's image size over 224."""
    short = pipeline.short_side * ratio
    if pipeline.squash:
        return round(short), round(short)
    new, old = min((short, min(shape[:2])), (LONG_SIDE * ratio, max(shape[:2])), key=lambda sides: sides[0] / sides[1])
    if pipeline.antialias:
        height, width = (max(int(round(new) * side / old), 1) for side in shape[:2])
    else:
        height, width = (max(int(side * (new / old) + 0.5), 1) for side in shape[:2])
    return height, width


def readout_encoder(networks: Networks, config: ConfigDict, readout: str) -> jax.stages.Wrapped:
    """Builds the jitted function of (params, uint8 images [B, H, W, 3]) -> patch features [B, h, w, E].

    Features are in the joint space, L2-normalised, in float32. If the patch size does not divide a side, it is padded
    with the mean colour, equally at both ends. The function is compiled once per shape of images.

    Raises ValueError for an unknown read-out.
    """
    check_readout(readout)
    chosen, networks = READOUTS[readout], networks.unrolled()
    networks = networks.replacing(image=networks.image.clone(interpolation=chosen.interpolation))
    mean, std = tuple(config.preprocess.mean), tuple(config.preprocess.std)

    def features(params: Params, images: UInt8[Array, "B H W 3"]) -> Float[Array, "B h w E"]:
        net = networks.bind({"params": {name: unstack(params[name]) for name in ("image", "image_projection")}})
        with matmul_precision(config.model.matmul_precision):
            pixels = normalise_pixels(images, mean, std)
            missing = [-side % net.image.patch_size for side in pixels.shape[1:3]]
            pixels = jnp.pad(pixels, [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)])
            return l2_normalise(readouts.read_out(net.image, pixels, chosen, net.image_projection))

    return jax.jit(features)


def prompts(texts: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Every text in every template, whose "{}" stands for the text: all of the first text, then of the second, ...

    Raises TypeError for one text that is not in a list, and ValueError for a template without "{}".
    """
    for what, value in (("texts", texts), ("templates", templates)):
        if isinstance(value, str):
            raise TypeError(f"{what} is a list, got the text {value!r}; write [{value!r}]")
    wrong = [template for template in templates if "{}" not in template]
    if wrong or not templates:
        raise ValueError(f"templates {wrong or list(templates)} have no {{}} for the text, as in 'a photo of a {{}}.'")
    return [template.replace("{}", text) for text in texts for template in templates]


def mean_of_templates(rows: Float32[np.ndarray, "M E"], num_templates: int) -> Float32[np.ndarray, "T E"]:
    """One embedding per text: the mean of the normalised embeddings of its prompts, normalised again."""
    mean = rows.reshape(-1, num_templates, rows.shape[-1]).mean(1)
    return mean / np.maximum(np.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)
