"""Measures the cost of a training step (counted, compiled and timed) and compares it with the theoretical cost.

    python -m detailclip_jax.benchmark --help

`theory` computes operation counts from the config, `counting` gets them from the compiler, and `timing` measures time.
`step`, `loss`, `collectives` and `data` are the commands.
"""
