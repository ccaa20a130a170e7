"""Linear segmentation on frozen features: measures how well patch features predict the class at each place."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from detailclip_jax.evaluation.embedding import Batches, gather, mesh_of
from detailclip_jax.evaluation.metrics import Metric, bootstrap_interval
from detailclip_jax.types import Params

RIDGE = 1e-3  # relative to the features' mean square


class Patches(NamedTuple):
    """Features of all patches of M scenes, and the share of each class in each patch; class 0 is background."""

    features: Float[np.ndarray, "M N D"]
    shares: Float[np.ndarray, "M N C"]
    pixels: Shaped[np.ndarray, "M S S"]  # the class of every pixel


class LinearSegmentation:
    """Mean intersection over union of a linear map from patch features to classes, fitted in closed form.

        W = argmin sum_p a_p |W x_p - y_p|^2 + lambda |W|^2

    x_p are the last block's features of patch p with a 1 appended; y_p is the share of each class in the patch. The map
    is fitted on `train` scenes and evaluated on `test` scenes. There are three variants, since background covers most
    of a scene:

    `miou`: a_p = 1; evaluated on all pixels, with bilinearly interpolated score maps.
    `balanced_miou`: a_p = 1 / (number of patches with p's main class); evaluated in the same way.
    `object_miou`: balanced; fitted and evaluated on patches whose main class is an object, among object classes only.

    IoU divides summed intersections by summed unions; the mean is over the classes that occur. The interval resamples
    scenes.
    """

    needs = ("image",)

    def __init__(self, encode: Any, *, train: Batches, test: Batches, num_classes: int):
        self.encode, self.train, self.test, self.num_classes = encode, train, test, num_classes

    def run(self, params: Params) -> Iterator[tuple[str, Metric]]:
        """Yields ("miou", ...), ("balanced_miou", ...), ("object_miou", ...)."""
        train, test = self.look(params, self.train), self.look(params, self.test)
        measured = {
            "miou": self.over_pixels(train, test, np.ones(train.features.shape[:2])),
            "balanced_miou": self.over_pixels(train, test, balanced(train.shares.argmax(-1))),
            "object_miou": self.over_object_patches(train, test),
        }
        for name, value in measured.items():
            value.n_train = len(train.features)
            yield name, value

    def look(self, params: Params, batches: Batches) -> Patches:
        """Features and targets of all scenes."""

        def read(batch: Mapping[str, Any]) -> tuple[Any, Any]:
            return self.encode.patches(params, batch["image"]), batch["segmentation"]

        features, pixels = gather(read, batches, mesh_of(params))
        side = round(features.shape[1] ** 0.5)
        return Patches(np.asarray(features, np.float64), class_shares(pixels, side, self.num_classes), pixels)

    def over_pixels(self, train: Patches, test: Patches, weight: Float[np.ndarray, "M N"]) -> Metric:
        """Fits on all patches, evaluates on all pixels."""
        scores = with_one(test.features) @ fit(train.features, train.shares, weight)
        size = test.pixels.shape[1]
        predicted = np.concatenate([enlarge(scene[None], size).argmax(-1) for scene in scores])
        return mean_iou(predicted, test.pixels, self.num_classes)

    def over_object_patches(self, train: Patches, test: Patches) -> Metric:
        """Fits and evaluates on patches whose main class is an object; background is never predicted."""
        main = train.shares.argmax(-1)
        matrix = fit(train.features, train.shares[..., 1:], balanced(main) * (main > 0))
        predicted = 1 + (with_one(test.features) @ matrix).argmax(-1)
        truth = test.shares.argmax(-1)
        return mean_iou(predicted, truth, self.num_classes, valid=truth > 0)


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
    axes = tuple(range(1, truth.ndim))
    shares = [
        (
            ((predicted == c) & (truth == c) & valid).sum(axes),
            (((predicted == c) | (truth == c)) & valid).sum(axes),
        )
        for c in range(num_classes)
    ]
    intersections, unions = (np.stack(arrays, 1) for arrays in zip(*shares))
    low, high = bootstrap_interval(_mean_iou, intersections, unions, num_resamples=200)
    value = _mean_iou(intersections, unions)
    return Metric(value, n=len(truth), low=min(low, value), high=max(high, value))


def _mean_iou(intersections: Int[np.ndarray, "M C"], unions: Int[np.ndarray, "M C"]) -> float:
    intersection, union = intersections.sum(0), unions.sum(0)
    return float((intersection[union > 0] / union[union > 0]).mean())
