"""The evaluators of a run by name, and the loop that runs evaluators on every set of weights."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.data.preprocessing import transform_of
from detailclip_jax.data.stickers.sprites import sprites
from detailclip_jax.data.vocabularies import tokenizer_of
from detailclip_jax.evaluation import evaluation_sets, held_out_pairs, tasks
from detailclip_jax.evaluation.embedder import Embedder
from detailclip_jax.evaluation.evaluation_sets import DEFAULT_STYLE, Sets
from detailclip_jax.evaluation.evaluator import Evaluator, SetEvaluator, Setting
from detailclip_jax.evaluation.protocols import PROTOCOLS
from detailclip_jax.evaluation.subject import weights_of
from detailclip_jax.evaluation.tasks import KINDS
from detailclip_jax.runtime.errors import EvaluatorError, unknown
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.types import Params

BATCH_SIZE = 250
USUAL = {  # the options of an evaluator on a named set, and their defaults: a run may evaluate often
    "data_dir": "data",
    "num_examples": 1000,  # of the evaluated split; None for all
    "num_train_examples": 1000,  # of the training split, for k-NN, linear and segmentation; None for all
    "protocol": PROTOCOLS[0],
    "style": DEFAULT_STYLE,
    "follow_links": False,  # of earlier versions, without effect: links are followed
    "batch_size": BATCH_SIZE,
}
SCENES: Mapping[str, Any] = MappingProxyType({"num_scenes": None})


class Named(NamedTuple):
    """An evaluator of a run by name: the set that `build` gets, the options with their defaults, and the k of top-k."""

    build: Callable[[Setting, str], SetEvaluator]
    dataset: str
    options: Mapping[str, Any] = SCENES
    top: tuple[int, ...] | None = None


EVALUATORS = {
    "zero_shot": Named(KINDS["zero_shot"].build, "stickers"),
    "on_white": Named(KINDS["zero_shot"].build, evaluation_sets.ON_WHITE, top=(1,)),
    "other_drawings": Named(
        KINDS["zero_shot"].build, evaluation_sets.STYLE, {**SCENES, "style": DEFAULT_STYLE}, top=(1,)
    ),
    "retrieval": Named(KINDS["retrieval"].build, evaluation_sets.NEW_PAIRS, top=(1, 5)),
    "long": Named(KINDS["retrieval"].build, evaluation_sets.LONG, top=(1, 5)),
    "choice": Named(KINDS["choice"].build, "stickers"),
    "kept_objects": Named(KINDS["kept_objects"].build, "stickers"),
    "segmentation": Named(KINDS["segmentation"].build, "stickers", {**SCENES, "num_train_scenes": None}),
}
HELD_OUT = Named(held_out_pairs.retrieval, "held_out", {"num_examples": 1000, "batch_size": BATCH_SIZE}, top=(1, 5))
CLASSES = HELD_OUT._replace(build=held_out_pairs.classification, dataset="held_out_classes")
BY_NAME = {**EVALUATORS, "held_out": HELD_OUT, "held_out_classes": CLASSES}


def named(name: str) -> Named:
    """The entry of BY_NAME, or that of a task on a set, such as "zero_shot:pets"."""
    kind, colon, dataset = name.partition(":")
    return Named(KINDS[kind].build, dataset, USUAL) if colon else BY_NAME[name]


def plan(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The evaluators of a run, by name, with their options, from `config.evaluators`:

        config.evaluators = {"zero_shot": {"num_scenes": 500}, "knn:pets": {"data_dir": "/data", "num_examples": 1000}}

    "held_out" evaluates on pairs of the run's own data that are excluded from training (`data.held_out`), and
    "held_out_classes" the classification head on their labels. "kind:set" evaluates on any set of
    `python -m detailclip_jax.evaluate`. The other names evaluate on sticker scenes. If the field is empty, a run on
    stickers uses all evaluators on scenes (but see `absent`), and a run on other data that of the held-out examples
    which fits its method, if there are any. Raises ValueError for an unknown evaluator, set or option; the message
    lists the known ones.
    """
    named = config.evaluators.to_dict() or usual(config)
    for name, options in named.items():
        _check_name(name, options)
    return {name: named[name] for name in (*BY_NAME, *named) if name in named}


def usual(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The default evaluators, for a config that names none."""
    if config.data.source == "stickers":
        return {name: {} for name in EVALUATORS}
    name = "held_out_classes" if "class_head" in methods.build(config).networks else "held_out"
    return {name: {}} if held_out_pairs.find(config) else {}


def absent(config: ConfigDict) -> dict[str, str]:
    """Default evaluators whose artwork is not installed on this machine, with the reason.

    The artwork of `other_drawings` is a system font, which no run should require. This covers default evaluators only:
    for an evaluator named in the config, `check` and `build_all` raise MissingData.
    """
    if config.evaluators or config.data.source != "stickers":
        return {}
    try:
        sprites(evaluation_sets.DEFAULT_STYLE)
        return {}
    except (FileNotFoundError, ValueError) as error:
        return {"other_drawings": str(error)}


def limited(config: ConfigDict, most: int) -> dict[str, dict[str, Any]]:
    """The evaluators of `plan(config)` with at most `most` scenes or examples, also to be fitted on."""
    found = _present(config)
    counts = {name: [option for option in named(name).options if option.startswith("num_")] for name in found}
    return {
        name: {**options, **{count: min(most, options.get(count) or most) for count in counts[name]}}
        for name, options in found.items()
    }


def _check_name(name: str, options: Mapping[str, Any]) -> None:
    if not isinstance(options, Mapping):
        raise ValueError(f"evaluators.{name} is {options!r}: options are a dictionary, {{}} for none")
    if ":" in name:
        tasks.parse(name, Sets(options.get("data_dir", "data")))
    elif name not in BY_NAME:
        raise ValueError(unknown("evaluator", name, BY_NAME) + ", or TASK:SET, for example zero_shot:pets")
    for option in options:
        if option not in named(name).options:
            raise ValueError(unknown(f"option of evaluator {name}:", option, list(named(name).options)))


def check(config: ConfigDict) -> None:
    """Opens the data of a run's evaluators, so that missing data are reported before training and not after it.

    Opens nothing for a run that never evaluates. Raises MissingData, and ValueError for a set that the task cannot use.
    """
    if config.evaluate_at_end or config.evaluate_every:
        build_all(None, config)


def build_all(encode: Any, config: ConfigDict) -> dict[str, SetEvaluator]:
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


def _build(encode: Any, config: ConfigDict, name: str, options: Mapping[str, Any]) -> SetEvaluator:
    """Opens the data of an evaluator; they are read when it runs."""
    found = named(name)
    given = {**USUAL, "num_scenes": None, "num_train_scenes": None}
    if ":" not in name:
        given |= {"num_examples": None, "num_train_examples": None}
    given |= {**found.options, **options}
    fitted = given["num_train_scenes"] or given["num_train_examples"]
    sets = Sets(
        given["data_dir"],
        config.model.image_size,
        given["style"],
        given["num_examples"],
        fitted,
        given["follow_links"],
        given["num_scenes"],
    )
    embedder = Embedder(encode, tokenizer_of(config), batch_size=given["batch_size"])
    return found.build(
        Setting(embedder, sets, transform_of(config), given["protocol"], config, found.top), found.dataset
    )


def run(
    evaluators: Mapping[str, Evaluator],
    params_by_name: Mapping[str, Params],
    step: int,
    progress: Callable[[str], None] = logging.debug,
) -> dict[str, float]:
    """Runs every evaluator on every set of weights: "name/weights/metric" -> value.

        run(build_all(encode, config), {"student": params}, step=600)["zero_shot/student/top1"]

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
