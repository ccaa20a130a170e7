"""The figures of a run, computed from its experiment and state (`figures.plots` draws them)."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Bool, UInt8
from ml_collections import ConfigDict

from detailclip_jax.data.resizing import resize
from detailclip_jax.data.stickers.sprites import ATTRIBUTION
from detailclip_jax.evaluation import held_out_pairs, sticker_scenes
from detailclip_jax.evaluation.subject import all_weights
from detailclip_jax.figures import plots, style
from detailclip_jax.inference.inspection import lowest, paste, paste_options, removal_rule
from detailclip_jax.runtime.metric_files import read_lines
from detailclip_jax.runtime.signals import pause_point
from detailclip_jax.training.experiment import Experiment, dummy_batch
from detailclip_jax.training.train_state import TrainState

NUM_SCENES = 8


def write(workdir: str | Path, experiment: Experiment, state: TrainState) -> list[Path]:
    """Writes figures/loss_curves.png, attention.png and reconstructions.png; returns the paths of the written files.

    The curves come from the workdir's metrics.jsonl. The other figures show held-out scenes of stickers, or held-out
    examples of the run's own data (`data.held_out`); they are skipped if there are none. A method without a pixel loss
    has no reconstructions. All processes of a run must call this; process 0 writes. Raises Stopped between two figures,
    and writes none, if a signal ends the run.
    """
    figures = {}
    metrics = Path(workdir) / "metrics.jsonl"
    if metrics.exists():
        figures["loss_curves"] = plots.loss_curves(
            read_lines(metrics), [loss.name for loss in experiment.method.losses]
        )
    shown = held_out_images(experiment.config)
    if shown is not None:
        pause_point()
        figures["attention"] = attention(experiment, state, shown)
        if "pixel_head" in experiment.method.networks:
            pause_point()
            hidden, drawn = reconstruct(experiment, state, shown.images)
            figures["reconstructions"] = plots.reconstruction_figure(
                shown.images, hidden, drawn, shown.credit, shown.name
            )
    pause_point()
    if jax.process_index():
        return []
    return [plots.save(figure, Path(workdir) / "figures" / f"{name}.png") for name, figure in figures.items()]


class Shown(NamedTuple):
    """Images for a figure, the noun that describes one of them, and the credit line."""

    images: UInt8[np.ndarray, "B S S 3"]
    name: str = "image"
    credit: str = ""


def held_out_images(config: ConfigDict) -> Shown | None:
    """Images excluded from training: scenes of stickers, or examples of the run's own data; None if there are none."""
    if config.data.source == "stickers":
        scenes = sticker_scenes.scenes(config, "held_out_pairs", NUM_SCENES)
        images = sticker_scenes.images([scenes[i] for i in range(NUM_SCENES)], config)
        return Shown(images, "scene", ATTRIBUTION)
    images = held_out_pairs.images(config, NUM_SCENES)
    return None if images is None else Shown(images)


def images(experiment: Experiment, state: TrainState) -> dict[str, UInt8[np.ndarray, "H W 3"]]:
    """The attention figure of held-out images as an array; empty if there are none.  All processes must call it.

    `state` may be sharded; it is gathered only if there are images.
    """
    shown = held_out_images(experiment.config)
    return {"attention": style.pixels(attention(experiment, experiment.replicated(state), shown))} if shown else {}


def attention(experiment: Experiment, state: TrainState, shown: Shown):
    """Figure 1 of the paper on these images, for the student and, if there is one, the teacher."""
    rule, images = removal_rule(experiment.config), shown.images
    values = {name: experiment.encode.attention(params, images) for name, params in all_weights(state).items()}
    hidden = {name: np.asarray(lowest(value, rule)) for name, value in values.items()}
    return plots.attention_figure(images, jax.tree.map(np.asarray, values), hidden, shown.credit, shown.name)


def reconstruct(
    experiment: Experiment, state: TrainState, images: UInt8[np.ndarray, "B S S 3"]
) -> tuple[Bool[np.ndarray, "B N"], UInt8[np.ndarray, "B S S 3"]]:
    """The mask of removed patches of each image, and the image with the decoder's predictions in these patches.

    The patches are those that the teacher's attention removes, the predictions the student's. Runs the forward pass of
    training, without the update: all views show the uncropped images, padded to divide over the devices.
    """
    config, devices = experiment.config, experiment.mesh.devices.size
    shapes = jax.eval_shape(lambda: dummy_batch(config, -(-len(images) // devices) * devices))
    batch = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    size = images.shape[1]
    for name, crops in batch["image"].items():
        batch["box"][name][:] = (0, 0, size, size)
        side = crops.shape[-2]
        crops[: len(images)] = np.stack([resize(image, side, side) for image in images])[:, None]
    record = experiment.forward(state, experiment.put(batch))
    wanted = record.hidden.mask[0], record.hidden.removed[0], record.heads["predicted_pixels"][0]
    mask, removed, predicted = (
        np.asarray(array)[: len(images)] for array in multihost_utils.process_allgather(wanted, tiled=True)
    )
    drawn = [paste(*row, **paste_options(config)) for row in zip(images, predicted, removed)]
    return mask, np.stack(drawn)
