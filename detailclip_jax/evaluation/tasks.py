"""The kinds of evaluators by name; the tasks of `--tasks`, a kind on a set; and the evaluators of a run by name."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.data.labelled import CHOICES, KNOWN
from detailclip_jax.data.labelled.known_sets import LONG_CAPTIONS
from detailclip_jax.data.stickers.sprites import sprites
from detailclip_jax.evaluation import (
    choice,
    frozen_features,
    held_out_pairs,
    kept_objects,
    linear_segmentation,
    readout_scores,
)
from detailclip_jax.evaluation.box_class import box_class
from detailclip_jax.evaluation.evaluation_sets import (
    DEFAULT_STYLE,
    LONG,
    NEW_PAIRS,
    ON_WHITE,
    POOLED,
    STICKERS,
    STYLE,
    Sets,
    with_boxes,
    with_captions,
    with_choices,
    with_classes,
    with_masks,
)
from detailclip_jax.evaluation.evaluator import Kind, SetEvaluator, Setting
from detailclip_jax.evaluation.protocols import PROTOCOLS
from detailclip_jax.evaluation.readout_sets import DEFAULT, spelled_out, split_name
from detailclip_jax.evaluation.retrieval import retrieval
from detailclip_jax.evaluation.sticker_scenes import BATCH_SIZE
from detailclip_jax.evaluation.zero_shot import zero_shot
from detailclip_jax.runtime.errors import unknown

KINDS = {
    "zero_shot": Kind(
        zero_shot,
        with_classes,
        "Zero-shot: a class is the mean of its prompts' normalised embeddings, normalised again.",
    ),
    "retrieval": Kind(
        retrieval,
        with_captions,
        "Retrieval: no prompt; images with identical captions count as correct for each other.",
        example="coco",
    ),
    "choice": Kind(
        choice.choice,
        with_choices,
        "Choice: the caption nearest to the image; chance is that of random scores. On stickers, a text side that "
        "ignores the order of words reaches 100 for object and count, and 50 for attribute, side and size.",
        example="sugarcrepe",
    ),
    "box_class": Kind(
        box_class,
        with_boxes,
        "Box classes: patches of the value read-out, pooled in each box (RoIAlign) of the squashed image.",
        example="coco",
    ),
    "knn": Kind(
        frozen_features.nearest_neighbours,
        with_classes,
        "k-NN: class token, cosine similarity, temperature 0.07, weighted vote of the training split.",
    ),
    "linear": Kind(
        frozen_features.linear,
        with_classes,
        "Linear: logistic regression on the frozen class token, C selected on a fifth of the training split.",
    ),
    "kept_objects": Kind(
        kept_objects.kept_objects,
        with_masks,
        "Kept patches: share that touches an object, of the patches with the highest CLS attention; chance: of all "
        "patches.",
    ),
    "segmentation": Kind(
        linear_segmentation.segmentation,
        with_masks,
        "Segmentation: ridge regression from frozen patch features to classes.",
    ),
    "dense": Kind(
        readout_scores.readout,
        lambda kind, name, sets: spelled_out(name),
        "Dense: class names compared with patch features, without training; the interval resamples images.",
        example="stickers:naclip",
    ),
}
LONG_SETS = (LONG, *(known.name for known in LONG_CAPTIONS))  # of retrieval: captions of several sentences
GROUPS = {
    "stickers": (
        "zero_shot:stickers,stickers_style;retrieval:stickers,stickers_pairs,stickers_style,stickers_long;"
        "choice:stickers;knn:stickers;linear:stickers;kept_objects:stickers;segmentation:stickers"
    ),
    "detail": (
        f"choice:stickers,all,{','.join(POOLED)};retrieval:{','.join(LONG_SETS)};dense:all:default;box_class:all"
    ),
    "paper": "zero_shot:paper;retrieval:paper",
}


class Task(NamedTuple):
    """One kind of measurement on one set."""

    kind: str
    dataset: str

    def __str__(self) -> str:
        """The spelling used in `--tasks`."""
        return f"{self.kind}:{self.dataset}"

    @property
    def has_long_captions(self) -> bool:
        """Whether a model with a text side for long captions reads those of the set with it."""
        return self.kind == "retrieval" and self.dataset in LONG_SETS


def parse(text: str, sets: Sets) -> list[Task]:
    """The tasks of a text such as "zero_shot:imagenet,pets;retrieval:coco", each once, in order.

        parse("paper", sets)  # tables 2 and 3: 14 sets, COCO and Flickr30K

    An entry is KIND:SET,SET,... or a group ("paper", "stickers", "detail"). As a set, "paper" means the paper's sets
    and "all" all known sets. A set of "dense" may name its read-out: "dense:voc20:gem"; "dense:voc20:all" takes each,
    "dense:voc20:default" that of the checkpoint, and `with_readouts` names the latter and those of a set without one.
    Raises ValueError with the nearest names for an unknown kind, set or read-out.
    """
    tasks = [task for entry in filter(None, (p.strip() for p in text.split(";"))) for task in _parse_entry(entry, sets)]
    if not tasks:
        raise ValueError("--tasks is empty; for example --tasks=stickers, --tasks=paper or '--tasks=zero_shot:pets'")
    return list(dict.fromkeys(tasks))


def with_readouts(tasks: Iterable[Task], readouts: Sequence[str], default: Sequence[str] = ()) -> list[Task]:
    """The same tasks, each once; one of "dense" without a read-out becomes one for each of `readouts`.

    One with the read-out DEFAULT becomes one for each of `default`.
    """
    every: list[Task] = []
    for task in tasks:
        dataset, named = split_name(task.dataset) if task.kind == "dense" else (task.dataset, "")
        chosen = {None: readouts, DEFAULT: default}.get(named, ())
        every += [task._replace(dataset=f"{dataset}:{readout}") for readout in chosen] or [task]
    return list(dict.fromkeys(every))


def _parse_entry(entry: str, sets: Sets) -> Iterator[Task]:
    kind, colon, names = entry.partition(":")
    if not colon and kind in GROUPS:
        yield from parse(GROUPS[kind], sets)
        return
    if kind not in KINDS:
        raise ValueError(_no_kind(entry, kind, colon))
    if not any(name.strip() for name in names.split(",")):
        raise ValueError(f"--tasks: {kind} names no set; write for example {kind}:{KINDS[kind].example}")
    for name in filter(None, (n.strip() for n in names.split(","))):
        yield from (Task(kind, each) for each in KINDS[kind].sets(kind, name, sets))


def _no_kind(entry: str, kind: str, colon: str) -> str:
    if not colon and kind in CHOICES:
        return f"{entry!r} is a set, not a task; write for example choice:{kind}"
    if not colon and (kind in KNOWN or kind in STICKERS):
        captioned = KNOWN[kind].captioned if kind in KNOWN else kind != ON_WHITE
        fitting = "retrieval" if captioned else "zero_shot"
        return f"{entry!r} is a set, not a task; write for example {fitting}:{kind}"
    if colon and kind in GROUPS:
        return f"{entry!r}: {kind} stands for several tasks and takes no sets; write {kind} alone"
    return f"{unknown('task', kind, [*KINDS, *GROUPS])}.  A task is KIND:SET,SET,... such as zero_shot:imagenet,pets"


OPTION_DEFAULTS = {  # the options of an evaluator on a named set, and their defaults: a run may evaluate often
    "data_dir": "data",
    "num_examples": 1000,  # of the evaluated split; None for all
    "num_train_examples": 1000,  # of the training split, for k-NN, linear and segmentation; None for all
    "protocol": PROTOCOLS[0],
    "style": DEFAULT_STYLE,
    "follow_links": False,
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
    "on_white": Named(KINDS["zero_shot"].build, ON_WHITE, top=(1,)),
    "other_drawings": Named(KINDS["zero_shot"].build, STYLE, {**SCENES, "style": DEFAULT_STYLE}, top=(1,)),
    "retrieval": Named(KINDS["retrieval"].build, NEW_PAIRS, top=(1, 5)),
    "long": Named(KINDS["retrieval"].build, LONG, top=(1, 5)),
    "choice": Named(KINDS["choice"].build, "stickers"),
    "kept_objects": Named(KINDS["kept_objects"].build, "stickers"),
    "segmentation": Named(KINDS["segmentation"].build, "stickers", {**SCENES, "num_train_scenes": None}),
}
HELD_OUT = Named(held_out_pairs.retrieval, "held_out", {"num_examples": 1000, "batch_size": BATCH_SIZE}, top=(1, 5))
CLASSES = HELD_OUT._replace(build=held_out_pairs.classification, dataset="held_out_classes")
BY_NAME = {**EVALUATORS, "held_out": HELD_OUT, "held_out_classes": CLASSES}


def entry_of(name: str) -> Named:
    """The entry of BY_NAME, or that of a task on a set, such as "zero_shot:pets"."""
    kind, colon, dataset = name.partition(":")
    return Named(KINDS[kind].build, dataset, OPTION_DEFAULTS) if colon else BY_NAME[name]


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
    chosen = config.evaluators.to_dict() or default_evaluators(config)
    for name, options in chosen.items():
        if not isinstance(options, Mapping):
            raise ValueError(f"evaluators.{name} is {options!r}: options are a dictionary, {{}} for none")
        if ":" in name:
            parse(name, Sets(options.get("data_dir", "data")))
        elif name not in BY_NAME:
            raise ValueError(unknown("evaluator", name, BY_NAME) + ", or TASK:SET, for example zero_shot:pets")
        for option in options:
            if option not in entry_of(name).options:
                raise ValueError(unknown(f"option of evaluator {name}:", option, list(entry_of(name).options)))
            check_option(f"evaluators.{name}.{option}", options[option])
    return {name: chosen[name] for name in (*BY_NAME, *chosen) if name in chosen}


def check_option(field: str, value: Any) -> None:
    """Raises ValueError for a value that the option of an evaluator cannot have."""
    option = field.rpartition(".")[2]
    if option == "protocol" and value not in PROTOCOLS:
        raise ValueError(unknown(field, value, PROTOCOLS))
    is_number = option == "batch_size" or (option.startswith("num_") and value is not None)
    if is_number and (type(value) is not int or value < 1):
        none = "" if option == "batch_size" else ", or None for all"
        raise ValueError(f"{field} is {value!r}: expected a whole number of at least 1{none}")


def default_evaluators(config: ConfigDict) -> dict[str, dict[str, Any]]:
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
        sprites(DEFAULT_STYLE)
        return {}
    except (FileNotFoundError, ValueError) as error:
        return {"other_drawings": str(error)}


def present(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The plan without absent evaluators; each of these is logged (the report names them too)."""
    missing = absent(config)
    for name, reason in missing.items():
        logging.info("evaluator %s: skipped: %s", name, reason)
    return {name: options for name, options in plan(config).items() if name not in missing}


def limited(config: ConfigDict, most: int) -> dict[str, dict[str, Any]]:
    """The evaluators of `plan(config)` with at most `most` scenes or examples, also to be fitted on."""
    chosen = present(config)
    counts = {name: [option for option in entry_of(name).options if option.startswith("num_")] for name in chosen}
    return {
        name: {**options, **{count: min(most, options.get(count) or most) for count in counts[name]}}
        for name, options in chosen.items()
    }
