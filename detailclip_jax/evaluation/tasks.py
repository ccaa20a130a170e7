"""Tasks by name: parses `--tasks`, and defines how each task is measured on a set."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from detailclip_jax.data.labelled import KNOWN, LabelledSet
from detailclip_jax.data.preprocessing import Transform
from detailclip_jax.data.sources import Source
from detailclip_jax.data.stickers.scene_source import zero_shot_prompts
from detailclip_jax.dense import paper
from detailclip_jax.evaluation import knn, linear_probe, readout_scores, readout_sets, readout_setups, sticker_scores
from detailclip_jax.evaluation.bench import Bench
from detailclip_jax.evaluation.classification import accuracies, usual_top
from detailclip_jax.evaluation.evaluation_sets import STICKERS, Sets, drawn, fingerprint
from detailclip_jax.evaluation.image_batches import Subset, captions_at, cropped
from detailclip_jax.evaluation.kept_objects import KeptObjects
from detailclip_jax.evaluation.metrics import Metric
from detailclip_jax.evaluation.patch_probe import LinearSegmentation
from detailclip_jax.evaluation.protocols import NUM_CAPTIONS, PROTOCOLS, ZeroShotTask, zero_shot_task
from detailclip_jax.evaluation.retrieval import recalls
from detailclip_jax.runtime.errors import unknown

Measured = Iterator[tuple[str, Metric]]
DENSE = "dense"
JOINT = ("image", "image_projection", "text", "text_projection")


class Task(NamedTuple):
    """One kind of measurement on one set."""

    kind: str
    dataset: str

    def __str__(self) -> str:
        """The spelling used in `--tasks`."""
        return f"{self.kind}:{self.dataset}"


class Setting(NamedTuple):
    """The settings shared by the tasks of one evaluation."""

    sets: Sets
    transform: Transform  # the model's own
    protocol: str = PROTOCOLS[0]
    config: ConfigDict | None = None  # of the run, for tasks that use its masks


class Prepared(NamedTuple):
    """A task whose data are open; `needs` names the networks that the weights must contain."""

    data: LabelledSet
    protocol: str
    needs: tuple[str, ...]
    measure: Callable[[Bench], Measured]


def zero_shot(setting: Setting, name: str) -> Prepared:
    """Zero-shot classification among the classes of the set: the prediction is the class with the nearest prompts."""
    data, transform = setting.sets.labelled(name), setting.transform
    task, top = words(setting, data), usual_top(len(data.classes))

    def measure(bench: Bench) -> Measured:
        images = bench.images(data, transform)
        classes = bench.classes(task.prompts)
        pooled = lambda: bench.pooled(data, transform, bench.raw_classes(task.prompts), images)  # noqa: E731
        own_scores = pooled if bench.pools_images else None
        yield from accuracies(images.features, classes, images.labels, task.metric, top, own_scores)

    used = "stickers" if name in STICKERS else ", ".join(filter(None, (setting.protocol, task.origin)))
    with_prompts = data._replace(fingerprint=f"{data.fingerprint}+{task.digest}")
    return Prepared(with_prompts, used, JOINT, measure)


def words(setting: Setting, data: LabelledSet) -> ZeroShotTask:
    """Prompts and metric: those of the protocol, or the captions of single stickers."""
    if data.name in STICKERS:
        return ZeroShotTask(data.name, zero_shot_prompts(), "accuracy")
    return zero_shot_task(setting.protocol, data.name, data.classes, data.templates)


def retrieval(setting: Setting, name: str) -> Prepared:
    """Image-text retrieval in both directions, without a prompt around the captions."""
    num_captions = NUM_CAPTIONS[setting.protocol]
    data, transform = setting.sets.captioned(name, num_captions), setting.transform

    def measure(bench: Bench) -> Measured:
        yield from retrieval_of(bench, data, transform)

    kept = f"first {num_captions} captions" if num_captions else "all captions"
    return Prepared(data, "stickers" if name in STICKERS else f"{setting.protocol}, {kept}", JOINT, measure)


def retrieval_of(bench: Bench, data: LabelledSet, transform: Transform, top: Sequence[int] = (1, 5, 10)) -> Measured:
    """Recalls on a set with captions: by the method's own score, then by class token ("cls_...") if that differs."""
    images = bench.images(data, transform)
    captions = captions_at(data.source, images.index.tolist())
    texts = [caption for own in captions for caption in own]
    pooled = lambda: bench.pooled(data, transform, bench.raw_texts(texts), images)  # noqa: E731
    own_scores = pooled if bench.pools_images else None
    yield from recalls(images.features, bench.texts(texts), captions, top, own_scores)


def nearest_neighbours(setting: Setting, name: str) -> Prepared:
    """k-NN on the class token: resize to 256, crop to 224."""
    return _on_features(setting, name, knn.knn_metrics, f"cosine, T {knn.TEMPERATURE}")


def linear(setting: Setting, name: str) -> Prepared:
    """Logistic regression on the class token before the projection."""
    protocol = "logistic regression, L-BFGS, C on a fifth of train"
    return _on_features(setting, name, linear_probe.linear_metrics, protocol)


def _on_features(setting: Setting, name: str, judge: Callable[..., Measured], protocol: str) -> Prepared:
    """A task that passes features of the training and the test split to `judge`."""
    train, test = (setting.sets.labelled(name, split) for split in ("train", "test"))
    transform, metric = cropped(setting.transform), metric_of(name)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes)) or "the same classes in another order"
        raise ValueError(f"{name}: its train and test splits have different classes: {odd}")

    def measure(bench: Bench) -> Measured:
        known, asked = (bench.images(data, transform, "cls") for data in (train, test))
        arrays = (known.features, known.labels, asked.features, asked.labels)
        for name, value in judge(*arrays, len(test.classes), metric=metric):
            value.n_train = len(known.features)
            value.remark = "; ".join(filter(None, (value.remark, subset_remark(train.source))))
            yield name, value

    both = test._replace(fingerprint=f"{train.fingerprint}+{test.fingerprint}")
    return Prepared(both, protocol, ("image",), measure)


def subset_remark(train: Source) -> str:
    """A remark if only a part of the training split is used, else an empty string."""
    if not isinstance(train, Subset):
        return ""
    return f"fitted on {len(train):,} of {len(train.source):,} training examples (--num-train-examples)"


def metric_of(name: str) -> str:
    """ "mean_per_class" for the sets that are usually reported in this metric, else "accuracy"."""
    return "mean_per_class" if name in (*paper.MEAN_PER_CLASS, "caltech101") else "accuracy"


def kept_objects(setting: Setting, name: str) -> Prepared:
    """Share of the patches with the highest attention that touch an object."""
    return _in_training(setting, name, "kept_objects", KeptObjects)


def segmentation(setting: Setting, name: str) -> Prepared:
    """Linear segmentation of patch features."""
    return _in_training(setting, name, "segmentation", LinearSegmentation)


def _in_training(setting: Setting, name: str, kind: str, evaluator: Any) -> Prepared:
    """A task that runs an evaluator of training runs on sticker scenes."""
    if name != "stickers":
        raise ValueError(f"{kind} needs images with exact object masks: use the set stickers, not {name}")
    if setting.config is None:
        raise ValueError(f"{kind} needs the patch tokens of a run of this package: give --checkpoint")
    config, few = setting.config, few_scenes(setting.sets, fitted=kind == "segmentation")
    scenes = drawn(lambda: sticker_scores.SCENES[kind](config, **few))
    data = LabelledSet(name, scenes[-1], (), "+".join(map(fingerprint, scenes)), len(scenes[-1]))

    def measure(bench: Bench) -> Measured:
        return evaluator(bench.encode, **sticker_scores.OPTIONS[kind](config, **few)).run(bench.params)

    return Prepared(data, "stickers", evaluator.needs, measure)


def few_scenes(sets: Sets, fitted: bool) -> dict[str, int]:
    """Options of `stickers` that limit the evaluated scenes and, if a probe is fitted, the scenes of the fit."""
    options = {"num_scenes": sets.num_examples}
    if fitted:
        options["num_train_scenes"] = sets.num_train_examples or sticker_scores.NUM_FITTED
    return {name: count for name, count in options.items() if count is not None}


def dense_readout(setting: Setting, name: str) -> Prepared:
    """Training-free segmentation by a read-out, such as "voc20:naclip"."""
    dataset, readout = readout_sets.split_name(name)
    if setting.config is None:
        raise ValueError(f"dense:{name} changes the last block of a run of this package: give it a checkpoint")
    data, config = readout_sets.open_dense(dataset, setting.sets), setting.config
    found = readout_setups.setup(dataset, readout, data.classes)
    encoder = functools.cache(
        lambda: readout_scores.encoder_of(config, readout)
    )  # compiled once for all sets of weights

    def measure(bench: Bench) -> Measured:
        return readout_scores.measure(bench, config, data, found, encoder())

    return Prepared(data, found.description(config.model), JOINT, measure)


KINDS: dict[str, Callable[[Setting, str], Prepared]] = {
    "zero_shot": zero_shot,
    "retrieval": retrieval,
    "knn": nearest_neighbours,
    "linear": linear,
    "kept_objects": kept_objects,
    "segmentation": segmentation,
    DENSE: dense_readout,
}
CAPTIONED = ("coco", "flickr30k", *STICKERS)
GROUPS = {
    "stickers": (
        "zero_shot:stickers,stickers_style;retrieval:stickers,stickers_pairs,stickers_style;knn:stickers;"
        "linear:stickers;kept_objects:stickers;segmentation:stickers"
    ),
    "paper": "zero_shot:paper;retrieval:paper",
}


def parse(text: str, sets: Sets) -> list[Task]:
    """The tasks of a text such as "zero_shot:imagenet,pets;retrieval:coco", each once, in order.

        parse("paper", sets)  # tables 2 and 3: 14 sets, COCO and Flickr30K

    An entry is KIND:SET,SET,... or a group ("paper", "stickers"). As a set, "paper" means the paper's sets and "all"
    all known sets. A set of "dense" may name its read-out: "dense:voc20:gem" (default: naclip; "dense:voc20:all" for
    each). Raises ValueError with the nearest names for an unknown kind, set or read-out.
    """
    tasks = [task for entry in filter(None, (p.strip() for p in text.split(";"))) for task in _parse_entry(entry, sets)]
    if not tasks:
        raise ValueError("--tasks is empty; for example --tasks=stickers, --tasks=paper or '--tasks=zero_shot:pets'")
    return list(dict.fromkeys(tasks))


def _parse_entry(entry: str, sets: Sets) -> Iterator[Task]:
    kind, colon, names = entry.partition(":")
    if not colon and kind in GROUPS:
        yield from parse(GROUPS[kind], sets)
        return
    if kind not in KINDS:
        raise ValueError(_no_kind(entry, kind, colon))
    if not any(name.strip() for name in names.split(",")):
        example = "coco" if kind == "retrieval" else "stickers:naclip" if kind == DENSE else "pets"
        raise ValueError(f"--tasks: {kind} names no set; write for example {kind}:{example}")
    for name in filter(None, (n.strip() for n in names.split(","))):
        for each in expand(kind, name):
            check(kind, each, sets)
            yield Task(kind, each)


def _no_kind(entry: str, kind: str, colon: str) -> str:
    if not colon and (kind in KNOWN or kind in STICKERS):
        fitting = "retrieval" if kind in CAPTIONED else "zero_shot"
        return f"{entry!r} is a set, not a task; write for example {fitting}:{kind}"
    if colon and kind in GROUPS:
        return f"{entry!r}: {kind} stands for several tasks and takes no sets; write {kind} alone"
    return f"{unknown('task', kind, [*KINDS, *GROUPS])}.  A task is KIND:SET,SET,... such as zero_shot:imagenet,pets"


def expand(kind: str, name: str) -> Sequence[str]:
    """The sets that "paper" or "all" stands for, else the name itself; of dense, with the read-out."""
    if kind == DENSE:
        return readout_sets.spelled_out(name)
    captioned = kind == "retrieval"
    if name == "paper":
        return paper.retrieval_sets() if captioned else paper.zero_shot_sets()
    if name == "all":
        return [known.name for known in KNOWN.values() if known.captioned == captioned]
    return [name]


def check(kind: str, name: str, sets: Sets) -> None:
    """Raises ValueError for a set that does not exist or that this task cannot use."""
    if kind == DENSE:
        readout_sets.split_name(name)
        return
    sets.check(name)
    if name in KNOWN and KNOWN[name].captioned != (kind == "retrieval"):
        has = "captions and no classes" if KNOWN[name].captioned else "classes and no captions"
        fitting = [known.name for known in KNOWN.values() if known.captioned == (kind == "retrieval")]
        raise ValueError(f"{kind}:{name}: {name} has {has}; sets for {kind} are {', '.join([*STICKERS, *fitting])}")
    if kind in ("kept_objects", "segmentation") and name != "stickers":
        raise ValueError(f"{kind}:{name}: {kind} needs exact object masks; write {kind}:stickers")
    if name == "stickers_pairs" and kind != "retrieval":
        raise ValueError(f"{kind}:{name}: its scenes have several objects, for retrieval only; write {kind}:stickers")
