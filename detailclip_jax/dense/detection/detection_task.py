"""Detection as a dense task: its sets, network, loss, inference and metric, and what a reader sees of a run."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from detailclip_jax.config.detection_fields import METHOD, SCHEDULES, detection, schedule
from detailclip_jax.config.sizes import size_of
from detailclip_jax.dense import set_examples
from detailclip_jax.dense.dense_experiment import (
    STATS,
    Comparison,
    DenseExperiment,
    DenseTask,
    Evaluation,
    Pairs,
    Sets,
    Sides,
)
from detailclip_jax.dense.detection import buckets, cascade, coco_scores, coco_sets, detect, detector, sticker_instances
from detailclip_jax.dense.detection.cascade_options import Options
from detailclip_jax.dense.detection.detect import Boxes, Found
from detailclip_jax.dense.detection.detection_set import DetectionSet
from detailclip_jax.dense.detection.instance_augment import Recipe
from detailclip_jax.dense.detection.instance_batches import DetectionStream, checked_pixels
from detailclip_jax.dense.detection.instance_shapes import sample
from detailclip_jax.dense.detection.masks import paste
from detailclip_jax.dense.set_examples import Example
from detailclip_jax.figures.detections import Objects, detection_figure
from detailclip_jax.models import networks
from detailclip_jax.runtime import extras, markdown
from detailclip_jax.runtime.errors import unknown
from detailclip_jax.training import dense_encoder
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.training.train_step import Inputs, Outputs
from detailclip_jax.types import BATCH, Array

WITHOUT_SCORES = "--config.evaluate_at_end=False --config.evaluate_every=0"
SAMPLED = 4096  # examples whose padding is measured at the start
FINE = 112  # resolution of the true masks in figures: cells along each side of a box
PROTOCOL = (  # fields, or groups of fields, on which a published number depends
    *("total_steps", "batch_size", "data.num_train", "data.num_val", "data.max_instances", "data.mask_size"),
    *("model.size", "model.drop_path", "model.freeze_patch_embed", "views.", "encoder.", "detector.", "optimizer."),
    *("inference.short", "inference.long"),
)


def check_scores(config: ConfigDict) -> None:
    """Raises ValueError for a run that is evaluated, if the package that computes the scores is missing."""
    if (config.evaluate_at_end or config.evaluate_every) and find_spec("pycocotools") is None:
        other = f"train without scores: {WITHOUT_SCORES}"
        raise ValueError(extras.missing(coco_scores.NEEDS, "detection", otherwise=other))


def check_sizes(config: ConfigDict) -> None:
    """Raises ValueError for buckets that the encoder or the images do not fit, and for a grid without a whole patch."""
    patch, views, test = size_of(config.model).patch_size, config.views, config.inference
    for name, sides, largest, long in (
        ("views.buckets", views.buckets, max(views.short), views.long),
        ("inference.buckets", test.buckets, test.short, test.long),
    ):
        short = min(largest, long)
        buckets.check(tuple(sides), ((short, long), (long, short)), 2 * patch, name)
    if min(config.encoder.grid) < patch:
        raise ValueError(
            f"encoder.grid {tuple(config.encoder.grid)} is smaller than a patch of {patch} x {patch} pixels; give the "
            "height and width of the images to train on"
        )


# --- data


def open_sets(config: ConfigDict) -> Sets:
    """Opens the training and the evaluation set.  Raises ValueError and MissingData as the sets do.

    The scenes of stickers do not depend on the run's seed, so that runs of several seeds have the same evaluation set.
    """
    data = config.data
    if data.source == "coco":
        train = coco_sets.open_coco(data.path, "train", data.num_train, True)
        val = coco_sets.open_coco(data.path, "val", data.num_val)
    elif data.source == "coco_format":
        if unset := [name for name in ("train_json", "val_json") if not data[name]]:
            raise ValueError(f"'coco_format' needs a json file for each set: --config.data.{unset[0]}=FILE")
        train = coco_sets.open_format(data.train_json, data.train_images, num=data.num_train, training=True)
        val = coco_sets.open_format(data.val_json, data.val_images, num=data.num_val)
    else:
        train = sticker_instances.open_stickers(data.labels, "train", data.canvas, data.num_train or 2**24)
        val = sticker_instances.open_stickers(data.labels, "val", data.canvas, data.num_val or 500)
    if train.classes != val.classes:
        raise ValueError(f"the training set has the classes {train.classes}, the evaluation set {val.classes}")
    return Sets(train, val)


def stream(config: ConfigDict, data_set: DetectionSet) -> DetectionStream:
    """The training examples of a set, with the augmentation of `config.views`."""
    recipe = Recipe(**{name: config.views[name] for name in Recipe._fields})
    data = config.data
    return DetectionStream(
        data_set.source, recipe, shapes(config), config.batch_size, data.max_instances, data.mask_size, config.seed
    )


def shapes(config: ConfigDict) -> tuple[Sides, ...]:
    """The (height, width) of the batches."""
    return tuple((height, width) for height, width in config.views.buckets)


def example(config: ConfigDict, sides: Sides) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of every array of an example, by name."""
    instances, side = config.data.max_instances, config.data.mask_size
    return {
        "image": ((*sides, 3), jnp.uint8),
        "size": ((2,), jnp.int32),
        "boxes": ((instances, 4), jnp.float32),
        "labels": ((instances,), jnp.int32),
        "crowd": ((instances,), jnp.bool_),
        "masks": ((instances, side, side), jnp.uint8),
    }


examples = functools.partial(set_examples.examples, pixels_of=checked_pixels)


# --- network and loss


def network(config: ConfigDict, num_classes: int, platform: str) -> detector.DetectionModel:
    """Builds encoder and detector.  Raises ValueError for unknown options."""
    built = dense_encoder.image_encoder(networks.build(config.model, ("image",), platform=platform))
    vit = dense_encoder.fitted(built, config, config.model.image_size)
    vit = vit.clone(drop_path=0.0) if config.encoder.frozen else vit
    options = options_of(config)
    if options.unroll is None:
        options = dataclasses.replace(options, unroll=cascade.unrolled(platform))
    return detector.build(vit, options, num_classes, BATCH)


def options_of(config: ConfigDict) -> Options:
    """The detector's numbers: the protocol's, and `detector.options` in their place.  Raises ValueError if unknown."""
    changes = config.detector.options.to_dict()
    names = {field.name for field in dataclasses.fields(Options)}
    for name in changes:
        if name not in names:
            raise ValueError(unknown("detector.options", name, sorted(names)))
        if name in ("mean", "std"):
            raise ValueError(
                f"detector.options has {name}, which the encoder reads too; set the field of that name in preprocess"
            )
    known = {"mean": tuple(config.preprocess.mean), "std": tuple(config.preprocess.std)}
    return Options(**known, **{**changes, "positions": dense_encoder.grid_of(config)})


def initial(model: detector.DetectionModel, config: ConfigDict, rng: Array) -> Mapping[str, Any]:
    """The variables of an untrained network."""
    smallest = min(shapes(config), key=lambda sides: sides[0] * sides[1])
    batch = {name: jnp.zeros((1, *shape), dtype) for name, (shape, dtype) in example(config, smallest).items()}
    return model.clone(axis=None).init(rng, batch, train=False)


def loss(model: detector.DetectionModel, config: ConfigDict, inputs: Inputs) -> Outputs:
    """The sum of the loss terms of the batch of all devices, and all of them."""
    variables = {"params": inputs.params, STATS: inputs.stats["student"]}
    outputs: Any = model.apply(variables, inputs.batch, True, inputs.keys.image, mutable=STATS)
    losses, changed = outputs
    stats = {"student": changed.get(STATS, {}), "teacher": {}}
    return Outputs(losses.total, {**losses._asdict(), "loss": losses.total}, {}, stats)


# --- inference and metric


def predict(
    built: DenseExperiment, state: TrainState, images: Iterator[UInt8[np.ndarray, "_h _w 3"]]
) -> Iterator[Found]:
    """Yields the detections of every image, in its pixels."""
    compute, batch_size = built.on_this_process(state, "detect")
    return detect.predict(compute, images, test_of(built.config, batch_size))


def test_of(config: ConfigDict, batch_size: int) -> detect.Test:
    """How images are tested, from `config.inference`."""
    fields = config.inference
    return detect.Test(fields.short, fields.long, tuple(tuple(bucket) for bucket in fields.buckets), batch_size)


def evaluate(built: DenseExperiment, state: TrainState, pairs: Pairs) -> Evaluation:
    """Scores with pycocotools: the twelve numbers of boxes and of masks ("bbox_AP", ..., "segm_ARl"), and AP by class.

    The evaluation's `found` is all detections in COCO's format.
    """
    results = _results(built, pairs, lambda pairs: built.predict(state, (pixels for _, pixels in pairs)))
    return Evaluation(*coco_scores.score(built.sets.val, results), results)


def ceiling(built: DenseExperiment, state: TrainState, pairs: Pairs) -> Evaluation:
    """Scores the masks that the mask heads draw in the true boxes with the true classes: the most that they allow.

    The scores are the twelve numbers of masks ("ceiling_AP", ...). The class chooses the mask's channel, all
    scores are 1, and there are no false positives. Objects that training leaves out are missed here, although the
    scoring counts them: those beyond `data.max_instances`, those marked `ignore`, and boxes below one pixel.
    """
    compute, batch_size = built.on_this_process(state, "draw")
    return ceiling_of(built, pairs, lambda images: detect.draw(compute, images, test_of(built.config, batch_size)))


def ceiling_of(
    built: DenseExperiment, pairs: Pairs, draw: Callable[[Iterable[tuple[np.ndarray, Boxes]]], Iterator[Found]]
) -> Evaluation:
    """Scores the masks that `draw` yields for images with their true boxes; see `ceiling`."""
    limit = built.config.data.max_instances
    results = _results(
        built, pairs, lambda pairs: draw((pixels, true_boxes(example, limit)) for example, pixels in pairs)
    )
    scores, per_class = coco_scores.score(built.sets.val, results)
    ceilings = {f"ceiling_{name}": scores[f"segm_{name}"] for name in coco_scores.NAMES}
    return Evaluation(ceilings, per_class, results)


def _results(built: DenseExperiment, pairs: Pairs, compute: Callable[[Pairs], Iterator[Found]]) -> list[dict[str, Any]]:
    """What `compute` finds in this process's examples, in COCO's format, together with those of all processes."""
    known: list[tuple[int, tuple[int, int]]] = []

    def remember() -> Pairs:
        for example, pixels in pairs:
            known.append((example["image_id"], pixels.shape[:2]))
            yield example, pixels

    results: list[dict[str, Any]] = []
    for number, detections in enumerate(compute(remember())):
        results += coco_scores.results_of(detections, *known[number], built.sets.val.category_ids)
    return coco_scores.gather_results(results)


def true_boxes(example: dict[str, Any], limit: int) -> Boxes:
    """The boxes and classes of an example's objects without crowds, the first `limit` of them."""
    kept = np.flatnonzero(~example["crowd"])[:limit]
    free = limit - len(kept)
    return Boxes(
        np.pad(example["boxes"][kept].astype(np.float32), ((0, free), (0, 0))),
        np.pad(example["classes"][kept].astype(np.int32), (0, free), constant_values=-1),
    )


# --- for readers


def introduction(built: DenseExperiment) -> tuple[list[str], list[str]]:
    """The notes of the sets, and how much of the batches is padding."""
    sides = shapes(built.config)
    sizes = stream(built.config, built.sets.train).geometry(np.arange(SAMPLED))[1].size
    which = buckets.assign(sizes, sides)
    shares = np.bincount(which, minlength=len(sides)) / SAMPLED
    used = ", ".join(f"{h} x {w} ({share:.0%})" for (h, w), share in zip(sides, shares))
    lines = [
        *(f"{name}: {note}" for name, one in zip(Sets._fields, built.sets) for note in one.notes),
        f"batches of {len(sides)} shape{'s' * (len(sides) != 1)}: {used}; padding is "
        f"{buckets.padding(sizes, which, sides):.1%} of the pixels",
    ]
    return lines, []


def protocol(config: ConfigDict) -> dict[str, Any]:
    """What a reader must know to compare the scores."""
    options = options_of(config)
    return {"score": options.score_threshold, "nms": options.nms, "detections": options.max_per_image}


def table(scores: Mapping[str, float]) -> Iterator[str]:
    """The lines of the scores in the report."""
    names = [name.removeprefix("bbox_") for name in scores if name.startswith("bbox_")]
    rows = ((name, _number(scores[f"bbox_{name}"]), _number(scores[f"segm_{name}"])) for name in names)
    yield from markdown.table([("metric", "boxes", "masks"), *rows])
    if "ceiling_AP" in scores:
        reached = _number(scores["ceiling_AP"])
        yield f"\nMasks drawn in the true boxes with the true classes: AP {reached}, the most the mask heads allow."


def comparison(config: ConfigDict, scores: Mapping[str, float]) -> Comparison | None:
    """The paper's AP, for COCO."""
    if config.data.source != "coco":
        return None
    return Comparison(
        what="AP with this detector on COCO",
        values={"boxes": _number(scores["bbox_AP"]), "masks": _number(scores["segm_AP"])},
        columns=("coco_box_ap", "coco_mask_ap"),
        recipes={f"schedule {name}": schedule(detection(), name) for name in SCHEDULES},
        protocol=PROTOCOL,
        code="mmdet",
    )


def _number(value: float) -> str:
    return "no objects" if value < 0 else f"{value:.2f}"


def figure(
    images: Sequence[np.ndarray],
    truth: Sequence[Example],
    predicted: Mapping[str, Sequence[Found]],
    classes: Sequence[str],
    credit: str,
) -> Any:
    """Draws boxes and masks; the first row shows the true ones, without crowds, if there are any."""
    sizes = [(image.shape[0], image.shape[1]) for image in images]
    rows: dict[str, list[Objects]] = {"ground truth": []} if truth else {}
    for example, size in zip(truth, sizes):
        kept = np.flatnonzero(~example["crowd"])
        boxes, shapes = example["boxes"][kept], [example["shapes"][number] for number in kept]
        masks = np.array([sample(shape, box, FINE).astype(np.float32) for shape, box in zip(shapes, boxes)])
        rows["ground truth"].append(Objects(boxes, example["classes"][kept], None, paste_masks(masks, boxes, size)))
    rows |= {name: [objects_of(one, size) for one, size in zip(each, sizes)] for name, each in predicted.items()}
    return detection_figure(images, rows, classes, credit)


def objects_of(detections: Found, size: tuple[int, int]) -> Objects:
    """Detections with masks of an image of `size` (height, width), for figures."""
    boxes, scores, labels, masks = detections
    return Objects(boxes, labels, scores, paste_masks(masks, boxes, size))


def paste_masks(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Masks in boxes as bool [n, H, W] of the image."""
    whole = [paste(mask, box, size) != 0 for mask, box in zip(masks, boxes)]
    return np.stack(whole) if whole else np.zeros((0, *size), bool)


DETECTION = DenseTask(
    name=METHOD,
    check=check_scores,
    check_sizes=check_sizes,
    open_sets=open_sets,
    stream=stream,
    shapes=shapes,
    example=example,
    examples=examples,
    head=lambda config: "Cascade Mask R-CNN",
    network=network,
    initial=initial,
    loss=loss,
    terms=lambda config: detector.TERMS,
    predict=predict,
    evaluate=evaluate,
    introduction=introduction,
    protocol=protocol,
    table=table,
    comparison=comparison,
    figure=figure,
    more=lambda config: {"ceiling": ceiling} if config.inference.ceiling else {},
    found_file="detections.json",
    counts=("bad_records", "crowded_images"),
)
