"""Image-text retrieval in both directions."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from detailclip_jax.evaluation.embedding import Batches, embed_texts, gather, mesh_of
from detailclip_jax.evaluation.metrics import Metric, ids_of, mean_metric, num_right, recall_chance, retrieval_ranks
from detailclip_jax.types import Params


class Retrieval:
    """Recall at k, without a prompt around the captions.

    Image to text: a hit if ANY caption of the image is among the k nearest. Text to image: a hit if the image of the
    caption is. Captions with identical text count as right for every image that has one of them, since a model cannot
    distinguish them. `captions` lists the captions of each image, in the order in which `batches` yields the images.
    The interval resamples images together with their captions.
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
        yield from retrieval_metrics(images, texts, self.captions, self.top)


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
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images, but captions for {len(captions)}")
    text_ids = ids_of([caption for own in captions for caption in own])
    counts = np.array([len(own) for own in captions])
    owners = np.repeat(np.arange(len(captions)), counts)
    image_ranks, text_ranks = retrieval_ranks(images, texts, owners, text_ids)
    texts_right, images_right = num_right(owners, text_ids, len(images))
    for k in top:
        yield f"image_to_text_r{k}", mean_metric(image_ranks < k, recall_chance(texts_right, len(texts), k))
    for k in top:
        hits = np.bincount(owners, weights=text_ranks < k, minlength=len(images))
        yield f"text_to_image_r{k}", mean_metric(hits, recall_chance(images_right, len(images), k), counts)
