"""A study of probes on sticker scenes: which one has the widest range from untrained to supervised features.

    from tools import probes        # in the root of the repository
    print(probes.study({"the demo": "runs/stickers"}, supervised={"linear": "runs/seg_groups"}))

The encoders are raw pixels and an untrained one (the floors), those of checkpoints, and those that the command
`transfer` trained end to end on the masks (the ceilings), whose heads are evaluated as well. Every encoder runs once
per image size, and all probes use the same features. Numbers are per cent.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int, Shaped, UInt8
from ml_collections import ConfigDict

from detailclip_jax.config import run_config
from detailclip_jax.data.image_operations import evaluation_mask, evaluation_view
from detailclip_jax.data.stickers.scene_source import Stickers, canvas_of, class_names, noun_names
from detailclip_jax.dense import runs
from detailclip_jax.evaluation.linear_segmentation import (
    Patches,
    balanced,
    best_threshold,
    class_shares,
    enlarge,
    fit,
    iou,
    mean_iou,
    with_one,
)
from detailclip_jax.inference.model import load
from detailclip_jax.models.patchify import normalise_pixels, patchify
from detailclip_jax.models.stacking import unstack
from detailclip_jax.models.taps import taps
from detailclip_jax.models.vit import VisionTransformer
from detailclip_jax.training.checkpoint import load_state
from detailclip_jax.types import Params

NUM_CLASSES = {"groups": len(class_names()), "nouns": 1 + len(noun_names())}
COLUMNS = ("foreground IoU", "mIoU of groups", "right group on object pixels", "mIoU of nouns")
Solve = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # (features, targets, weights) -> matrix [D + 1, K]
BATCH = 250
OWN_HEAD = "the encoder's own head"
STEPS, PENALTY = 60, 1e-4  # of the logistic regression: L-BFGS steps, and the weight of |W|^2 / 2


class Scenes(NamedTuple):
    """Scenes of one split: images, and the group and the noun of every pixel (0: background)."""

    images: UInt8[np.ndarray, "M S S 3"]
    groups: UInt8[np.ndarray, "M S S"]
    nouns: UInt8[np.ndarray, "M S S"]


class Encoder(NamedTuple):
    """A function of uint8 images [M, S, S, 3] that gives the features of all blocks, [T, M, N, D]."""

    name: str
    features: Callable[[np.ndarray], np.ndarray]
    labels: Callable[[np.ndarray], np.ndarray] | None = None  # groups by the encoder's own head


class Variant(NamedTuple):
    """A probe, by what differs from the comparison's: last block, the model's own image size, closed form."""

    name: str
    all_blocks: bool = False
    enlarged: int = 1  # times the model's image size, with finer patches of the scene
    share: float = 1.0  # of the training scenes
    logistic: bool = False


VARIANTS = (
    Variant("the comparison's probe"),
    Variant("logistic regression", logistic=True),
    Variant("all blocks", all_blocks=True),
    Variant("twice the image size", enlarged=2),
    Variant("a third of the scenes", share=1 / 3),
)


def study(
    checkpoints: Mapping[str, str | Path],
    supervised: Mapping[str, str | Path] | None = None,
    num_train: int = 500,
    num_test: int = 500,
    variants: tuple[Variant, ...] = VARIANTS,
) -> str:
    """A Markdown table: the metrics `COLUMNS` of every encoder with every variant of the probe.

    `checkpoints` maps names to runs or checkpoints, whose student is evaluated; the image size and the floors are those
    of the first one. `supervised` maps names to workdirs of segmentation runs with groups as labels. Raises ValueError
    without a checkpoint, FileNotFoundError and CheckpointError for runs that cannot be loaded.
    """
    if not checkpoints:
        raise ValueError("no checkpoints to study: name at least one, as {'the demo': 'runs/stickers'}")
    models = {name: load(checkpoint, "student") for name, checkpoint in checkpoints.items()}
    model = next(iter(models.values()))
    encoders = [
        *floors(model),
        *(trained(*item) for item in models.items()),
        *(supervised_encoder(*item) for item in (supervised or {}).items()),
    ]
    found: dict[str, list[list[str]]] = {variant.name: [] for variant in variants} | {OWN_HEAD: []}
    for enlarged in sorted({variant.enlarged for variant in variants}):
        size = model.config.model.image_size * enlarged
        parts = scenes("train", num_train, size), scenes("held_out_scenes", num_test, size)
        for encoder in encoders:
            features = tuple(encoder.features(part.images) for part in parts)
            for variant in (variant for variant in variants if variant.enlarged == enlarged):
                found[variant.name].append([encoder.name, *_percent(measure(variant, features, parts))])
            if encoder.labels and enlarged == 1:
                own = own_labels(encoder.labels(parts[1].images), parts[1])
                found[OWN_HEAD].append([encoder.name, *_percent(own), "", ""])
    lines = [["probe", "encoder", *COLUMNS], ["---", "---", *["---:"] * len(COLUMNS)]]
    lines += [[name, *line] for name, each in found.items() for line in each]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _percent(values: Iterable[float]) -> list[str]:
    return [f"{100 * value:.1f}" for value in values]


def scenes(split: str, count: int, size: int) -> Scenes:
    """Draws scenes on a canvas of 5/4 of `size`, resized to `size`, as the evaluators do."""
    source, drawn = Stickers(split, size=canvas_of(size), num_scenes=count), []
    for index in range(count):
        example = source[index]
        nouns = np.concatenate([[0], 1 + example["nouns"]]).astype(np.uint8)[example["instances"]]
        masks = (evaluation_mask(mask, size) for mask in (example["segmentation"], nouns))
        drawn.append((evaluation_view(example["image"], size), *masks))
    return Scenes(*map(np.stack, zip(*drawn)))


def floors(model: Any) -> Iterator[Encoder]:
    """Raw pixels, and the encoder of a loaded model with fresh parameters."""
    vit, config = model.networks.unrolled().image, model.config
    fresh = vit.init(jax.random.key(0), jnp.zeros((1, config.model.image_size, config.model.image_size, 3)))["params"]
    yield Encoder("raw pixels", lambda images: pixel_features(images, vit.patch_size))
    yield Encoder("untrained", block_features(vit, fresh, config))


def trained(name: str, model: Any) -> Encoder:
    """The encoder of a loaded model."""
    params = unstack(model.params["image"])
    return Encoder(name, block_features(model.networks.unrolled().image, params, model.config))


def supervised_encoder(name: str, workdir: str | Path) -> Encoder:
    """The encoder of a segmentation run, and its head."""
    built = runs.build(run_config.read(Path(workdir) / "config.json"))
    state, _ = load_state(workdir, built.state_shapes)
    features = block_features(built.model.image, jax.device_get(state.params["image"]), built.config)
    return Encoder(f"supervised, {name}", features, lambda images: np.stack([*built.predict(state, list(images))]))


def pixel_features(images: UInt8[np.ndarray, "M S S 3"], patch_size: int) -> Float32[np.ndarray, "1 M N P"]:
    """The pixels of each patch between 0 and 1, as if of one block."""
    return np.asarray(patchify(jnp.asarray(images, jnp.float32) / 255, patch_size))[None]


def block_features(vit: VisionTransformer, params: Params, config: ConfigDict) -> Callable[[np.ndarray], np.ndarray]:
    """The function from images to the features of all blocks after the final norm, [T, M, N, D]."""
    mean, std = tuple(config.preprocess.mean), tuple(config.preprocess.std)
    run = functools.partial(_block_features, vit.clone(interpolation="ibot"), mean, std)

    def features(images: np.ndarray) -> np.ndarray:
        parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        return np.concatenate([np.asarray(run(params, part)) for part in parts], 1)

    return features


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _block_features(
    vit: VisionTransformer,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    params: Params,
    images: UInt8[Array, "B S S 3"],
) -> Float[Array, "T B N D"]:
    """One program for all encoders of one kind."""
    maps = taps(vit.bind({"params": params}), normalise_pixels(images, mean, std))(range(vit.depth))
    return jnp.stack(maps).reshape(vit.depth, len(images), -1, vit.width)


def measure(variant: Variant, found: tuple[np.ndarray, ...], parts: tuple[Scenes, Scenes]) -> list[float]:
    """The values of COLUMNS; `found` holds the features of the training and the test scenes."""
    count = round(variant.share * len(parts[0].images))
    chosen = [np.concatenate(list(each if variant.all_blocks else each[-1:]), -1) for each in found]
    mean, std = chosen[0].mean((0, 1)), chosen[0].std((0, 1)) + 1e-6
    train, test = ((each - mean) / std for each in (chosen[0][:count], chosen[1]))
    groups = patches(train, parts[0].groups[:count], "groups"), patches(test, parts[1].groups, "groups")
    nouns = patches(train, parts[0].nouns[:count], "nouns"), patches(test, parts[1].nouns, "nouns")
    solve = logistic if variant.logistic else fit
    return [foreground(*groups, solve), *classes(*groups, solve), classes(*nouns, solve)[0]]


def patches(features: Float[np.ndarray, "M N D"], pixels: Shaped[np.ndarray, "M S S"], labels: str) -> Patches:
    """Features with their targets."""
    return Patches(features, class_shares(pixels, round(features.shape[1] ** 0.5), NUM_CLASSES[labels]), pixels)


def foreground(train: Patches, test: Patches, solve: Solve) -> float:
    """IoU of objects against background, as `linear_segmentation.over_foreground` with another solver."""
    ground = train.shares[..., :1]
    matrix = solve(train.features, np.concatenate([ground, 1 - ground], -1), np.ones(ground.shape[:2]))
    difference = matrix[:, 1:] - matrix[:, :1]
    shown, scores = (score_maps(part, difference)[..., 0] for part in (train, test))
    return float(iou(scores >= best_threshold(shown, train.pixels > 0), test.pixels > 0))


def classes(train: Patches, test: Patches, solve: Solve) -> tuple[float, float]:
    """Balanced mean IoU, and the share of object pixels whose best class other than background is the right one."""
    matrix = solve(train.features, train.shares, balanced(train.shares.argmax(-1)))
    best, object_class = (np.empty(test.pixels.shape, np.int16) for _ in range(2))
    for number in range(len(test.features)):  # the scores of all scenes at once would take gigabytes
        (scores,) = score_maps(Patches(*(array[number : number + 1] for array in test)), matrix)
        best[number], object_class[number] = scores.argmax(-1), 1 + scores[..., 1:].argmax(-1)
    there = test.pixels > 0
    miou = mean_iou(best, test.pixels, train.shares.shape[-1])
    return float(miou), float((object_class == test.pixels)[there].mean())


def score_maps(part: Patches, matrix: Float[np.ndarray, "D1 K"]) -> Float32[np.ndarray, "M S S K"]:
    """The scores of a linear map at every pixel."""
    return enlarge((with_one(part.features) @ matrix).astype(np.float32), part.pixels.shape[1]).astype(np.float32)


def logistic(
    features: Float[np.ndarray, "M N D"], targets: Float[np.ndarray, "M N K"], weight: Float[np.ndarray, "M N"]
) -> Float[np.ndarray, "D1 K"]:
    """Weighted multinomial logistic regression on shares as targets, in STEPS steps of L-BFGS; as `segmentation.fit`.

    minimises sum_p a_p CE(softmax(W x_p), y_p) / sum_p a_p + PENALTY / 2 |W|^2; the constant's weights are free.
    """
    x = jnp.asarray(with_one(features).reshape(-1, features.shape[-1] + 1), jnp.float32)
    y = jnp.asarray(targets.reshape(-1, targets.shape[-1]), jnp.float32)
    return np.asarray(_minimised(x, y, jnp.asarray(weight.reshape(-1) / weight.sum(), jnp.float32)), np.float64)


@jax.jit
def _minimised(x: Array, y: Array, weight: Array) -> Array:
    solver = optax.lbfgs()

    def objective(matrix: Array) -> Array:
        loss = optax.softmax_cross_entropy(jnp.matmul(x, matrix, precision="highest"), y)
        return jnp.sum(weight * loss) + PENALTY / 2 * jnp.sum(matrix[:-1] ** 2)

    def step(carry: Any, _: None) -> Any:
        matrix, state = carry
        value, gradient = optax.value_and_grad_from_state(objective)(matrix, state=state)
        updates, state = solver.update(gradient, state, matrix, value=value, grad=gradient, value_fn=objective)
        return (optax.apply_updates(matrix, updates), state), None

    start = jnp.zeros((x.shape[1], y.shape[1]))
    return jax.lax.scan(step, (start, solver.init(start)), None, length=STEPS)[0][0]


def own_labels(predicted: Int[np.ndarray, "M S S"], test: Scenes) -> tuple[float, float]:
    """Figure IoU and mean IoU of groups of an encoder's own label maps."""
    miou = mean_iou(predicted, test.groups, NUM_CLASSES["groups"])
    return float(iou(predicted > 0, test.groups > 0)), float(miou)
