"""The experiment of a segmentation run: network, optimiser, mesh, jitted training step, data and evaluation."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from detailclip_jax.data.held_out import Picked
from detailclip_jax.data.sources import MissingData
from detailclip_jax.dense import class_names, fine_tuning
from detailclip_jax.dense.encoders import arrays_of, load_encoder
from detailclip_jax.dense.segmentation import confusion, segmentation_heads
from detailclip_jax.dense.segmentation.confusion import Counts
from detailclip_jax.dense.segmentation.label_augment import Recipe
from detailclip_jax.dense.segmentation.label_batches import SemanticStream, examples
from detailclip_jax.dense.segmentation.label_maps import Inference, at_least_a_patch, predict
from detailclip_jax.dense.segmentation.segmentation_loss import cross_entropy, pixel_accuracy
from detailclip_jax.dense.segmentation.segmentation_network import SegmentationModel
from detailclip_jax.dense.segmentation.segmentation_sets import (
    PAIRS,
    SemanticSet,
    black_and_white,
    check_links,
    open_pairs,
    open_set,
    read_classes,
)
from detailclip_jax.dense.segmentation.sticker_labels import open_stickers
from detailclip_jax.dense.taps import usual_blocks
from detailclip_jax.kernels.products import matmul_precision
from detailclip_jax.models import towers
from detailclip_jax.models.patches import normalise_pixels
from detailclip_jax.models.sizes import size_of
from detailclip_jax.runtime import processes
from detailclip_jax.training import dense_encoder
from detailclip_jax.training import mesh as meshes
from detailclip_jax.training import optimizer as groups_of
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.types import BATCH, Array, Batch, Float, Params, Scalar, UInt8

STATS = "batch_stats"
TERMS = ("head", "auxiliary")


class Sets(NamedTuple):
    """Training and evaluation set; their class names are the same."""

    train: SemanticSet
    val: SemanticSet


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment(fine_tuning.Experiment):
    """The functions and objects of one segmentation run.

    experiment = build(config)
    state = experiment.init(config.seed)
    state, values = experiment.train_step(state, experiment.put(batch))
    scores, counts = experiment.evaluate(state)
    """

    @property
    def model(self) -> SegmentationModel:
        """Encoder and heads."""
        return self.setup.model

    @functools.cached_property
    def sets(self) -> Sets:
        """The training and the evaluation set.  Raises as `open_sets`, and ValueError if they have other classes."""
        if self.given is not None:
            return self.given
        sets = open_sets(self.config)
        class_names.check(self.classes, sets.train.classes)
        return sets

    @property
    def terms(self) -> list[str]:
        """The loss terms, by name."""
        return list(TERMS if self.config.auxiliary.name else TERMS[:1])

    def load_encoder(self, state: TrainState) -> tuple[TrainState, list[str]]:
        """Replaces the encoder by that of `config.init`; returns the state and lines that say what was loaded.

        Raises FileNotFoundError, CheckpointError or ValueError as `inference.load` does.
        """
        return load_encoder(self.config, state, self.config.views.crop)

    def batch_shapes(self) -> dict[str, Any]:
        """Shapes and shardings of a global batch."""
        size, side = self.config.batch_size, self.config.views.crop
        shapes = {
            "image": ((size, side, side, 3), jnp.uint8),
            "labels": ((size, side, side), jnp.int16),
            "size": ((size, 2), jnp.int32),
        }
        place = meshes.sharded(self.mesh)
        return {name: jax.ShapeDtypeStruct(*shape, sharding=place) for name, shape in shapes.items()}

    def combined_loss(self, params: Params, state: TrainState, batch: Batch) -> Any:
        """Computes the loss of a step, see `fine_tuning.combined_loss`; for gradients outside of a step."""
        return fine_tuning.combined_loss(params, state, batch, device_loss, self.setup)

    def largest_batch(self) -> dict[str, Any]:
        """Shapes and shardings of a global batch: all have the same."""
        return self.batch_shapes()

    def stream(self) -> SemanticStream:
        """The training examples by position, augmented."""
        return SemanticStream(self.sets.train.source, recipe_of(self.config), self.config.seed)

    def evaluate(
        self, state: TrainState, before_each: Callable[[], None] = lambda: None
    ) -> tuple[dict[str, float], Counts]:
        """Predicts the evaluation set and counts in one pass; every process takes a part of the images.

        Returns the scores in percent (see `metrics.scores`) and the counts of all images.  All processes must call it
        together.  `before_each` is called before every image, and may raise to stop.
        """
        where = jax.process_index(), jax.process_count()
        total = confusion.no_counts(len(self.classes))
        kept: list[tuple[np.ndarray, Any]] = []

        def images() -> Iterator[np.ndarray]:
            for image, mask, instances in examples(self.sets.val.source, *where):
                before_each()
                kept.append((mask, instances))
                yield image

        for labels in self.predict(state, images()):
            mask, instances = kept.pop(0)
            total = total.plus(confusion.counts_of(mask, labels, len(self.classes), instances))
        total = Counts(*(processes.gathered(x).sum(0) for x in total))
        return confusion.scores(total), total

    def predict(self, state: TrainState, images: Iterable[Any]) -> Iterator[np.ndarray]:
        """Yields the label map int16 [H, W] of every image, at its own size, computed on this process's devices.

        An image is uint8 [H, W, 3], a PIL image, or the path or the bytes of a file, as in `inference.model.Model`.
        Raises TypeError for one image that is not in a list, and BadImage for an unreadable one.
        """
        arrays = arrays_of(images)
        mesh = fine_tuning.local_mesh(self.mesh)
        params, stats = (fine_tuning.here(tree, mesh) for tree in (state.params, state.batch_stats["student"]))
        batch_size = self.config.inference.batch_size + -self.config.inference.batch_size % mesh.devices.size
        place = meshes.sharded(mesh)

        def logits_of(windows: UInt8[np.ndarray, "B h w 3"]) -> Array:
            return self.logits(params, stats, jax.device_put(windows, place))

        test = Inference(**{name: self.config.inference[name] for name in Inference._fields})
        return predict(logits_of, arrays, test, batch_size, self.model.image.patch_size)

    @functools.cached_property
    def logits(self) -> jax.stages.Wrapped:
        """The compiled function of (params, batch_stats, uint8 windows), for windows of any shape."""
        precision, normalise = self.config.model.matmul_precision, _normalise(self.config)
        patch_size = self.model.image.patch_size

        def run(params: Params, stats: Params, windows: UInt8[Array, "B h w 3"]) -> Float[Array, "B r c K"]:
            with matmul_precision(precision):
                pixels = at_least_a_patch(normalise(windows), patch_size)
                logits: Any = self.model.apply({"params": params, STATS: stats}, pixels)
                return logits.head

        return jax.jit(run)

    def introduction(self) -> tuple[list[str], list[str]]:
        """Lines to print when the run starts, and warnings."""
        config = self.config
        mode = "frozen" if config.encoder.frozen else "trained end to end"
        blocks = ", ".join(map(str, self.model.head.blocks))
        lines = [
            f"segmentation of {config.data.source}: {len(self.sets.train.source):,} images to train on, "
            f"{len(self.sets.val.source):,} to evaluate on, {len(self.classes)} classes",
            f"head {config.head.name} on blocks {blocks}; encoder {config.model.size}, {mode}",
            groups_of.table_text(self.state_shapes.params, fine_tuning.rules(config)),
            fine_tuning.table_text(self.state_shapes.params, config),
        ]
        return lines, [*fine_tuning.warnings_of(config), *black_and_white(self.sets.train)]


def build(
    config: ConfigDict, mesh: Mesh | None = None, sets: Sets | None = None, classes: tuple[str, ...] = ()
) -> Experiment:
    """Builds the experiment of a segmentation config whose encoder fields are adopted; computes nothing yet.

    The config's data are opened unless `sets` are given.  With the `classes` of an earlier run they are not opened
    before they are used, and the batch size is not checked: predictions need neither.
    Raises ValueError that names the field, its value and what to write instead, and MissingData.
    """
    check_crop(config)
    dense_encoder.check_recipes(config)
    mesh = meshes.make_mesh(fsdp=config.mesh.fsdp) if mesh is None else mesh
    if not classes:
        meshes.check_batch_size(config.batch_size, mesh)
    sets = open_sets(config) if sets is None and not classes else sets
    classes = classes if sets is None else sets.train.classes
    model = build_model(config, len(classes))
    setup, shapes = fine_tuning.set_up(config, model, _variables(config, model), mesh)
    step = fine_tuning.jitted(device_loss, setup, shapes)
    return Experiment(config, setup, classes, sets, shapes, step)


def check_crop(config: ConfigDict) -> None:
    """Raises ValueError, with the nearest sizes, if patches do not fill a crop or a window."""
    patch = size_of(config.model).patch_size
    for name, size in (("views.crop", config.views.crop), ("inference.window", config.inference.window)):
        if size % patch:
            below = size // patch * patch
            raise ValueError(
                f"{name} {size} is not a multiple of the patch size {patch}; the nearest multiples are {below} and "
                f"{below + patch}"
            )


def open_sets(config: ConfigDict) -> Sets:
    """Opens the training and the evaluation set.  Raises ValueError and MissingData as the sets do.

    The scenes of stickers do not depend on the run's seed, so that runs of several seeds have the same evaluation set.
    """
    data = config.data
    if data.source == "stickers":
        train = open_stickers(data.labels, data.train_split, data.canvas, data.num_train or 2**24)
        return Sets(train, open_stickers(data.labels, data.val_split, data.canvas, data.num_val or 500))
    if data.source == PAIRS:
        return _open_folders(data)
    try:
        train, val = (
            open_set(data.source, data.path, split, data.unknown_labels, data.follow_links)
            for split in (data.train_split, data.val_split)
        )
    except MissingData as error:
        raise MissingData(f"{error}; --config.data.path=DIR names the folder") from error
    return Sets(_first(train, data.num_train), _evaluated(val, data.num_val))


def _open_folders(data: ConfigDict) -> Sets:
    """The sets of two pairs of folders.  Raises MissingData that names the field of a missing folder or class list."""
    for field in ("train_images", "train_masks", "val_images", "val_masks"):
        if not data[field] or not Path(data[field]).is_dir():
            raise MissingData(
                f"data.{field} {data[field]!r} is not a folder (data.source=pairs); give --config.data.{field}=DIR"
            )
    try:
        classes = read_classes(data.classes)
    except MissingData as error:
        raise MissingData(f"{error} (data.source=pairs); give --config.data.classes=FILE") from error
    options = classes, data.unknown_labels, data.follow_links
    train = open_pairs(data.train_images, data.train_masks, *options)
    val = open_pairs(data.val_images, data.val_masks, *options)
    return Sets(_first(train, data.num_train), _evaluated(val, data.num_val))


def recipe_of(config: ConfigDict) -> Recipe:
    """The augmentation of `config.views`."""
    return Recipe(**{name: config.views[name] for name in Recipe._fields})


def _evaluated(found: SemanticSet, num: int) -> SemanticSet:
    """The first `num` images of an evaluation set, 0 for all, after `check_links`."""
    checked = range(min(num or len(found.source), len(found.source)))
    return _first(check_links(found, checked), num)


def _first(found: SemanticSet, num: int) -> SemanticSet:
    """The set with its first `num` images; 0 keeps all."""
    if not num or num >= len(found.source):
        return found
    return found._replace(source=Picked(found.source, list(range(num))))


def build_model(config: ConfigDict, num_classes: int) -> SegmentationModel:
    """Builds encoder and heads.  Raises ValueError for unknown heads, options and blocks."""
    built = dense_encoder.image_encoder(towers.build(config.model, ("image",)))
    vit = dense_encoder.fitted(built, config, config.views.crop)
    given = {
        "num_classes": num_classes,
        "blocks": tuple(config.encoder.blocks) or usual_blocks(vit.depth),
        "norm": config.encoder.norm,
        "axis": BATCH,
        "dtype": jnp.dtype(config.model.dtype),
    }
    head = segmentation_heads.build(config.head.name, config.head.options.to_dict(), **given)
    name, options = config.auxiliary.name, config.auxiliary.options.to_dict()
    auxiliary = segmentation_heads.build(name, options, **given) if name else None
    return SegmentationModel(vit, head, auxiliary, config.encoder.frozen)


def _variables(config: ConfigDict, model: SegmentationModel) -> fine_tuning.Variables:
    """The function from a key to parameters and BatchNorm statistics."""
    image = jnp.zeros((1, config.views.crop, config.views.crop, 3))

    def variables(rng: Array) -> tuple[Params, Params]:
        created: Any = model.init(rng, image)
        return created["params"], created.get(STATS, {})

    return variables


def device_loss(
    params: Params, stats: Params, batch: Batch, keys: Array, setup: fine_tuning.TaskSetup
) -> tuple[Scalar, dict[str, Array], Params]:
    """Loss of the head plus the weighted loss of the auxiliary head: the mean over devices; see `fine_tuning`."""
    total, values, stats = _own_loss(params, stats, batch, keys, setup)
    right, counted = values.pop("pixels")
    total, values = jax.lax.pmean((total, values), BATCH)
    accuracy = jax.lax.psum(right, BATCH) / jnp.maximum(jax.lax.psum(counted, BATCH), 1)
    return total, values | {"accuracy": accuracy}, stats


def _own_loss(
    params: Params, stats: Params, batch: Batch, keys: Array, setup: fine_tuning.TaskSetup
) -> tuple[Scalar, dict[str, Any], Params]:
    """The loss of a device's share of the batch, what to log of it, and the new BatchNorm statistics."""
    images, labels = prepared(batch, setup.config), batch["labels"].astype(jnp.int32)
    variables = {"params": params, STATS: stats}
    outputs: Any = setup.model.apply(variables, images, True, keys, mutable=STATS)
    logits, changed = outputs
    values: dict[str, Any] = {"head": cross_entropy(logits.head, labels)}
    total = values["head"]
    if logits.auxiliary is not None:
        values["auxiliary"] = cross_entropy(logits.auxiliary, labels)
        total = total + setup.config.auxiliary.weight * values["auxiliary"]
    return total, {**values, "loss": total, "pixels": pixel_accuracy(logits.head, labels)}, changed.get(STATS, {})


def prepared(batch: Batch, config: ConfigDict) -> Float[Array, "B S S 3"]:
    """Normalises the images of a batch; padding becomes 0, the mean of the pixels."""
    images = _normalise(config)(batch["image"])
    side = jnp.arange(images.shape[1])
    inside = (side[None, :, None] < batch["size"][:, :1, None]) & (side[None, None] < batch["size"][:, 1:, None])
    return jnp.where(inside[..., None], images, 0)


def _normalise(config: ConfigDict) -> Any:
    mean, std = tuple(config.preprocess.mean), tuple(config.preprocess.std)
    return functools.partial(normalise_pixels, mean=mean, std=std)
