"""What the runs of both dense tasks share: adopting an encoder, batches, stopping, and how to need less memory."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.config import detection, run_config, transfer
from detailclip_jax.data.pipeline import Pipeline
from detailclip_jax.data.stickers.sprites import ATTRIBUTION
from detailclip_jax.run.init_from import config_of
from detailclip_jax.run.loop import bad_list, usable_workers
from detailclip_jax.run.session import Run, Task
from detailclip_jax.runtime.devices import usable_cores
from detailclip_jax.runtime.interrupt import Interrupt
from detailclip_jax.runtime.progress import Console
from detailclip_jax.runtime.signals import SIGNALS, Stopped
from detailclip_jax.training import class_names, dense_encoder
from detailclip_jax.training.train_state import TrainState

METHODS = (transfer.METHOD, detection.METHOD)


def adopted(config: ConfigDict, given: Iterable[str] = ()) -> ConfigDict:
    """Returns the config with the encoder's fields from `config.init`; `given` names fields that the user has set.

    Raises ValueError for another kind of run, and for a given field of `model` that contradicts the encoder.
    """
    check_kind(config)
    if not config.init:
        return ConfigDict(config.to_dict())
    source = config_of(config.init)
    if source.method in METHODS:
        raise ValueError(f"config.init {config.init!r} is a {source.method} run; name the encoder that it started from")
    if config.weights == "ema" and not methods.build(source).ema:
        raise ValueError(
            f"weights 'ema': the method of {config.init}, {source.method}, has no teacher; "
            "give --config.weights=student"
        )
    return dense_encoder.adopt(config, source, given)


def check_kind(config: ConfigDict, name: str = "the config") -> None:
    """Raises ValueError unless the config is one of a dense task; `name` says in the message where it is from."""
    if config.get("method") not in METHODS:
        raise ValueError(
            f"{name} is one of method {config.get('method')!r}, not of {' or '.join(METHODS)}; configs/transfer/ "
            "has those, and python -m detailclip_jax.main runs the others"
        )


def claimed(config: ConfigDict, workdir: str | Path, built: Any, task: Task) -> Run:
    """Claims the workdir for an experiment, and returns the run.

    Raises ValueError for a workdir of another config or of other classes.
    """
    if config.batch_size % jax.process_count():
        raise ValueError(f"batch_size {config.batch_size} does not divide over {jax.process_count()} processes")
    run_config.check_workdir(Path(workdir), config)
    class_names.check(class_names.read(workdir), built.classes)
    run_config.claim_workdir(Path(workdir), config, write=jax.process_index() == 0)
    if jax.process_index() == 0:
        class_names.write(workdir, built.classes)
    console = Console(enabled=jax.process_index() == 0)
    return Run(config, Path(workdir), built, built.sets.train.source, console, task)


def config_in(workdir: str | Path) -> ConfigDict:
    """The config of a run.  Raises FileNotFoundError for a folder without one, and ValueError for another kind."""
    file = Path(workdir) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{workdir} is no workdir of a run: it has no config.json")
    config = run_config.read(file)
    check_kind(config, str(workdir))
    return config


def credit(config: ConfigDict) -> str:
    """The line that figures of a run's data carry: the source of the drawings of stickers, "" for other data."""
    return ATTRIBUTION if config.data.source == "stickers" else ""


def introduce(run: Run) -> None:
    """Prints what is about to run: devices, data, heads, encoder, parameters and learning rates."""
    config, devices = run.config, jax.devices()
    lines, warnings = run.experiment.introduction()
    run.console.say(f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}")
    for line in lines:
        run.console.say(line)
    for warning in warnings:
        run.console.warn(warning)
    seen = config.total_steps * config.batch_size / len(run.source)
    run.console.say(f"{config.total_steps:,} steps of {config.batch_size}, {seen:.3g} epochs; workdir {run.workdir}")


def fresh(run: Run) -> TrainState:
    """The state of step 0, with the encoder of `config.init`."""
    state, lines = run.experiment.load_encoder(run.experiment.init(run.config.seed))
    run.console.say("\n".join(lines))
    return state


def open_batches(run: Run, examples: int) -> Pipeline:
    """Opens this process's batches; starts after `examples` examples, counted over all processes."""
    workers = usable_workers(run.config.data.num_workers, usable_cores())
    where = jax.process_index(), jax.process_count()
    return run.experiment.batches(examples, workers, bad_list(run.workdir, *where))


def stop(interrupt: Interrupt) -> None:
    """Raises Stopped after a signal; several processes, whose numbers of images differ, finish the evaluation first."""
    if jax.process_count() == 1 and interrupt.reached():
        raise Stopped(interrupt.received or SIGNALS[1])


LESS_MEMORY = (
    "a smaller batch_size (the learning rate follows), --config.model.remat=dots or full, "
    "--config.model.dtype=bfloat16, a smaller inference.batch_size, or --config.mesh.fsdp of several devices"
)


def gentler(run: Run) -> str:
    """Says how to go on after a loss that is not finite."""
    rate = run.config.optimizer.learning_rate
    return (
        "The same command would come to the same step.  Use another --workdir and a gentler optimiser: "
        f"--config.optimizer.learning_rate below {rate:g} or --config.optimizer.clip_norm=1.0"
    )
