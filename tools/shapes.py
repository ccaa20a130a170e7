"""A study of read-outs on drawn shapes: where the last block puts the words of an image, and when `plain` is inverted.

    python tools/shapes.py draw runs/shapes                        # images with captions, and images with masks
    python tools/shapes.py measure runs/shapes/val RUN --json=FILE # patches by part of the last block

With x the tokens before the last block and S its attention, `measure` compares these patch features with the words of
the colours: O v (the read-out maskclip_bare: a patch's own value), O S v (what the patch receives by attention), plain
and maskclip (both with x and the MLP; maskclip takes O v, plain takes O S v), naclip.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from jaxtyping import Float32, Int, UInt8

from detailclip_jax.inference.model import Model, load
from detailclip_jax.losses.clip import l2_normalise
from detailclip_jax.models import readouts
from detailclip_jax.models.patchify import normalise_pixels
from detailclip_jax.models.readouts import READOUTS, Readout, attention, heads, output
from detailclip_jax.models.stacking import unstack

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 220, 50),
    "purple": (140, 50, 170),
    "orange": (245, 140, 30),
    "pink": (250, 150, 190),
    "brown": (120, 75, 40),
}
NAMES = list(COLOURS)
SHAPES = ("circle", "square", "triangle")
SIDE, GROUND, PLACES = 80, 255, ((20, 20), (60, 20), (20, 60), (60, 60))
NUM_TRAINING, NUM_MASKED = 1500, 200
INSIDE = 0.75  # of a patch of an object: its share inside of the object
MIXED = Readout(
    lambda blocks, x, grid, angles: output(
        blocks[-1], attention(*heads(blocks[-1], x, angles)[:2]), heads(blocks[-1], x, angles)[2]
    )
)
PARTS = {
    "O v": READOUTS["maskclip_bare"],
    "O S v": MIXED,
    "plain": READOUTS["plain"],
    "maskclip": READOUTS["maskclip"],
    "naclip": READOUTS["naclip"],
}


def drawing(rng: np.random.Generator) -> tuple[UInt8[np.ndarray, "S S 3"], UInt8[np.ndarray, "S S"], str]:
    """One to three shapes of different colours on a grey ground: image, colour of each pixel, caption."""
    image = np.full((SIDE, SIDE, 3), rng.integers(180, 256), np.uint8)
    mask, names = np.full((SIDE, SIDE), GROUND, np.uint8), []
    for place in rng.permutation(len(PLACES))[: rng.integers(1, 4)]:
        colour, shape, r = rng.choice(NAMES), rng.choice(SHAPES), int(rng.integers(9, 19))
        if any(name.split()[0] == colour for name in names):
            continue
        x, y = (int(value + rng.integers(-3, 4)) for value in PLACES[place])
        for canvas, fill in ((image, COLOURS[colour]), (mask, NAMES.index(colour))):
            if shape == "circle":
                cv2.circle(canvas, (x, y), r, fill, -1)
            elif shape == "square":
                cv2.rectangle(canvas, (x - r, y - r), (x + r, y + r), fill, -1)
            else:
                cv2.fillPoly(canvas, [np.array([(x, y - r), (x - r, y + r), (x + r, y + r)], np.int32)], fill)
        names.append(f"{colour} {shape}")
    return image, mask, " and ".join(f"{'an' if name[0] == 'o' else 'a'} {name}" for name in names)


def draw(folder: Path) -> None:
    """Writes train.csv with its images, and val/ with masks and the colours as classes."""
    rng, masks = np.random.default_rng(0), folder / "val/masks/val"
    for each in (folder / "train", folder / "val/images/val", masks):
        each.mkdir(parents=True, exist_ok=True)
    with open(folder / "train.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for number in range(NUM_TRAINING):
            image, _, caption = drawing(rng)
            cv2.imwrite(str(folder / f"train/{number:04d}.png"), image[..., ::-1])
            rows.writerow([f"train/{number:04d}.png", caption])
    for number in range(NUM_MASKED):
        image, mask, _ = drawing(rng)
        cv2.imwrite(str(folder / f"val/images/val/{number:04d}.png"), image[..., ::-1])
        cv2.imwrite(str(masks / f"{number:04d}.png"), mask)
    (folder / "val/classes.txt").write_text("\n".join(NAMES) + "\n")


def measure(folder: Path, model: Model) -> dict[str, Any]:
    """Where the words are, in per cent: of patches of objects by part of the block; and where patches attend to."""
    size, patch = model.config.model.image_size, model.networks.image.patch_size
    images, labels = scenes(folder, size, patch)
    ground, objects = labels == GROUND, (labels >= 0) & (labels < len(NAMES))
    words = model.encode_text([f"a {colour} {shape}" for colour in NAMES for shape in SHAPES])
    words = words.reshape(len(NAMES), len(SHAPES), -1).mean(1)
    words /= np.linalg.norm(words, axis=-1, keepdims=True)
    found: dict[str, Any] = {}
    for name, part in PARTS.items():
        cosines = features(model, images, part) @ words.T
        cosines -= cosines.mean(-1, keepdims=True)
        right = cosines.argmax(-1)[objects] == labels[objects]
        gains = np.array(
            [
                cosines[i, labels[i] == colour, colour].mean() - cosines[i, ground[i], colour].mean()
                for i in range(len(images))
                for colour in set(labels[i]) & set(range(len(NAMES)))
            ]
        )
        found[name] = {"right": 100 * right.mean(), "gain": gains.mean(), "inverted": 100 * (gains < 0).mean()}
    shares = to_objects(model, images, objects)
    found["attention"] = {"from objects": 100 * shares[objects].mean(), "from background": 100 * shares[ground].mean()}
    found["objects"] = 100 * objects.mean()
    return found


def scenes(folder: Path, size: int, patch: int) -> tuple[UInt8[np.ndarray, "M S S 3"], Int[np.ndarray, "M N"]]:
    """The images with masks, and the colour of each patch; GROUND without any object, -1 at borders."""
    files = sorted((folder / "images/val").iterdir())
    images = [cv2.imread(str(file))[..., ::-1] for file in files]
    masks = [cv2.imread(str(folder / "masks/val" / file.name), cv2.IMREAD_GRAYSCALE) for file in files]
    images = np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in images])
    masks = np.stack([cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST) for mask in masks])
    side = size // patch
    pixels = masks.reshape(-1, side, patch, side, patch).transpose(0, 1, 3, 2, 4).reshape(len(masks), side**2, -1)
    labels = np.full(pixels.shape[:2], -1)
    for value in (*range(len(NAMES)), GROUND):
        labels[(pixels == value).mean(-1) >= (1 if value == GROUND else INSIDE)] = value
    return images, labels


def features(model: Model, images: UInt8[np.ndarray, "M S S 3"], part: Readout) -> Float32[np.ndarray, "M N E"]:
    """Patch features in the joint space by a part of the last block, L2-normalised."""

    @jax.jit
    def run(params: Any, images: Any) -> Any:
        net = bound(model, params)
        pixels = normalise_pixels(images, tuple(model.config.preprocess.mean), tuple(model.config.preprocess.std))
        return l2_normalise(readouts.read_out(net.image, pixels, part, net.image_projection))

    return np.asarray(run(model.params, images)).reshape(len(images), -1, model.embedding_width)


def to_objects(model: Model, images: UInt8[np.ndarray, "M S S 3"], objects: np.ndarray) -> Float32[np.ndarray, "M N"]:
    """The share of each patch's attention in the last block, mean over heads, that goes to patches of objects."""

    @jax.jit
    def run(params: Any, images: Any) -> Any:
        encoder = bound(model, params).image
        pixels = normalise_pixels(images, tuple(model.config.preprocess.mean), tuple(model.config.preprocess.std))
        seen = []

        def kept(blocks: Any, x: Any, grid: Any, angles: Any) -> Any:
            seen.append(attention(*heads(blocks[-1], x, angles)[:2]).mean(1))
            return x

        readouts.read_out(encoder, pixels, Readout(kept))
        return seen[0][:, encoder.num_class_tokens :, encoder.num_class_tokens :]

    return np.einsum("mij,mj->mi", np.asarray(run(model.params, images)), objects)


def bound(model: Model, params: Any) -> Any:
    """The image encoder and its projection, with separate blocks."""
    own = {name: unstack(params[name]) for name in ("image", "image_projection")}
    return model.networks.unrolled().bind({"params": own})


def main() -> None:
    """Draws or measures."""
    parser = argparse.ArgumentParser(description="A study of read-outs on drawn shapes.")
    parser.add_argument("what", choices=("draw", "measure"))
    parser.add_argument("folder", type=Path, help="what draw writes; its subfolder val for measure")
    parser.add_argument("runs", nargs="*", help="workdirs to measure, student weights")
    parser.add_argument("--json", type=Path, help="file for the numbers of the runs")
    arguments = parser.parse_args()
    if arguments.what == "draw":
        draw(arguments.folder)
        return
    made = {run: measure(arguments.folder, load(run, "student")) for run in arguments.runs}
    arguments.json.write_text(json.dumps(made, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
