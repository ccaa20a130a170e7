"""What a step costs: counted, compiled and timed, beside what arithmetic says it must cost.

    python -m detailclip_jax.benchmark --help

`theory` counts on paper, `counting` asks the compiler, `timing` the clock; `step`, `loss`, `collectives` and `data` are
the commands.
"""
