"""Reads what the commands of numbers leave: the scores of runs, the records of benchmarks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

Scores = Mapping[str, float]  # of a run, in per cent


def read(file: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(file.read_text())


def read_lines(file: Path) -> list[Any]:
    """The content of a file with a JSON value in each line."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def runs(entry: str, seeds: int, folder: str = "rows") -> list[str]:
    """The folders of the runs that `compare` trains of an entry in `folder`, a seed each."""
    return [f"{folder}/{quote(entry, safe='=+')}/seed-{seed}" for seed in range(seeds)]


def scores(folder: Path, path: str = ".", weights: str = "student") -> Scores:
    """The scores of the run in folder/path: "task/metric", "steps", "gflop" per image, and "words/READOUT".

    The cost is of runs of `compare`; the words are of runs with results of `evaluate` in folder/dense/path.
    """
    made, cost, words = read(folder / path / "results.json"), folder / path / "cost.json", folder / "dense" / path
    found = {f"{one['task']}/{one['metric']}": one for one in made["results"] if one["weights"] == weights}
    for one in read_lines(words / "results.jsonl") if words.exists() else []:
        if (one["metric"], one["weights"]) == ("mean_iou", weights):
            found[f"words/{one['dataset'].rpartition(':')[2]}"] = one
    spent = {"gflop": read(cost)["gflop_per_image"]} if cost.exists() else {}
    return {name: 100 * one["value"] for name, one in found.items()} | {"steps": made["step"]} | spent


def scored(folder: Path, rows: Mapping[str, Sequence[str]]) -> dict[str, list[Scores]]:
    """The scores of the runs of each row."""
    return {row: [scores(folder, path) for path in paths] for row, paths in rows.items()}
