"""Centers of the prototype logits (DINO, iBOT): training state, moved once a step after the loss."""

from detailclip_jax.types import Array, Float


def update(center: Float[Array, "C"], batch_mean: Float[Array, "C"], momentum: float = 0.9) -> Float[Array, "C"]:
    """c <- momentum * c + (1 - momentum) * mean of this batch's raw teacher logits.

    The mean runs over both views and the global batch; for patches over ALL of them, removed or not.
    The published code forgets its centers on resume; ours live in the train state.
    """
    return momentum * center + (1 - momentum) * batch_mean
