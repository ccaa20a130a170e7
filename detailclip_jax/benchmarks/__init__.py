"""What a training step costs: counted and compiled by XLA (`counting`), and timed (`timing`); also its data and start.

python -m detailclip_jax.benchmark --help
"""
