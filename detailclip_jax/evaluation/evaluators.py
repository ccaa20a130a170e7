"""Evaluators by name, and running them over every set of weights.

Somebody's own is one small class:

    class MeanAttention:
        needs = ("image",)                      # parts of the parameters without which there is nothing to measure

        def __init__(self, encode, *, batches):
            self.encode, self.batches = encode, batches

        def run(self, params):
            look = lambda batch: self.encode.attention(params, batch["image"])
            yield "attention", float(embedding.gather(look, self.batches, embedding.mesh_of(params)).mean())

    evaluate.run({"mine": MeanAttention(experiment.encode, batches=batches)}, evaluate.all_weights(state), step=600)
    # {"mine/student/attention": 0.015, "mine/ema/attention": 0.015}
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from absl import logging
from ml_collections import ConfigDict

from detailclip_jax.config import unknown
from detailclip_jax.data.preprocessing import transform_of
from detailclip_jax.data.stickers.sprites import sprites
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.evaluation import held_out, sets, stickers, tasks
from detailclip_jax.evaluation.bench import Bench
from detailclip_jax.evaluation.kept_objects import KeptObjects
from detailclip_jax.evaluation.protocols import PROTOCOLS
from detailclip_jax.evaluation.retrieval import Retrieval
from detailclip_jax.evaluation.segmentation import LinearSegmentation
from detailclip_jax.evaluation.sets import Sets
from detailclip_jax.evaluation.tasks import KINDS, Prepared, Setting
from detailclip_jax.evaluation.zero_shot import ZeroShot
from detailclip_jax.training.train_state import TrainState, weights
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


class OnSet:
    """An evaluator of a task of `python -m detailclip_jax.evaluate` on a set by name, on a part of it."""

    def __init__(self, encode: Any, *, prepared: Prepared, tokenize: Any, batch_size: int):
        self.encode, self.prepared, self.needs = encode, prepared, prepared.needs
        self.tokenize, self.batch_size = tokenize, batch_size

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """What the task yields, embedded anew at every call by the functions that were compiled at the first."""
        return self.prepared.measure(Bench(self.encode, params, self.tokenize, batch_size=self.batch_size))


EVALUATORS: dict[str, Any] = {
    "zero_shot": ZeroShot,
    "on_white": ZeroShot,
    "other_drawings": ZeroShot,
    "retrieval": Retrieval,
    "kept_objects": KeptObjects,
    "segmentation": LinearSegmentation,
}
BY_NAME: dict[str, Any] = {**EVALUATORS, "held_out": OnSet}
OPTIONS: dict[str, Callable[..., dict[str, Any]]] = {**stickers.OPTIONS, "held_out": held_out.retrieval}


def on_set(
    config: ConfigDict,
    task: str,
    data_dir: str = "data",
    num_examples: int | None = 1000,
    num_train_examples: int | None = 1000,
    protocol: str = PROTOCOLS[0],
    style: str = sets.DEFAULT_STYLE,
    follow_links: bool = False,
    batch_size: int = stickers.BATCH_SIZE,
) -> dict[str, Any]:
    """The options of `OnSet` for "zero_shot:pets" and the like, at most `num_examples` of the evaluated split.

    k-NN and linear probes learn from at most `num_train_examples` of the training split; None stands for all.  Both are
    limited by default since a run may evaluate often; the table names both numbers.

    Raises MissingData and ValueError as `tasks.KINDS` do.
    """
    kind, _, dataset = task.partition(":")
    places = Sets(data_dir, config.model.image_size, style, num_examples, num_train_examples, follow_links)
    setting = Setting(places, transform_of(config), protocol, config)
    tokenize = Tokenizer(config.model.context_length)
    return {"prepared": KINDS[kind](setting, dataset), "tokenize": tokenize, "batch_size": batch_size}


def plan(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The evaluators of a run, by name, with their options: `config.evaluators`, which reads

        config.evaluators = {"zero_shot": {"num_scenes": 500}, "knn:pets": {"data_dir": "/data", "num_examples": 1000}}

    "held_out" looks at the run's own pairs that training never sees (`data.held_out`), another name alone at sticker
    scenes, "task:set" at any set of `python -m detailclip_jax.evaluate`.  Where it is empty, a run on stickers has all
    that look at scenes (but see `absent`), and a run on other data "held_out" if some of them are held out.  Raises
    ValueError that lists the known ones for an unknown evaluator, set or option.
    """
    named = config.evaluators.to_dict() or usual(config)
    for name, options in named.items():
        _check_name(name, options)
    return {name: named[name] for name in (*BY_NAME, *named) if name in named}


def usual(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The evaluators of a run whose config names none."""
    if config.data.source == "stickers":
        return {name: {} for name in EVALUATORS}
    return {"held_out": {}} if held_out.find(config) else {}


def _takes_all(config: ConfigDict) -> bool:
    """Whether a run on stickers names no evaluator, and so has all of them."""
    return not config.evaluators and config.data.source == "stickers"


def absent(config: ConfigDict) -> dict[str, str]:
    """The evaluators that a run has without naming them and whose drawings this machine lacks, with the reason.

    Another artist's drawings are a font of the system, which no run waits for.  One that the config names is no such
    case: `check` and `build_all` raise MissingData.
    """
    if not _takes_all(config):
        return {}
    try:
        sprites(sets.DEFAULT_STYLE)
        return {}
    except (FileNotFoundError, ValueError) as error:
        return {"other_drawings": str(error)}


def _check_name(name: str, options: Mapping[str, Any]) -> None:
    if ":" in name:
        tasks.parse(name, Sets(options.get("data_dir", "data")))
    elif name not in BY_NAME:
        raise ValueError(unknown("evaluator", name, BY_NAME) + ", and TASK:SET, for example zero_shot:pets")
    for option in options:
        known = [each for each in inspect.signature(_maker(name)).parameters if each not in ("config", "task")]
        if option not in known:
            raise ValueError(unknown(f"option of evaluator {name}:", option, known))


def _maker(name: str) -> Callable[..., dict[str, Any]]:
    """The function that makes an evaluator's options."""
    return on_set if ":" in name else OPTIONS[name]


def check(config: ConfigDict) -> None:
    """Opens what the evaluators of a run look at, so that what is missing is said before the run and not after it.

    A run that never evaluates needs nothing.  Raises MissingData, and ValueError for a set that the task cannot use.
    """
    runs = config.evaluate_at_end or config.evaluate_every
    for name, options in _present(config).items() if runs else ():
        if ":" in name:
            on_set(config, name, **options)
        elif name == "held_out":
            held_out.retrieval(config, **options)
        else:
            style = options.get("style", sets.DEFAULT_STYLE) if name == "other_drawings" else None
            sets.drawn(lambda style=style: stickers.scenes(config, "train", 1, style=style))


def build_all(encode: Any, config: ConfigDict) -> dict[str, Evaluator]:
    """The evaluators of `plan(config)`, ready to run; they can be run any number of times.

    Raises what `check` does.
    """
    return {name: _build(encode, config, name, options) for name, options in _present(config).items()}


def _present(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The plan without what is absent, which is said in the log (the report says it too)."""
    missing = absent(config)
    for name, reason in missing.items():
        logging.info("evaluator %s: left out: %s", name, reason)
    return {name: options for name, options in plan(config).items() if name not in missing}


def _build(encode: Any, config: ConfigDict, name: str, options: Mapping[str, Any]) -> Evaluator:
    if ":" in name:
        return OnSet(encode, **on_set(config, name, **options))
    return BY_NAME[name](encode, **sets.drawn(lambda: OPTIONS[name](config, **options)))


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

    Values are shares of 1.  Raises EvaluatorError, also where the data of an evaluator are not there.
    """
    try:
        evaluators = build_all(encode, config)
    except (FileNotFoundError, ValueError) as error:
        raise EvaluatorError(f"the evaluators of step {step} cannot be made: {error}") from error
    return run(evaluators, params_by_name, step)
