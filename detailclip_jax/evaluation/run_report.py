"""The final table of a run: results.json for programs, report.md and terminal output for people."""

import hashlib
import json
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from detailclip_jax.config.components import components, is_endless
from detailclip_jax.config.run_config import to_json
from detailclip_jax.data.named_sets import listed, named_sets
from detailclip_jax.data.stickers.scene_source import WHITE_SIDES
from detailclip_jax.evaluation import held_out_pairs
from detailclip_jax.evaluation.held_out_pairs import none_because
from detailclip_jax.evaluation.metrics import Metric, split_name
from detailclip_jax.evaluation.run_evaluators import absent, plan
from detailclip_jax.evaluation.zero_shot import top1_at
from detailclip_jax.runtime.files import replace_text

LABELS = {  # metric, or task/metric -> label
    "top1": "zero-shot top-1",
    "on_white/top1": "zero-shot top-1, on white",
    **{f"on_white/{top1_at(side)}": f"on white, {100 * side:.0f} % of the side" for side in WHITE_SIDES},
    "other_drawings/top1": "top-1, other artists' drawings",
    "top5": "zero-shot top-5",
    "image_to_text_r1": "image to text R@1",
    "image_to_text_r5": "image to text R@5",
    "image_to_text_r10": "image to text R@10",
    "text_to_image_r1": "text to image R@1",
    "text_to_image_r5": "text to image R@5",
    "text_to_image_r10": "text to image R@10",
    "share": "kept patches that touch an object",
    "figure_iou": "segmentation, object or not, IoU",
    "miou": "linear segmentation mIoU",
    "balanced_miou": "segmentation mIoU, balanced",
    "object_miou": "segmentation mIoU, objects only",
}
LABELS |= {f"pooled_{name}": f"{LABELS[name]}, image pooled by class" for name in ("top1", "top5")}
LABELS |= {f"cls_{name}": f"{label}, class token" for name, label in LABELS.items() if "_to_" in name}
NOTES = {
    "zero_shot": "Zero-shot: unseen scenes of one object, classified among all nouns; chance is k / number of nouns.",
    "on_white": (
        "On white: one unchanged training drawing on plain white, at a random position; its longer side is a share of "
        "that of the canvas."
    ),
    "other_drawings": (
        "Other artists' drawings: the zero-shot scenes with the drawings of Noto Color Emoji, unless the config names "
        "another style."
    ),
    "retrieval": (
        "Retrieval: scenes of two nouns that never occur together in training, two captions each. Images with "
        "identical captions count as correct for each other."
    ),
    "kept_objects": (
        "Kept patches: the half with the highest CLS attention, for every method, in unseen scenes; chance is the "
        "share of all patches that touch an object."
    ),
    "held_out": (
        "Held out: retrieval among pairs of the run's data that were excluded from training, with all their captions. "
        "Images with identical captions count as correct for each other."
    ),
    "segmentation": "Segmentation: ridge regression from frozen patch features to classes, in unseen scenes.",
}
ALWAYS = (
    "In per cent, with the bootstrap 95 % interval over test examples (not over training seeds). Ties count as errors."
)
WEIGHTS = {"student": "student", "ema": "EMA"}


def write(workdir: str | Path, results: Mapping[str, float], config: ConfigDict, step: int, data: str = "") -> str:
    """Writes results.json and report.md into `workdir`; returns the text of report.md.

    `results` is the output of `run_all`: "task/weights/metric" -> value. `data` describes problems of the training
    data. Training sets whose dataset.json names them are in both files, with their variants.
    """
    workdir, sets = Path(workdir), named_sets(config.data)
    lines = [f"Trained on: {listed(sets)}." if sets else "", f"Training data: {data}." if data else ""]
    text = markdown(results, config, step) + "".join(f"\n{line}\n" for line in lines if line)
    replace_text(workdir / "report.md", text)
    replace_text(workdir / "results.json", json.dumps(as_json(results, config, step, sets), indent=2) + "\n")
    return text


def as_json(
    results: Mapping[str, float], config: ConfigDict, step: int, sets: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """The run (method, step, digest of its config, names of its training sets if any) and one record per result."""
    return {
        "method": config.method,
        "step": step,
        "config_digest": config_digest(config),
        **({"data_sets": sets} if sets else {}),
        "results": [_record(name, value) for name, value in results.items()],
    }


def _record(name: str, value: float) -> dict[str, Any]:
    task, weights, metric = split_name(name)
    judged = {key: getattr(value, key, None) for key in ("n", "chance", "low", "high")}
    if (fitted := getattr(value, "n_train", None)) is not None:
        judged["n_train"] = fitted
    return {"task": task, "weights": weights, "metric": metric, "value": float(value), **judged}


def config_digest(config: ConfigDict) -> str:
    """The first twelve hexadecimal digits of a hash of the config; configs with equal fields have equal digests."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:12]


def markdown(results: Mapping[str, float], config: ConfigDict, step: int) -> str:
    """The table: one line per metric, with a column for each set of weights, chance and the number of examples."""
    about = [*_held_out(config), *_left_out(results, config)]
    if not results:
        return "\n\n".join([f"{_title(config, step)}: no evaluator has a result.", *about]) + "\n"
    names = [split_name(name) for name in results]
    weights = list(dict.fromkeys(which for _, which, _ in names))
    rows = list(dict.fromkeys((task, metric) for task, _, metric in names))
    head = ["", *(WEIGHTS.get(w, w) for w in weights), "chance", "n"]
    table = [_row(results, task, metric, weights) for task, metric in rows]
    notes = "\n\n".join([_notes(dict(rows)), *about])
    return "\n".join([_title(config, step), "", *aligned([head, *table]), "", notes]) + "\n"


def _held_out(config: ConfigDict) -> list[str]:
    """One paragraph: the number of held-out examples and how they were chosen, or how to hold some out."""
    if is_endless(components(config.data)):
        return []
    found = held_out_pairs.find(config)
    text = f"{len(found.source):,} examples ({found.origin})" if found else f"none; {none_because(config)}"
    return [textwrap.fill(f"Held out: {text}.", 110)]


def _left_out(results: Mapping[str, float], config: ConfigDict) -> list[str]:
    """Lines that name the evaluators without a result, with the reason."""
    measured = {split_name(name)[0] for name in results}
    unmade = {name: reason for name, reason in absent(config).items() if name not in measured}
    missing = [name for name in plan(config) if name not in measured and name not in unmade]
    why = f"because {config.method} lacks their networks" + (
        " or the data have no captions" if "held_out" in missing else ""
    )
    lines = [f"Not measured, {why}: {', '.join(missing)}."] if missing else []
    return lines + [f"Not measured: {LABELS[f'{name}/top1']}: {reason}." for name, reason in unmade.items()]


def _notes(tasks: Iterable[str]) -> str:
    return textwrap.fill(" ".join([ALWAYS, *(NOTES[task] for task in tasks if task in NOTES)]), 110)


def _title(config: ConfigDict, step: int) -> str:
    return f"**{config.method}** on {config.data.source}, {config.model.size}, step {step:,}"


def _row(results: Mapping[str, float], task: str, metric: str, weights: list[str]) -> list[str]:
    values = [results.get(f"{task}/{w}/{metric}") for w in weights]
    known = next(value for value in values if value is not None)
    chance = getattr(known, "chance", None)
    same_task = {name for other, _, name in map(split_name, results) if other == task}
    return [
        _label(task, metric) + pooling_of(metric, same_task),
        *("" if value is None else _percent(value) for value in values),
        "" if chance is None else f"{100 * chance:.2f}",
        size_text(getattr(known, "n", None), getattr(known, "n_train", None)),
    ]


def size_text(n: int | None, n_train: int | None) -> str:
    """The number of examples: "2,000", or "2,000, fitted on 5,000" for a probe."""
    fitted = "" if n_train is None else f", fitted on {n_train:,}"
    return "" if n is None else f"{n:,}{fitted}"


def pooling_of(metric: str, metrics: Collection[str]) -> str:
    """Completes the label of a metric of a task whose `metrics` have it by the class token and by the pooled image.

    pooling_of("top1", {"top1", "pooled_top1"}) == ", class token";  pooling_of("top1", {"top1"}) == ""
    """
    if f"pooled_{metric}" in metrics:
        return ", class token"
    return ", image pooled by text" if f"cls_{metric}" in metrics else ""


def _label(task: str, metric: str) -> str:
    if ":" in task:
        return f"{task} {metric}"
    return LABELS.get(f"{task}/{metric}", LABELS.get(metric, f"{task} {metric}"))


def _percent(value: float) -> str:
    if not isinstance(value, Metric) or value.low is None or value.high is None:
        return f"{100 * value:.1f}"
    return f"{100 * value:.1f} ({100 * value.low:.1f}-{100 * value.high:.1f})"


def aligned(table: list[list[str]]) -> list[str]:
    """Markdown lines of a table with columns of equal width, so that it is also readable in a terminal.

    The first column is left-aligned, the others are right-aligned.
    """
    widths = [max(2, *(len(cell) for cell in column)) for column in zip(*table)]  # "-:" is the shortest separator
    lines = [
        [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))] for row in table
    ]
    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return ["| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:])]
