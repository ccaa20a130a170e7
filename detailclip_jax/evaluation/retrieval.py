"""Image-text retrieval in both directions."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

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
from detailclip_jax.evaluation.pooling import pooled_scores, pools_images
from detailclip_jax.inference.batching import Batches, embed_texts, gather, mesh_of
from detailclip_jax.types import Params


class Retrieval:
    """Recall at k, without a prompt around the captions.

    Image to text: a hit if ANY caption of the image is among the k nearest. Text to image: a hit if the image of the
    caption is. Captions with identical text count as right for every image that has one of them, since a model cannot
    distinguish them. `captions` lists the captions of each image, in the order in which `batches` yields the images.
    The interval resamples images together with their captions. A method that pools an image by each text (FLAIR) ranks
    by the cosine of each text with the image pooled by it; the ranking by class tokens follows as "cls_...".
    """

    needs = ("image", "image_projection", "text", "text_projection")

    def __init__(
        self,
        encode: Any,
        *,
        batches: Batches,
        captions: Sequence[Sequence[str]],
        tokenize: Callable[[Sequence[str]], np.ndarray],
        top: Sequence[int] = (1, 5),
        batch_size: int = 256,
    ):
        self.encode, self.batches, self.top, self.batch_size = encode, batches, top, batch_size
        self.captions, self.tokens = captions, tokenize([caption for own in captions for caption in own])

    def run(self, params: Params) -> Iterator[tuple[str, Metric]]:
        """Yields ("image_to_text_r1", ...), ("text_to_image_r1", ...), and so on for each k."""
        images = gather(lambda batch: self.encode.image(params, batch["image"]), self.batches, mesh_of(params))
        texts = embed_texts(self.encode, params, self.tokens, self.batch_size)

        def pooled() -> Float[np.ndarray, "I M"]:
            raw = embed_texts(self.encode, params, self.tokens, self.batch_size, encoder="raw_text")
            return pooled_scores(self.encode, params, self.batches, raw)

        yield from recalls(images, texts, self.captions, self.top, pooled if pools_images(self.encode) else None)


def recalls(
    images: Float[np.ndarray, "I E"],
    texts: Float[np.ndarray, "M E"],
    captions: Sequence[Sequence[str]],
    top: Sequence[int],
    pooled: Callable[[], Float[np.ndarray, "I M"]] | None = None,
) -> Iterator[tuple[str, Metric]]:
    """Yields the metrics of `retrieval_metrics`.

    For a method that pools an image by each text, `pooled` computes its scores of all images and captions: their
    metrics come first, and those of the embeddings follow as "cls_...".
    """
    plain = retrieval_metrics(images, texts, captions, top)
    if pooled is None:
        yield from plain
        return
    yield from pooled_retrieval_metrics(pooled(), captions, top)
    yield from ((f"cls_{name}", value) for name, value in plain)


def retrieval_metrics(
    images: Float[np.ndarray, "I E"],
    texts: Float[np.ndarray, "M E"],
    captions: Sequence[Sequence[str]],
    top: Sequence[int] = (1, 5, 10),
) -> Iterator[tuple[str, Metric]]:
    """Yields recall at each k in both directions, from embeddings of unit length.

    `texts` are the embeddings of all `captions`, in their order. Raises ValueError if the numbers of images and of
    caption groups differ.
    """
    blocks = similarity_blocks(images, texts), similarity_blocks(texts, images)
    yield from _recalls(*blocks, len(images), captions, top)


def pooled_retrieval_metrics(
    scores: Float[np.ndarray, "I M"], captions: Sequence[Sequence[str]], top: Sequence[int] = (1, 5, 10)
) -> Iterator[tuple[str, Metric]]:
    """Yields the recalls of `retrieval_metrics` from the scores of all images and captions."""
    yield from _recalls(matrix_blocks(scores), matrix_blocks(scores.T), len(scores), captions, top)


def _recalls(
    of_images: Blocks, of_texts: Blocks, num_images: int, captions: Sequence[Sequence[str]], top: Sequence[int]
) -> Iterator[tuple[str, Metric]]:
    if num_images != len(captions):
        raise ValueError(f"{num_images} images, but captions for {len(captions)}")
    text_ids = ids_of([caption for own in captions for caption in own])
    counts = np.array([len(own) for own in captions])
    owners = np.repeat(np.arange(len(captions)), counts)
    image_ranks, text_ranks = block_ranks(of_images, of_texts, num_images, owners, text_ids)
    texts_right, images_right = num_right(owners, text_ids, num_images)
    for k in top:
        yield f"image_to_text_r{k}", mean_metric(image_ranks < k, recall_chance(texts_right, len(owners), k))
    for k in top:
        hits = np.bincount(owners, weights=text_ranks < k, minlength=num_images)
        yield f"text_to_image_r{k}", mean_metric(hits, recall_chance(images_right, num_images, k), counts)
