"""Evaluators, the metrics they count, and the final report.

    results = evaluate.run_all(experiment.encode, evaluate.all_weights(state), config, step)
    print(evaluate.report.write(workdir, results, config, step))       # results.json, report.md
    evaluate.figures.write(workdir, experiment, state)                 # figures/*.png; needs the extra `demo`

A new evaluator is one class (see `Evaluator`), given to `run` beside the others.
"""

from detailclip_jax.evaluate import figures, report
from detailclip_jax.evaluate.evaluators import (
    EVALUATORS,
    Evaluator,
    EvaluatorError,
    all_weights,
    build_all,
    plan,
    run,
    run_all,
)
from detailclip_jax.evaluate.metrics import Metric

__all__ = [
    "EVALUATORS",
    "Evaluator",
    "EvaluatorError",
    "Metric",
    "all_weights",
    "build_all",
    "figures",
    "plan",
    "report",
    "run",
    "run_all",
]
