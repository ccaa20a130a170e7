"""Metrics, images and config of a run in Weights & Biases, an optional package.

The package reads environment variables: WANDB_MODE=offline stores everything in the workdir, for `wandb sync`
later.  A new run ends if its project cannot be opened.  After that, trouble with the service never stops it.
"""

import importlib
import uuid
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from detailclip_jax.runtime import extras
from detailclip_jax.runtime.errors import RunError
from detailclip_jax.runtime.files import replace_text

ID_FILE = "wandb_id.txt"  # in the workdir: a run that is continued goes on there too


class WandbError(RunError):
    """A run cannot be opened in Weights & Biases; the message says how to go on."""


def check(project: str) -> None:
    """Raises ValueError that says what to install if a project is named and the package is missing."""
    if project and find_spec("wandb") is None:
        needs = f"logging.wandb={project!r} needs the package wandb"
        raise ValueError(extras.missing(needs, "wandb", otherwise="leave it empty"))


class WandbWriter:
    """A run in Weights & Biases; see `metric_files.Events` for the methods."""

    def __init__(self, project: str, workdir: Path, settings: Mapping[str, Any], warn: Callable[[str], None]):
        """Opens the run of the workdir, or continues it.

        Raises WandbError if a new one cannot be opened.  If an old one cannot be continued, `warn` says so, and the run
        goes on without the service.
        """
        self._warn, self._run = warn, None
        file = workdir / ID_FILE
        known = file.read_text().strip() if file.exists() else None
        name = known or uuid.uuid4().hex[:8]
        try:
            self._wandb = importlib.import_module("wandb")
            opened = self._wandb.init(
                project=project,
                dir=str(workdir),
                name=workdir.name,
                id=name,
                resume="allow",
                config=dict(settings),
                settings=self._wandb.Settings(console="off"),
            )
            opened.define_metric("*", step_metric="step")  # a continued run repeats steps
        except Exception as error:  # a broken installation, not logged in, no network
            if known:
                return warn(f"Weights & Biases gets nothing of this run from here on ({error})")
            raise WandbError(
                f"Weights & Biases: {error}; log in with `wandb login`, set WANDB_MODE=offline, or leave "
                "--config.logging.wandb empty"
            ) from error
        self._run = opened
        if not known:
            replace_text(file, name + "\n")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the scalars of a step."""
        self._trying(lambda run: run.log({"step": step, **values}))

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "H W 3"]]) -> None:
        """Sends the images of a step."""
        self._trying(lambda run: run.log({"step": step, **{n: self._wandb.Image(x) for n, x in images.items()}}))

    def close(self) -> None:
        """Waits until everything is sent, or stored."""
        self._trying(lambda run: run.finish())

    def _trying(self, call: Callable[[Any], None]) -> None:
        """Calls, and goes on without the service after an error."""
        if self._run is not None:
            try:
                call(self._run)
            except Exception as error:
                self._run = None
                self._warn(f"Weights & Biases gets nothing any more ({error}); metrics.jsonl and tensorboard/ go on")
