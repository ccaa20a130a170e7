"""Training: state, step, optimiser, schedules, sharding, checkpoints, and the experiment built from a config."""
