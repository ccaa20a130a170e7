"""The results of a run of a dense task: results.json, and a report with the paper's numbers beside the run's."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from detailclip_jax.config.run_config import flatten
from detailclip_jax.dense.dense_experiment import DenseTask
from detailclip_jax.runtime import markdown
from detailclip_jax.runtime.files import replace_text

PAPER = Path(__file__).parent / "assets" / "paper_table_1.json"
PER_CLASS = "per_class.json"  # of the last evaluation; `results.json` contains it


def write_results(
    workdir: Path,
    task: DenseTask,
    config: ConfigDict,
    step: int,
    scores: Mapping[str, float],
    protocol: Mapping[str, Any],
    data: str,
) -> str:
    """Writes results.json and report.md, which ends with the line `data`; returns the report."""
    last = json.loads((workdir / PER_CLASS).read_text())
    more = {"per_class": last["per_class"], "protocol": protocol, "config": config.to_dict()}
    replace_text(workdir / "results.json", json.dumps({"step": step, **scores, **more}, indent=2) + "\n")
    warnings = [f"\nWarning: {line}." for line in last.get("warnings", ())]
    lines = [*report(task, config, step, scores, protocol), *warnings, *([data] if data else [])]
    text = "\n".join(lines) + "\n"
    replace_text(workdir / "report.md", text)
    return text


def report(
    task: DenseTask, config: ConfigDict, step: int, scores: Mapping[str, float], protocol: Mapping[str, Any]
) -> Iterator[str]:
    """Yields the lines of report.md; the paper's numbers only where they are of the same set and head."""
    yield f"# {task.head(config)} on {protocol['set']}, step {step:,}\n"
    yield f"{protocol['images']} images, {protocol['classes']} classes"
    yield f"Encoder: {protocol['init']}, {protocol['encoder']}\n"
    yield from task.table(scores)
    comparison = task.comparison(config, scores)
    if comparison is not None and (rows := paper_rows(*comparison.columns)):
        yield f"\nThis run and the paper's {comparison.what} (arXiv 2409.06809, table 1):\n"
        lines = [["encoder", "pretraining data", "epochs", *comparison.values]]
        lines.append([f"this run: {protocol['init']}", "", "", *comparison.values.values()])
        for name, (data, epochs, *printed) in rows.items():
            lines.append([name, data, str(epochs or ""), *map(str, printed)])
        yield from markdown.table(lines, left=2)
        recipes = comparison.recipes.items()
        differences = {name: departures(config, recipe, comparison.protocol) for name, recipe in recipes}
        nearest = min(differences, key=lambda name: len(differences[name]))
        if differences[nearest]:
            yield f"\nNot like the paper's recipe ({nearest}): " + "; ".join(differences[nearest]) + "."
        else:
            yield f"\nThe settings are those of the recipe ({nearest})."
        yield f"What differs from {comparison.code}'s code in any case is listed in docs/{task.name}.md."


def departures(config: ConfigDict, recipe: ConfigDict, protocol: Sequence[str]) -> list[str]:
    """The fields of a protocol that differ from a recipe, as "name value (recipe: value)"."""
    usual, ours = (
        {name: value for name, value in flatten(fields.to_dict()).items() if value != {}} for fields in (recipe, config)
    )
    names = [name for name in usual | ours if name.startswith(tuple(protocol))]
    pairs = ((name, ours.get(name), usual.get(name)) for name in names)
    return [f"{name} {value!r} (recipe: {theirs!r})" for name, value, theirs in pairs if value != theirs]


def paper_rows(*columns: str) -> dict[str, tuple[Any, ...]]:
    """The paper's (pretraining data, epochs, values of columns) on dense tasks, by method; only rows with all values.

    Empty for a column that the paper lacks.
    """
    table = json.loads(PAPER.read_text())
    if any(column not in table["columns"] for column in columns):
        return {}
    places = [table["columns"].index(name) for name in ("data", "epochs", *columns)]
    rows = {name: tuple(row[place] for place in places) for name, row in table["rows"].items()}
    return {name: row for name, row in rows.items() if None not in row[2:]}
