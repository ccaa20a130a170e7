"""Zero-shot classification: the prediction is the class with the nearest prompts (SLIP's protocol)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from detailclip_jax.evaluation.classification import TOP, accuracies, zero_shot_metrics
from detailclip_jax.evaluation.metrics import Metric, class_embeddings
from detailclip_jax.evaluation.pooling import class_texts, pooled_scores, pools_images
from detailclip_jax.inference.batching import Batches, embed_texts, gather, mesh_of
from detailclip_jax.types import Params


class ZeroShot:
    """Top-k accuracy over classes given by `prompts`, which hold all templates of all synonyms of each class.

    The class embedding is the mean of the normalised embeddings of its prompts, normalised again; the prediction is the
    class with the highest cosine. `batches` yields "image" and "label", an index into `prompts`, and can be iterated
    repeatedly. `tokenize` converts a list of texts to int32 [M, T]. Chance is k / classes. A `metric` other than
    "accuracy" (see `classification.METRICS`) is yielded before top-k. `subsets` maps names to slices of the examples;
    the top-1 of each is yielded under its name. A method that pools an image by each text (FLAIR) also yields
    "pooled_top1" and so on, by the cosine of each class with the image pooled by it.

        for name, value in ZeroShot(encode, batches=..., prompts=[["a frog"], ["a bus"]],
        tokenize=...).run(params):
            print(name, value)  # top1 0.93
    """

    needs = ("image", "image_projection", "text", "text_projection")

    def __init__(
        self,
        encode: Any,
        *,
        batches: Batches,
        prompts: Sequence[Sequence[str]],
        tokenize: Callable[[Sequence[str]], np.ndarray],
        metric: str = "accuracy",
        top: Sequence[int] = TOP,
        subsets: Mapping[str, slice] | None = None,
        batch_size: int = 256,
    ):
        self.encode, self.batches, self.batch_size = encode, batches, batch_size
        self.metric, self.top, self.subsets = metric, top, subsets or {}
        self.tokens, self.classes = tokenize([prompt for texts in prompts for prompt in texts]), owners(prompts)
        self.num_classes = len(prompts)

    def run(self, params: Params) -> Iterator[tuple[str, Metric]]:
        """Yields ("top1", ...), ("top5", ...), each a fraction with chance level and interval."""
        encode, mesh = self.encode, mesh_of(params)
        prompts = embed_texts(encode, params, self.tokens, self.batch_size)
        classes = class_embeddings(prompts, self.classes, self.num_classes)
        images, labels = gather(lambda b: (encode.image(params, b["image"]), b["label"]), self.batches, mesh)

        def pooled() -> Float[np.ndarray, "n C"]:
            raw = embed_texts(encode, params, self.tokens, self.batch_size, encoder="raw_text")
            return pooled_scores(encode, params, self.batches, class_texts(raw, self.classes, self.num_classes))

        own_scores = pooled if pools_images(encode) else None
        yield from accuracies(images, classes, labels, self.metric, self.top, own_scores)
        for name, rows in self.subsets.items():
            if len(labels[rows]):
                yield name, dict(zero_shot_metrics(images[rows], classes, labels[rows], top=(1,)))["top1"]


def owners(prompts: Sequence[Sequence[str]]) -> Int[np.ndarray, "M"]:
    """The class index of each prompt, after all prompts are concatenated into one list."""
    return np.repeat(np.arange(len(prompts)), [len(texts) for texts in prompts])
