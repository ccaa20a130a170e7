"""Inference with a trained model: encode images and texts, compute attention maps, store and search embeddings."""

from detailclip_jax.inference.model import Model, load

__all__ = ["Model", "load"]
