"""The report of a segmentation run: its protocol, its scores, and its row in the paper's table."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from detailclip_jax.config.run_config import flatten
from detailclip_jax.config.segmentation_fields import linear, segmentation
from detailclip_jax.dense import paper

RECIPES = {"upernet": segmentation, "linear": lambda: linear(segmentation())}
PROTOCOL = (  # fields, or groups of fields, on which a published number depends
    *("total_steps", "batch_size", "data.num_train", "data.num_val", "data.train_split", "data.val_split"),
    *("data.unknown_labels", "model.size", "model.drop_path", "model.freeze_patch_embed"),
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
    if config.data.source == "ade20k" and paper_rows(_column(config)):
        yield from with_paper(config, scores["mIoU"], protocol)


def with_paper(config: ConfigDict, miou: float, protocol: Mapping[str, Any]) -> Iterator[str]:
    """Yields the run as a row of the paper's table, and the fields in which it departs from the recipe."""
    yield "\nThis run and the paper's numbers with this head on ADE20K (arXiv 2409.06809, table 1):\n"
    yield "| encoder | pretraining data | epochs | mIoU |\n|---|---|---:|---:|"
    yield f"| this run: {protocol['init']} | | | {miou:.1f} |"
    for name, (data, epochs, value) in paper_rows(_column(config)).items():
        yield f"| {name} | {data} | {epochs or ''} | {value} |"
    if found := departures(config, RECIPES[config.head.name](), PROTOCOL):
        yield "\nNot like the paper's recipe: " + "; ".join(found) + "."
    else:
        yield "\nThe settings are those of the recipe."
    yield "What differs from mmseg's code in any case is listed in docs/segmentation.md."


def _column(config: ConfigDict) -> str:
    """The column of the paper's table with a head's mIoU on ADE20K."""
    return f"ade20k_{config.head.name}_miou"


def departures(config: ConfigDict, recipe: ConfigDict, protocol: Sequence[str]) -> list[str]:
    """The fields of a protocol that differ from a recipe, as "name value (recipe: value)"."""
    usual, given = (
        {name: value for name, value in flatten(fields.to_dict()).items() if value != {}} for fields in (recipe, config)
    )
    names = [name for name in {**usual, **given} if name.startswith(tuple(protocol))]
    pairs = {name: (given.get(name), usual.get(name)) for name in names}
    return [f"{name} {ours!r} (recipe: {theirs!r})" for name, (ours, theirs) in pairs.items() if ours != theirs]


def paper_rows(*columns: str) -> dict[str, tuple[Any, ...]]:
    """The paper's (pretraining data, epochs, values of columns) on dense tasks, by method; only rows with all values.

    Empty for a column that the paper lacks.
    """
    table = paper.tables()["dense"]
    if any(column not in table["columns"] for column in columns):
        return {}
    places = [table["columns"].index(name) for name in ("data", "epochs", *columns)]
    rows = {name: tuple(row[place] for place in places) for name, row in table["rows"].items()}
    return {name: row for name, row in rows.items() if None not in row[2:]}
