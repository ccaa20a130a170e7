"""A trained model: load it, encode images and texts, look at its attention, keep and search embeddings."""

from detailclip_jax.inference.model import Model, load

__all__ = ["Model", "load"]
