"""The former name of `training.train`; it goes with version 0.3."""

import warnings

from detailclip_jax.training.train import prepare_and_train, train

__all__ = ["prepare_and_train", "train"]
warnings.warn("detailclip_jax.training.loop is now detailclip_jax.training.train", DeprecationWarning, stacklevel=2)
