"""The networks: pure Flax modules, independent of losses, data and methods."""
