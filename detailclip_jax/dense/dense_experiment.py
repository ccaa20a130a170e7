"""A dense task, and the experiment of a run of one: network, optimiser, mesh, jitted training step, data, evaluation.

`DenseTask` says what differs between segmentation and detection; everything else is here and in `fine_tuning`, once.
The tasks are `segmentation.segmentation_task.SEGMENTATION` and `detection.detection_task.DETECTION`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from detailclip_jax import methods
from detailclip_jax.config import run_config
from detailclip_jax.config.sizes import size_of
from detailclip_jax.data.decoding import BUDGET, decode_whole
from detailclip_jax.data.pipeline import Pipeline, options_of
from detailclip_jax.dense import class_names, fine_tuning
from detailclip_jax.dense.set_examples import Example
from detailclip_jax.inference.model import choose_weights, pixels
from detailclip_jax.kernels.products import matmul_precision
from detailclip_jax.models import networks
from detailclip_jax.renamed import former_names
from detailclip_jax.runtime.files import read_bytes
from detailclip_jax.training import checkpoint, dense_encoder
from detailclip_jax.training import mesh as meshes
from detailclip_jax.training import optimizer as groups_of
from detailclip_jax.training.forward_pass import STATS
from detailclip_jax.training.session import COUNTS
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.training.train_step import compiled
from detailclip_jax.training.trainable import Trainable
from detailclip_jax.types import Array, Params

__getattr__ = former_names(__name__)

Sides = tuple[int, int]  # height and width in pixels
Pairs: TypeAlias = Iterable[tuple[Example, UInt8[np.ndarray, "_h _w 3"]]]  # examples and their images


class Sets(NamedTuple):
    """Training and evaluation set, with `source` and `classes`; their class names are the same."""

    train: Any
    val: Any


class Evaluation(NamedTuple):
    """The result of an evaluation: scores in percent, those of every class by name, and warnings.

    found: counts of all pixels in segmentation, all detections in COCO's format in detection.
    """

    scores: dict[str, float]
    per_class: dict[str, Any]
    found: Any
    warnings: Sequence[str] = ()


class Comparison(NamedTuple):
    """How a run compares with the paper's table of dense tasks.

    what: of the paper's numbers, for the heading.
    values: the run's, as text, by the title of the column.
    columns: the paper's columns of the same numbers.
    recipes: the configs of published recipes, by name; the run is compared with the nearest.
    protocol: fields, or groups of fields, on which a published number depends.
    code: the published code whose differences the page of the task lists.
    """

    what: str
    values: Mapping[str, str]
    columns: Sequence[str]
    recipes: Mapping[str, ConfigDict]
    protocol: Sequence[str]
    code: str


Evaluate: TypeAlias = Callable[[Any, TrainState, Pairs], Evaluation]  # of an experiment, on this process's examples


class DenseTask(NamedTuple):
    """What differs between the dense tasks.

    The encoder's fields of the configs that the functions get are adopted; `built` is the task's `DenseExperiment`.
    """

    name: str  # `method` of its configs
    check: Callable[[ConfigDict], None]  # raises ValueError if a package that a run needs is missing
    check_sizes: Callable[[ConfigDict], None]  # raises ValueError for sizes that do not fit the encoder's patches

    # data
    open_sets: Callable[[ConfigDict], Sets]  # raises ValueError and MissingData
    stream: Callable[[ConfigDict, Any], Any]  # the training examples of a set by position, augmented
    shapes: Callable[[ConfigDict], Sequence[Sides]]  # of the images in training batches
    example: Callable[[ConfigDict, Sides], dict[str, tuple[tuple[int, ...], Any]]]  # shape and dtype of its arrays
    examples: Callable[..., Iterator[tuple[Example, np.ndarray]]]  # of a source, in order; see `set_examples.examples`

    # network and loss
    head: Callable[[ConfigDict], str]  # its name
    network: Callable[[ConfigDict, int, str], Any]  # encoder and heads for a number of classes, on a platform
    initial: Callable[[Any, ConfigDict, Array], Mapping[str, Any]]  # variables of a network, from a key
    loss: fine_tuning.DenseLoss
    terms: Callable[[ConfigDict], Sequence[str]]  # of the loss, by name

    # inference and metric
    predict: Callable[[Any, TrainState, Iterator[np.ndarray]], Iterator[Any]]  # of (built, state, images)
    evaluate: Evaluate

    # for readers
    introduction: Callable[[Any], tuple[list[str], list[str]]]  # of `built`: lines, and warnings
    protocol: Callable[[ConfigDict], dict[str, Any]]  # what a reader must know to compare the scores
    table: Callable[[Mapping[str, float]], Iterator[str]]  # lines of the report, from the scores
    comparison: Callable[[ConfigDict, Mapping[str, float]], Comparison | None]  # with the paper's numbers
    figure: Callable[..., Any]  # of (images, their examples or (), predictions by run, class names, credit)

    more: Callable[[ConfigDict], Mapping[str, Evaluate]] = lambda config: {}  # more evaluations, by title; scores only
    found_file: str = ""  # of the workdir, for what the last evaluation has found; "": it is not written
    counts: tuple[str, str] = COUNTS  # names of the counts of unreadable and of shortened examples


@dataclasses.dataclass(frozen=True, eq=False)
class DenseExperiment(Trainable):
    """The functions and objects of one run of a dense task.

    experiment = runs.build(config)
    state = experiment.init(config.seed)  # with an untrained encoder, see `load_encoder`
    state, values = experiment.train_step(state, experiment.put(batch))
    evaluation = experiment.evaluate(state)
    """

    task: DenseTask
    classes: tuple[str, ...]
    opened: Sets | None  # None: opened when `sets` is first used
    _programs: dict[str, jax.stages.Wrapped] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def sets(self) -> Sets:
        """The training and the evaluation set.  Raises as `open_sets`, and ValueError if they have other classes."""
        if self.opened is not None:
            return self.opened
        sets = self.task.open_sets(self.config)
        class_names.check(self.classes, sets.train.classes)
        return sets

    def load_encoder(self, state: TrainState) -> tuple[TrainState, list[str]]:
        """Replaces the encoder by that of `config.init`; returns the state and lines that say what was loaded.

        Raises FileNotFoundError, CheckpointError or ValueError as `inference.load` does.
        """
        config = self.config
        if not config.init:
            return state, ["untrained encoder (--config.init=CHECKPOINT loads one)"]
        step = checkpoint.pick_step(config.init)
        saved = checkpoint.load_saved(config.init, step)  # `checkpoint.load` may interpolate the positions
        which, params = choose_weights(saved.variables, config.weights or None, methods.build(saved.config).weights)
        vit = dense_encoder.image_encoder(networks.build(saved.config.model, ("image",)))
        patch = size_of(config.model).patch_size
        rows, columns = dense_encoder.grid_of(config)
        size = rows * patch, columns * patch
        encoder, lines = dense_encoder.weights(vit, params["image"], config, size, saved.grid)
        run = saved.config if saved.run is None else saved.run
        lines = [f"encoder of {config.init}: {run.method}, {which}, step {step}", *lines]

        def place(new: Any, old: Array) -> Array:
            host = np.asarray(new)
            if host.shape != old.shape:
                raise ValueError(f"the encoder has a tensor of shape {host.shape} where this run has {old.shape}")
            return jax.make_array_from_callback(host.shape, old.sharding, lambda index: host[index])

        image = jax.tree.map(place, encoder, dict(state.params["image"]))  # every process fills its own devices
        return state.replace(params={**state.params, "image": image}), lines

    def batch_shapes(self, sides: Sides | None = None) -> dict[str, Any]:
        """Shapes and shardings of a global batch of images of (height, width), by default the largest."""
        sides = max(self.task.shapes(self.config), key=math.prod) if sides is None else sides
        place, size = meshes.sharded(self.mesh), self.config.batch_size
        arrays = self.task.example(self.config, sides).items()
        return {name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=place) for name, (shape, dtype) in arrays}

    def batches(self, start: int = 0, num_workers: int | None = None, bad_list: str | Path = "") -> Pipeline:
        """Opens this process's batches; starts after `start` examples, counted over all processes."""
        options = options_of(self.config, jax.process_index(), jax.process_count(), start, bad_list)
        if num_workers is not None:
            options = dataclasses.replace(options, num_workers=num_workers)
        return Pipeline(self.task.stream(self.config, self.sets.train), options)

    def evaluate(
        self, state: TrainState, before_each: Callable[[], None] = lambda: None, evaluation: Evaluate | None = None
    ) -> Evaluation:
        """Evaluates on the evaluation set, of which every process takes a part; all processes must call it together.

        `before_each` is called before every image, and may raise to stop.  `evaluation`: another one than the task's.
        """

        def pairs() -> Pairs:
            for pair in self.task.examples(self.sets.val.source, jax.process_index(), jax.process_count()):
                before_each()
                yield pair

        return (evaluation or self.task.evaluate)(self, state, pairs())

    def predict(self, state: TrainState, images: Iterable[Any]) -> Iterator[Any]:
        """Yields the prediction for every image, at its own size, computed on this process's devices.

        It is a label map int16 [H, W] in segmentation, and a `detect.Found` in detection.  An image is uint8 [H, W, 3],
        a PIL image, or the path or the bytes of a file, as in `inference.model.Model`.
        Raises TypeError for one image that is not in a list, and BadImage for an unreadable one.
        """
        return self.task.predict(self, state, arrays_of(images))

    def on_this_process(self, state: TrainState, method: str) -> tuple[Callable[..., Any], int]:
        """Returns a function of a batch that applies a method of the network on this process's devices, and its size.

        The size is `inference.batch_size`, rounded up to a multiple of the devices.
        """
        devices = self.mesh.devices.flat
        mesh = meshes.make_mesh([device for device in devices if device.process_index == jax.process_index()])
        params, stats = (fine_tuning.here(tree, mesh) for tree in (state.params, state.batch_stats["student"]))
        program, place, size = self.compiled(method), meshes.sharded(mesh), self.config.inference.batch_size

        def compute(*batch: np.ndarray) -> Any:
            return program(params, stats, *jax.device_put(batch, place))

        return compute, size + -size % mesh.devices.size

    def compiled(self, method: str) -> jax.stages.Wrapped:
        """Returns the jitted function of (params, batch_stats, *batch) that applies a method of the network."""
        precision = self.config.model.matmul_precision

        def run(params: Params, stats: Params, *batch: Array) -> Any:
            with matmul_precision(precision):
                return self.model.apply({"params": params, STATS: stats}, *batch, method=method)

        return self._programs.setdefault(method, jax.jit(run))

    def introduction(self) -> tuple[list[str], list[str]]:
        """Lines to print when the run starts, and warnings."""
        config, sets = self.config, self.sets
        of_task, warnings = self.task.introduction(self)
        lines = [
            f"{self.task.name} of {config.data.source}: {len(sets.train.source):,} images to train on, "
            f"{len(sets.val.source):,} to evaluate on, {len(self.classes)} classes",
            f"head {self.task.head(config)}; encoder {config.model.size}, {mode_of(config)}",
            *of_task,
            groups_of.table_text(self.state_shapes.params, fine_tuning.rules(config)),
            fine_tuning.table_text(self.state_shapes.params, config),
        ]
        return lines, [*fine_tuning.warnings_of(config), *warnings]


def build(
    task: DenseTask,
    config: ConfigDict,
    mesh: Mesh | None = None,
    sets: Sets | None = None,
    classes: tuple[str, ...] = (),
) -> DenseExperiment:
    """Builds the experiment of a task's config whose encoder fields are adopted; computes nothing yet.

    The config's data are opened unless `sets` are given.  With the `classes` of an earlier run they are not opened
    before they are used, and the batch size is not checked: predictions need neither.
    Raises ValueError that names the field, its value and what to write instead, and MissingData.
    """
    run_config.check_fields(config)
    task.check_sizes(config)
    mesh = meshes.make_mesh(fsdp=config.mesh.fsdp) if mesh is None else mesh
    if not classes:
        meshes.check_batch_size(config.batch_size, mesh)
    sets = task.open_sets(config) if sets is None and not classes else sets
    classes = classes if sets is None else sets.train.classes
    model = task.network(config, len(classes), meshes.platform_of(mesh))

    variables = functools.partial(task.initial, model, config)
    setup, layout, initial, shapes = fine_tuning.set_up(config, model, variables, task.loss, mesh)
    step = compiled(setup, layout, shapes, config.model.matmul_precision)
    return DenseExperiment(config, model, setup, layout, shapes, initial, step, task, classes, sets)


def mode_of(config: ConfigDict) -> str:
    """Says how the encoder is trained."""
    return "frozen" if config.encoder.frozen else "trained end to end"


def arrays_of(images: Iterable[Any]) -> Iterator[UInt8[np.ndarray, "_h _w 3"]]:
    """Yields images as RGB arrays: uint8 [H, W, 3], PIL images, and paths or bytes of files, as in `model.Model`.

    Raises TypeError at once for a single image that is not in a list, and BadImage for an unreadable one or one that
    is too large to be decoded at its own size.
    """
    if isinstance(images, str | bytes | Path | Image.Image | np.ndarray):
        raise TypeError(f"predict takes a list or an iterator of images, got one {type(images).__name__}")

    def array(image: Any) -> UInt8[np.ndarray, "_h _w 3"]:
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,):
            return image
        with BUDGET.scope():
            encoded = read_bytes(image) if isinstance(image, str | Path) else image
            return decode_whole(encoded) if isinstance(encoded, bytes) else pixels(encoded)

    return map(array, images)
