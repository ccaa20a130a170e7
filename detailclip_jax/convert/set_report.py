"""Shows the contents of a prepared set: text summary, histograms, contact sheet."""

import math
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image, ImageDraw

from detailclip_jax.convert import regions
from detailclip_jax.convert.columns import sides
from detailclip_jax.convert.files import FIGURES
from detailclip_jax.convert.known_sizes import comparison
from detailclip_jax.convert.prepared_set import load, reasons_in
from detailclip_jax.convert.statistics import SIDE_STEP, quantile
from detailclip_jax.data.decoding import BadImage, decoded_for_use
from detailclip_jax.data.tokenizer import MAX_CHARACTERS
from detailclip_jax.runtime import extras
from detailclip_jax.runtime.files import written_atomically
from detailclip_jax.runtime.progress import Console
from detailclip_jax.runtime.terminal import counted

SHARES = (0.05, 0.5, 0.95)
COLUMNS, ROWS = 8, 4  # of the contact sheet
TILE, ROW = 160, 14  # pixels: side of an image, height of a line
LINE = 26  # characters per line
FEWEST, MOST = 3, 20  # lines below an image


def show(folder: str, console: Console) -> None:
    """Prints the summary of every split and writes SPLIT-statistics.png and SPLIT-contact-sheet.png."""
    for split, record in load(folder)["splits"].items():
        console.say("\n".join([f"{split}:", *summary(record)]))
        if not record["num_examples"]:
            continue
        sheet, figure = (pathlib.Path(folder) / f"{split}{ending}" for ending in FIGURES)
        drawn = contact_sheet([str(pathlib.Path(folder) / shard["name"]) for shard in record["shards"]])
        with written_atomically(sheet) as partial:
            drawn.save(partial, "PNG")
        histograms(record, figure)
        console.say(f"figures: {figure}, {sheet}")


def summary(record: Mapping[str, Any]) -> list[str]:
    """Returns the lines that describe a split."""
    counts = record["statistics"]
    shards = counted(len(record["shards"]), "shard")
    rejects = "0"
    if num := record["num_rejected"]:
        reasons = reasons_in(record["rejected"], record.get("first_rejected", {}))
        rejects = f"{num:,} of {num + record['num_examples']:,}: {reasons}; all are in {record['rejected_list']}"
    lines = [
        f"examples    {record['num_examples']:,} in {shards}, {record['bytes'] / 1e6:,.1f} MB",
        f"rejected    {rejects}",
    ]
    if expected := comparison(record["dataset"], record["num_examples"], record["num_rejected"]):
        lines.append(f"expected    {expected}")
    if joined := record.get("joined"):
        lines.append(f"joined      {_joined(joined)}")
    if not record["num_examples"]:
        return lines
    lines += [f"{name:<12}{_quantiles(counts[name], name)}" for name in ("width", "height", "bytes")]
    lines += [f"{name:<12}{_captions(field)}" for name, field in counts["captions"].items()]
    if boxes := counts.get("regions"):
        lines.append(f"regions     {regions.summary(boxes)}")
    if num_cut := record.get("cut_captions"):
        lines.append(f"cut         {num_cut:,} captions, to their first {MAX_CHARACTERS:,} characters")
    return lines + ([f"no caption  {counts['without_caption']:,}"] if counts["without_caption"] else [])


def blank_captions(record: Mapping[str, Any]) -> list[str]:
    """Returns the names that the user has given to captions and that are blank in every example of a split."""
    counts, options = record["statistics"]["captions"], record["options"]
    joined = [sides(each)[0] for each in options.get("captions_columns", ())]
    named = dict.fromkeys([*options["caption_columns"], *joined])
    return [name for name in named if name in counts and counts[name].get("empty", 0) == counts[name].get("count", 0)]


def _joined(counts: Mapping[str, Any]) -> str:
    """Returns "9 of 10 images, 1 without a row; 12 rows, 2 doubled (...), 1 that no image has"."""
    num = counts["matched"] + counts["unmatched"]
    images = f"{counts['matched']:,} of {counted(num, 'image')}, {counts['unmatched']:,} without a row"
    doubled = f"{counts['doubled']:,} doubled (the first row of a key counts)" if counts["doubled"] else "0 doubled"
    unusable = f", {counts['unusable']:,} unusable (without a key, or damaged)" if counts["unusable"] else ""
    unused = f", {counts['unused']:,} that no image has" if counts.get("unused") else ""
    return f"{images}; {counted(counts['rows'], 'row')}, {doubled}{unusable}{unused}"


def _quantiles(histogram: Mapping[str, int], name: str) -> str:
    """Returns 5 %, median and 95 %, given by the bins that contain them."""
    low, middle, high = (quantile(histogram, share) for share in SHARES)
    last, width = high + _bin_width(name, high) - 1, _bin_width(name, middle)
    median = f"{middle:,}" if width == 1 else f"{middle:,}-{middle + width - 1:,}"
    return f"median {median}, 5-95 % {low:,} to {last:,}"


def _bin_width(name: str, low: int) -> int:
    return {"width": SIDE_STEP, "height": SIDE_STEP, "bytes": max(low, 1)}.get(name, 1)


def _captions(field: Mapping[str, Any]) -> str:
    if not field.get("count"):  # a column of empty lists
        return "none"
    return (
        f"{field['count']:,}, of {_quantiles(field['tokens'], 'tokens')} tokens, "
        f"{field['empty'] / field['count']:.1%} empty, {field['truncated'] / field['count']:.1%} truncated"
    )


def histograms(record: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draws histograms of sizes, caption lengths and rejects; ImportError without matplotlib."""
    matplotlib = extras.load("matplotlib.figure", "figures need matplotlib", "demo")
    counts = record["statistics"]
    drawn = {"width": counts["width"], "height": counts["height"], "bytes": counts["bytes"]}
    drawn |= {f"tokens: {name}": field["tokens"] for name, field in counts["captions"].items() if field}
    panels = len(drawn) + bool(record["rejected"])
    figure = matplotlib.Figure(figsize=(12, 3 * math.ceil(panels / 3)), layout="constrained")
    axes = figure.subplots(math.ceil(panels / 3), 3, squeeze=False).ravel()
    for axis, (name, histogram) in zip(axes, drawn.items()):
        lows = np.array(sorted(map(int, histogram)))
        widths = [_bin_width(name, int(low)) for low in lows]
        axis.bar(lows, [histogram[str(low)] for low in lows], width=widths, align="edge")
        axis.set_title(name, parse_math=False)  # a column may be called $x
        if name == "bytes":
            axis.set_xscale("log", base=2)
    if record["rejected"]:
        axes[panels - 1].barh(list(record["rejected"]), list(record["rejected"].values()))
        axes[panels - 1].set_title("rejected")
    for axis in axes[panels:]:
        axis.set_axis_off()
    with written_atomically(path) as partial:
        figure.savefig(partial, format="png")


def contact_sheet(paths: Sequence[str]) -> Image.Image:
    """Returns evenly spaced images of the shards with their captions."""
    records = ArrayRecordDataSource(list(paths))
    chosen = np.unique(np.linspace(0, len(records) - 1, COLUMNS * ROWS).astype(int)).tolist()
    examples = [msgpack.unpackb(record) for record in records.__getitems__(chosen)]
    height = TILE + 2 + ROW * max(FEWEST, *(len(caption_lines(example)) for example in examples))
    sheet = Image.new("RGB", (COLUMNS * TILE, math.ceil(len(chosen) / COLUMNS) * height), "white")
    for place, example in enumerate(examples):
        row, column = divmod(place, COLUMNS)
        left, top = column * TILE, row * height
        try:
            with decoded_for_use(example["image"]) as pixels:
                tile = Image.fromarray(pixels)
                tile.thumbnail((TILE - 4, TILE - 4))
        except BadImage:  # accepted by its header alone, or damaged later
            tile = Image.new("RGB", (TILE - 4, TILE - 4), "gray")
        sheet.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
        for number, line in enumerate(caption_lines(example)):
            ImageDraw.Draw(sheet).text((left + 2, top + TILE + number * ROW), line, fill="black")
    return sheet


def caption_lines(example: Mapping[str, Any]) -> list[str]:
    """Returns the lines below an image: its caption, or the beginnings of several; its key without any."""
    captions = [" ".join(text.split()) for text in example["captions"] if text.strip()] or [example["key"]]
    captions = [text.encode("ascii", "replace").decode() for text in captions]  # letters of Pillow's default font
    return [text[:LINE] for text in captions[:MOST]] if len(captions) > 1 else textwrap.wrap(captions[0], LINE)[:FEWEST]
