"""The experiment of a detection run: network, optimiser, mesh, jitted training step, data and evaluation."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from detailclip_jax.dense import class_names, fine_tuning
from detailclip_jax.dense.detection import buckets, coco_scores, coco_sets, sticker_instances
from detailclip_jax.dense.detection.buckets import Bucket
from detailclip_jax.dense.detection.cascade_options import Options
from detailclip_jax.dense.detection.detect import Boxes, Found, Test, draw, predict
from detailclip_jax.dense.detection.detector import TERMS, DetectionModel
from detailclip_jax.dense.detection.detector import build as build_detector
from detailclip_jax.dense.detection.instance_augment import Recipe
from detailclip_jax.dense.detection.instance_batches import DetectionStream, examples
from detailclip_jax.dense.detection.instance_sets import DetectionSet
from detailclip_jax.dense.encoders import arrays_of, load_encoder
from detailclip_jax.kernels.products import matmul_precision
from detailclip_jax.models import towers
from detailclip_jax.models.sizes import size_of
from detailclip_jax.runtime.errors import unknown
from detailclip_jax.training import dense_encoder
from detailclip_jax.training import mesh as meshes
from detailclip_jax.training import optimizer as groups_of
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.types import BATCH, Array, Batch, Params, Scalar

STATS = "batch_stats"
SAMPLED = 4096  # examples whose padding is measured at the start


class Sets(NamedTuple):
    """Training and evaluation set; their class names are the same."""

    train: DetectionSet
    val: DetectionSet


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment(fine_tuning.Experiment):
    """The functions and objects of one detection run.

    experiment = build(config)
    state = experiment.init(config.seed)
    state, values = experiment.train_step(state, experiment.put(batch))
    scores, per_class, results = experiment.evaluate(state)
    """

    @property
    def model(self) -> DetectionModel:
        """Encoder and detector."""
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
        return list(TERMS)

    def load_encoder(self, state: TrainState) -> tuple[TrainState, list[str]]:
        """Replaces the encoder by that of `config.init`; returns the state and lines that say what was loaded.

        Raises FileNotFoundError, CheckpointError or ValueError as `inference.load` does.
        """
        patch = size_of(self.config.model).patch_size
        rows, columns = dense_encoder.grid_of(self.config)
        return load_encoder(self.config, state, (rows * patch, columns * patch))

    def batch_shapes(self, bucket: Bucket) -> dict[str, Any]:
        """Shapes and shardings of a global batch of a bucket."""
        place = meshes.sharded(self.mesh)
        shapes = {name: ((self.config.batch_size, *shape), dtype) for name, (shape, dtype) in self._shapes(bucket)}
        return {name: jax.ShapeDtypeStruct(*shape, sharding=place) for name, shape in shapes.items()}

    def _shapes(self, bucket: Bucket) -> list[tuple[str, tuple[tuple[int, ...], Any]]]:
        return list(one_shapes(self.config, bucket).items())

    def combined_loss(self, params: Params, state: TrainState, batch: Batch) -> Any:
        """Computes the loss of a step, see `fine_tuning.combined_loss`; for gradients outside of a step."""
        return fine_tuning.combined_loss(params, state, batch, device_loss, self.setup)

    def largest_batch(self) -> dict[str, Any]:
        """Shapes and shardings of a global batch of the bucket with the most pixels."""
        height, width = max(self.config.views.buckets, key=lambda sides: sides[0] * sides[1])
        return self.batch_shapes((height, width))

    def stream(self) -> DetectionStream:
        """The training examples by position, augmented."""
        return stream_of(self.config, self.sets.train)

    def evaluate(
        self, state: TrainState, before_each: Callable[[], None] = lambda: None
    ) -> tuple[dict[str, float], dict[str, dict[str, float]], list[dict[str, Any]]]:
        """Detects in the evaluation set and scores with pycocotools; every process takes a part of the images.

        Returns the twelve numbers of boxes and of masks in percent ("bbox_AP", ..., "segm_ARl"; see `scoring.score`),
        the AP of every class, and the detections in COCO's format.  All processes must call it together.
        `before_each` is called before every image, and may raise to stop.
        """
        results = self._results(lambda found: self.predict(state, (pixels for _, pixels in found)), before_each)
        scores, per_class = coco_scores.score(self.sets.val, results)
        return scores, per_class, results

    def ceiling(self, state: TrainState, before_each: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Scores the masks that the mask heads draw in the true boxes with the true classes: the most that they allow.

        Returns the twelve numbers of masks in percent ("ceiling_AP", ...). The class chooses the mask's channel, all
        scores are 1, and there are no false positives. Objects that training leaves out are missed here, although the
        scoring counts them: those beyond `data.max_instances`, those marked `ignore`, and boxes below one pixel.
        Otherwise as `evaluate`.
        """
        limit = self.config.data.max_instances
        compute, test = self._on_this_process(state, self._draw)

        def masks(found: Iterable[tuple[dict[str, Any], np.ndarray]]) -> Iterator[Found]:
            return draw(compute, ((pixels, true_boxes(example, limit)) for example, pixels in found), test)

        scores, _ = coco_scores.score(self.sets.val, self._results(masks, before_each))
        return {f"ceiling_{name}": scores[f"segm_{name}"] for name in coco_scores.NAMES}

    def _results(
        self, compute: Callable[..., Iterator[Found]], before_each: Callable[[], None]
    ) -> list[dict[str, Any]]:
        """What `compute` finds in the evaluation set, in COCO's format; every process takes a part of the images."""
        known: list[tuple[int, tuple[int, int]]] = []

        def own() -> Iterator[tuple[dict[str, Any], np.ndarray]]:
            for found, pixels in examples(self.sets.val.source, jax.process_index(), jax.process_count()):
                before_each()
                known.append((found["image_id"], pixels.shape[:2]))
                yield found, pixels

        results: list[dict[str, Any]] = []
        for number, found in enumerate(compute(own())):
            results += coco_scores.results_of(found, *known[number], self.sets.val.category_ids)
        return coco_scores.gathered(results)

    def predict(self, state: TrainState, images: Iterable[Any]) -> Iterator[Found]:
        """Yields the detections of every image, in its own pixels, computed on this process's devices.

        An image is uint8 [H, W, 3], a PIL image, or the path or the bytes of a file, as in `inference.model.Model`.
        Raises TypeError for one image that is not in a list, and BadImage for an unreadable one.
        """
        arrays = arrays_of(images)
        compute, test = self._on_this_process(state, self.detect)
        return predict(compute, arrays, test)

    def _on_this_process(self, state: TrainState, program: Callable[..., Any]) -> tuple[Callable[..., Any], Test]:
        """The function of a batch that runs `program` on this process's devices, and how images are tested."""
        mesh = fine_tuning.local_mesh(self.mesh)
        params, stats = (fine_tuning.here(tree, mesh) for tree in (state.params, state.batch_stats["student"]))
        test, place = test_of(self.config), meshes.sharded(mesh)
        batch_size = test.batch_size + -test.batch_size % mesh.devices.size

        def compute(*batch: np.ndarray) -> Any:
            return program(params, stats, *jax.device_put(batch, place))

        return compute, test._replace(batch_size=batch_size)

    @functools.cached_property
    def detect(self) -> jax.stages.Wrapped:
        """The compiled function of (params, batch_stats, images, size), for images of any bucket."""
        return self._compiled("detect")

    @functools.cached_property
    def _draw(self) -> jax.stages.Wrapped:
        """The compiled function of (params, batch_stats, images, size, boxes, labels)."""
        return self._compiled("draw")

    def _compiled(self, method: str) -> jax.stages.Wrapped:
        precision = self.config.model.matmul_precision

        def run(params: Params, stats: Params, *batch: Array) -> Any:
            with matmul_precision(precision):
                return self.model.apply({"params": params, STATS: stats}, *batch, method=method)

        return jax.jit(run)

    def introduction(self) -> tuple[list[str], list[str]]:
        """Lines to print when the run starts, and warnings."""
        config = self.config
        mode = "frozen" if config.encoder.frozen else "trained end to end"
        shapes = tuple(config.views.buckets)
        stream = stream_of(config, self.sets.train)
        sizes = stream.geometry(np.arange(SAMPLED))[1].size
        which = buckets.assign(sizes, shapes)
        used = [
            f"{h} x {w} ({share:.0%})"
            for (h, w), share in zip(shapes, np.bincount(which, minlength=len(shapes)) / SAMPLED)
        ]
        lines = [
            f"detection in {config.data.source}: {len(self.sets.train.source):,} images to train on, "
            f"{len(self.sets.val.source):,} to evaluate on, {len(self.classes)} classes",
            *(f"{name}: {note}" for name, one in zip(Sets._fields, self.sets) for note in one.notes),
            f"Cascade Mask R-CNN; encoder {config.model.size}, {mode}",
            f"batches of {len(shapes)} shape{'s' * (len(shapes) != 1)}: {', '.join(used)}; padding is "
            f"{buckets.padding(sizes, which, shapes):.1%} of the pixels",
            groups_of.table_text(self.state_shapes.params, fine_tuning.rules(config)),
            fine_tuning.table_text(self.state_shapes.params, config),
        ]
        return lines, fine_tuning.warnings_of(config)


def true_boxes(example: dict[str, Any], limit: int) -> Boxes:
    """The boxes and classes of an example's objects without crowds, the first `limit` of them."""
    kept = np.flatnonzero(~example["crowd"])[:limit]
    free = limit - len(kept)
    return Boxes(
        np.pad(example["boxes"][kept].astype(np.float32), ((0, free), (0, 0))),
        np.pad(example["classes"][kept].astype(np.int32), (0, free), constant_values=-1),
    )


def one_shapes(config: ConfigDict, bucket: Bucket) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of every array of an example, by name."""
    instances, side = config.data.max_instances, config.data.mask_size
    return {
        "image": ((*bucket, 3), jnp.uint8),
        "size": ((2,), jnp.int32),
        "boxes": ((instances, 4), jnp.float32),
        "labels": ((instances,), jnp.int32),
        "crowd": ((instances,), jnp.bool_),
        "masks": ((instances, side, side), jnp.uint8),
    }


def build(config: ConfigDict, mesh: Mesh | None = None, classes: tuple[str, ...] = ()) -> Experiment:
    """Builds the experiment of a detection config whose encoder fields are adopted; computes nothing yet.

    With the `classes` of an earlier run the config's data are not opened before they are used, and the batch size is
    not checked: predictions need neither.
    Raises ValueError that names the field, its value and what to write instead, and MissingData.
    """
    check_sizes(config)
    dense_encoder.check_recipes(config)
    mesh = meshes.make_mesh(fsdp=config.mesh.fsdp) if mesh is None else mesh
    if not classes:
        meshes.check_batch_size(config.batch_size, mesh)
    sets = None if classes else open_sets(config)
    classes = classes if sets is None else sets.train.classes
    model = build_model(config, len(classes))
    setup, shapes = fine_tuning.set_up(config, model, _variables(config, model), mesh)
    step = fine_tuning.jitted(device_loss, setup, shapes)
    return Experiment(config, setup, classes, sets, shapes, step)


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


def open_sets(config: ConfigDict) -> Sets:
    """Opens the training and the evaluation set.  Raises ValueError and MissingData as the sets do.

    The scenes of stickers do not depend on the run's seed, so that runs of several seeds have the same evaluation set.
    """
    data = config.data
    if data.source not in SOURCES:
        raise ValueError(unknown("data.source", data.source, SOURCES))
    sets = SOURCES[data.source](data)
    if sets.train.classes != sets.val.classes:
        raise ValueError(
            f"the training set has the classes {sets.train.classes}, the evaluation set {sets.val.classes}"
        )
    return sets


def _coco(data: ConfigDict) -> Sets:
    return Sets(
        coco_sets.open_coco(data.path, "train", data.num_train, True, data.follow_links),
        coco_sets.check_links(coco_sets.open_coco(data.path, "val", data.num_val, follow_links=data.follow_links)),
    )


def _coco_format(data: ConfigDict) -> Sets:
    opened = functools.partial(coco_sets.open_format, follow_links=data.follow_links)
    return Sets(
        opened(data.train_json, data.train_images, num=data.num_train, training=True),
        coco_sets.check_links(opened(data.val_json, data.val_images, num=data.num_val)),
    )


def _stickers(data: ConfigDict) -> Sets:
    return Sets(
        sticker_instances.open_stickers(data.labels, "train", data.canvas, data.num_train or 2**24),
        sticker_instances.open_stickers(data.labels, "val", data.canvas, data.num_val or 500),
    )


SOURCES: dict[str, Callable[[ConfigDict], Sets]] = {
    "coco": _coco,
    "coco_format": _coco_format,
    "stickers": _stickers,
}


def stream_of(config: ConfigDict, found: DetectionSet) -> DetectionStream:
    """The training examples of a set, with the augmentation of `config.views`."""
    recipe = Recipe(**{name: config.views[name] for name in Recipe._fields})
    data, shapes = config.data, tuple(tuple(bucket) for bucket in config.views.buckets)
    return DetectionStream(
        found.source, recipe, shapes, config.batch_size, data.max_instances, data.mask_size, config.seed
    )


def test_of(config: ConfigDict) -> Test:
    """How images are tested, from `config.inference`."""
    fields = config.inference
    return Test(fields.short, fields.long, tuple(tuple(bucket) for bucket in fields.buckets), fields.batch_size)


def build_model(config: ConfigDict, num_classes: int) -> DetectionModel:
    """Builds encoder and detector.  Raises ValueError for unknown options."""
    built = dense_encoder.image_encoder(towers.build(config.model, ("image",)))
    vit = dense_encoder.fitted(built, config, config.model.image_size)
    vit = vit.clone(drop_path=0.0) if config.encoder.frozen else vit
    return build_detector(vit, options_of(config), num_classes, BATCH)


def options_of(config: ConfigDict) -> Options:
    """The detector's numbers: the protocol's, and `detector.options` in their place.  Raises ValueError if unknown."""
    given = config.detector.options.to_dict()
    names = {field.name for field in dataclasses.fields(Options)}
    for name in given:
        if name not in names:
            raise ValueError(unknown("detector.options", name, sorted(names)))
        if name in ("mean", "std"):
            raise ValueError(
                f"detector.options has {name}, which the encoder reads too; set the field of that name in preprocess"
            )
    known = {"mean": tuple(config.preprocess.mean), "std": tuple(config.preprocess.std)}
    return Options(**known, **{**given, "positions": dense_encoder.grid_of(config)})


def _variables(config: ConfigDict, model: DetectionModel) -> fine_tuning.Variables:
    """The function from a key to parameters and BatchNorm statistics."""
    bucket = min(config.views.buckets, key=lambda sides: sides[0] * sides[1])
    shapes = one_shapes(config, tuple(bucket)).items()

    def variables(rng: Array) -> tuple[Params, Params]:
        batch = {name: jnp.zeros((1, *shape), dtype) for name, (shape, dtype) in shapes}
        created: Any = model.clone(axis=None).init(rng, batch, train=False)
        return created["params"], created.get(STATS, {})

    return variables


def device_loss(
    params: Params, stats: Params, batch: Batch, keys: Array, setup: fine_tuning.TaskSetup
) -> tuple[Scalar, dict[str, Array], Params]:
    """The sum of the loss terms of the batch of all devices, and all of them; see `fine_tuning.train_step`."""
    outputs: Any = setup.model.apply({"params": params, STATS: stats}, batch, True, keys, mutable=STATS)
    losses, changed = outputs
    return losses.total, {**losses._asdict(), "loss": losses.total}, changed.get(STATS, {})
