"""The tables of results: in report.md of a run, and in results.md, results.csv and on the screen of `evaluate`."""

import csv
import io
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence

from detailclip_jax.data.stickers.scene_choices import EXCHANGES
from detailclip_jax.data.stickers.scene_source import WHITE_SIDES
from detailclip_jax.evaluation import paper_numbers
from detailclip_jax.evaluation.evaluation_sets import LIMITED
from detailclip_jax.evaluation.results import ALL_FIELDS, Outcome, PaperResults, Record, Results
from detailclip_jax.evaluation.tasks import KINDS
from detailclip_jax.evaluation.zero_shot import top1_at
from detailclip_jax.runtime import markdown as markdown_table
from detailclip_jax.runtime.files import replace_text

LABELS = {  # metric, or task/metric -> label
    "top1": "zero-shot top-1",
    "on_white/top1": "zero-shot top-1, on white",
    **{f"on_white/{top1_at(side)}": f"on white, {100 * side:.0f} % of the side" for side in WHITE_SIDES},
    "other_drawings/top1": "top-1, other artists' drawings",
    "top5": "zero-shot top-5",
    "held_out_classes/top1": "top-1 of the held-out examples",
    "held_out_classes/top5": "top-5 of the held-out examples",
    "image_to_text_r1": "image to text R@1",
    "image_to_text_r5": "image to text R@5",
    "image_to_text_r10": "image to text R@10",
    "text_to_image_r1": "text to image R@1",
    "text_to_image_r5": "text to image R@5",
    "text_to_image_r10": "text to image R@10",
    "choice/accuracy": "which caption fits",
    **{f"choice/{name}": f"which caption fits, {name} exchanged" for name in EXCHANGES},
    "share": "kept patches that touch an object",
    "foreground_iou": "segmentation, foreground IoU",
    "miou": "linear segmentation mIoU",
    "balanced_miou": "segmentation mIoU, balanced",
    "object_miou": "segmentation mIoU, objects only",
}
LABELS |= {f"pooled_{name}": f"{LABELS[name]}, image pooled by class" for name in ("top1", "top5")}
LABELS |= {f"long/{name}": f"long captions, {label}" for name, label in LABELS.items() if "_to_" in name}
LABELS |= {
    f"{task}{slash}cls_{metric}": f"{label}, class token"
    for (task, slash, metric), label in ((name.rpartition("/"), label) for name, label in LABELS.items())
    if "_to_" in metric or task == "choice"
}
NAMES = LABELS | {
    "top1": "top-1",
    "top5": "top-5",
    **{top1_at(side): f"top-1, drawing of {100 * side:.0f} % of the side" for side in WHITE_SIDES},
    "pooled_top1": "top-1, image pooled by class",
    "pooled_top5": "top-5, image pooled by class",
    "mean_per_class": "mean per class",
    "roc_auc": "ROC AUC",
    "mean_of_top1_and_top5": "mean of top-1 and top-5",
    "mean_iou": "mIoU",
    "mean_accuracy": "mean accuracy per class",
    "pixel_accuracy": "accuracy of pixels",
    "inverted": "words lower on their object",
    "mean_of_groups": "mean of groups",
    "text_score": "text score",
    "image_score": "image score",
    "group_score": "group score",
    "text_only": "texts alone",
}
WEIGHTS = {"student": "student", "ema": "EMA"}
MAX_LISTED = 20


def write(store: Results, outcome: Outcome) -> None:
    """Writes results.md and results.csv of all records in the folder; skipped if nothing was measured."""
    if not (store.write and outcome.records):
        return
    store.folder.mkdir(parents=True, exist_ok=True)
    replace_text(store.folder / "results.md", markdown(store.records, outcome))
    replace_text(store.folder / "results.csv", as_csv(store.records, outcome.paper_results))


def in_order(records: Sequence[Record]) -> list[Record]:
    """The paper's (task, set) pairs first, in its order, with all metrics of each together; then the others."""
    sets = list(dict.fromkeys((task, dataset) for task, dataset, _ in paper_numbers.measurements()))
    every = list(dict.fromkeys((r["task"], r["dataset"]) for r in records))
    rank = {pair: place for place, pair in enumerate([*sets, *(pair for pair in every if pair not in sets)])}
    return sorted(records, key=lambda r: rank[r["task"], r["dataset"]])


def by_measurement(records: Sequence[Record]) -> dict[paper_numbers.Measurement, dict[str, Record]]:
    """(task, data set, metric) -> weights -> record, in order."""
    measured: dict[paper_numbers.Measurement, dict[str, Record]] = {}
    for r in in_order(records):
        measured.setdefault((r["task"], r["dataset"], r["metric"]), {})[r["weights"]] = r
    return measured


def table(
    records: Sequence[Record], paper_results: PaperResults | None = None, label: Callable[..., str] | None = None
) -> list[str]:
    """One line per metric: a column for each set of weights, columns of the paper's results, chance and n.

    `label` names a (task, data set, metric); by default `name_of`.
    """
    measured, theirs, label = by_measurement(records), paper_results or {}, label or name_of
    weights = list(dict.fromkeys(r["weights"] for r in records))
    shown = [title for title, row in theirs.items() if any(key in row for key in measured)]
    head = ["", *(WEIGHTS.get(w, w) for w in weights), *(f"paper: {title}" for title in shown), "chance", "n"]
    lines = [
        [
            label(key) + pooling_of(key[2], {metric for *task, metric in measured if tuple(task) == key[:2]}),
            *(percent(of[w]) if w in of else "" for w in weights),
            *(_percent_or_blank(theirs[title].get(key)) for title in shown),
            *judged(next(iter(of.values()))),
        ]
        for key, of in measured.items()
    ]
    return markdown_table.table([head, *lines])


def name_of(key: paper_numbers.Measurement) -> str:
    """A label such as "zero_shot pets, mean per class"."""
    task, dataset, metric = key
    k, _, rest = metric.partition("_")
    words = f"k={k[1:]}, {NAMES.get(rest, rest)}" if task == "knn" else NAMES.get(metric, metric)
    return f"{task} {dataset}, {words}"


def percent(r: Record) -> str:
    """A text such as "33.7 (31.6-35.8)"."""
    interval = "" if r["low"] is None else f" ({100 * r['low']:.1f}-{100 * r['high']:.1f})"
    return f"{100 * r['value']:.1f}{interval}"


def judged(r: Record) -> list[str]:
    """Chance and number of examples, as in the tables."""
    short = f" of {r['expected']:,}" if counts_images(r) and r["expected"] not in (None, r["n"]) else ""
    n = size_text(r["n"], r["n_train"]) + short
    return ["" if r["chance"] is None else f"{100 * r['chance']:.2f}", n]


def size_text(n: int | None, n_train: int | None) -> str:
    """The number of examples: "2,000", or "2,000, fitted on 5,000" for a probe."""
    fitted = "" if n_train is None else f", fitted on {n_train:,}"
    return "" if n is None else f"{n:,}{fitted}"


def counts_images(r: Record) -> bool:
    """Whether n is a number of images, as is the expected size of a set; text to image counts captions."""
    return r["task"] == "zero_shot" or (r["task"] == "retrieval" and "image_to_text" in r["metric"])


def pooling_of(metric: str, metrics: Collection[str]) -> str:
    """Returns the end of a metric's label, where a task's `metrics` have it by the class token and by the pooled image.

    pooling_of("top1", {"top1", "pooled_top1"}) == ", class token";  pooling_of("top1", {"top1"}) == ""
    """
    if f"pooled_{metric}" in metrics:
        return ", class token"
    return ", image pooled by text" if f"cls_{metric}" in metrics else ""


def paper_table(name: str, records: Sequence[Record], paper_results: PaperResults) -> list[str]:
    """Table 2 or 3 in the paper's layout: a line per set of weights and per result of the paper.

    Results that do not compare with the paper's are left out: those of a part of a set, and of other prompts. Empty if
    no column of the table is left.
    """
    columns, measured = paper_numbers.columns(name), by_measurement(like_the_paper(records))
    weights = list(dict.fromkeys(w for key in columns.values() for w in measured.get(key, {})))
    ours = {WEIGHTS.get(w, w): {key: of[w]["value"] for key, of in measured.items() if w in of} for w in weights}
    theirs = {f"paper: {label}": row for label, row in paper_results.items()}
    if not ours:
        return []
    means = ["mean"] if name == "zero_shot" else []
    lines = [
        [
            label,
            *(_percent_or_blank(row.get(key)) for key in columns.values()),
            *(_percent_or_blank(_mean(row, columns)) for _ in means),
        ]
        for label, row in (ours | theirs).items()
    ]
    return [f"## {paper_numbers.TITLES[name]}", "", *markdown_table.table([["", *columns, *means], *lines]), ""]


def like_the_paper(records: Sequence[Record]) -> list[Record]:
    """The records with the paper's prompts and metrics (the protocol "slip"), of all images of the set."""
    of_set = lambda r: (r["task"], r["dataset"], r["weights"])  # noqa: E731
    in_part = {of_set(r) for r in records if counts_images(r) and r["expected"] not in (None, r["n"])}
    in_part |= {of_set(r) for r in records if LIMITED in str(r["fingerprint"])}
    return [r for r in records if str(r["protocol"]).startswith("slip") and of_set(r) not in in_part]


def _percent_or_blank(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _mean(
    row: Mapping[paper_numbers.Measurement, float], columns: Mapping[str, paper_numbers.Measurement]
) -> float | None:
    """The mean over all sets of the table; None if one is missing, since a partial mean is not comparable."""
    values = [row[key] for key in columns.values() if key in row]
    return sum(values) / len(values) if len(values) == len(columns) else None


def details(records: Sequence[Record]) -> list[str]:
    """Every record with its interval, n, chance, protocol, fingerprint and step."""
    head = ["task", "set", "metric", "weights", "%", "95 %", "chance", "n", "protocol", "data", "step"]
    lines = [
        [
            *(r[name] for name in ("task", "dataset", "metric", "weights")),
            f"{100 * r['value']:.2f}",
            "" if r["low"] is None else f"{100 * r['low']:.2f}-{100 * r['high']:.2f}",
            *judged(r),
            *("" if r[name] is None else str(r[name]) for name in ("protocol", "fingerprint", "step")),
        ]
        for r in in_order(records)
    ]
    return markdown_table.table([head, *lines])


def notes(records: Sequence[Record]) -> list[str]:
    """Explanations of the metrics in these records."""
    return [
        general_note(records),
        *(KINDS[task].note for task in dict.fromkeys(r["task"] for r in records) if task in KINDS),
    ]


def general_note(records: Sequence[Record]) -> str:
    """Says what the numbers of these records are, and their intervals if some have one."""
    interval = ", with the bootstrap 95 % interval over test examples (not over training seeds)"
    return f"In per cent{interval if any(r['low'] is not None for r in records) else ''}. Ties count as errors."


def as_csv(records: Sequence[Record], paper_results: PaperResults) -> str:
    """A line per record, in the paper's order, as fractions of 1, with columns of the paper's results."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*ALL_FIELDS, *(f"paper: {label}" for label in paper_results)])
    for r in in_order(records):
        key = (r["task"], r["dataset"], r["metric"])
        theirs = [row.get(key, "") for row in paper_results.values()]
        writer.writerow([*("" if r[name] is None else r[name] for name in ALL_FIELDS), *theirs])
    return text.getvalue()


def markdown(records: Sequence[Record], outcome: Outcome) -> str:
    """The text of results.md: missing data, the measured columns of the paper's tables, all records, notes and gaps."""
    subject = outcome.subject
    step = "" if subject.step is None else f", step {subject.step:,}"
    title = f"# {subject.method or 'Evaluation'} of {subject.name}{step}"
    tables = [line for name in paper_numbers.TITLES for line in paper_table(name, records, outcome.paper_results)]
    everything = ["## All results", "", *details(records), ""] if records else []
    missing = [f"Not measured, data missing: {', '.join(outcome.missing)}.", ""] if outcome.missing else []
    lines = [title, "", *missing, *tables, *everything, *notes(records), "", *gaps(outcome)]
    return "\n".join(lines).rstrip() + "\n"


def gaps(outcome: Outcome) -> list[str]:
    """Lists truncated texts, remarks, failed tasks, tasks that the model does not allow, and unreadable images."""
    remarks = {f"{r['task']}:{r['dataset']} {r['weights']}": r["remark"] for r in outcome.records if r["remark"]}
    cut = {f"{r['task']}:{r['dataset']}": f"{r['truncated']:,}" for r in outcome.records if r.get("truncated")}
    sections = {
        "Texts cut to the context length of the model": cut,
        "Remarks": remarks,
        "Failed": outcome.failed,
        "Not measured for this model": outcome.left_out,
        "Unreadable images, skipped": dict.fromkeys(outcome.unreadable[:MAX_LISTED], ""),
    }
    return [line for heading, entries in sections.items() if entries for line in _listed(heading, entries)]


def _listed(heading: str, entries: Mapping[str, str]) -> list[str]:
    return [f"{heading}:", "", *(f"- {name}: {why}" if why else f"- {name}" for name, why in entries.items()), ""]


def screen(outcome: Outcome) -> str:
    """The text that the command prints at the end."""
    records = outcome.records
    about = textwrap.wrap(" ".join(notes(records)), 110)
    lines = [*table(records, outcome.paper_results), "", *about, ""] if records else []
    missing = _listed("Not measured, data missing", outcome.missing) if outcome.missing else []
    return "\n".join([*lines, *gaps(outcome), *missing]).rstrip()
