"""Metrics, images and config of a run in Weights & Biases, an optional package.

The package reads its own environment variables: WANDB_MODE=offline stores everything in the workdir, for `wandb sync`
later.  Trouble with the service never stops a run.
"""

import importlib
import uuid
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from detailclip_jax.runtime.errors import RunError
from detailclip_jax.runtime.files import replace_text

ID_FILE = "wandb_id.txt"  # in the workdir: a run that is continued goes on there too
MISSING = "logging.wandb={project!r} needs the package wandb: pip install 'detailclip_jax[wandb]', or leave it empty"


class WandbError(RunError):
    """A run cannot be opened in Weights & Biases; the message says how to go on."""


def check(project: str) -> None:
    """Raises ValueError that says what to install if a project is named and the package is missing."""
    if project and find_spec("wandb") is None:
        raise ValueError(MISSING.format(project=project))


class WandbWriter:
    """A run in Weights & Biases; see `metrics.Events` for the methods."""

    def __init__(self, project: str, workdir: Path, settings: Mapping[str, Any], warn: Callable[[str], None]):
        """Opens the run of the workdir, or continues it.  Raises WandbError if that is impossible."""
        self._warn = warn
        try:
            self._wandb = importlib.import_module("wandb")
            self._run = self._wandb.init(
                project=project,
                dir=str(workdir),
                name=workdir.name,
                id=run_id(workdir),
                resume="allow",
                config=dict(settings),
                settings=self._wandb.Settings(console="off"),
            )
            self._run.define_metric("*", step_metric="step")  # a continued run repeats steps
        except Exception as error:  # a broken installation, not logged in, no network
            raise WandbError(
                f"Weights & Biases: {error}; log in with `wandb login`, set WANDB_MODE=offline, or leave "
                "--config.logging.wandb empty"
            ) from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the scalars of a step."""
        self._send({"step": step, **values})

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "H W 3"]]) -> None:
        """Sends the images of a step."""
        self._send({"step": step, **{name: self._wandb.Image(image) for name, image in images.items()}})

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Does nothing: the run was opened with them."""

    def close(self) -> None:
        """Waits until everything is sent, or stored."""
        self._trying(lambda run: run.finish())

    def _send(self, values: Mapping[str, Any]) -> None:
        self._trying(lambda run: run.log(dict(values)))

    def _trying(self, call: Callable[[Any], None]) -> None:
        """Calls, and goes on without the service after an error."""
        if self._run is not None:
            try:
                call(self._run)
            except Exception as error:
                self._run = None
                self._warn(f"Weights & Biases gets nothing any more ({error}); metrics.jsonl and tensorboard/ go on")


def run_id(workdir: Path) -> str:
    """Returns the identifier of the workdir's run, stored at the first call."""
    file = workdir / ID_FILE
    if not file.exists():
        replace_text(file, uuid.uuid4().hex[:8] + "\n")
    return file.read_text().strip()
