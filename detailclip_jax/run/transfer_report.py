"""The report of a segmentation run: its protocol, its scores, and its row in the paper's table."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from detailclip_jax.config.run_config import flatten
from detailclip_jax.config.transfer import linear, segmentation
from detailclip_jax.evaluation import paper

RECIPES = {"upernet": segmentation, "linear": lambda: linear(segmentation())}
PROTOCOL = (  # fields, or groups of fields, on which a published number depends
    *("total_steps", "batch_size", "data.num_train", "data.num_val", "model.size", "model.drop_path"),
    *("views.", "encoder.", "head.", "auxiliary.", "optimizer.", "inference.mode", "inference.scale"),
    *("inference.window", "inference.stride"),
)


def report(config: ConfigDict, step: int, scores: Mapping[str, float], protocol: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of report.md; the paper's numbers only where they are of the same set and head."""
    yield f"# {protocol['head']} on {protocol['set']}, step {step:,}\n"
    yield f"{protocol['images']} images, {protocol['classes']} classes"
    yield f"Encoder: {protocol['init']}, {protocol['encoder']}\n"
    yield "| metric | % |\n|---|---|"
    yield from (f"| {name} | {value:.2f} |" for name, value in scores.items())
    if config.data.source == "ade20k" and paper_rows(config.head.name):
        yield from beside_paper(config, scores["mIoU"], protocol)


def beside_paper(config: ConfigDict, miou: float, protocol: Mapping[str, Any]) -> Iterator[str]:
    """Yields the run as a row of the paper's table, and the fields in which it departs from the recipe."""
    yield "\nThis run and the paper's numbers with this head on ADE20K (arXiv 2409.06809, table 1):\n"
    yield "| encoder | pretraining data | epochs | mIoU |\n|---|---|---:|---:|"
    yield f"| this run: {protocol['init']} | | | {miou:.1f} |"
    for name, (data, epochs, value) in paper_rows(config.head.name).items():
        yield f"| {name} | {data} | {epochs or ''} | {value} |"
    if found := departures(config):
        yield "\nNot like the paper's recipe: " + "; ".join(found) + "."
    else:
        yield "\nThe settings are those of the recipe."
    yield "What differs from mmseg's code in any case is listed in docs/segmentation.md."


def departures(config: ConfigDict) -> list[str]:
    """The fields of the protocol that differ from the head's recipe, as "name value (recipe: value)"."""
    usual, given = flatten(RECIPES[config.head.name]()), flatten(config)
    names = [name for name in {**usual, **given} if name.startswith(PROTOCOL)]
    pairs = {name: (given.get(name), usual.get(name)) for name in names}
    return [f"{name} {ours!r} (recipe: {theirs!r})" for name, (ours, theirs) in pairs.items() if ours != theirs]


def paper_rows(head: str) -> dict[str, tuple[str, int | None, float]]:
    """The paper's (pretraining data, epochs, mIoU) on ADE20K with a head, by method; empty for an unreported head."""
    table = paper.tables()["dense"]
    column = f"ade20k_{head}_miou"
    if column not in table["columns"]:
        return {}
    places = [table["columns"].index(name) for name in ("data", "epochs", column)]
    rows = {name: tuple(row[place] for place in places) for name, row in table["rows"].items()}
    return {name: row for name, row in rows.items() if row[-1] is not None}
