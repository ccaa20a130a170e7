"""Training: state, step, optimiser, schedules, sharding, and the experiment that a config describes."""
