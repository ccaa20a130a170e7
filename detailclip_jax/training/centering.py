"""Centers of the prototype logits (DINO, iBOT): part of the training state, updated once per step after the loss."""

from detailclip_jax.types import Array, Float


def update(center: Float[Array, "C"], batch_mean: Float[Array, "C"], momentum: float = 0.9) -> Float[Array, "C"]:
    """Updates a center by a moving average of the teacher's raw logits.

        c <- momentum * c + (1 - momentum) * batch_mean

    `batch_mean` is the mean over both views and the global batch; for patches it includes ALL patches, removed or not.
    The published code loses its centers when a run is resumed; here they are part of the train state.
    """
    return momentum * center + (1 - momentum) * batch_mean
