"""The final table of a run: results.json for programs, report.md and terminal output for people."""

import hashlib
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from detailclip_jax.config.data_path import is_endless
from detailclip_jax.data.named_sets import listed, named_sets
from detailclip_jax.evaluation import held_out_pairs, paper_numbers
from detailclip_jax.evaluation.held_out_pairs import none_because
from detailclip_jax.evaluation.metrics import split_name
from detailclip_jax.evaluation.results import Record, record
from detailclip_jax.evaluation.tables import LABELS, by_measurement, general_note, table
from detailclip_jax.evaluation.tasks import absent, plan
from detailclip_jax.runtime.files import replace_text

MAX_ROWS = 10  # on the screen; report.md has all
FIRST_ROWS = (  # task/metric, in a longer table
    "zero_shot/top1",
    "on_white/top1",
    "retrieval/image_to_text_r1",
    "retrieval/text_to_image_r1",
    "long/image_to_text_r1",
    "long/text_to_image_r1",
    "choice/accuracy",
    "kept_objects/share",
    "segmentation/foreground_iou",
    "segmentation/balanced_miou",
)
FIELDS = ("task", "weights", "metric", "value", "n", "chance", "low", "high", "n_train")
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
    "long": (
        "Long captions: retrieval among unseen scenes, each with all that is known of it. A text is cut to the context "
        "length of the model."
    ),
    "choice": (
        "Which caption fits: pairs of unseen scenes; a caption is true of one of them and false of the other. Without "
        "the image nobody is right more often than chance. A text side that ignores the order of words reaches 100 for "
        "object and count, and 50 for attribute, side and size."
    ),
    "kept_objects": (
        "Kept patches: the half with the highest CLS attention, for every method, in unseen scenes; chance is the "
        "share of all patches that touch an object."
    ),
    "held_out": (
        "Held out: retrieval among pairs of the run's data that were excluded from training. All captions of an image "
        "count, of all fields, whatever data.caption says. Images with identical captions count as correct for each "
        "other."
    ),
    "held_out_classes": (
        "Held out: accuracy of the classification head on examples of the run's data that were excluded from training."
    ),
    "segmentation": "Segmentation: ridge regression from frozen patch features to classes, in unseen scenes.",
}


def write(workdir: str | Path, results: Mapping[str, float], config: ConfigDict, step: int, data: str = "") -> str:
    """Writes results.json and report.md into `workdir`; returns the text for the screen.

    That is the text of report.md, or its most important rows if the table has more than MAX_ROWS.
    `results` is the output of `run_all`: "task/weights/metric" -> value. `data` describes problems of the training
    data. Training sets whose dataset.json names them are in both files, with their variants.
    """
    workdir, sets = Path(workdir), named_sets(config.data)
    lines = [f"Trained on: {listed(sets)}." if sets else "", f"Training data: {data}." if data else ""]
    about_data = "".join(f"\n{line}\n" for line in lines if line)
    file = workdir / "report.md"
    replace_text(file, markdown(results, config, step) + about_data)
    replace_text(workdir / "results.json", json.dumps(as_json(results, config, step, sets), indent=2) + "\n")
    return markdown(results, config, step, all_in=file) + about_data


def as_json(
    results: Mapping[str, float], config: ConfigDict, step: int, sets: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """The run (method, step, digest of its config, names of its training sets if any) and one record per result.

    Only those of fitted probes have n_train.
    """
    records = [_record(name, value) for name, value in results.items()]
    return {
        "method": config.method,
        "step": step,
        "config_digest": config_digest(config),
        **({"data_sets": sets} if sets else {}),
        "results": [{name: r[name] for name in FIELDS if name != "n_train" or r[name] is not None} for r in records],
    }


def _record(name: str, value: float) -> Record:
    task, weights, metric = split_name(name)
    return record({"task": task, "dataset": "", "weights": weights}, metric, value)


def config_digest(config: ConfigDict) -> str:
    """The first twelve hexadecimal digits of a hash of the config; configs with equal fields have equal digests."""
    return hashlib.sha256(json.dumps(config.to_dict(), indent=2).encode()).hexdigest()[:12]


def markdown(results: Mapping[str, float], config: ConfigDict, step: int, all_in: Path | None = None) -> str:
    """The table: one line per metric, with a column for each set of weights, chance and the number of examples.

    Lines below it name the evaluators without a result, with the reason. If there is a file `all_in` with all rows, a
    table of more than MAX_ROWS is cut to the most important ones, and the file's name takes the place of the notes.
    """
    about = []
    if not is_endless(config.data):
        held = held_out_pairs.find(config)
        text = held.origin if held else f"none; {none_because(config)}"
        about.append(textwrap.fill(f"Held out: {text}.", 110))
    measured = {split_name(name)[0] for name in results}
    unmade = {name: reason for name, reason in absent(config).items() if name not in measured}
    if missing := [name for name in plan(config) if name not in measured and name not in unmade]:
        without_captions = " or the data have no captions" if "held_out" in missing else ""
        why = f"because {config.method} lacks their networks{without_captions}"
        about.append(f"Not measured, {why}: {', '.join(missing)}.")
    about += [f"Not measured: {LABELS[f'{name}/top1']}: {reason}." for name, reason in unmade.items()]
    if not results:
        return "\n\n".join([f"{_title(config, step)}: no evaluator has a result.", *about]) + "\n"
    records = [_record(name, value) for name, value in results.items()]
    explained = [NOTES[task] for task in dict.fromkeys(r["task"] for r in records) if task in NOTES]
    head, rule, *lines = table(records, label=_label)
    if all_in and len(lines) > MAX_ROWS:
        names = [f"{task}/{metric}" for task, _, metric in by_measurement(records)]
        shown = sorted(names, key=lambda name: FIRST_ROWS.index(name) if name in FIRST_ROWS else MAX_ROWS)[:MAX_ROWS]
        about, explained = [f"All {len(lines)} rows, and what they are: {all_in}", *about], []
        lines = [line for name, line in zip(names, lines) if name in shown]
    notes = "\n\n".join([textwrap.fill(" ".join([general_note(records), *explained]), 110), *about])
    return "\n".join([_title(config, step), "", head, rule, *lines, "", notes]) + "\n"


def _title(config: ConfigDict, step: int) -> str:
    return f"**{config.method}** on {config.data.source}, {config.model.size}, step {step:,}"


def _label(key: paper_numbers.Measurement) -> str:
    task, _, metric = key
    if ":" in task:
        return f"{task} {metric}"
    return LABELS.get(f"{task}/{metric}", LABELS.get(metric, f"{task} {metric}"))
