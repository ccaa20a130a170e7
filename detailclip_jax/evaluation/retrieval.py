"""Image-text retrieval in both directions."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from detailclip_jax.data.labelled import LabelledSet
from detailclip_jax.evaluation.evaluation_sets import STICKERS
from detailclip_jax.evaluation.evaluator import JOINT, Measured, SetEvaluator, Setting
from detailclip_jax.evaluation.image_batches import pairs_at
from detailclip_jax.evaluation.metrics import (
    Blocks,
    Metric,
    block_ranks,
    ids_of,
    matrix_blocks,
    mean_metric,
    num_right,
    recall_chance,
    similarity_blocks,
)
from detailclip_jax.evaluation.protocols import NUM_CAPTIONS
from detailclip_jax.types import Params

TOP = (1, 5, 10)


def retrieval(setting: Setting, name: str) -> SetEvaluator:
    """Image-text retrieval in both directions on a set with captions, see `on_pairs`."""
    num_captions = NUM_CAPTIONS[setting.protocol]
    data = setting.sets.captioned(name, num_captions)
    kept = f"first {num_captions} captions" if num_captions else "all captions"
    return on_pairs(setting, data, "stickers" if name in STICKERS else f"{setting.protocol}, {kept}")


def on_pairs(setting: Setting, data: LabelledSet, protocol: str) -> SetEvaluator:
    """Recall at k, without a prompt around the captions.

    Image to text: a hit if ANY caption of the image is among the k nearest. Text to image: a hit if the image of the
    caption is. Captions with identical text count as right for every image that has one of them, since a model cannot
    distinguish them. Examples with identical images, as of a table with a row for each caption, are one image with all
    their captions, except in a set of known size, whose protocol counts its examples. The interval resamples images
    together with their captions. A method that pools an image by each text (FLAIR) ranks by the cosine of each text
    with the image pooled by it; the ranking by class tokens follows as "cls_...".
    """
    embedder, transform, top = setting.embedder, setting.transform, setting.top or TOP

    @functools.lru_cache(maxsize=1)
    def pairs(index: tuple[int, ...]) -> tuple[Int[np.ndarray, "I"], list[tuple[str, ...]]]:
        ids, captions = pairs_at(data.source, index)
        if data.expected:
            return np.arange(len(ids)), captions
        _, rows = np.unique(ids, return_index=True)  # the first row of each image, and the captions of all its rows
        of_image: list[tuple[str, ...]] = [()] * len(rows)
        for number, texts in zip(ids, captions):
            of_image[number] += texts
        return rows, of_image

    def run(params: Params) -> Measured:
        images = embedder.images(params, data, transform)
        rows, captions = pairs(tuple(images.index.tolist()))
        texts = [caption for of_image in captions for caption in of_image]
        prefix, plain = "", retrieval_metrics(images.features[rows], embedder.texts(params, texts), captions, top)
        if embedder.pools_images:
            scores = embedder.pooled(params, data, transform, embedder.raw_texts(params, texts), images)
            yield from pooled_retrieval_metrics(scores[rows], captions, top)
            prefix = "cls_"
        yield from ((f"{prefix}{metric}", value) for metric, value in plain)

    return SetEvaluator(JOINT, run, data, protocol)


def retrieval_metrics(
    images: Float[np.ndarray, "I E"],
    texts: Float[np.ndarray, "M E"],
    captions: Sequence[Sequence[str]],
    top: Sequence[int] = TOP,
) -> Iterator[tuple[str, Metric]]:
    """Yields recall at each k in both directions, from embeddings of unit length.

    `texts` are the embeddings of all `captions`, in their order. Raises ValueError if the numbers of images and of
    caption groups differ.
    """
    blocks = similarity_blocks(images, texts), similarity_blocks(texts, images)
    yield from _recalls(*blocks, len(images), captions, top)


def pooled_retrieval_metrics(
    scores: Float[np.ndarray, "I M"], captions: Sequence[Sequence[str]], top: Sequence[int] = TOP
) -> Iterator[tuple[str, Metric]]:
    """Yields the recalls of `retrieval_metrics` from the scores of all images and captions."""
    yield from _recalls(matrix_blocks(scores), matrix_blocks(scores.T), len(scores), captions, top)


def _recalls(
    of_images: Blocks, of_texts: Blocks, num_images: int, captions: Sequence[Sequence[str]], top: Sequence[int]
) -> Iterator[tuple[str, Metric]]:
    if num_images != len(captions):
        raise ValueError(f"{num_images} images, but captions for {len(captions)}")
    text_ids = ids_of([caption for of_image in captions for caption in of_image])
    counts = np.array([len(of_image) for of_image in captions])
    owners = np.repeat(np.arange(len(captions)), counts)
    image_ranks, text_ranks = block_ranks(of_images, of_texts, num_images, owners, text_ids)
    texts_right, images_right = num_right(owners, text_ids, num_images)
    for k in top:
        yield f"image_to_text_r{k}", mean_metric(image_ranks < k, recall_chance(texts_right, len(owners), k))
    for k in top:
        hits = np.bincount(owners, weights=text_ranks < k, minlength=num_images)
        yield f"text_to_image_r{k}", mean_metric(hits, recall_chance(images_right, num_images, k), counts)
