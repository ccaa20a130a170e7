"""Scores of methods that pool an image by each text (FLAIR), whose similarity is not a product of two embeddings."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from detailclip_jax.evaluation.metrics import class_embeddings
from detailclip_jax.inference.batching import Batches, gather, mesh_of
from detailclip_jax.training import mesh as meshes
from detailclip_jax.types import Params


def pools_images(encode: Any) -> bool:
    """Whether the method has a score of its own (`Method.score`): it pools an image by each text."""
    return getattr(encode, "pooled", None) is not None


def pooled_scores(
    encode: Any, params: Params, batches: Batches, texts: Float[np.ndarray, "M E"]
) -> Float[np.ndarray, "I M"]:
    """The cosine of each text with each image pooled by it; `texts` are embeddings before their normalisation."""
    placed = on_devices(params, texts)
    return gather(lambda batch: encode.pooled(params, batch["image"], placed), batches, mesh_of(params))


def on_devices(params: Params, texts: Float[np.ndarray, "M E"]) -> Any:
    """Copies embeddings to the devices of the parameters, once for all batches."""
    mesh = mesh_of(params)
    return jax.device_put(texts, None if mesh is None else meshes.replicated(mesh))


def class_texts(
    prompts: Float[np.ndarray, "M E"], classes: Int[np.ndarray, "M"], num_classes: int
) -> Float[np.ndarray, "C E"]:
    """The text of each class, from the embeddings of its prompts before their normalisation.

    Its direction is that of `metrics.class_embeddings`, its length the mean length of the prompts.
    """
    lengths = np.bincount(classes, np.linalg.norm(prompts, axis=-1), num_classes)
    means = (lengths / np.bincount(classes, minlength=num_classes))[:, None].astype(np.float32)
    return class_embeddings(prompts, classes, num_classes) * means
