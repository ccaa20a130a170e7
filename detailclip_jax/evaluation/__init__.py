"""Evaluators, the metrics that they compute, and the final report.

    results = evaluation.run_all(experiment.encode, evaluation.all_weights(state), config, step)
    print(run_report.write(workdir, results, config, step))       # results.json, report.md
    run_figures.write(workdir, experiment, state)                 # figures/*.png; needs the extra `demo`

A new evaluator is one class (see `evaluator`); pass it to `run` together with the others. For several evaluations,
build the evaluators once:

    evaluators = {**evaluation.of_run(experiment.encode, config), "mine": mine}
    results = evaluation.run(evaluators, evaluation.all_weights(state), step)

The tasks of the command `python -m detailclip_jax.evaluate` also evaluate models from other libraries:

    sets = evaluation.Sets("/data", image_size=224)
    subject = evaluation.of_model(model, image_size=224, filter="bicubic")      # or from_checkpoint("runs/stickers")
    outcome = evaluation.run_tasks(subject, evaluation.parse("zero_shot:pets;retrieval:coco", sets), sets)
    outcome.records[0]["value"], outcome.missing, outcome.failed

`model` is any object with `encode_image(uint8 [B, S, S, 3])` and `encode_text(int32 [B, 77])`. For a model of
open_clip, write this wrapper:

    class OpenClip:
        def __init__(self, network, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD):
            self.network, self.mean, self.std = network.eval(), torch.tensor(mean), torch.tensor(std)

        @torch.no_grad()
        def encode_image(self, images):
            pixels = (torch.from_numpy(images) / 255 - self.mean) / self.std
            return self.network.encode_image(pixels.permute(0, 3, 1, 2)).numpy()

        @torch.no_grad()
        def encode_text(self, tokens):
            return self.network.encode_text(torch.from_numpy(tokens).long()).numpy()
"""

from detailclip_jax.evaluation.evaluation_sets import Sets
from detailclip_jax.evaluation.evaluator import Evaluator
from detailclip_jax.evaluation.metrics import Metric
from detailclip_jax.evaluation.results import Outcome
from detailclip_jax.evaluation.run_evaluators import (
    build_all,
    check,
    of_run,
    run,
    run_all,
    run_tasks,
)
from detailclip_jax.evaluation.subject import Subject, all_weights, from_checkpoint, of_model
from detailclip_jax.evaluation.tasks import EVALUATORS, parse, plan
from detailclip_jax.runtime.errors import EvaluatorError

__all__ = [
    "EVALUATORS",
    "Evaluator",
    "EvaluatorError",
    "Metric",
    "Outcome",
    "Sets",
    "Subject",
    "all_weights",
    "build_all",
    "check",
    "from_checkpoint",
    "of_model",
    "of_run",
    "parse",
    "plan",
    "run",
    "run_all",
    "run_tasks",
]
