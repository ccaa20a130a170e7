"""The same views with torchvision and Pillow, the usual PyTorch pipeline, for comparison with ours."""

import io
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from detailclip_jax.data.decoding import open_image
from detailclip_jax.data.views import Crop

Transform = Callable[[Image.Image], Any]
KERNEL = 13  # pixels; covers three standard deviations of the widest blur on each side


def transforms(crops: Mapping[str, Crop]) -> list[Transform]:
    """One transform per view, from a Pillow image to a uint8 tensor.

    Raises ImportError without torchvision, and ValueError for crops that torchvision does not support.
    """
    try:
        import torch
        import torchvision  # noqa: F401  needed below
    except ImportError as error:
        raise ImportError(
            f"--against=torchvision: {error}; pip install 'detailclip_jax[torch]', or omit --against"
        ) from error
    torch.set_num_threads(1)
    for name, crop in crops.items():
        if crop.kind != "random":
            raise ValueError(
                f"--against=torchvision: it has no crop of kind {crop.kind!r}, which views.crops.{name} needs"
            )
    return [_transform(crop, view) for crop in crops.values() for view in range(crop.count)]


def _transform(crop: Crop, view: int) -> Callable[[Image.Image], Any]:
    from torchvision import transforms as t

    filters = {"bicubic": t.InterpolationMode.BICUBIC, "bilinear": t.InterpolationMode.BILINEAR}
    return t.Compose(
        [
            t.RandomResizedCrop(crop.size, crop.scale, crop.ratio, filters[crop.filter]),
            t.RandomHorizontalFlip(crop.flip),
            t.RandomApply([t.ColorJitter(*crop.jitter)], crop.jitter_p),
            t.RandomGrayscale(crop.gray_p),
            t.RandomApply([t.GaussianBlur(KERNEL, crop.blur_sigma)], _of(crop.blur_p, view)),
            t.RandomSolarize(128, _of(crop.solarize_p, view)),
            t.PILToTensor(),
        ]
    )


def _of(probability: float | tuple[float, ...], view: int) -> float:
    return probability[view] if isinstance(probability, tuple) else probability


def decode(data: bytes) -> Image.Image:
    """Decodes an image as torchvision's data sets do."""
    return open_image(io.BytesIO(data)).convert("RGB")
