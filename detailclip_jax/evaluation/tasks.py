"""The kinds of evaluators by name, and the tasks of `--tasks`: a kind on a set."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from detailclip_jax.data.labelled import CHOICES, KNOWN
from detailclip_jax.data.labelled.known_sets import LONG_CAPTIONS
from detailclip_jax.evaluation import choice, frozen_features, kept_objects, linear_segmentation, readout_scores
from detailclip_jax.evaluation.evaluation_sets import (
    ON_WHITE,
    STICKERS,
    Sets,
    with_captions,
    with_choices,
    with_classes,
    with_masks,
)
from detailclip_jax.evaluation.evaluator import Kind
from detailclip_jax.evaluation.readout_sets import spelled_out, split_name
from detailclip_jax.evaluation.retrieval import retrieval
from detailclip_jax.evaluation.zero_shot import zero_shot
from detailclip_jax.runtime.errors import unknown

KINDS = {
    "zero_shot": Kind(
        zero_shot,
        with_classes,
        "classify an image by the class whose prompts have the nearest embedding",
        "Zero-shot: a class is the mean of its prompts' normalised embeddings, normalised again.",
    ),
    "retrieval": Kind(
        retrieval,
        with_captions,
        "find an image's captions among all captions, and images by captions (R@1, R@5, R@10)",
        "Retrieval: no prompt; images with identical captions count as correct for each other.",
        example="coco",
    ),
    "choice": Kind(
        choice.choice,
        with_choices,
        "choose the caption that fits an image, or a box of it, among a few",
        "Choice: the caption nearest to the image; chance is that of random scores. On stickers, a text side that "
        "ignores the order of words reaches 100 for object and count, and 50 for attribute, side and size.",
        example="sugarcrepe",
    ),
    "knn": Kind(
        frozen_features.nearest_neighbours,
        with_classes,
        "k nearest neighbours in the training split, on the class token",
        "k-NN: class token, cosine similarity, temperature 0.07, weighted vote of the training split.",
    ),
    "linear": Kind(
        frozen_features.linear,
        with_classes,
        "logistic regression on the class token, fitted on the training split",
        "Linear: logistic regression on the frozen class token, C selected on a fifth of the training split.",
    ),
    "kept_objects": Kind(
        kept_objects.kept_objects,
        with_masks,
        "only on stickers: patches of high attention that touch an object",
        "Kept patches: share that touches an object, of the patches with the highest CLS attention; chance: of all "
        "patches.",
    ),
    "segmentation": Kind(
        linear_segmentation.segmentation,
        with_masks,
        "only on stickers: linear segmentation of the patch tokens",
        "Segmentation: ridge regression from frozen patch features to classes.",
    ),
    "dense": Kind(
        readout_scores.readout,
        lambda kind, name, sets: spelled_out(name),
        "training-free segmentation by class names, as SET or SET:READOUT, see below",
        "Dense: class names compared with patch features, without training; the interval resamples images.",
        example="stickers:naclip",
    ),
}
GROUPS = {
    "stickers": (
        "zero_shot:stickers,stickers_style;retrieval:stickers,stickers_pairs,stickers_style,stickers_long;"
        "choice:stickers;knn:stickers;linear:stickers;kept_objects:stickers;segmentation:stickers"
    ),
    "detail": f"retrieval:{','.join(known.name for known in LONG_CAPTIONS)};choice:all",
    "paper": "zero_shot:paper;retrieval:paper",
}


class Task(NamedTuple):
    """One kind of measurement on one set."""

    kind: str
    dataset: str

    def __str__(self) -> str:
        """The spelling used in `--tasks`."""
        return f"{self.kind}:{self.dataset}"


def parse(text: str, sets: Sets) -> list[Task]:
    """The tasks of a text such as "zero_shot:imagenet,pets;retrieval:coco", each once, in order.

        parse("paper", sets)  # tables 2 and 3: 14 sets, COCO and Flickr30K

    An entry is KIND:SET,SET,... or a group ("paper", "stickers", "detail"). As a set, "paper" means the paper's sets
    and "all" all known sets. A set of "dense" may name its read-out: "dense:voc20:gem"; "dense:voc20:all" takes each,
    and `with_readouts` names those of a set without one. Raises ValueError with the nearest names for an unknown kind,
    set or read-out.
    """
    tasks = [task for entry in filter(None, (p.strip() for p in text.split(";"))) for task in _parse_entry(entry, sets)]
    if not tasks:
        raise ValueError("--tasks is empty; for example --tasks=stickers, --tasks=paper or '--tasks=zero_shot:pets'")
    return list(dict.fromkeys(tasks))


def with_readouts(tasks: Iterable[Task], readouts: Sequence[str]) -> list[Task]:
    """The same tasks, each once; one of "dense" without a read-out becomes one for each of `readouts`."""
    return list(dict.fromkeys(each for task in tasks for each in _with_readouts(task, readouts)))


def _with_readouts(task: Task, readouts: Sequence[str]) -> list[Task]:
    if task.kind != "dense" or not readouts or split_name(task.dataset)[1]:
        return [task]
    return [Task(task.kind, f"{task.dataset}:{readout}") for readout in readouts]


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
