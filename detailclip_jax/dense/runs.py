"""Runs of dense tasks in Python: fine-tunes an encoder for segmentation or detection, and loads the result.

    from detailclip_jax.dense import runs

    train.train(runs.prepare(config, "runs/ade20k_upernet"))          # as the command `transfer` does
    experiment, state, step = runs.load("runs/ade20k_upernet")

`predictions` has the shorter way to predictions for images, `prediction_figures` draws those of several runs.
"""

from collections.abc import Iterable
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.config import run_config
from detailclip_jax.dense import class_names, dense_experiment, dense_loop
from detailclip_jax.dense.dense_experiment import DenseExperiment, DenseTask, Sets
from detailclip_jax.dense.detection.detection_task import DETECTION
from detailclip_jax.dense.segmentation.segmentation_task import SEGMENTATION
from detailclip_jax.interop import published
from detailclip_jax.runtime import wandb_writer
from detailclip_jax.runtime.progress import Console
from detailclip_jax.training import dense_encoder
from detailclip_jax.training.adopted_config import config_of, run_of
from detailclip_jax.training.checkpoint import load_state
from detailclip_jax.training.session import Run
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.training.workdirs import no_run

TASKS = {task.name: task for task in (SEGMENTATION, DETECTION)}
Loaded = tuple[DenseExperiment, TrainState, int]  # with the step


def task_of(config: ConfigDict, name: str = "the config") -> DenseTask:
    """Returns the task of a config.  Raises ValueError for another kind; `name` says in it where the config is from."""
    method = config.get("method")
    if method not in TASKS:
        raise ValueError(
            f"{name} is one of method {method!r}, not of {' or '.join(TASKS)}; "
            "configs/transfer/ has those, and python -m detailclip_jax.main runs the others"
        )
    return TASKS[method]


def prepare(config: ConfigDict, workdir: str | Path, given: Iterable[str] = ()) -> Run:
    """Checks the config of a dense task, opens the data, checks the workdir and builds the experiment; writes nothing.

    `given`: dotted names of fields that the user has set (see `adopted`).
    Raises ValueError, FileNotFoundError or MissingData, with a message for the user.
    """
    config = adopted(config, given, workdir)
    task_of(config).check(config)
    wandb_writer.check(config.logging.wandb)
    built = build(config)
    if config.batch_size % jax.process_count():
        raise ValueError(f"batch_size {config.batch_size} does not divide over {jax.process_count()} processes")
    run_config.check_workdir(Path(workdir), config)
    class_names.check(class_names.read(workdir), built.classes)
    console, task = Console(enabled=jax.process_index() == 0), dense_loop.loop_task(built.task)
    return Run(config, Path(workdir), built, built.sets.train.source, console, task, built.sets.val.source)


def adopted(config: ConfigDict, given: Iterable[str] = (), workdir: str | Path | None = None) -> ConfigDict:
    """Returns the config with the encoder's fields from `config.init`; `given` names fields that the user has set.

    `config.init` may be a run of a dense task too, whose fine-tuned encoder is taken.  If a run from the same `init`
    goes on in `workdir`, the fields are those of its own config, and `init` need not exist any more.
    Raises ValueError for another kind of config, and for a given field of `model` that has no effect or contradicts the
    encoder.
    """
    task_of(config)
    given = list(given)
    if "model.interpolation" in given:
        raise ValueError(
            "model.interpolation has no effect in this task: encoder.positions says how positions are resized once, "
            "encoder.other_sizes how they are interpolated for images of another size"
        )
    config = run_config.as_in_run(config, workdir, given)
    if not config.init:
        return ConfigDict(config.to_dict())
    source = run_of(config, workdir)
    if source is None:
        published.fetch_all(config)
        source = config_of(config.init)
        if config.weights == "ema" and not methods.build(source).ema:
            raise ValueError(
                f"weights 'ema': the method of {config.init}, {source.method}, has no teacher; "
                "give --config.weights=student"
            )
    return dense_encoder.adopt(config, source, given)


def build(
    config: ConfigDict, mesh: Mesh | None = None, sets: Sets | None = None, classes: tuple[str, ...] = ()
) -> DenseExperiment:
    """Builds the experiment of a config whose encoder fields are adopted; see `dense_experiment.build`."""
    return dense_experiment.build(task_of(config), config, mesh, sets, classes)


def load(workdir: str | Path, step: int | None = None) -> Loaded:
    """Loads a checkpoint of a run, by default the newest: its experiment, its state and its step.

        experiment, state, step = load("runs/ade20k_upernet")
        (labels,) = experiment.predict(state, [image])

    The run's data are opened when `experiment.sets` is first used: predictions need none.  The mesh and the attention
    kernel are those of this machine, not of the training.  It only reads, so the run may be training meanwhile.
    Raises FileNotFoundError for a folder without checkpoints or without this step, CheckpointError for an unreadable
    checkpoint, and ValueError for a run of another kind.
    """
    config = config_in(workdir)
    config.model.attention, config.mesh.fsdp = "auto", 1
    built = build(config, classes=class_names.read(workdir))
    return built, *load_state(workdir, built.state_shapes, step)


def config_in(workdir: str | Path) -> ConfigDict:
    """The config of a run.

    Raises FileNotFoundError for a folder without one, and ValueError for another kind.
    """
    file = Path(workdir) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(no_run(workdir))
    config = run_config.read(file)
    task_of(config, str(workdir))
    return config
