"""Turns images and captions into batches; uses numpy and grain, not jax."""
