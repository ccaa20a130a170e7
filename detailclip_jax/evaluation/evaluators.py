"""Evaluators by name, and the loop that runs them on every set of weights.

A custom evaluator is one small class:

    class MeanAttention:
        needs = ("image",)                      # networks that the evaluator requires in the parameters

        def __init__(self, encode, *, batches):
            self.encode, self.batches = encode, batches

        def run(self, params):
            look = lambda batch: self.encode.attention(params, batch["image"])
            yield "attention", float(batching.gather(look, self.batches, batching.mesh_of(params)).mean())

    mine = MeanAttention(experiment.encode, batches=batches)
    evaluation.run({"mine": mine}, evaluation.all_weights(state), step=600)
    # {"mine/student/attention": 0.015, "mine/ema/attention": 0.015}
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from absl import logging
from ml_collections import ConfigDict

from detailclip_jax.data.preprocessing import transform_of
from detailclip_jax.data.stickers.sprites import sprites
from detailclip_jax.data.vocabularies import tokenizer_of
from detailclip_jax.evaluation import evaluation_sets, held_out_scores, sticker_scores, tasks
from detailclip_jax.evaluation.bench import Bench
from detailclip_jax.evaluation.evaluation_sets import Sets
from detailclip_jax.evaluation.kept_objects import KeptObjects
from detailclip_jax.evaluation.patch_probe import LinearSegmentation
from detailclip_jax.evaluation.protocols import PROTOCOLS
from detailclip_jax.evaluation.retrieval import Retrieval
from detailclip_jax.evaluation.subject import weights_of
from detailclip_jax.evaluation.tasks import KINDS, Prepared, Setting
from detailclip_jax.evaluation.zero_shot import ZeroShot
from detailclip_jax.runtime.errors import EvaluatorError, unknown
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.types import Params


@runtime_checkable
class Evaluator(Protocol):
    """Measures one property: created once as `Evaluator(encode, **options)`, then run on any parameters.

    `needs` names the networks that `params` must contain.
    """

    needs: tuple[str, ...]

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields (metric, value). A value may be a `metrics.Metric`, which also holds chance level and interval."""
        ...


class OnSet:
    """Runs a task of `python -m detailclip_jax.evaluate` on a limited number of examples of a named set."""

    def __init__(self, encode: Any, *, prepared: Prepared, tokenize: Any, batch_size: int):
        self.encode, self.prepared, self.needs = encode, prepared, prepared.needs
        self.tokenize, self.batch_size = tokenize, batch_size

    def run(self, params: Params) -> Iterator[tuple[str, float]]:
        """Yields the metrics of the task.

        Each call computes the embeddings again, with the functions compiled in the first call.
        """
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
OPTIONS: dict[str, Callable[..., dict[str, Any]]] = {**sticker_scores.OPTIONS, "held_out": held_out_scores.retrieval}


def on_set(
    config: ConfigDict,
    task: str,
    data_dir: str = "data",
    num_examples: int | None = 1000,
    num_train_examples: int | None = 1000,
    protocol: str = PROTOCOLS[0],
    style: str = evaluation_sets.DEFAULT_STYLE,
    follow_links: bool = False,
    batch_size: int = sticker_scores.BATCH_SIZE,
) -> dict[str, Any]:
    """Options of `OnSet` for a task such as "zero_shot:pets", with at most `num_examples` of the evaluated split.

    k-NN and linear probes are fitted on at most `num_train_examples` of the training split. None means all examples.
    Both have a default limit because a run may evaluate often; the results table states both numbers.

    Raises MissingData and ValueError as `tasks.KINDS` do.
    """
    kind, _, dataset = task.partition(":")
    places = Sets(data_dir, config.model.image_size, style, num_examples, num_train_examples, follow_links)
    setting = Setting(places, transform_of(config), protocol, config)
    tokenize = tokenizer_of(config)
    return {"prepared": KINDS[kind](setting, dataset), "tokenize": tokenize, "batch_size": batch_size}


def plan(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The evaluators of a run, by name, with their options, from `config.evaluators`:

        config.evaluators = {"zero_shot": {"num_scenes": 500}, "knn:pets": {"data_dir": "/data", "num_examples": 1000}}

    "held_out" evaluates on pairs of the run's own data that are excluded from training (`data.held_out`). "task:set"
    evaluates on any set of `python -m detailclip_jax.evaluate`. The other names evaluate on sticker scenes. If the
    field is empty, a run on stickers uses all evaluators on scenes (but see `absent`), and a run on other data uses
    "held_out" if it has held-out examples. Raises ValueError for an unknown evaluator, set or option; the message lists
    the known ones.
    """
    named = config.evaluators.to_dict() or usual(config)
    for name, options in named.items():
        _check_name(name, options)
    return {name: named[name] for name in (*BY_NAME, *named) if name in named}


def usual(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The default evaluators, for a config that names none."""
    if config.data.source == "stickers":
        return {name: {} for name in EVALUATORS}
    return {"held_out": {}} if held_out_scores.find(config) else {}


def _takes_all(config: ConfigDict) -> bool:
    """Whether a run on stickers names no evaluator and therefore uses all of them."""
    return not config.evaluators and config.data.source == "stickers"


def absent(config: ConfigDict) -> dict[str, str]:
    """Default evaluators whose artwork is not installed on this machine, with the reason.

    The artwork of `other_drawings` is a system font, which no run should require. This covers default evaluators only:
    for an evaluator named in the config, `check` and `build_all` raise MissingData.
    """
    if not _takes_all(config):
        return {}
    try:
        sprites(evaluation_sets.DEFAULT_STYLE)
        return {}
    except (FileNotFoundError, ValueError) as error:
        return {"other_drawings": str(error)}


def _check_name(name: str, options: Mapping[str, Any]) -> None:
    if not isinstance(options, Mapping):
        raise ValueError(f"evaluators.{name} is {options!r}: options are a dictionary, {{}} for none")
    if ":" in name:
        tasks.parse(name, Sets(options.get("data_dir", "data")))
    elif name not in BY_NAME:
        raise ValueError(unknown("evaluator", name, BY_NAME) + ", or TASK:SET, for example zero_shot:pets")
    for option in options:
        known = [each for each in inspect.signature(_maker(name)).parameters if each not in ("config", "task")]
        if option not in known:
            raise ValueError(unknown(f"option of evaluator {name}:", option, known))


def _maker(name: str) -> Callable[..., dict[str, Any]]:
    """The function that builds an evaluator's options."""
    return on_set if ":" in name else OPTIONS[name]


def check(config: ConfigDict) -> None:
    """Opens the data of a run's evaluators, so that missing data are reported before training and not after it.

    Opens nothing for a run that never evaluates. Raises MissingData, and ValueError for a set that the task cannot use.
    """
    runs = config.evaluate_at_end or config.evaluate_every
    for name, options in _present(config).items() if runs else ():
        if ":" in name:
            on_set(config, name, **options)
        elif name == "held_out":
            held_out_scores.retrieval(config, **options)
        else:
            style = options.get("style", evaluation_sets.DEFAULT_STYLE) if name == "other_drawings" else None
            evaluation_sets.drawn(lambda style=style: sticker_scores.scenes(config, "train", 1, style=style))


def build_all(encode: Any, config: ConfigDict) -> dict[str, Evaluator]:
    """The evaluators of `plan(config)`, ready to run any number of times.

    Raises the same errors as `check`.
    """
    return {name: _build(encode, config, name, options) for name, options in _present(config).items()}


def _present(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The plan without absent evaluators; each of these is logged (the report names them too)."""
    missing = absent(config)
    for name, reason in missing.items():
        logging.info("evaluator %s: skipped: %s", name, reason)
    return {name: options for name, options in plan(config).items() if name not in missing}


def _build(encode: Any, config: ConfigDict, name: str, options: Mapping[str, Any]) -> Evaluator:
    if ":" in name:
        return OnSet(encode, **on_set(config, name, **options))
    return BY_NAME[name](encode, **evaluation_sets.drawn(lambda: OPTIONS[name](config, **options)))


def run(
    evaluators: Mapping[str, Evaluator],
    params_by_name: Mapping[str, Params],
    step: int,
    progress: Callable[[str], None] = logging.debug,
) -> dict[str, float]:
    """Runs every evaluator on every set of weights: "name/weights/metric" -> value.

        run({"zero_shot": ZeroShot(encode, ...)}, {"student": params}, step=600)["zero_shot/student/top1"]

    `progress` receives a line before each of them: "evaluating zero_shot, ema weights (2 of 12)".
    Skips and logs an evaluator if the parameters lack a network that it needs. Any exception of an evaluator is raised
    again as EvaluatorError.
    """
    results: dict[str, float] = {}
    pairs = [(name, which) for name in evaluators for which in params_by_name]
    for number, (name, which) in enumerate(pairs, 1):
        evaluator, params = evaluators[name], params_by_name[which]
        if missing := [network for network in evaluator.needs if network not in params]:
            logging.info("evaluator %s: skipped, the %s weights have no %s", name, which, ", ".join(missing))
            continue
        progress(f"evaluating {name}, {which} weights ({number} of {len(pairs)})")
        results |= _run_one(name, evaluator, which, params, step)
    return results


def all_weights(state: TrainState) -> dict[str, Params]:
    """Every set of weights of a training state: "student" and, if the teacher has encoders of its own, "ema"."""
    return weights_of(state.params, state.ema_params)


def _run_one(name: str, evaluator: Evaluator, which: str, params: Params, step: int) -> dict[str, float]:
    try:
        return {f"{name}/{which}/{metric}": value for metric, value in evaluator.run(params)}
    except Exception as error:
        message = f"evaluator {name!r} failed on the {which} weights of step {step}: {error}"
        raise EvaluatorError(message) from error


def run_all(
    encode: Any,
    params_by_name: Mapping[str, Params],
    config: ConfigDict,
    step: int,
    progress: Callable[[str], None] = logging.debug,
) -> dict[str, float]:
    """`build_all` and `run` in one: every evaluator of the config on every set of weights.

        run_all(experiment.encode, all_weights(state), config, step=600)["zero_shot/ema/top1"]

    Values are fractions (1 = 100 %). Raises EvaluatorError, also if the data of an evaluator are missing.
    """
    try:
        evaluators = build_all(encode, config)
    except (FileNotFoundError, ValueError) as error:
        raise EvaluatorError(f"the evaluators of step {step} cannot be created: {error}") from error
    return run(evaluators, params_by_name, step, progress)
