"""Composes one sticker scene: layout of the objects, image, exact masks and boxes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from detailclip_jax.data.stickers.backgrounds import background, plain_ground
from detailclip_jax.data.stickers.sprites import Sprites, level_for

COVER = (
    0.18,
    0.42,
)  # share of the canvas that the objects are drawn to cover in total; on average about .25 is visible
MAX_EXTENT = 0.9  # of the canvas
ANY_COVER = (0.1, 0.5)  # the same share in scenes with objects of any size
ANY_SIDE = (0.2, 1.0)  # of the largest side that fits, for a single object in such a scene
WHOLE = 0.98  # of the canvas: largest extent in such a scene
MIN_SIDE = 10.0  # pixels of a single object: in smaller drawings some details have no pixel
CLEAN_SHARE = 0.5  # of the scenes on a plain ground: without noise, so that white stays white
MAX_ANGLE = 20.0  # degrees
MAX_OVERLAP = 0.15  # of the smaller box
MIN_VISIBLE = 0.8  # of an object's pixels; a layout that hides more is redrawn with smaller objects
SHRINK = 0.9
NUM_CANDIDATES = 24
GAIN = (0.8, 1.15)  # brightness factor of a drawing
CHANNEL_GAIN = (0.93, 1.07)  # additional factor per colour channel
BLUR_SIGMA = (0.2, 0.7)  # pixels on a canvas of 64 pixels
JPEG_QUALITY = (40, 95)
NOISE_STD = (0.0, 6.0)  # grey levels

cv2.setNumThreads(0)  # threads cost twice the CPU time for images this small


class Placement(NamedTuple):
    """One object: noun, centre and side in pixels, rotation in degrees, mirrored or not."""

    noun: int
    x: float
    y: float
    side: float
    angle: float
    mirrored: bool


class Variety(NamedTuple):
    """Shares of scenes that differ from the default, which has textured grounds and large objects."""

    plain: float = 0.0  # ground of one colour, without distractors
    any_size: float = 0.0  # objects of any size, up to almost the whole canvas


TEXTURED = Variety()
MIXED = Variety(plain=0.3, any_size=0.4)
VARIETIES = {"textured": TEXTURED, "mixed": MIXED}


class Look(NamedTuple):
    """The properties of one scene, drawn from its `Variety`."""

    plain: bool = False
    any_size: bool = False
    clean: bool = False


class Layer(NamedTuple):
    """The region of the canvas (rows, columns) that an object may touch, and its drawing there."""

    part: tuple[slice, slice]
    drawing: UInt8[np.ndarray, "h w 4"]  # premultiplied RGBA


class Scene(NamedTuple):
    """An image with its labels; boxes and areas are those of the visible pixels."""

    image: UInt8[np.ndarray, "h w 3"]
    instances: UInt8[np.ndarray, "h w"]  # 0 = background, 1 + i = object i
    boxes: Float[np.ndarray, "n 4"]  # xyxy, pixels
    areas: Int[np.ndarray, " n"]  # pixels


def compose(
    rng: np.random.Generator,
    drawings: Sprites,
    nouns: Sequence[int],
    size: int,
    variety: Variety = TEXTURED,
    shares: Sequence[float] | None = None,
    fits: Callable[[Float[np.ndarray, "n 4"]], bool] | None = None,
    within: Callable[[np.random.Generator], Float[np.ndarray, "n 4"]] | None = None,
) -> Scene:
    """Composes a scene of the `nouns`, later ones in front, on a random ground.

    Masks hold the visible pixels: where two objects overlap, the front one.  A pixel belongs to an object that covers
    at least half of it.  Boxes are the tight boxes of these pixels.  At least `MIN_VISIBLE` of every object is visible.
    `shares` are the relative areas of the objects, by default random ones.  With `fits`, scenes are drawn until it is
    true of their boxes; `within` draws for each of them the boxes (xyxy, shares of the canvas) that have the centres of
    the objects.
    """
    while True:
        look = draw_look(rng, variety)
        layers, instances = arrange(rng, drawings, nouns, size, look.any_size, shares, within and within(rng))
        if fits is None or fits(_boxes(instances, len(layers))):
            break
    image = (plain_ground if look.plain else background)(rng, size).astype(np.float32)
    for layer in layers:
        gain = (rng.uniform(*GAIN) * rng.uniform(*CHANNEL_GAIN, 3)).astype(np.float32)  # slightly changed brightness
        *colours, opaque = cv2.split(layer.drawing)
        alpha = opaque.astype(np.float32) / 255
        most = 255 * alpha
        _lay(image, layer.part, [np.minimum(colour * factor, most) for colour, factor in zip(colours, gain)], alpha)
    return _scene(_degrade(rng, image, look.clean), instances, len(layers))


def draw_look(rng: np.random.Generator, variety: Variety) -> Look:
    """Draws the properties of one scene.

    For the default variety it draws no random number, so those scenes stay bit-identical to earlier versions.
    """
    if variety == TEXTURED:
        return Look()
    plain, any_size, clean = rng.random(3) < (variety.plain, variety.any_size, CLEAN_SHARE)
    return Look(bool(plain), bool(any_size), bool(plain and clean))


def alone_on_white(rng: np.random.Generator, drawings: Sprites, noun: int, size: int, share: float) -> Scene:
    """Returns one unchanged, upright drawing on plain white; its longer side takes `share` of the canvas."""
    side = share * size
    half = side * drawings.extent[noun] / 2
    x, y = rng.uniform(half, size - half)
    layer = draw_layer(drawings, Placement(noun, x, y, side, 0.0, False), size)
    image = np.full((size, size, 3), 255, np.float32)
    *colours, opaque = cv2.split(layer.drawing)
    _lay(image, layer.part, colours, opaque.astype(np.float32) / 255)
    return _scene(_rounded(image), instance_map([layer], size), 1)


def _scene(image: UInt8[np.ndarray, "h w 3"], instances: UInt8[np.ndarray, "h w"], num: int) -> Scene:
    return Scene(image, instances, _boxes(instances, num), _count(instances, num))


def _boxes(instances: UInt8[np.ndarray, "h w"], num: int) -> Float[np.ndarray, "n 4"]:
    return np.stack([_box(instances == 1 + index) for index in range(num)])


def arrange(
    rng: np.random.Generator,
    drawings: Sprites,
    nouns: Sequence[int],
    size: int,
    any_size: bool = False,
    shares: Sequence[float] | None = None,
    within: Float[np.ndarray, "n 4"] | None = None,
) -> tuple[list[Layer], UInt8[np.ndarray, "h w"]]:
    """Returns the layers, back to front, and their instance map.

    Draws layouts of increasingly smaller objects until at least `MIN_VISIBLE` of each object's pixels is visible.
    """
    scale = 1.0
    while True:
        placements = layout(rng, drawings, nouns, size, scale, any_size, shares, within)
        layers = [draw_layer(drawings, placement, size) for placement in placements]
        instances = instance_map(layers, size)
        areas = [np.count_nonzero(layer.drawing[..., 3] > 127) for layer in layers]
        if (_count(instances, len(layers)) >= MIN_VISIBLE * np.array(areas)).all():
            return layers, instances
        scale *= SHRINK


def layout(
    rng: np.random.Generator,
    drawings: Sprites,
    nouns: Sequence[int],
    size: int,
    scale: float = 1.0,
    any_size: bool = False,
    shares: Sequence[float] | None = None,
    within: Float[np.ndarray, "n 4"] | None = None,
) -> list[Placement]:
    """Draws sizes, rotations and positions for the `nouns`, all inside the canvas and with little overlap.

    Together the objects cover a share of the canvas drawn from `COVER`, so a single object is larger than each of four;
    with `any_size` the share is drawn from `ANY_COVER`, and a single object has any side from small to the whole
    canvas.  `scale` shrinks all objects.  `shares` are the relative areas of the objects, by default random ones, and
    `within` boxes in shares of the canvas, in which their centres lie.
    """
    relative = rng.uniform(0.6, 1.4, len(nouns)) if shares is None else np.asarray(shares, np.float64)
    areas = rng.uniform(*(ANY_COVER if any_size else COVER)) * relative / relative.sum() * size**2
    largest = WHOLE if any_size else MAX_EXTENT
    placements, boxes = [], np.zeros((0, 4))
    centres = [np.array((0.0, 0.0, 1.0, 1.0))] * len(nouns) if within is None else within
    for noun, area, centre in zip(nouns, areas, centres):
        side, angle = scale * np.sqrt(area / drawings.fill[noun]), rng.uniform(-MAX_ANGLE, MAX_ANGLE)
        cos, sin = abs(np.cos(np.radians(angle))), abs(np.sin(np.radians(angle)))
        half = np.array([[cos, sin], [sin, cos]]) @ drawings.extent[noun] / 2  # of the box around it, for side 1
        fitting = largest * size / (2 * half.max())
        if any_size and len(nouns) == 1:
            side = max(fitting * rng.uniform(*ANY_SIDE), MIN_SIDE)
        side = min(side, fitting)
        box = _place(rng, boxes, side * half, size, size * centre)
        x, y = (box[:2] + box[2:]) / 2
        placements.append(Placement(noun, x, y, side, angle, rng.random() < 0.5))
        boxes = np.concatenate([boxes, box[None]])
    return placements


def _place(
    rng: np.random.Generator,
    boxes: Float[np.ndarray, "n 4"],
    half: Float[np.ndarray, "2"],
    size: int,
    within: Float[np.ndarray, "4"],
) -> Float[np.ndarray, "4"]:
    """Returns the first of several random boxes with little overlap with `boxes`, else the one with least.

    Their centres are `within` a box, as far as they then lie in the canvas.
    """
    low, high = (np.minimum(np.maximum(corner, half), size - half) for corner in (within[:2], within[2:]))
    centres = rng.uniform(low, high, (NUM_CANDIDATES, 2))
    candidates = np.concatenate([centres - half, centres + half], 1)
    if not len(boxes):
        return candidates[0]
    low = np.maximum(candidates[:, None, :2], boxes[None, :, :2])
    high = np.minimum(candidates[:, None, 2:], boxes[None, :, 2:])
    smaller = np.minimum(_area(candidates)[:, None], _area(boxes)[None])
    overlap = (np.maximum(high - low, 0).prod(-1) / smaller).max(1)  # share of the smaller box
    return candidates[np.argmin(np.maximum(overlap, MAX_OVERLAP))]


def _area(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    return (boxes[:, 2:] - boxes[:, :2]).prod(-1)


def draw_layer(drawings: Sprites, placement: Placement, size: int) -> Layer:
    """Returns the drawing of one object at its position, size and rotation, clipped to the canvas."""
    level = level_for(placement.side)
    centre, reach = np.array([placement.x, placement.y]), placement.side * 0.71 + 1  # half the diagonal
    low = np.maximum(np.floor(centre - reach), 0).astype(int)
    high = np.minimum(np.ceil(centre + reach), size).astype(int)
    # the map from pixels of the drawing to pixels of this part of the canvas
    scale, angle = placement.side / level, np.radians(placement.angle)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]]) * [-1 if placement.mirrored else 1, 1]
    pixel = 0.5  # pixel centres are at half integers, but warpAffine puts them at integers
    offset = centre - low - pixel - turn @ np.full(2, level / 2 - pixel)
    matrix = np.concatenate([turn, offset[:, None]], 1)
    drawing = cv2.warpAffine(drawings.levels[level][placement.noun], matrix, tuple((high - low).tolist()))
    return Layer((slice(low[1], high[1]), slice(low[0], high[0])), drawing)


def instance_map(layers: Sequence[Layer], size: int) -> UInt8[np.ndarray, "h w"]:
    """Returns the object that each pixel shows: 0 = background, 1 + i = object i; later objects cover earlier ones."""
    instances = np.zeros((size, size), np.uint8)
    for index, layer in enumerate(layers):
        instances[layer.part][layer.drawing[..., 3] > 127] = 1 + index
    return instances


def _count(instances: UInt8[np.ndarray, "h w"], num: int) -> Int[np.ndarray, " n"]:
    """Returns the number of pixels of every instance."""
    return np.array([np.count_nonzero(instances == 1 + index) for index in range(num)])


def _lay(
    image: Float[np.ndarray, "h w 3"], part: tuple[slice, slice], colours: Sequence[np.ndarray], alpha: np.ndarray
) -> None:
    """Composes premultiplied `colours`, one plane per channel, onto a part of the canvas by their alpha.

    NumPy's loops over planes are several times as fast as over a last axis of three.
    """
    shown, canvas = 1 - alpha, image[part]
    for channel, colour in enumerate(colours):
        canvas[..., channel] = canvas[..., channel] * shown + colour


def _box(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "4"]:
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    return np.array([x, y, x + width, y + height], np.float32)


def _degrade(
    rng: np.random.Generator, image: Float[np.ndarray, "h w 3"], clean: bool = False
) -> UInt8[np.ndarray, "h w 3"]:
    """Applies blur and JPEG compression, each to half of the scenes, so that sharp edges do not reveal the objects.

    Noise is added to objects and ground alike, so that neither a flat ground nor noise-free objects stand out.  A
    `clean` scene has no noise.
    """
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(*BLUR_SIGMA) * len(image) / 64)
    if not clean:
        noise = rng.standard_normal(image.shape[:2], np.float32)
        image += cv2.cvtColor(noise * np.float32(rng.uniform(*NOISE_STD)), cv2.COLOR_GRAY2RGB)
    pixels = _rounded(image)
    if rng.random() >= 0.5:
        return pixels
    bgr, quality = np.ascontiguousarray(pixels[..., ::-1]), int(rng.integers(*JPEG_QUALITY))
    encoded = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB))


def _rounded(image: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    rounded: np.ndarray = cv2.add(image, 0.0, dtype=cv2.CV_8U)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return rounded  # to the nearest, ties to even, clipped
