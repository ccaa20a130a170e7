"""What a training step costs: counted and compiled by XLA (`counting`), and timed (`timing`).

    python -m detailclip_jax.benchmark --help

`step`, `loss`, `collectives` and `data` are some of its commands.
"""
