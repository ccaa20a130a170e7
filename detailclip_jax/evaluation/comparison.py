"""Compares methods trained with the same budget: mean and standard deviation over seeds, as a table and a figure.

Its lower bounds are encoders without training: an untrained one, and raw pixels.
"""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from detailclip_jax.config import sizes
from detailclip_jax.data.stickers.scene_choices import EXCHANGES, SceneChoices, bag_of_words
from detailclip_jax.data.stickers.scene_source import canvas_of
from detailclip_jax.evaluation import run_evaluators, tables
from detailclip_jax.evaluation.classification import OF_CLASS
from detailclip_jax.evaluation.metrics import split_name
from detailclip_jax.evaluation.tasks import plan
from detailclip_jax.figures import style
from detailclip_jax.models.patchify import patchify
from detailclip_jax.runtime import markdown as markdown_table
from detailclip_jax.runtime.files import replace_text
from detailclip_jax.runtime.terminal import complain
from detailclip_jax.training import experiment

METRICS = {  # task/metric -> heading, the label in report.md
    name: tables.LABELS[name.partition("/")[2]]
    for name in (
        "zero_shot/top1",
        "retrieval/image_to_text_r1",
        "retrieval/text_to_image_r1",
        "segmentation/foreground_iou",
        "segmentation/balanced_miou",
        "kept_objects/share",
    )
}
DETAIL = {  # of a table of its own
    **{f"choice/{name}": f"{name} exchanged" for name in EXCHANGES},
    **{name: tables.LABELS[name] for name in ("long/image_to_text_r1", "long/text_to_image_r1")},
}
LEGEND = (
    "Foreground IoU: how well a linear read-out of the frozen patch features tells objects from the background, as "
    "intersection over union; mIoU, balanced: the same for the classes, where the fit weighs every class equally.",
    "Kept patches that touch an object: of the half with the highest CLS attention.",
    "Untrained (the same encoder at its random start) and raw pixels are floors: what segmentation reaches without any "
    "training. Cost: of the training step per image, and the mean seconds of the training alone.",
)
OF_DETAIL = (
    "Exchanged: how often the caption that is true of a scene is nearer to it than the same caption with one thing "
    "exchanged; chance 50. Long captions: retrieval among scenes, each with all that is known of it.",
    "Bag of words: the most that a text side can reach which ignores the order of words. It knows the scene, and "
    "guesses where the words of both captions tell something true in some order.",
)
BAG, FEW_PAIRS = "bag of words", 20  # the shares are the same for all pairs of an exchange
FIGURE = ("zero_shot/top1", "retrieval/image_to_text_r1", "segmentation/foreground_iou", "segmentation/balanced_miou")


class MeanStd(NamedTuple):
    """A metric over seeds: mean, standard deviation (n - 1; 0 for one seed), number of seeds."""

    mean: float
    std: float
    num_seeds: int

    def __str__(self) -> str:
        """In per cent: "37.3 ± 1.2"."""
        deviation = f" ± {100 * self.std:.1f}" if self.num_seeds > 1 else ""
        return f"{100 * self.mean:.1f}{deviation}"


Table = dict[tuple[str, str], dict[str, MeanStd]]  # (method, weights) -> task/metric -> mean and deviation


def tabulate(results: Mapping[str, Sequence[Mapping[str, float]]]) -> Table:
    """Mean and standard deviation of every metric over the seeds of each method.

    `results` maps a method to one mapping "task/weights/metric" -> value per seed.
    """
    table: Table = {}
    for method, seeds in results.items():
        for name in dict.fromkeys(name for values in seeds for name in values):
            task, weights, metric = split_name(name)
            values = np.array([seed[name] for seed in seeds if name in seed])
            std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
            table.setdefault((method, weights), {})[f"{task}/{metric}"] = MeanStd(
                float(values.mean()), std, len(values)
            )
    return table


def write(workdir: Path, results: Mapping[str, Sequence[Mapping[str, float]]], costs: Mapping[str, str]) -> str:
    """Writes comparison.md, .json and, with matplotlib, .png; returns the table and the names of the files."""
    table = tabulate(results)
    text = markdown(table, costs) + legend(table) + detail(table)
    files = ["comparison.md", "comparison.json"]
    replace_text(workdir / files[0], text)
    records = {"results": as_json(table), "costs": dict(costs)}
    replace_text(workdir / files[1], json.dumps(records, indent=2) + "\n")
    try:
        style.save(figure({name: table[name] for name in table if name[0] != BAG}), workdir / "comparison.png")
        files.append("comparison.png")
    except ImportError as error:  # an optional package; the table is complete without a figure
        complain(f"no figure: {error}")
    return f"{text}\nwritten to {workdir}: {', '.join(files)}"


def columns(table: Table) -> dict[str, str]:
    """task/metric -> heading of the table: METRICS, and the first metrics of what was measured on the user's own data.

    METRICS are left out if none of them was measured, as on data without scenes.
    """
    measured = dict.fromkeys(name for values in table.values() for name in values)
    of_user = {
        name: f"{task}: {tables.NAMES.get(metric, metric)}"
        for name in measured
        for task, _, metric in [name.rpartition("/")]
        if (task.startswith("held_out") or ":" in task) and not metric.endswith(("5", "10"))
        if not metric.startswith(OF_CLASS)
    }
    return (METRICS if not of_user or METRICS.keys() & measured.keys() else {}) | of_user


def legend(table: Table) -> str:
    """What the numbers and columns of the table are, below an empty line."""
    count = max((value.num_seeds for values in table.values() for value in values.values()), default=0)
    spread = f", mean ± standard deviation over {count} seeds" if count > 1 else ", of one seed"
    about = LEGEND if METRICS.keys() & columns(table).keys() else ()
    return "\n" + textwrap.fill(" ".join((f"In per cent{spread}.", *about)), 110) + "\n"


def markdown(table: Table, costs: Mapping[str, str]) -> str:
    """A Markdown table with one line per method and set of weights; `costs` describes the training cost of each."""
    rows = {name: values for name, values in table.items() if name[0] != BAG}
    return _lines(rows, columns(rows), [costs.get(method, "") for method, _ in rows])


def detail(table: Table) -> str:
    """The table of exchanged captions and long captions, with its legend; empty if none was measured."""
    rows = {name: values for name, values in table.items() if any(metric in values for metric in DETAIL)}
    return "\n" + _lines(rows, DETAIL) + "\n" + textwrap.fill(" ".join(OF_DETAIL), 110) + "\n" if rows else ""


def _lines(rows: Table, metrics: Mapping[str, str], costs: Sequence[str] | None = None) -> str:
    lines = [["method", "weights", *metrics.values()]]
    lines += [[*key, *(str(values.get(name, "")) for name in metrics)] for key, values in rows.items()]
    if costs is not None:
        lines = [[*line, cost] for line, cost in zip(lines, ("cost", *costs))]
    return "".join(f"{line}\n" for line in markdown_table.table(lines, left=2))


def as_json(table: Table) -> list[dict[str, Any]]:
    """One record per method, set of weights and metric."""
    return [
        {"method": method, "weights": weights, "metric": name, **value._asdict()}
        for (method, weights), values in table.items()
        for name, value in values.items()
    ]


def figure(table: Table):
    """A figure with one panel per metric and one marker with error bar per method; needs the extra `demo`."""
    labels, headings = [f"{method} ({weights})" for method, weights in table], columns(table)
    shown = [name for name in FIGURE if name in headings] or list(headings)[: len(FIGURE)]
    canvas = style.blank(3.2 * len(shown), 1.2 + 0.28 * len(labels))
    canvas.set_layout_engine("constrained")
    (panels,) = canvas.subplots(1, len(shown), sharey=True, squeeze=False)
    for panel, name in zip(panels, shown):
        for height, values in enumerate(table.values()):
            if name in values:
                value = values[name]
                panel.errorbar(
                    100 * value.mean,
                    -height,
                    xerr=100 * value.std,
                    fmt="o",
                    color="#0072B2",
                    capsize=3,
                    clip_on=False,
                )
        panel.set_title(f"{headings[name]}, %", fontsize=9)
        panel.set_yticks([-height for height in range(len(labels))], labels, fontsize=8)
        panel.grid(axis="x", color="#DDDDDD")
        panel.set_xlim(left=0)
    return canvas


class PixelEncoder:
    """An encoder whose patch features are the pixels of the patch, between 0 and 1."""

    def __init__(self, model: ConfigDict):
        self.patch_size = sizes.size_of(model).patch_size

    def patches(self, params: Any, images: UInt8[np.ndarray, "B S S 3"]) -> Float[np.ndarray, "B N P"]:
        """The flattened pixels of each patch, [B, N, P]; `params` is ignored."""
        return np.asarray(patchify(jnp.asarray(images, jnp.float32) / 255, self.patch_size))


def floors(config: ConfigDict, num_seeds: int) -> dict[str, list[dict[str, float]]]:
    """Measures what is reached without training: by an untrained encoder (one per seed), by raw pixels, by words alone.

    Raw pixels are measured in segmentation, and a bag of words in the choice among captions. Empty if neither is among
    the evaluators of `config`.
    """
    config = ConfigDict(config.to_dict())
    options = plan(config)
    config.evaluators = {name: options[name] for name in ("segmentation", "choice", "long") if name in options}
    if not config.evaluators:
        return {}
    built = experiment.build(config)
    evaluators = run_evaluators.of_run(built.encode, config)
    untrained = [{"student": built.init(seed).params} for seed in range(num_seeds)]
    measured = {"untrained": [run_evaluators.run(evaluators, params, step=0) for params in untrained]}
    if "segmentation" in options:
        config.evaluators = {"segmentation": options["segmentation"]}
        pixels = run_evaluators.of_run(PixelEncoder(config.model), config)
        measured["raw pixels"] = [run_evaluators.run(pixels, {"student": {"image": {}}}, step=0)]
    if "choice" in options:
        pairs = SceneChoices(canvas_of(config.model.image_size), FEW_PAIRS)
        measured[BAG] = [{f"choice/best/{name}": share for name, share in bag_of_words(pairs).items()}]
    return measured
