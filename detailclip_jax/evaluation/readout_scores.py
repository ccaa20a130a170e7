"""Training-free read-outs on segmentation sets: mean IoU of class names compared with patch features.

    evaluator = readout(setting, "voc21:naclip")
    dict(evaluator.run(params))["mean_iou"]

`models.readouts` has the formulas, `inference.readout_maps` windows and resizes, and `readout_setups` what each
published read-out does on a set.
"""

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.stages import Wrapped
from jaxtyping import Float32, Int, Integer, UInt8
from ml_collections import ConfigDict

from detailclip_jax.data.decoding import BUDGET
from detailclip_jax.data.labelled import LabelledSet
from detailclip_jax.data.sources import Source
from detailclip_jax.data.stickers.scene_source import zero_shot_prompts
from detailclip_jax.data.workers import Prefetched
from detailclip_jax.dense.segmentation.confusion import confusion, label_gaps
from detailclip_jax.dense.set_examples import pixels_of
from detailclip_jax.evaluation.embedder import Embedder
from detailclip_jax.evaluation.evaluator import JOINT, Measured, SetEvaluator, Setting
from detailclip_jax.evaluation.image_batches import MAX_AHEAD
from detailclip_jax.evaluation.metrics import Metric, bootstrap_interval
from detailclip_jax.evaluation.readout_sets import FOLDER, STICKERS, open_readout_set, split_name
from detailclip_jax.evaluation.readout_setups import Setup, setup
from detailclip_jax.inference.batching import SHAPES, fetch, fill, in_shapes, in_turn, mesh_of, place, shapes_up_to
from detailclip_jax.inference.class_embeddings import owners
from detailclip_jax.inference.readout_maps import ImageLayout, default_readout, layout, readout_encoder
from detailclip_jax.methods import build_networks
from detailclip_jax.models.readouts import READOUTS
from detailclip_jax.runtime.devices import usable_cores
from detailclip_jax.runtime.errors import NotApplicable, Unmeasurable
from detailclip_jax.training import mesh as meshes
from detailclip_jax.types import Params

NUM_RESAMPLES = 200
PARTS = ("image", "image_projection")


class Cut(NamedTuple):
    """One image: how it is cut, its windows, and its labels."""

    layout: ImageLayout
    windows: list[UInt8[np.ndarray, "h w 3"]]
    mask: Integer[np.ndarray, "H W"]


class Cuts:
    """Random access to the cut images `rows` of a source."""

    def __init__(self, source: Source, rows: Sequence[int], setup: Setup, model: ConfigDict):
        self.source, self.rows, self.setup, self.model = source, rows, setup, model

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Cut:
        with BUDGET.scope():
            example = self.source[self.rows[number]]
            image = pixels_of(example)
            cut = layout(image.shape, self.setup.pipeline, self.model)
            return Cut(cut, cut.windows(image), example["mask"])


def readout(setting: Setting, name: str) -> SetEvaluator:
    """Training-free segmentation by a read-out, such as "voc20:naclip"."""
    dataset, chosen = split_name(name)
    if setting.config is None:
        raise NotApplicable("a read-out changes the last block of a run of this package: give --checkpoint")
    data, config = open_readout_set(dataset, setting.sets), setting.config
    chosen = chosen if chosen in READOUTS else default_readout(config)
    how = setup(dataset, chosen, data.classes)
    function = functools.cache(  # compiled once for all sets of weights
        lambda: readout_encoder(build_networks(config).only(*PARTS), config, chosen)
    )

    def run(params: Params) -> Measured:
        return measure(setting.embedder, params, config, data, how, function())

    return SetEvaluator(JOINT, run, data, how.description(config.model))


def measure(
    embedder: Embedder, params: Params, config: ConfigDict, data: LabelledSet, setup: Setup, function: Wrapped
) -> Measured:
    """Yields mean_iou, mean_accuracy, pixel_accuracy and inverted; `function` is the `readout_encoder` of a read-out.

    Their remark names the gaps in the masks of a user's folders (`gaps`).  All processes call this together; each
    computes its share of the images, and all receive the metrics of all.
    Raises BadRecord for an unreadable image or mask, since a mean over other images would be another number.
    """
    class_of, prompts = queries(data, setup)
    texts = np.asarray(embedder.classes(params, prompts), np.float32)
    networks, mesh = {name: params[name] for name in PARTS}, mesh_of(params)
    if jax.process_count() > 1:  # each process computes on its devices alone
        mesh = meshes.make_mesh(jax.local_devices())
        networks = meshes.replicate(jax.tree.map(fetch, networks), mesh)

    def encode(windows: np.ndarray) -> jax.Array:
        return function(networks, place({"image": windows, "valid": np.ones(len(windows), bool)}, mesh)["image"])

    shapes = shapes_up_to(SHAPES[-1], mesh)
    rows = range(jax.process_index(), len(data.source), jax.process_count())
    counts, ignored = np.zeros((len(rows), 3, len(data.classes)), np.int32), np.zeros(len(rows), np.int32)
    pairs = np.zeros((len(rows), 2), np.int32)
    done = embedder.watch(len(data.source), "images")
    ahead = min(MAX_AHEAD, max(2, usable_cores()))
    with contextlib.closing(Prefetched(Cuts(data.source, rows, setup, config.model), prefetch=ahead)) as cuts:
        for row, (cut, features) in enumerate(stream_features(encode, cuts, shapes)):
            maps = maps_of(cut.layout, features, texts, setup)
            classes = predict_classes(maps, class_of, len(data.classes), setup)
            pairs[row] = inverted_pairs(maps, class_of, cut.mask)
            counts[row] = count_pixels(confusion(cut.mask, classes, len(data.classes)))
            ignored[row] = cut.mask.size - counts[row, 1].sum()
            done(jax.process_count())
    counts, ignored, pairs = (gather_counts(each, len(data.source)) for each in (counts, ignored, pairs))
    remark = "; ".join(gaps(data, counts, ignored))
    for name, value in metrics(counts):
        value.remark = remark
        yield name, value
    if pairs[:, 1].any():
        low, high = bootstrap_interval(inverted_share, pairs, num_resamples=NUM_RESAMPLES)
        yield "inverted", Metric(inverted_share(pairs), n=len(pairs), low=low, high=high)


def gaps(data: LabelledSet, counts: Int[np.ndarray, "M 3 C"], ignored: Int[np.ndarray, " M"]) -> list[str]:
    """Returns the warnings of `label_gaps` about the masks of a user's folders.

    None for the other sets: their values are known, and some ignore the background, which is most of an image.
    """
    if not data.name.startswith(FOLDER):
        return []
    return label_gaps(counts[:, 1].sum(0, dtype=np.int64), int(ignored.sum(dtype=np.int64)), data.classes)


def queries(data: LabelledSet, setup: Setup) -> tuple[Int[np.ndarray, " T"], Sequence[Sequence[str]]]:
    """The class of each name, and the prompts of each name."""
    class_of = owners(setup.names)
    if data.name == STICKERS:
        return class_of, zero_shot_prompts()
    names = [name for of_class in setup.names for name in of_class]
    return class_of, [[template.replace("{}", name) for template in setup.templates] for name in names]


def stream_features(
    encode: Callable[[np.ndarray], jax.Array], cuts: Iterable[Cut], shapes: Sequence[int] = SHAPES
) -> Iterator[tuple[Cut, Float32[np.ndarray, "n h w E"]]]:
    """Yields every image with the features of its windows, in order; windows of several images share a batch."""
    waiting: deque[Cut] = deque()

    def windows() -> Iterator[np.ndarray]:
        for cut in cuts:
            waiting.append(cut)
            yield from cut.windows

    groups = of_one_shape(windows(), shapes[-1])
    calls = ((encode(batch), count) for group in groups for batch, count in in_shapes(group, shapes))
    rows: list[np.ndarray] = []
    for features, count in in_turn(calls):
        rows.extend(np.asarray(features)[:count])
        while waiting and len(waiting[0].windows) <= len(rows):
            cut = waiting.popleft()
            yield cut, np.stack(rows[: len(cut.windows)])
            del rows[: len(cut.windows)]


def of_one_shape(windows: Iterable[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Yields lists of at most `size` consecutive windows of equal shape."""
    batch: list[np.ndarray] = []
    for window in windows:
        if batch and (len(batch) == size or batch[0].shape != window.shape):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def maps_of(
    layout: ImageLayout, features: Float32[np.ndarray, "n h w D"], texts: Float32[np.ndarray, "T E"], setup: Setup
) -> Float32[np.ndarray, "T H W"]:
    """Cosines of the windows' features with the texts, or the shares of each window, as the setup says."""
    return layout.shares(features, texts) if setup.pipeline.window_softmax else layout.maps(features, texts)


def predict_classes(
    maps: Float32[np.ndarray, "T H W"], class_of: Int[np.ndarray, " T"], num_classes: int, setup: Setup
) -> Int[np.ndarray, "H W"]:
    """The class of every pixel: the one with the highest share of the softmax over names, or class 0 below a threshold.

    A class has the share of its best name. A class but 0 whose pixels are at most the `smallest_share` of all that are
    not class 0 is dropped. Without a threshold the softmax changes no argmax and is not computed; the
    maps may be shares already (`window_softmax`).
    """
    if not setup.threshold and not setup.smallest_share:
        return class_of[maps.argmax(0)]
    shares = class_shares(maps, class_of, num_classes, setup.pipeline.scale)
    if setup.smallest_share:
        pixels = np.bincount(shares.argmax(0).reshape(-1), minlength=num_classes)[1:]
        shares[1:][pixels <= setup.smallest_share * pixels.sum()] = 0
    return np.where(shares.max(0) < setup.threshold, 0, shares.argmax(0))


def inverted_pairs(
    maps: Float32[np.ndarray, "T H W"], class_of: Int[np.ndarray, " T"], mask: Integer[np.ndarray, "H W"]
) -> tuple[int, int]:
    """Of the classes of an image, how many are inverted, and how many could be.

    A class is inverted if its best name, relative to the mean of all names, is lower on its pixels than on all others.
    """
    mean, num, total = maps.mean(0), 0, 0
    for number in np.intersect1d(mask, class_of):
        there = mask == number
        if not there.all():
            values = maps[class_of == number].max(0) - mean
            num, total = num + int(values[there].mean() < values[~there].mean()), total + 1
    return num, total


def inverted_share(pairs: Int[np.ndarray, "M 2"]) -> float:
    """The share of inverted pairs of an image and a class."""
    num, total = pairs.sum(0)
    return float(num / total) if total else 0.0


def class_shares(
    maps: Float32[np.ndarray, "T H W"], class_of: Int[np.ndarray, " T"], num_classes: int, scale: float
) -> Float32[np.ndarray, "C H W"]:
    """The highest softmax(scale * map) among the names of each class; 0 for a class without names."""
    names = np.exp(scale * (maps - maps.max(0)))
    names /= names.sum(0)
    shares = np.zeros((num_classes, *maps.shape[1:]), np.float32)
    for number in np.unique(class_of):
        shares[number] = names[class_of == number].max(0)
    return shares


def count_pixels(confusion: Int[np.ndarray, "C C"]) -> Int[np.ndarray, "3 C"]:
    """Of each class: the pixels that are right, true and predicted."""
    return np.stack([np.diag(confusion), confusion.sum(1), confusion.sum(0)])


def gather_counts(counts: Int[np.ndarray, "m ..."], total: int) -> Int[np.ndarray, "M ..."]:
    """The counts of all images, in their order, from processes that each have every n-th image."""
    num_processes = jax.process_count()
    if num_processes == 1:
        return counts
    filled_up = fill(counts, -(-total // num_processes) - len(counts))
    every = np.asarray(multihost_utils.process_allgather(filled_up))
    return every.swapaxes(0, 1).reshape(-1, *counts.shape[1:])[:total]


def metrics(counts: Int[np.ndarray, "M 3 C"]) -> Iterator[tuple[str, Metric]]:
    """Yields the three metrics over all pixels of all images; intervals resample images.

    Raises Unmeasurable if no pixel has a label.
    """
    if not counts[:, 1].any():
        raise Unmeasurable("no pixel of these masks has a label")
    for name, statistic in (
        ("mean_iou", mean_iou),
        ("mean_accuracy", mean_accuracy),
        ("pixel_accuracy", pixel_accuracy),
    ):
        value = statistic(counts)
        low, high = bootstrap_interval(statistic, counts, num_resamples=NUM_RESAMPLES)
        yield name, Metric(value, n=len(counts), low=min(low, value), high=max(high, value))


def mean_iou(counts: Int[np.ndarray, "M 3 C"]) -> float:
    """Mean of summed intersection / summed union over the classes that occur in truth or prediction."""
    right, true, positive = counts.sum(0, dtype=np.int64)
    return _mean_ratio(right, true + positive - right)


def mean_accuracy(counts: Int[np.ndarray, "M 3 C"]) -> float:
    """Mean over the classes that occur of right pixels / true pixels."""
    right, true, _ = counts.sum(0, dtype=np.int64)
    return _mean_ratio(right, true)


def pixel_accuracy(counts: Int[np.ndarray, "M 3 C"]) -> float:
    """Right pixels / labelled pixels."""
    right, true, _ = counts.sum((0, 2), dtype=np.int64)
    return float(right / true) if true else 0.0


def _mean_ratio(counts: Int[np.ndarray, "C"], totals: Int[np.ndarray, "C"]) -> float:
    known = totals > 0
    return float((counts[known] / totals[known]).mean()) if known.any() else 0.0
