"""Which caption fits an image: the accuracy of choices among a few captions."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from detailclip_jax.data.labelled import Choice, ChoiceSet, boxes_of
from detailclip_jax.data.labelled.choices import MEAN_OF_GROUPS, PAIRED_IMAGES, PAIRS
from detailclip_jax.data.sources import Picked
from detailclip_jax.evaluation.box_features import check_pooling, pooled_boxes, with_remark
from detailclip_jax.evaluation.embedder import Embedded
from detailclip_jax.evaluation.evaluation_sets import POOLED
from detailclip_jax.evaluation.evaluator import JOINT, Measured, SetEvaluator, Setting
from detailclip_jax.evaluation.metrics import Metric, bootstrap_interval, ids_of, mean_metric, mean_per_class
from detailclip_jax.runtime.errors import Unmeasurable
from detailclip_jax.types import Params

BLOCK = 4096  # choices per block of scores

Scores = Float[np.ndarray, "N C"]  # of each caption with its image; -inf for padding


class Indexed(NamedTuple):
    """Choices by number: the row of their image among the embeddings, and their captions among the different texts.

    captions: -1 pads; the first `num_right` of a row are right.
    """

    choices: Sequence[Choice]
    images: Int[np.ndarray, " N"]
    captions: Int[np.ndarray, "N C"]
    num_right: Int[np.ndarray, " N"]
    texts: Sequence[str]


def choice(setting: Setting, name: str) -> SetEvaluator:
    """The accuracy of choices by the cosine of image and caption; `measure` has the metrics.

    A choice whose image cannot be read is left out, in sets of pairs with its other half. A method that pools an image
    by each text (FLAIR) chooses by the cosine of each caption with the image pooled by it; the choice by class tokens
    follows as "cls_...".
    """
    if name in POOLED:
        return pooled_choice(setting, name)
    choices, embedder, transform = setting.sets.choices(name), setting.embedder, setting.transform

    def run(params: Params) -> Measured:
        images = embedder.images(params, choices.data, transform)
        items = number_choices(choices, images.index)
        texts = embedder.texts(params, items.texts)
        if embedder.pools_images:
            yield from measure(choices.rule, items, pooled_cosines(setting, params, choices, items, images), texts)
        prefix = "cls_" if embedder.pools_images else ""
        for metric, value in measure(choices.rule, items, cosines(items, images.features, texts), texts):
            if metric != "text_only" or not prefix:  # the texts alone have no class token
                yield prefix + metric, value

    return SetEvaluator(JOINT, run, choices.data, choices.rule)


def pooled_choice(setting: Setting, name: str) -> SetEvaluator:
    """The accuracy of choices by features of the whole image, pooled in the box that the captions are about."""
    check_pooling(setting.config)
    choices, embedder = setting.sets.choices(POOLED[name]), setting.embedder
    boxes = boxes_of(choices)

    def run(params: Params) -> Measured:
        features, index = pooled_boxes(embedder, params, boxes, setting.transform)
        items = number_choices(choices, index)
        texts = embedder.texts(params, items.texts)
        yield from with_remark(measure(choices.rule, items, cosines(items, features, texts), texts), setting.config)

    return SetEvaluator(JOINT, run, boxes.data, f"{choices.rule}, features pooled in the box")


def number_choices(choices: ChoiceSet, readable: Int[np.ndarray, " n"]) -> Indexed:
    """Numbers the choices whose image is one of the `readable`. Raises Unmeasurable if there is none."""
    rows = {int(image): row for row, image in enumerate(readable)}
    kept = [each for unit in choices.units if all(each.image in rows for each in unit) for each in unit]
    if not kept:
        raise Unmeasurable(f"{choices.data.name}: no choice has a readable image")
    numbers: dict[str, int] = {}
    captions = np.full((len(kept), max(len(each.captions) for each in kept)), -1)
    for row, each in enumerate(kept):
        captions[row, : len(each.captions)] = [numbers.setdefault(text, len(numbers)) for text in each.captions]
    images, right = np.array([rows[each.image] for each in kept]), np.array([each.num_right for each in kept])
    return Indexed(kept, images, captions, right, list(numbers))


def cosines(items: Indexed, images: Float[np.ndarray, "n E"], texts: Float[np.ndarray, "M E"]) -> Scores:
    """The scores by embeddings of unit length."""
    scores = np.empty(items.captions.shape, np.float32)
    for start in range(0, len(scores), BLOCK):
        rows = slice(start, start + BLOCK)
        scores[rows] = np.einsum("ne,nce->nc", images[items.images[rows]], texts[items.captions[rows]])
    return np.where(items.captions < 0, -np.inf, scores)


def pooled_cosines(setting: Setting, params: Params, choices: ChoiceSet, items: Indexed, images: Embedded) -> Scores:
    """The scores of a method that pools an image by each text; a batch of images meets only its captions."""
    embedder = setting.embedder
    texts, scores = embedder.raw_texts(params, items.texts), np.full(items.captions.shape, -np.inf, np.float32)
    batches = [range(start, start + embedder.batch_size) for start in range(0, len(images.index), embedder.batch_size)]
    rows = [np.flatnonzero((items.images >= batch.start) & (items.images < batch.stop)) for batch in batches]
    used = [np.setdiff1d(items.captions[of_batch], [-1]) for of_batch in rows]
    for batch, of_batch, numbers in zip(batches, rows, used):
        if len(of_batch):
            index = images.index[batch.start : batch.stop]
            marks = f"{choices.data.fingerprint}, images {index.tolist()}"
            part = choices.data._replace(source=Picked(choices.data.source, index.tolist()), fingerprint=marks)
            here = Embedded(images.features[batch.start : batch.stop], images.labels, np.arange(len(index)), ())
            padded = np.pad(numbers, (0, max(map(len, used)) - len(numbers)))  # one shape, so one program
            matrix = embedder.pooled(params, part, setting.transform, texts[padded], here)
            columns = np.searchsorted(numbers, np.maximum(items.captions[of_batch], 0)).clip(max=len(numbers) - 1)
            scores[of_batch] = matrix[(items.images[of_batch] - batch.start)[:, None], columns]
    return np.where(items.captions < 0, -np.inf, scores)


def measure(rule: str, items: Indexed, scores: Scores, texts: Float[np.ndarray, "M E"]) -> Iterator[tuple[str, Metric]]:
    """Yields the metrics of a set's rule; `data.labelled.choices.ChoiceSet` defines the rules.

    EACH: "accuracy", then that of each group by its name; with two right captions and a wrong one also "text_only", the
    share whose right captions are nearer to each other than to the wrong one. MEAN_OF_GROUPS: "mean_of_groups". PAIRS:
    "text_score", "image_score" and "group_score". PAIRED_IMAGES: "accuracy" of pairs, then that of each group.
    Intervals resample images, boxes of images (FG-OVD, ARO), or pairs of images.
    """
    groups = [each.group for each in items.choices]
    if rule == PAIRS:
        # Winoground (arXiv 2204.03162, eqs. 1-3): rows 2i and 2i + 1 have the same captions, the right one first
        text = np.logical_and(*hits(scores, items.num_right).reshape(-1, 2).T)
        image = image_hits(scores)
        yield "text_score", mean_metric(text, 1 / 4)
        yield "image_score", mean_metric(image, 1 / 4)
        yield "group_score", mean_metric(text & image, 1 / 6)
    elif rule == PAIRED_IMAGES:
        right = image_hits(scores)
        yield from _by_group(right, np.full(len(right), 1 / 4), np.arange(len(right)), groups[::2])
    elif rule == MEAN_OF_GROUPS:
        right, numbers = hits(scores, items.num_right), ids_of(groups)
        low, high = bootstrap_interval(mean_per_class, right, numbers)
        chance = float(mean_per_class(chances(items), numbers))
        value = mean_per_class(right, numbers)
        yield "mean_of_groups", Metric(value, n=len(right), chance=chance, low=low, high=high)
    else:
        yield from _by_group(hits(scores, items.num_right), chances(items), items.images, groups)
        if items.captions.shape[1] == 3 and (items.num_right == 2).all():
            between = np.einsum("nae,nbe->nab", texts[items.captions], texts[items.captions])
            nearest = (between[:, 0, 1] > between[:, 0, 2]) & (between[:, 0, 1] > between[:, 1, 2])
            yield "text_only", mean_metric(nearest, 1 / 3)


def hits(scores: Scores, num_right: Int[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """Whether every right caption scores higher than every wrong one; a tie or nan is an error."""
    right = np.arange(scores.shape[1]) < num_right[:, None]
    lowest = np.where(right, scores, np.inf).min(1)
    return lowest > np.where(right, -np.inf, scores).max(1)


def chances(items: Indexed) -> Float[np.ndarray, " N"]:
    """The probability of a hit by random scores: 1 / C(captions, right captions)."""
    sizes = (items.captions >= 0).sum(1)
    return np.array([1 / math.comb(size, right) for size, right in zip(sizes.tolist(), items.num_right.tolist())])


def image_hits(scores: Float[np.ndarray, "N 2"]) -> Bool[np.ndarray, " P"]:
    """Whether each caption of a pair scores higher with its image than with the other."""
    right, wrong = scores[:, 0].reshape(-1, 2), scores[:, 1].reshape(-1, 2)[:, ::-1]
    return np.logical_and(*(right > wrong).T)


def _by_group(
    right: Bool[np.ndarray, " N"], chance: Float[np.ndarray, " N"], units: Int[np.ndarray, " N"], groups: Sequence[str]
) -> Iterator[tuple[str, Metric]]:
    """The accuracy of all and of each group; the interval resamples the units, such as images."""
    yield "accuracy", _accuracy(right, chance, units)
    names = np.array(groups)
    for name in dict.fromkeys(filter(None, groups)):
        yield name, _accuracy(right[names == name], chance[names == name], units[names == name])


def _accuracy(right: Bool[np.ndarray, " N"], chance: Float[np.ndarray, " N"], units: Int[np.ndarray, " N"]) -> Metric:
    _, unit = np.unique(units, return_inverse=True)
    return mean_metric(np.bincount(unit, weights=right), float(chance.mean()), np.bincount(unit))
