"""Image-text retrieval both ways."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from detailclip_jax.evaluate.embedding import Batches, gather, text_batches
from detailclip_jax.evaluate.metrics import (
    Metric,
    ids_of,
    mean_metric,
    num_right,
    recall_chance,
    retrieval_ranks,
)
from detailclip_jax.types import Params


class Retrieval:
    """Recall at k: image to text is a hit when ANY caption of the image is among the k nearest, text to
    image when its image is.  No prompt around the captions.

    Captions that are word for word the same count as right for all images that have one of them: a model
    cannot tell them apart.  `captions` holds the captions of each image that `batches` yields, in that
    order.  The interval resamples images together with their captions.
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
        texts = [caption for own in captions for caption in own]
        self.tokens, self.text_ids = tokenize(texts), ids_of(texts)
        self.counts = np.array([len(own) for own in captions])
        self.owners = np.repeat(np.arange(len(captions)), self.counts)

    def run(self, params: Params) -> Iterator[tuple[str, Metric]]:
        """Yields ("image_to_text_r1", ...), ("text_to_image_r1", ...), and so on for each k."""
        encode = self.encode
        images = gather(lambda batch: encode.image(params, batch["image"]), self.batches)
        if len(images) != len(self.counts):
            raise ValueError(f"{len(images)} images, but captions of {len(self.counts)}")
        texts = gather(lambda batch: encode.text(params, batch["text"]), text_batches(self.tokens, self.batch_size))
        image_ranks, text_ranks = retrieval_ranks(images, texts, self.owners, self.text_ids)
        texts_right, images_right = num_right(self.owners, self.text_ids, len(images))
        for k in self.top:
            yield f"image_to_text_r{k}", mean_metric(image_ranks < k, recall_chance(texts_right, len(texts), k))
        for k in self.top:
            hits = np.bincount(self.owners, weights=text_ranks < k, minlength=len(images))
            chance = recall_chance(images_right, len(images), k)
            yield f"text_to_image_r{k}", mean_metric(hits, chance, self.counts)
