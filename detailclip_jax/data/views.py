"""Draws random crops of one image and returns their pixels and boxes; the pixel operations are in `image_operations`.

The config (`config.views.crops`) describes the crops: u and v of the paper, small local crops, crops without
photometrics ("clean": leave the probabilities out), and the teacher's crop, which encloses u and v. A view and its box
are one map: the left side of the view is the first x of the box, also of a mirrored view, whose box has x0 > x1.
"""

import dataclasses
import math
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from ml_collections import ConfigDict

from detailclip_jax.data import image_operations, resizing
from detailclip_jax.data.block_masks import block_mask
from detailclip_jax.data.decoding import Decoded, Encoded
from detailclip_jax.data.native_aspect import Native, native_size, padded, stacked
from detailclip_jax.runtime.errors import unknown

Box = tuple[int, int, int, int]  # xyxy, pixels of the image; x1 and y1 are exclusive
Opened = Encoded | Decoded
KINDS = ("random", "whole", "enclosing", "inside")  # in the order in which their boxes are drawn
LARGE = "large"  # the crops that an enclosing crop contains; an inside crop lies in the first of them
CLEAN = "clean"  # the crops that methods with several kinds compare with captions
TRIES = 10
REDUCING_GAP = 2.0  # in training; see `reduction_for`


@dataclasses.dataclass(frozen=True)
class Crop:
    """How `count` crops are cut, resized to `size` and augmented.  The defaults apply no augmentation.

    `blur_p` and `solarize_p` have one entry per view, or a single number for all views.  Kind "enclosing" draws a box
    around all "large" crops (paper 4.1.1), and kind "whole" takes the whole image, squashed to a square, without a
    draw; both ignore `scale` and `ratio`.  Kind "inside" draws within the first "large" crop, of whose area `scale` is
    a share.  With `mask_grid` patches along a side every view gets a block mask with probability `mask_p`; its hidden
    share is drawn from `mask_ratio`.
    """

    count: int = 1
    size: int = 224
    kind: str = "random"
    scale: tuple[float, float] = (0.5, 1.0)  # share of the image's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height
    filter: str = "bicubic"
    flip: float = 0.0
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue
    jitter_p: float = 0.0
    gray_p: float = 0.0
    blur_p: float | tuple[float, ...] = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_p: float | tuple[float, ...] = 0.0
    mask_grid: int = 0
    mask_p: float = 0.5
    mask_ratio: tuple[float, float] = (0.1, 0.5)

    def __post_init__(self):
        for name in ("count", "size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        for name, value, known in (
            ("kind", self.kind, KINDS),
            ("filter", self.filter, tuple(resizing.FILTERS)),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r} is unknown; known: {', '.join(known)}")
        for name in ("blur_p", "solarize_p"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != self.count:
                example = ((value or (0.0,)) * self.count)[: self.count]
                raise ValueError(
                    f"{name} has {len(value)} numbers for count {self.count}; give one number per view, for example "
                    f"{example}"
                )


def crops_from_config(crops: ConfigDict | Mapping[str, Any]) -> dict[str, Crop]:
    """Returns the checked crops of `config.views.crops` by name.

    Raises ValueError for an unknown field (with the nearest known one), and for an enclosing or inside crop without
    "large" crops.
    """
    checked = {name: _crop(name, {**fields}) for name, fields in crops.items()}
    independent = LARGE in checked and checked[LARGE].kind in ("random", "whole")
    for kind, use in (("enclosing", "to enclose"), ("inside", "to lie in")):
        if not independent and any(crop.kind == kind for crop in checked.values()):
            raise ValueError(
                f"a crop of kind {kind} needs crops named {LARGE!r} {use}, of kind random or whole; the crops are "
                f"{', '.join(f'{name} ({crop.kind})' for name, crop in sorted(checked.items()))}"
            )
    return checked


def captioned_crop(crops: Container[str]) -> str:
    """Returns the name of the crops that captions and phrases are compared with: "clean" where there are any."""
    return CLEAN if CLEAN in crops else LARGE


def _crop(name: str, fields: dict[str, Any]) -> Crop:
    known = [field.name for field in dataclasses.fields(Crop)]
    for field in fields:
        if field not in known:
            raise ValueError(f"crop {name!r}: {unknown('field', field, known)}")
    values: dict[str, Any] = {field: tuple(v) if isinstance(v, list) else v for field, v in fields.items()}
    try:
        return Crop(**values)
    except ValueError as error:
        raise ValueError(f"views.crops.{name}.{error}") from error


def random_resized_crop_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """Draws a box with a random share of the area and a log-uniform aspect ratio: torchvision's RandomResizedCrop.

    After ten boxes that do not fit it returns the largest central box whose aspect ratio is within `ratio`.
    """
    for _ in range(TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h + 1))
            left = int(rng.integers(0, width - w + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def enclosing_box(height: int, width: int, boxes: list[Box], rng: np.random.Generator) -> Box:
    """Draws a box around all `boxes`, each side uniform between theirs and the border (paper 4.1.1, after A-CLIP)."""
    left, top, right, bottom = (pick(sides) for pick, sides in zip((min, min, max, max), zip(*boxes)))
    return (
        int(rng.integers(0, left + 1)),
        int(rng.integers(0, top + 1)),
        int(rng.integers(right, width + 1)),
        int(rng.integers(bottom, height + 1)),
    )


def jitter(
    image: UInt8[np.ndarray, "H W 3"], strength: tuple[float, float, float, float], rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Changes brightness, contrast, saturation and hue in random order: torchvision's ColorJitter(*strength)."""
    operations: tuple[Callable, ...] = (
        image_operations.brightness,
        image_operations.contrast,
        image_operations.saturation,
        image_operations.hue,
    )
    lows = [*(max(0.0, 1 - amount) for amount in strength[:3]), -strength[3]]
    highs = [*(1 + amount for amount in strength[:3]), strength[3]]
    for which in rng.permutation(4):
        if strength[which] > 0:
            image = operations[which](image, rng.uniform(lows[which], highs[which]))
    return image


def augment(
    image: UInt8[np.ndarray, "h w 3"], crop: Crop, view: int, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "h w 3"], bool]:
    """Applies the crop's augmentations to view number `view`: flip, jitter, gray, blur, solarize.

    Returns also whether the view is mirrored.
    """
    mirrored = rng.random() < crop.flip
    if mirrored:
        image = image_operations.flip(image)
    if rng.random() < crop.jitter_p:
        image = jitter(image, crop.jitter, rng)
    if rng.random() < crop.gray_p:
        image = image_operations.grayscale(image)
    if rng.random() < _of_view(crop.blur_p, view):
        image = image_operations.gaussian_blur(image, rng.uniform(*crop.blur_sigma))
    if rng.random() < _of_view(crop.solarize_p, view):
        image = image_operations.solarize(image)
    return image, mirrored


def _of_view(probability: float | tuple[float, ...], view: int) -> float:
    return probability[view] if isinstance(probability, tuple) else probability


def make_masks(crops: Mapping[str, Crop], rng: np.random.Generator) -> dict[str, Bool[np.ndarray, "V N"]]:
    """Draws iBOT's block masks (True = hidden) for the views of all crops with a `mask_grid`, by crop name."""
    masks: dict[str, Bool[np.ndarray, "V N"]] = {}
    for name in sorted(crops):
        crop, drawn = crops[name], []
        for _ in range(crop.count if crop.mask_grid else 0):
            ratio = rng.uniform(*crop.mask_ratio) if rng.random() < crop.mask_p else 0.0
            drawn.append(block_mask(crop.mask_grid, ratio, rng).reshape(-1))
        masks |= {name: np.stack(drawn)} if drawn else {}
    return masks


Views = dict[str, tuple[Any, Float32[np.ndarray, "V 4"]]]  # pixels, uint8 [V, S, S, 3] or `Native`, and boxes
NativeSize = tuple[int, int]  # of native views: side of a patch, and number of patches


def make_views(
    image: Opened | UInt8[np.ndarray, "H W 3"],
    crops: Mapping[str, Crop],
    rng: np.random.Generator,
    reducing_gap: int | float = 0,
    native: NativeSize | None = None,
) -> Views:
    """Returns pixels and boxes of every crop of one image, by name.

    With `native` the crops keep the aspect of their boxes, and their pixels are `Native`; their `size` is not used.

    An encoded image is decoded after its boxes are drawn, so that it can be decoded at the smallest sufficient size
    (see `reduction_for`); it raises BadImage if its bytes are damaged.  Boxes are xyxy in pixels of the original image;
    that of a mirrored view goes from right to left, x0 > x1.  The result depends on `rng`, not on the order of `crops`.

        views = make_views(image, {"large": Crop(count=2)}, np.random.default_rng(0))
        pixels, boxes = views["large"]            # uint8 [2, 224, 224, 3], float32 [2, 4]
    """
    opened = Decoded(image, *image.shape[:2]) if isinstance(image, np.ndarray) else image
    boxes = draw_boxes(opened.height, opened.width, crops, rng)
    decoded = opened.decoded(reduction_for(boxes, crops, reducing_gap, native))
    return {name: _views(decoded, crops[name], boxes[name], rng, native) for name in sorted(crops)}


def draw_boxes(height: int, width: int, crops: Mapping[str, Crop], rng: np.random.Generator) -> dict[str, list[Box]]:
    """Draws the boxes of all crops by name, those that depend on the large ones last."""
    boxes: dict[str, list[Box]] = {}
    for name in sorted(crops, key=lambda name: (KINDS.index(crops[name].kind), name)):
        crop, large, drawn = crops[name], boxes.get(LARGE, []), []
        for _ in range(crop.count):
            if crop.kind == "enclosing":
                drawn.append(enclosing_box(height, width, large, rng))
            elif crop.kind == "whole":
                drawn.append((0, 0, width, height))
            else:
                left, top, right, bottom = large[0] if crop.kind == "inside" else (0, 0, width, height)
                x0, y0, x1, y1 = random_resized_crop_box(bottom - top, right - left, crop.scale, crop.ratio, rng)
                drawn.append((left + x0, top + y0, left + x1, top + y1))
        boxes[name] = drawn
    return boxes


def reduction_for(
    boxes: Mapping[str, list[Box]],
    crops: Mapping[str, Crop],
    reducing_gap: int | float,
    native: NativeSize | None = None,
) -> int | float:
    """Returns the largest factor by which an image may be reduced before its crops are resized.

    After the reduction every box still has at least `reducing_gap` times the size of its view in each direction.  It is
    Pillow's argument of the same name (`Image.resize`, `Image.thumbnail`); Pillow calls 2 "very close to fair
    resampling" and 3 "indistinguishable in most cases".  0 disables the reduction.
    """
    if not reducing_gap:
        return 1
    every = [(box, view_size(crops[name], box, native)) for name in boxes for box in boxes[name]]
    gap = reducing_gap
    return min(
        min((y1 - y0) / (gap * height), (x1 - x0) / (gap * width)) for (x0, y0, x1, y1), (height, width) in every
    )


def view_size(crop: Crop, box: Box, native: NativeSize | None) -> tuple[int, int]:
    """Returns height and width in pixels of the view of a box."""
    if native is None:
        return crop.size, crop.size
    rows, columns = native_size(box[3] - box[1], box[2] - box[0], *native)
    return rows * native[0], columns * native[0]


def check_reducing_gap(gap: int | float, name: str = "reducing_gap") -> None:
    """Raises ValueError unless the gap is 0 or at least 1; below 1 a reduced image would be enlarged again."""
    if gap != 0 and not gap >= 1:
        raise ValueError(f"{name} {gap} must be 0 (all pixels are decoded) or at least 1")


def _views(
    image: Decoded, crop: Crop, boxes: list[Box], rng: np.random.Generator, native: NativeSize | None
) -> tuple[UInt8[np.ndarray, "V S S 3"] | Native, Float32[np.ndarray, "V 4"]]:
    cuts = (cut(image, crop, box, native) for box in boxes)
    pixels, mirrored = zip(*(augment(part, crop, view, rng) for view, part in enumerate(cuts)))
    facing = [(x1, y0, x0, y1) if turn else (x0, y0, x1, y1) for (x0, y0, x1, y1), turn in zip(boxes, mirrored)]
    return stack(pixels, native), np.array(facing, np.float32)


def stack(pixels: Sequence[UInt8[np.ndarray, "h w 3"]], native: NativeSize | None) -> Any:
    """Stacks the views of a crop: uint8 [V, S, S, 3], or with `native` their patches and grids."""
    return stacked(pixels if native is None else [padded(view, *native) for view in pixels])


def cut(image: Decoded, crop: Crop, box: Box, native: NativeSize | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Cuts a box from an image and resizes it to the crop's size."""
    return image_operations.resize_part(image.pixels, image.within(box), *view_size(crop, box, native), crop.filter)
