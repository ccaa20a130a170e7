"""Evaluators by name, and running them over every set of weights."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from absl import logging
from ml_collections import ConfigDict

from detailclip_jax.evaluate import stickers
from detailclip_jax.evaluate.kept_objects import KeptObjects
from detailclip_jax.evaluate.retrieval import Retrieval
from detailclip_jax.evaluate.segmentation import LinearSegmentation
from detailclip_jax.evaluate.zero_shot import ZeroShot
from detailclip_jax.run_config import unknown
from detailclip_jax.train_state import TrainState, weights
from detailclip_jax.types import Params


@runtime_checkable
class Evaluator(Protocol):
    """Measures one thing: made once as `Evaluator(encode, **options)`, run on any parameters.

    `needs` names the parts of `params` without which there is nothing to measure.
    """

    needs: tuple[str, ...]

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields (metric, value); a value may be a `metrics.Metric`, which brings chance and interval."""
        ...


class EvaluatorError(RuntimeError):
    """An evaluator failed; the message names it, the weights and the step."""


EVALUATORS: dict[str, Any] = {
    "zero_shot": ZeroShot,
    "retrieval": Retrieval,
    "kept_objects": KeptObjects,
    "segmentation": LinearSegmentation,
}


def plan(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The evaluators of a run, by name, with their options: `config.evaluators`, which reads

        config.evaluators = {"zero_shot": {"num_scenes": 500}, "kept_objects": {}}

    Where it is empty, a run on stickers has them all and a run on other data none.  Raises ValueError that
    lists the known ones for an unknown evaluator or option.
    """
    named = config.evaluators.to_dict()
    if not named and config.data.source == "stickers":
        named = {name: {} for name in EVALUATORS}
    for name, options in named.items():
        if name not in EVALUATORS:
            raise ValueError(unknown("evaluator", name, EVALUATORS))
        known = [option for option in inspect.signature(stickers.OPTIONS[name]).parameters if option != "config"]
        for option in options:
            if option not in known:
                raise ValueError(unknown(f"option of evaluator {name}:", option, known))
    return {name: named[name] for name in EVALUATORS if name in named}


def build_all(encode: Any, config: ConfigDict) -> dict[str, Evaluator]:
    """The evaluators of `plan(config)`, ready to run on sticker scenes; they can be run any number of
    times.
    """
    options = {name: stickers.OPTIONS[name](config, **given) for name, given in plan(config).items()}
    return {name: EVALUATORS[name](encode, **given) for name, given in options.items()}


def run(evaluators: Mapping[str, Evaluator], params_by_name: Mapping[str, Params], step: int) -> dict[str, float]:
    """Every evaluator on every set of weights: "name/weights/metric" -> value.

        run({"zero_shot": ZeroShot(encode, ...)}, {"student": params}, step=600)["zero_shot/student/top1"]

    One whose parts the parameters lack is left out, with a line in the log.  Raises EvaluatorError from
    whatever an evaluator raises.
    """
    results: dict[str, float] = {}
    for name, evaluator in evaluators.items():
        for which, params in params_by_name.items():
            if missing := [part for part in evaluator.needs if part not in params]:
                logging.info("evaluator %s: left out, the %s weights have no %s", name, which, ", ".join(missing))
                continue
            results |= _run_one(name, evaluator, which, params, step)
    return results


def all_weights(state: TrainState) -> dict[str, Params]:
    """Every set of weights that a method has: "student" and, with a teacher, "ema"."""
    return {which: weights(state, which) for which in ("student", *(["ema"] if state.ema_params else []))}


def _run_one(name: str, evaluator: Evaluator, which: str, params: Params, step: int) -> dict[str, float]:
    try:
        return {f"{name}/{which}/{metric}": value for metric, value in evaluator.run(params)}
    except Exception as error:
        message = f"evaluator {name!r} failed on the {which} weights of step {step}: {error}"
        raise EvaluatorError(message) from error


def run_all(encode: Any, params_by_name: Mapping[str, Params], config: ConfigDict, step: int) -> dict[str, float]:
    """`build_all` and `run` in one: every evaluator of the config on every set of weights.

        run_all(experiment.encode, all_weights(state), config, step=600)["zero_shot/ema/top1"]

    Values are shares of 1.
    """
    return run(build_all(encode, config), params_by_name, step)
