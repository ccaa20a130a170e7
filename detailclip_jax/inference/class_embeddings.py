"""The embedding of a class from those of its prompts: every name of the class in every template."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from detailclip_jax.runtime.errors import Unmeasurable


def normalise(vectors: Float[np.ndarray, "*batch E"], eps: float = 1e-12) -> Float[np.ndarray, "*batch E"]:
    """Divides by the L2 norm over the last axis; a zero vector stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), eps)


def class_embeddings(
    prompts: Float[np.ndarray, "M E"], classes: Int[np.ndarray, "M"], num_classes: int
) -> Float[np.ndarray, "C E"]:
    """Mean of the normalised embeddings of a class's prompts, normalised again (SLIP's zero-shot protocol).

    `classes[m]` is the class of prompt m. Every combination of template and synonym counts once; their order does not
    matter. Raises Unmeasurable for a class without a prompt.
    """
    counts = np.bincount(classes, minlength=num_classes)
    if not counts.all():
        raise Unmeasurable(f"no prompt for the classes {np.flatnonzero(counts == 0).tolist()} of {num_classes}")
    sums = np.zeros((num_classes, prompts.shape[-1]), np.float32)
    np.add.at(sums, classes, normalise(prompts))
    return normalise(sums / counts[:, None])


def class_texts(
    prompts: Float[np.ndarray, "M E"], classes: Int[np.ndarray, "M"], num_classes: int
) -> Float[np.ndarray, "C E"]:
    """The text of each class, from the embeddings of its prompts before their normalisation.

    Its direction is that of `class_embeddings`, its length the mean length of the prompts.
    """
    lengths = np.bincount(classes, np.linalg.norm(prompts, axis=-1), num_classes)
    means = (lengths / np.bincount(classes, minlength=num_classes))[:, None].astype(np.float32)
    return class_embeddings(prompts, classes, num_classes) * means


def owners(prompts: Sequence[Sequence[str]]) -> Int[np.ndarray, "M"]:
    """The class index of each prompt, after all prompts are concatenated into one list."""
    return np.repeat(np.arange(len(prompts)), [len(texts) for texts in prompts])
