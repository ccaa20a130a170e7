"""A training run: the checks before it, the loop, and the logging, saving and evaluation in the loop."""
