"""Segmentation as a dense task: its sets, network, loss, inference and metric, and what a reader sees of a run."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from detailclip_jax.config.segmentation_fields import METHOD, linear, segmentation
from detailclip_jax.config.sizes import size_of, whole_patches
from detailclip_jax.data.sources import MissingData, Picked
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
from detailclip_jax.dense.segmentation import confusion, label_maps, segmentation_heads
from detailclip_jax.dense.segmentation.confusion import Counts
from detailclip_jax.dense.segmentation.label_augment import Recipe
from detailclip_jax.dense.segmentation.label_batches import SemanticStream
from detailclip_jax.dense.segmentation.segmentation_network import (
    SegmentationModel,
    cross_entropy,
    normalise_content,
    pixel_accuracy,
)
from detailclip_jax.dense.segmentation.segmentation_sets import (
    PAIRS,
    SemanticSet,
    black_and_white,
    open_pairs,
    open_set,
    read_classes,
)
from detailclip_jax.dense.segmentation.sticker_labels import open_stickers
from detailclip_jax.dense.set_examples import Example, examples
from detailclip_jax.figures.segmentations import label_figure
from detailclip_jax.models import networks
from detailclip_jax.models.taps import usual_blocks
from detailclip_jax.runtime import markdown, processes
from detailclip_jax.training import dense_encoder
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.training.train_step import Inputs, Outputs
from detailclip_jax.types import BATCH, Array

RECIPES = {"upernet": segmentation, "linear": lambda: linear(segmentation())}  # of the paper, by head
PROTOCOL = (  # fields, or groups of fields, on which a published number depends
    *("total_steps", "batch_size", "data.num_train", "data.num_val", "data.train_split", "data.val_split"),
    *("data.unknown_labels", "model.size", "model.drop_path", "model.freeze_patch_embed"),
    *("views.", "encoder.", "head.", "auxiliary.", "optimizer.", "inference.mode", "inference.scale"),
    *("inference.window", "inference.stride"),
)


def check_sizes(config: ConfigDict) -> None:
    """Raises ValueError, with a size that fits, if patches do not fill a crop or a window, or windows leave gaps."""
    window, stride = config.inference.window, config.inference.stride
    if config.inference.mode == "slide" and stride > window:
        raise ValueError(
            f"inference.stride {stride} is greater than inference.window {window}, so pixels between two windows would "
            f"have no score; give --config.inference.stride of at most {window}"
        )
    patch = size_of(config.model).patch_size
    whole_patches("views.crop", config.views.crop, patch)
    whole_patches("inference.window", window, patch)


# --- data


def open_sets(config: ConfigDict) -> Sets:
    """Opens the training and the evaluation set.  Raises ValueError and MissingData as the sets do.

    The scenes of stickers do not depend on the run's seed, so that runs of several seeds have the same evaluation set.
    """
    data = config.data
    if data.source == "stickers":
        train = open_stickers(data.labels, data.train_split, data.canvas, data.num_train or 2**24)
        return Sets(train, open_stickers(data.labels, data.val_split, data.canvas, data.num_val or 500))
    if data.source == PAIRS:
        for field in ("train_images", "train_masks", "val_images", "val_masks"):
            if not data[field] or not Path(data[field]).is_dir():
                raise MissingData(
                    f"data.{field} {data[field]!r} is not a folder (data.source=pairs); give --config.data.{field}=DIR"
                )
        try:
            classes = read_classes(data.classes)
        except MissingData as error:
            raise MissingData(f"{error} (data.source=pairs); give --config.data.classes=FILE") from error
        folders = (data.train_images, data.train_masks), (data.val_images, data.val_masks)
        opened = [open_pairs(*pair, classes, data.unknown_labels) for pair in folders]
    else:
        splits = data.train_split, data.val_split
        try:
            opened = [open_set(data.source, data.path, split, data.unknown_labels) for split in splits]
        except MissingData as error:
            raise MissingData(f"{error}; --config.data.path=DIR names the folder") from error
    return Sets(*(_first(one, num) for one, num in zip(opened, (data.num_train, data.num_val))))


def _first(data_set: SemanticSet, num: int) -> SemanticSet:
    """The set with its first `num` images; 0 keeps all."""
    if not num or num >= len(data_set.source):
        return data_set
    return data_set._replace(source=Picked(data_set.source, list(range(num))))


def stream(config: ConfigDict, data_set: SemanticSet) -> SemanticStream:
    """The training examples of a set, with the augmentation of `config.views`."""
    recipe = Recipe(**{name: config.views[name] for name in Recipe._fields})
    return SemanticStream(data_set.source, recipe, config.seed)


def shapes(config: ConfigDict) -> list[Sides]:
    """The height and width of a training crop."""
    return [(config.views.crop, config.views.crop)]


def example(config: ConfigDict, sides: Sides) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of every array of an example, by name."""
    return {"image": ((*sides, 3), jnp.uint8), "labels": (sides, jnp.int16), "size": ((2,), jnp.int32)}


# --- network and loss


def network(config: ConfigDict, num_classes: int, platform: str) -> SegmentationModel:
    """Builds encoder and heads.  Raises ValueError for unknown heads, options and blocks."""
    built = dense_encoder.image_encoder(networks.build(config.model, ("image",), platform=platform))
    vit = dense_encoder.fitted(built, config, config.views.crop)
    common = {
        "num_classes": num_classes,
        "blocks": tuple(config.encoder.blocks) or usual_blocks(vit.depth),
        "norm": config.encoder.norm,
        "axis": BATCH,
        "dtype": jnp.dtype(config.model.dtype),
    }
    head = segmentation_heads.build(config.head.name, config.head.options.to_dict(), **common)
    name, options = config.auxiliary.name, config.auxiliary.options.to_dict()
    auxiliary = segmentation_heads.build(name, options, **common) if name else None
    mean, std = tuple(config.preprocess.mean), tuple(config.preprocess.std)
    return SegmentationModel(vit, head, auxiliary, config.encoder.frozen, mean, std)


def initial(model: SegmentationModel, config: ConfigDict, rng: Array) -> Mapping[str, Any]:
    """The variables of an untrained network."""
    return model.init(rng, jnp.zeros((1, config.views.crop, config.views.crop, 3)))


def terms(config: ConfigDict) -> list[str]:
    """The loss terms, by name."""
    return ["head", "auxiliary"] if config.auxiliary.name else ["head"]


def loss(model: SegmentationModel, config: ConfigDict, inputs: Inputs) -> Outputs:
    """Loss of the head plus the weighted loss of the auxiliary head: the mean over devices."""
    batch = inputs.batch
    images = normalise_content(batch["image"], batch["size"], model.mean, model.std)
    labels, variables = batch["labels"].astype(jnp.int32), {"params": inputs.params, STATS: inputs.stats["student"]}
    outputs: Any = model.apply(variables, images, True, inputs.keys.image, mutable=STATS)
    logits, changed = outputs
    values: dict[str, Any] = {"head": cross_entropy(logits.head, labels)}
    total = values["head"]
    if logits.auxiliary is not None:
        values["auxiliary"] = cross_entropy(logits.auxiliary, labels)
        total = total + config.auxiliary.weight * values["auxiliary"]
    total, values = jax.lax.pmean((total, {**values, "loss": total}), BATCH)
    right, counted = jax.lax.psum(pixel_accuracy(logits.head, labels), BATCH)
    metrics = values | {"accuracy": right / jnp.maximum(counted, 1)}
    return Outputs(total, metrics, {}, {"student": changed.get(STATS, {}), "teacher": {}})


# --- inference and metric


def predict(
    built: DenseExperiment, state: TrainState, images: Iterator[UInt8[np.ndarray, "_h _w 3"]]
) -> Iterator[np.ndarray]:
    """Yields the label map int16 [H, W] of every image."""
    compute, batch_size = built.on_this_process(state, "segment")
    test = label_maps.Inference(**{name: built.config.inference[name] for name in label_maps.Inference._fields})
    return label_maps.predict(compute, images, test, batch_size, built.model.image.patch_size)


def evaluate(built: DenseExperiment, state: TrainState, pairs: Pairs) -> Evaluation:
    """Predicts and counts in one pass: the scores of `confusion.scores`, and the counts of all images."""
    total, waiting = confusion.no_counts(len(built.classes)), list[Example]()

    def images() -> Iterator[np.ndarray]:
        for example, pixels in pairs:
            waiting.append(example)
            yield pixels

    for labels in built.predict(state, images()):
        example = waiting.pop(0)
        counts = confusion.counts_of(example["mask"], labels, len(built.classes), example.get("instances"))
        total = total.plus(counts)
    total = Counts(*(processes.gathered(x).sum(0) for x in total))
    gaps = confusion.gaps(total, built.classes)
    return Evaluation(confusion.scores(total), confusion.table(total, built.classes), total, gaps)


# --- for readers


def introduction(built: DenseExperiment) -> tuple[list[str], list[str]]:
    """The blocks that the head reads; warns of masks that a paint program has written."""
    blocks = ", ".join(map(str, built.model.head.blocks))
    return [f"the head reads the blocks {blocks}"], black_and_white(built.sets.train)


def table(scores: Mapping[str, float]) -> Iterator[str]:
    """The lines of the scores in the report."""
    yield from markdown.table([("metric", "%"), *((name, f"{value:.2f}") for name, value in scores.items())])


def comparison(config: ConfigDict, scores: Mapping[str, float]) -> Comparison | None:
    """The paper's numbers of the same head, for ADE20K."""
    head = config.head.name
    if config.data.source != "ade20k" or head not in RECIPES:
        return None
    return Comparison(
        what="numbers with this head on ADE20K",
        values={"mIoU": f"{scores['mIoU']:.1f}"},
        columns=[f"ade20k_{head}_miou"],
        recipes={head: RECIPES[head]()},
        protocol=PROTOCOL,
        code="mmseg",
    )


def figure(
    images: Sequence[np.ndarray],
    truth: Sequence[Example],
    predicted: Mapping[str, Sequence[np.ndarray]],
    classes: Sequence[str],
    credit: str,
) -> Any:
    """A figure of label maps, with a legend."""
    masks = [example["mask"] for example in truth]
    return label_figure(images, masks, predicted, len(classes), credit, classes)


SEGMENTATION = DenseTask(
    name=METHOD,
    check=lambda _: None,
    check_sizes=check_sizes,
    open_sets=open_sets,
    stream=stream,
    shapes=shapes,
    example=example,
    examples=examples,
    head=lambda config: config.head.name,
    network=network,
    initial=initial,
    loss=loss,
    terms=terms,
    predict=predict,
    evaluate=evaluate,
    introduction=introduction,
    protocol=lambda config: {"head": config.head.name},
    table=table,
    comparison=comparison,
    figure=figure,
)
