"""From pictures and captions to batches: numpy and grain, no jax."""
