"""The networks: pure Flax modules that know nothing of losses, data or methods."""
