"""Zero-shot classification: the class whose prompts lie nearest to the image (SLIP's protocol)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from detailclip_jax.evaluate.embedding import Batches, gather, text_batches
from detailclip_jax.evaluate.metrics import Metric, class_embeddings, mean_metric, top_k_hits
from detailclip_jax.types import Params


class ZeroShot:
    """Top-k accuracy over the classes whose `prompts` are given: all templates of all synonyms of each class.

    Class embedding = mean of the normalised embeddings of its prompts, normalised again; prediction =
    highest cosine. `batches` yields "image" and "label", an index into `prompts`, afresh at every pass;
    `tokenize` turns a list of texts into int32 [M, T].  Chance is k / classes.

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
        top: Sequence[int] = (1, 5),
        batch_size: int = 256,
    ):
        self.encode, self.batches, self.top, self.batch_size = encode, batches, top, batch_size
        self.tokens = tokenize([prompt for texts in prompts for prompt in texts])
        self.classes = np.repeat(np.arange(len(prompts)), [len(texts) for texts in prompts])
        self.num_classes = len(prompts)

    def run(self, params: Params) -> Iterator[tuple[str, Metric]]:
        """Yields ("top1", ...), ("top5", ...), each a share with chance and interval."""
        encode = self.encode
        texts = text_batches(self.tokens, self.batch_size)
        prompts = gather(lambda batch: encode.text(params, batch["text"]), texts)
        classes = class_embeddings(prompts, self.classes, self.num_classes)
        images, labels = gather(lambda batch: (encode.image(params, batch["image"]), batch["label"]), self.batches)
        scores = images @ classes.T
        for k in self.top:
            yield f"top{k}", mean_metric(top_k_hits(scores, labels, k), chance=min(k / self.num_classes, 1.0))
