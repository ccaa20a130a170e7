"""Linear segmentation on frozen features: measures how well patch features predict the class at each place."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from detailclip_jax.data.stickers.scene_source import class_names
from detailclip_jax.evaluation.evaluator import Measured, SetEvaluator, Setting
from detailclip_jax.evaluation.metrics import Metric, bootstrap_interval
from detailclip_jax.evaluation.sticker_scenes import add_remark, open_with_masks
from detailclip_jax.inference.batching import Batches, gather, mesh_of
from detailclip_jax.types import Params

NUM_SCENES = 500  # for the fit, and for the evaluation
RIDGE = 1e-3  # relative to the features' mean square


class Patches(NamedTuple):
    """Features of all patches of M scenes, and the share of each class in each patch; class 0 is background."""

    features: Float[np.ndarray, "M N D"]
    shares: Float[np.ndarray, "M N C"]
    pixels: Shaped[np.ndarray, "M S S"]  # the class of every pixel


def segmentation(setting: Setting, name: str) -> SetEvaluator:
    """Linear segmentation, fitted on training scenes and evaluated on held-out scenes; see `measure`."""
    sets = setting.sets
    counts = {
        "train": sets.num_train_examples or sets.num_scenes or NUM_SCENES,
        "held_out_scenes": sets.num_scenes or sets.num_examples or NUM_SCENES,
    }
    data, (train, test) = open_with_masks(setting, "segmentation", name, **counts)

    def run(params: Params) -> Measured:
        parts = (patches_of(setting.embedder.encode, params, part(), len(class_names())) for part in (train, test))
        yield from add_remark(measure(*parts), setting)

    return SetEvaluator(("image",), run, data, name)


def patches_of(encode: Any, params: Params, batches: Batches, num_classes: int) -> Patches:
    """Features and targets of all scenes; `batches` yields "image" and "segmentation"."""

    def read(batch: Mapping[str, Any]) -> tuple[Any, Any]:
        return encode.patches(params, batch["image"]), batch["segmentation"]

    features, pixels = gather(read, batches, mesh_of(params))
    side = round(features.shape[1] ** 0.5)
    return Patches(np.asarray(features, np.float64), class_shares(pixels, side, num_classes), pixels)


def measure(train: Patches, test: Patches) -> Measured:
    """Yields the intersection over union of a linear map from patch features to classes, fitted in closed form.

        W = argmin sum_p a_p |W x_p - y_p|^2 + lambda |W|^2

    x_p are the last block's features of patch p with a 1 appended; y_p is the share of each class in the patch. The map
    is fitted on `train` scenes and evaluated on `test` scenes. There are four variants. The first one is where the
    object is; the others are which class it has, in three ways since background covers most of a scene:

    `foreground_iou`: one output, the share of any object, a_p = 1; evaluated on all pixels, with bilinearly
        interpolated score maps and the threshold that has the highest IoU on the `train` scenes.
    `miou`: a_p = 1; evaluated in the same way, by the class with the highest score.
    `balanced_miou`: a_p = 1 / (number of patches with p's main class); evaluated in the same way.
    `object_miou`: balanced; fitted and evaluated on patches whose main class is an object, among object classes only.

    IoU divides summed intersections by summed unions; the mean is over the classes that occur. The interval resamples
    scenes. tools/measured.md has the range of each variant from untrained to supervised features.
    """
    measured = {
        "foreground_iou": over_foreground(train, test),
        "miou": over_pixels(train, test, np.ones(train.features.shape[:2])),
        "balanced_miou": over_pixels(train, test, balanced(train.shares.argmax(-1))),
        "object_miou": over_object_patches(train, test),
    }
    for name, value in measured.items():
        value.n_train = len(train.features)
        yield name, value


def over_foreground(train: Patches, test: Patches) -> Metric:
    """Fits the share of any object on all patches; IoU of the object pixels of the `test` scenes."""
    matrix = fit(train.features, 1 - train.shares[..., :1], np.ones(train.features.shape[:2]))
    known, judged = (enlarge(with_one(p.features) @ matrix, p.pixels.shape[1])[..., 0] for p in (train, test))
    return iou(judged >= best_threshold(known, train.pixels > 0), test.pixels > 0)


def over_pixels(train: Patches, test: Patches, weight: Float[np.ndarray, "M N"]) -> Metric:
    """Fits all classes on all patches; mean IoU of the pixels of the `test` scenes."""
    scores = with_one(test.features) @ fit(train.features, train.shares, weight)
    size = test.pixels.shape[1]
    predicted = np.concatenate([enlarge(scene[None], size).argmax(-1) for scene in scores])
    return mean_iou(predicted, test.pixels, train.shares.shape[-1])


def over_object_patches(train: Patches, test: Patches) -> Metric:
    """Fits and evaluates on patches whose main class is an object; background is never predicted."""
    main = train.shares.argmax(-1)
    matrix = fit(train.features, train.shares[..., 1:], balanced(main) * (main > 0))
    predicted = 1 + (with_one(test.features) @ matrix).argmax(-1)
    truth = test.shares.argmax(-1)
    return mean_iou(predicted, truth, train.shares.shape[-1], valid=truth > 0)


def class_shares(pixels: Shaped[np.ndarray, "M S S"], side: int, num_classes: int) -> Float[np.ndarray, "M N C"]:
    """The share of each class in each patch of a `side` x `side` grid."""
    patch = pixels.shape[1] // side
    blocks = pixels.reshape(-1, side, patch, side, patch).swapaxes(2, 3).reshape(len(pixels), side**2, -1)
    return np.stack([(blocks == c).mean(-1) for c in range(num_classes)], -1)


def balanced(main: Int[np.ndarray, "M N"]) -> Float[np.ndarray, "M N"]:
    """Weights that give every class the same total."""
    return 1 / np.bincount(main.reshape(-1))[main]


def with_one(features: Float[np.ndarray, "*batch D"]) -> Float[np.ndarray, "*batch D1"]:
    """The features with a constant 1 appended."""
    return np.concatenate([features, np.ones((*features.shape[:-1], 1))], -1)


def fit(
    features: Float[np.ndarray, "M N D"], targets: Float[np.ndarray, "M N K"], weight: Float[np.ndarray, "M N"]
) -> Float[np.ndarray, "D1 K"]:
    """Weighted ridge regression; the penalty is RIDGE times the features' weighted mean square."""
    x, y = with_one(features).reshape(-1, features.shape[-1] + 1), targets.reshape(-1, targets.shape[-1])
    weighted = x * (weight.reshape(-1, 1) / weight.sum())
    gram = weighted.T @ x
    penalty = RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    return np.linalg.solve(gram + penalty, weighted.T @ y)


def enlarge(scores: Float[np.ndarray, "M N C"], size: int) -> Float[np.ndarray, "M size size C"]:
    """Interpolates patch maps bilinearly to every pixel (half-pixel centres)."""
    side = round(scores.shape[1] ** 0.5)
    centre = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
    matrix = np.maximum(0, 1 - np.abs(centre[:, None] - np.arange(side)))
    grid = scores.reshape(len(scores), side, side, -1)
    return np.einsum("ik,jl,mklc->mijc", matrix, matrix, grid, optimize=True)


def mean_iou(
    predicted: Int[np.ndarray, "M *shape"],
    truth: Shaped[np.ndarray, "M *shape"],
    num_classes: int,
    valid: Bool[np.ndarray, "M *shape"] | None = None,
) -> Metric:
    """Mean IoU over the classes that occur in `truth` or `predicted`, with an interval over scenes."""
    valid = np.ones(truth.shape, bool) if valid is None else valid
    first = num_classes * np.arange(len(truth)).reshape(-1, *[1] * (truth.ndim - 1))

    def counted(classes: Any, where: Any) -> Int[np.ndarray, "M C"]:
        """Places of every class in every scene."""
        return np.bincount((first + classes)[where], minlength=len(truth) * num_classes).reshape(-1, num_classes)

    intersections = counted(truth, valid & (predicted == truth))
    unions = counted(truth, valid) + counted(predicted, valid) - intersections
    low, high = bootstrap_interval(_mean_iou, intersections, unions, num_resamples=200)
    value = _mean_iou(intersections, unions)
    return Metric(value, n=len(truth), low=min(low, value), high=max(high, value))


def _mean_iou(intersections: Int[np.ndarray, "M C"], unions: Int[np.ndarray, "M C"]) -> float:
    """0 without any class, as in a draw of scenes whose objects fill no patch."""
    intersection, union = intersections.sum(0), unions.sum(0)
    return float((intersection[union > 0] / union[union > 0]).mean()) if union.any() else 0.0


def best_threshold(scores: Float[np.ndarray, "*shape"], truth: Bool[np.ndarray, "*shape"]) -> float:
    """The score t with the highest IoU of `scores >= t` and `truth`; the largest one in a tie."""
    order = np.argsort(-scores, axis=None, kind="stable")
    sorted_scores, right = scores.reshape(-1)[order], np.cumsum(truth.reshape(-1)[order])
    unions = truth.sum() + np.arange(1, len(order) + 1) - right
    last = np.append(sorted_scores[1:] != sorted_scores[:-1], True)  # equal scores are predicted together
    return float(sorted_scores[np.argmax(np.where(last, right / unions, -1.0))])


def iou(predicted: Bool[np.ndarray, "M *shape"], truth: Bool[np.ndarray, "M *shape"]) -> Metric:
    """IoU of two regions, summed over scenes, with an interval over scenes; 0 if both are empty everywhere."""
    axes = tuple(range(1, truth.ndim))
    counts = np.stack([(predicted & truth).sum(axes), (predicted | truth).sum(axes)], 1)
    low, high = bootstrap_interval(_iou, counts, num_resamples=200)
    value = _iou(counts)
    return Metric(value, n=len(truth), low=min(low, value), high=max(high, value))


def _iou(counts: Int[np.ndarray, "M 2"]) -> float:
    intersection, union = counts.sum(0)
    return float(intersection / max(union, 1))
