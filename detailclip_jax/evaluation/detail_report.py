"""The page of `evaluate --tasks=detail`: what a model tells apart in detail, beside the published numbers of it."""

from collections.abc import Mapping
from pathlib import Path

from detailclip_jax.evaluation import paper_numbers
from detailclip_jax.evaluation.results import Outcome
from detailclip_jax.evaluation.subject import text_sides
from detailclip_jax.evaluation.tables import WEIGHTS, by_measurement, gaps, general_note, judged, name_of, percent
from detailclip_jax.evaluation.tasks import KINDS
from detailclip_jax.runtime import markdown as markdown_table
from detailclip_jax.runtime.files import replace_text
from detailclip_jax.training import checkpoint

FILE = "detail.md"  # in the folder of the results
SECTIONS = {
    "choice": "Which caption fits",
    "retrieval": "Long captions",
    "dense": "Words on patches",
    "box_class": "Boxes",
}
LEFT_OUT = ("_r5", "_r10", "mean_accuracy", "pixel_accuracy")  # ends of metrics: the page has the main ones
ABSENT = "absent"


def write(out: Path, outcome: Outcome) -> Path:
    """Writes the page into a folder; returns its path."""
    replace_text(out / FILE, markdown(outcome))
    return out / FILE


def markdown(outcome: Outcome) -> str:
    """The text of the page: the model, a table for each kind of task, and the sets that are missing."""
    subject, records = outcome.subject, outcome.records
    origins = checkpoint.origins_of(subject.name, subject.step)
    own = next((origin for origin in origins if "field" not in origin), None)  # else only the start of a run
    printed = paper_numbers.printed_of(own["repository"]) if own else {}
    lines = [f"# Detail: {own['name'] if own else subject.name}", ""]
    if own:
        lines += [f"Revision {own['revision']}, licence {own.get('licence', 'unknown')}.", ""]
    lines += [f"Method {subject.method}, step {subject.step:,}, images of {subject.transform.size} px.", ""]
    lines += [line for each in text_sides(subject) for line in (f"{each}.", "")]
    lines += [general_note(records), ""]
    if own and not printed:
        lines += ["No published numbers of this model on these sets are known to this package.", ""]
    if printed:
        lines += [f"Published: a number of this model from the source beside it; {ABSENT}: none is known.", ""]
    for task, title in SECTIONS.items():
        lines += [f"## {title}", "", *section(outcome, task, printed), ""]
    lines += gaps(outcome._replace(left_out={}))  # the sections have them
    if outcome.missing:
        ways = {}  # what to do to get the sets of a task, without indentation
        for task, message in outcome.missing.items():
            first, *others = message.splitlines()
            ways[task] = " or ".join(way.strip() for way in others) or first
        of_ways = (f"- {', '.join(names)}: {way}" for way, names in by_reason(ways).items())
        lines += ["## Sets that are not on this disk", "", *of_ways, ""]
    return "\n".join(lines).rstrip() + "\n"


def section(outcome: Outcome, task: str, printed: paper_numbers.Numbers) -> list[str]:
    """The table of a kind of task, the note on it, and what was not measured for this model, with the reason."""
    records = [r for r in outcome.records if r["task"] == task and not r["metric"].endswith(LEFT_OUT)]
    left_out = {name: reason for name, reason in outcome.left_out.items() if name.startswith(f"{task}:")}
    unmeasured = [f"Not measured ({', '.join(names)}): {reason}." for reason, names in by_reason(left_out).items()]
    if not records:
        return unmeasured or ["Nothing was measured."]
    weights = list(dict.fromkeys(r["weights"] for r in records))
    head = ["", *(WEIGHTS.get(name, name) for name in weights), "chance", "n"]
    rows = [head + ["published", "source"] * bool(printed)]
    for key, of in by_measurement(records).items():
        number, source = printed.get(key, (None, ""))
        published = [ABSENT if number is None else f"{number:.1f}", source] if printed else []
        scores = [percent(of[name]) if name in of else "" for name in weights]
        rows.append([name_of(key).removeprefix(f"{task} "), *scores, *judged(next(iter(of.values()))), *published])
    return [*markdown_table.table(rows), "", KINDS[task].note, *(line for each in unmeasured for line in ("", each))]


def by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Groups names by their text."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return names
