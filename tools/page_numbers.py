"""Measures the marked numbers of the README and of docs/ again.

    python tools/page_numbers.py                       # lists every number: minutes, date, commit, what
    python tools/page_numbers.py demo evaluation       # measures these
    make numbers ONLY="demo evaluation"                # the same, in the environment of the tests

A function with `@number` says how each one is made: minutes, commands, and the texts from the folder of their results.
docs/numbers.json holds what was measured, with date, commit, machine and versions.  In README.md, docs/*.md and
tools/measured.md a measured text stands between `<!-- numbers NAME -->` and `<!-- end -->`, exactly as the data file
has it (a test).  The commands write to runs/numbers/COMMIT/NAME and resume there.
"""

import itertools
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from pages import tables
from pages.making import Found, Texts, benchmarks, main, number
from pages.results import Scores, read, read_lines, runs, scored, scores

from detailclip_jax.evaluation import run_report
from detailclip_jax.evaluation.tables import LABELS

MAIN = "python -m detailclip_jax.main --config=configs/stickers.py"
COMPARE = "python -m detailclip_jax.compare"
EVALUATE = "python -m detailclip_jax.evaluate"
TRANSFER = "python -m detailclip_jax.transfer --config=configs/transfer"

# --- the demo

FONT_ROW = "other artists' drawings"  # needs Noto Color Emoji
DEMO_FIGURES = {f"docs/{name}.png": f"figures/{name}.png" for name in ("attention", "reconstructions")}


@number(15, f"{MAIN} --workdir={{out}}", files=DEMO_FIGURES)
def demo(folder: Path) -> Texts:
    """The demo's table, its rows that the run prints, and its figures.

    Without the row that needs a font which `make demo` does not install; ends the script if another was not measured.
    """
    lines = (folder / "report.md").read_text().splitlines()
    if missing := [line for line in lines if line.startswith("Not measured") and FONT_ROW not in line]:
        sys.exit(f"{folder}/report.md says: {missing[0]}")
    table = [line for line in lines if line.startswith("|") and FONT_ROW not in line]
    titles = {LABELS.get(name) or LABELS[name.rpartition("/")[2]] for name in run_report.FIRST_ROWS}
    printed = [line for line in table[2:] if line.strip("|").split("|")[0].strip() in titles]
    return {"table": table, "short": [*table[:2], *printed]}


DETAIL = "--config=configs/detail.py --config.total_steps=2834"
BEST = "--tasks=dense:stickers:all --num-examples=100"
OVERVIEW = "--labels=demo,configs/detail.py --what=overview --num-images=2"


@number(
    40,
    f"python -m detailclip_jax.main {DETAIL} --workdir={{out}}/detail",
    f"{EVALUATE} --checkpoint={{out}}/detail {BEST}",
    f"{EVALUATE} --checkpoint={{demo}} --out={{out}}/demo {BEST} --weights=ema",
    f"python -m detailclip_jax.visualize --checkpoint={{demo}} --checkpoint={{out}}/detail {OVERVIEW} --formats=png "
    "--out={out}",
    files={"docs/overview.png": "overview.png"},
    after=("demo",),
)
def overview(folder: Path) -> Texts:
    """The first figure of the README: the demo's checkpoint, and that of configs/detail.py, each by its best read-out.

    The caption has the scores that chose them.
    """
    runs = {"demo": (folder.parent / "demo", 600, "ema"), "configs/detail.py": (folder / "detail", 2834, "student")}
    found = {}
    for name, (workdir, step, weights) in runs.items():
        choice = read(workdir / "readouts.json")[str(step)][weights]
        score, inverted = (100 * choice[what][choice["readout"]] for what in ("mean_iou", "inverted"))
        found[name] = f"`{choice['readout']}` (mIoU {score:.1f}, {inverted:.0f} % of the words inverted)"
    caption = (
        f"*`python -m detailclip_jax.visualize --checkpoint=runs/stickers --checkpoint=runs/detail {OVERVIEW}`, after "
        f"`make demo`, `python -m detailclip_jax.main {DETAIL} --workdir=runs/detail` and `evaluate {BEST}` of both: "
        "scenes of unseen pairs, CLS attention (eq. 9), the half of the patches with the most attention, the demo's "
        "prediction of the others, and the map of each noun minus the mean of all 96 nouns (yellow: its maximum), by "
        f"the read-out that `evaluate` chose on 100 scenes: {found['demo']} for the demo's EMA teacher, "
        f"{found['configs/detail.py']} for `configs/detail.py`. [OpenMoji](https://openmoji.org), CC BY-SA 4.0.*"
    )
    return {"caption": caption}


EXAMPLES = """
import contextlib, pathlib, re
(block,) = re.findall("```python\\n(.*?)```", pathlib.Path("docs/first_run.md").read_text(), re.DOTALL)
with open("{out}/first_run.txt", "w") as file, contextlib.redirect_stdout(file):
    exec(block.replace("runs/stickers", "{demo}"))
"""


@number(1, f"python -c {shlex.quote(EXAMPLES)}", after=("demo",))
def examples(folder: Path) -> Texts:
    """What the Python of docs/first_run.md prints, with the demo's checkpoint."""
    return {"first_run": [f"    {line}" for line in (folder / "first_run.txt").read_text().splitlines()]}


@number(15, f"{MAIN} --config.data.stickers.scenes=textured --workdir={{out}}", after=("demo",))
def grounds(folder: Path) -> list[str]:
    """What plain grounds in training change: EMA weights of the demo, without them and with them."""
    rows = {
        "zero-shot, on white": "on_white/top1",
        "on white, object of half of the side": "on_white/top1_50",
        "on white, object of three quarters of the side": "on_white/top1_75",
        "zero-shot, other artists' drawings": "other_drawings/top1",
        "zero-shot, unseen scenes": "zero_shot/top1",
        "image to text R@1": "retrieval/image_to_text_r1",
    }
    both = scores(folder, weights="ema"), scores(folder.parent / "demo", weights="ema")
    head = ["", "textured grounds, large objects", "plain grounds and any size too"]
    return tables.table(head, ((row, [f"{one[name]:.1f}" for one in both]) for row, name in rows.items()))


@number(
    10,
    f"{EVALUATE} --checkpoint={{demo}} --out={{out}} --weights=student "
    "'--tasks=zero_shot:stickers;knn:stickers;linear:stickers'",
    after=("demo",),
)
def evaluation(folder: Path) -> str:
    """The demo's checkpoint by the command `evaluate`."""
    lines = [one for one in read_lines(folder / "results.jsonl") if one["weights"] == "student"]
    found = {f"{one['task']}, {one['metric']}": f"{100 * one['value']:.1f}" for one in lines}
    return (
        f"Unseen scenes: zero-shot {found['zero_shot, top1']}, k-NN (k = 10) {found['knn, k10_top1']}, linear probe "
        f"{found['linear, top1']}; chance 1.04 each."
    )


@number(
    3,
    f"{EVALUATE} --checkpoint={{demo}} --out={{out}} --weights=student --tasks=dense:stickers:all --num-examples=100",
    after=("demo",),
)
def readouts(folder: Path) -> list[str]:
    """The dense read-outs with the demo's student."""
    lines = read_lines(folder / "results.jsonl")
    found = {(one["dataset"].rpartition(":")[2], one["metric"]): one for one in lines}
    rows = {}
    for name in ("plain", "maskclip", "maskclip_bare", "sclip", "naclip", "clearclip", "gem", "tips"):
        miou, low, high = (100 * found[name, "mean_iou"][key] for key in ("value", "low", "high"))
        right = 100 * found[name, "pixel_accuracy"]["value"]
        rows[f"`{name}`"] = [f"{miou:.1f} ({low:.1f}-{high:.1f})", f"{right:.1f}"]
    return tables.table(["read-out", "mIoU", "accuracy of pixels"], rows.items())


SHAPES = "--config.data.source=records --config.data.path={out}/records --config.data.held_out=0"
OF_SHAPES = {  # folder -> config, title
    "detail": ("configs/detail.py", "`configs/detail.py`"),
    "clip": (
        "configs/stickers.py:method=clip --config.views.patch_dropout=0.5 --config.views.patch_dropout_until=0.9",
        "without `token_set`",
    ),
}


@number(
    25,
    "python tools/shapes.py draw {out}",
    "python -m detailclip_jax.prepare csv {out}/train.csv --out={out}/records",
    *(
        f"python -m detailclip_jax.main --config={config} {SHAPES} --config.total_steps=300 --workdir={{out}}/{name}"
        for name, (config, _) in OF_SHAPES.items()
    ),
    *(f"{EVALUATE} --checkpoint={{out}}/{name} --tasks=dense:folder:{{out}}/val" for name in OF_SHAPES),
    "python tools/shapes.py measure {out}/val {out}/detail {out}/clip --json={out}/parts.json",
)
def shapes(folder: Path) -> Texts:
    """Read-outs on drawn shapes, and where the last block puts the words of an image."""
    parts = {Path(run).name: one for run, one in read(folder / "parts.json").items()}
    cells: dict[str, list[str]] = {}
    for name in OF_SHAPES:
        scores = read(folder / name / "readouts.json")["300"]["student"]["mean_iou"]
        for part in ("O v", "O S v", "plain", "maskclip", "naclip"):
            one = parts[name][part]
            score = scores.get({"O v": "maskclip_bare"}.get(part, part))
            told = ["" if score is None else f"{100 * score:.1f}", f"{one['gain']:+.2f}", f"{one['inverted']:.0f} %"]
            cells.setdefault(part, []).extend(told)
    head = ("mIoU", "own word, object minus background", "inverted objects")
    columns = [f"{title}: {what}" for _, title in OF_SHAPES.values() for what in head]
    attended = "; ".join(
        f"{title}: a background patch gives objects {parts[name]['attention']['from background']:.0f} % of its "
        f"attention, an object patch {parts[name]['attention']['from objects']:.0f} %"
        for name, (_, title) in OF_SHAPES.items()
    )
    share = parts["detail"]["objects"]
    return {
        "table": tables.table(["patch feature", *columns], cells.items()),
        "attention": f"Attention to patches of objects, which are {share:.0f} % of all patches. {attended}.",
    }


# --- methods

METRICS = {  # title -> task/metric
    "zero-shot": "zero_shot/top1",
    "image to text R@1": "retrieval/image_to_text_r1",
    "text to image R@1": "retrieval/text_to_image_r1",
    "foreground IoU": "segmentation/foreground_iou",
    "balanced mIoU": "segmentation/balanced_miou",
    "kept objects": "kept_objects/share",
}
GFLOP = {"GFLOP per image": "gflop"}
WORDS = ("plain", "maskclip", "naclip")  # read-outs of the tables at equal FLOP
SCORES = METRICS | {f"words, {name}: mIoU": f"words/{name}" for name in WORDS}
AT_EQUAL_FLOP = {"steps": "steps"} | SCORES | GFLOP
SHORT = ("balanced mIoU", "words, plain: mIoU")  # of docs/experiments.md
GENTLY = "--set optimizer.loaded_rate=0.3 --set optimizer.layer_decay=0.75"


def by_words(path: str, weights: str = "student") -> str:
    """The command that segments by words with the run in this folder."""
    return (
        f"{EVALUATE} --checkpoint={{out}}/{path} --out={{out}}/dense/{path} --weights={weights} "
        f"--num-examples=100 --tasks=dense:{','.join(f'stickers:{name}' for name in WORDS)}"
    )


PAPER = "detailclip+losses.weights.cls=1.0+losses.weights.patch=1.0"
COMPARED = {  # entry of `compare` -> row
    **{name: f"`{name}`" for name in ("clip", "clip_two_views", "maskclip", "aclip", "detailclip")},
    "clip_two_views": "`clip_two_views` (control)",
    PAPER: "`detailclip`, the paper's weights",
}


def compared(folder: Path, entries: Iterable[str] = COMPARED, seeds: int = 1) -> list[str]:
    """The metrics and the cost of entries of COMPARED."""
    rows = {COMPARED[entry]: runs(entry, seeds) for entry in entries}
    return tables.of_scores("method", METRICS | GFLOP, scored(folder, rows))


@number(180, f"{COMPARE} --methods={','.join(COMPARED)} --seeds=3 --budget=300 --workdir={{out}}/rows")
def comparison(folder: Path) -> Texts:
    """Methods at one budget, from scratch; encoders without training, whose runs `compare` does not keep."""
    lines = compared(folder, seeds=3)
    for row in ("untrained", "raw pixels"):
        cells = dict.fromkeys(METRICS.values(), "")
        for one in read(folder / "rows/comparison.json")["results"]:
            if one["method"] == row and one["metric"] in cells:
                deviation = f" ± {100 * one['std']:.1f}" if one["num_seeds"] > 1 else ""
                cells[one["metric"]] = f"{100 * one['mean']:.1f}{deviation}"
        lines.append(f"| {row} | {' | '.join(cells.values())} |  |")
    columns = "zero-shot", "image to text R@1", "foreground IoU", "balanced mIoU", "GFLOP per image"
    return {"table": lines, "short": tables.only(lines, columns)}


@number(90, f"{COMPARE} --methods=clip,detailclip --seeds=1 --budget=2400 --workdir={{out}}/rows")
def longer(folder: Path) -> list[str]:
    """CLIP and DetailCLIP at eight times that budget."""
    return compared(folder, ("clip", "detailclip"))


@number(
    110,
    f"{MAIN}:method=clip --config.seed=100 --workdir={{out}}/clip",
    f"{COMPARE} --init={{out}}/clip --methods={','.join(COMPARED)} --seeds=1 --budget=300 {GENTLY} "
    "--workdir={out}/rows",
)
def continued(folder: Path) -> list[str]:
    """Methods at one budget, from one CLIP."""
    return compared(folder)


LATER = {  # the same for the methods after DetailCLIP
    **{name: f"`{name}`" for name in ("clip", "siglip", "silc", "tips", "tipsv2", "detailclip")},
    "detailclip+losses.patch_over=all": "`detailclip`, patch loss over all tokens",
    **{name: f"`{name}`" for name in ("cosmos", "flair")},
}
LATER_SEEDS = 3


def later_commands(seeds: int, budget: int) -> list[str]:
    """Trains and scores the methods after DetailCLIP, then segments by words with each run."""
    weights = {"cosmos": "student,ema"}
    return [
        f"{COMPARE} --methods={','.join(LATER)} --seeds={seeds} --budget={budget} --workdir={{out}}/rows",
        *(by_words(path, weights.get(entry, "student")) for entry in LATER for path in runs(entry, seeds)),
    ]


def later_table(folder: Path, seeds: int) -> list[str]:
    """All scores of the methods after DetailCLIP; COSMOS by its teacher too, which is its own choice of weights."""
    words = {f"words, {name}: mIoU": f"words/{name}" for name in ("plain", "naclip")}
    rows = scored(folder, {row: runs(entry, seeds) for entry, row in LATER.items()})
    rows["`cosmos`, the teacher"] = [scores(folder, path, "ema") for path in runs("cosmos", seeds)]
    return tables.of_scores("method", METRICS | words | GFLOP, rows)


@number(480, *later_commands(LATER_SEEDS, 300))
def later(folder: Path) -> Texts:
    """The methods after DetailCLIP at one budget, from scratch; each minus CLIP."""
    found = scored(folder, {row: runs(entry, LATER_SEEDS) for entry, row in LATER.items()})
    differences = tables.of_differences("method, minus `clip`", METRICS, found, baseline="`clip`")
    return {"table": later_table(folder, LATER_SEEDS), "differences": differences}


@number(960, *later_commands(1, 2400))
def later_longer(folder: Path) -> Texts:
    """The methods after DetailCLIP at eight times that budget."""
    return {"table": later_table(folder, 1)}


class EqualFlop(NamedTuple):
    """A row of the table at equal FLOP: at most the FLOP of 300 steps of COSMOS."""

    label: str
    entry: str  # of `compare`
    steps: int
    seeds: int
    flags: str = ""


DROPOUT = "views.patch_dropout=0.5+views.patch_dropout_until=0.9"
LONG = "model.context_length=64+data.text_buckets=()"
SENTENCES = f"data.caption=crops:long+data.num_captions=6+{LONG}"  # as for COSMOS
TEACHER = "--config=configs/stickers.py:method=superclip,size=small --config.total_steps=900"
EQUAL_FLOP = {  # folder -> row
    "clip": EqualFlop("`clip`", "clip", 1605, 3),
    "mean": EqualFlop("`clip`, mean of the patches", "clip+model.image_style.pooling=mean", 1600, 2),
    "dropout": EqualFlop("`clip`, patch dropout", f"clip+{DROPOUT}", 2834, 3),
    "captions": EqualFlop("`clip`, COSMOS's captions", f"clip+{SENTENCES}", 833, 2),
    "token_set": EqualFlop("`clip` with `token_set`", "superclip", 1540, 2),
    "detail": EqualFlop("`configs/detail.py`: `token_set`, patch dropout", "configs/detail.py", 2834, 3),
    "both": EqualFlop("`token_set`, mean of the patches", "superclip+model.image_style.pooling=mean", 1540, 2),
    "distil": EqualFlop(
        "`clip` with `distill`",
        "clip",
        477,
        3,
        "--set losses.weights.distill=4 --set distill.teacher={out}/teacher",
    ),
    "cosmos": EqualFlop("`cosmos`", "cosmos", 300, 1),
}
# Their encoders get a linear head and a detector; the table of the README has these rows.
TRANSFERRED = ("clip", "dropout", "detail")
OF_README = {
    "steps": "steps",
    "zero-shot accuracy": "zero_shot/top1",
    "foreground IoU": "segmentation/foreground_iou",
    "balanced mIoU": "segmentation/balanced_miou",
    "mIoU from names alone": "words/plain",
}
HEADS = {
    "linear head: mIoU": "linear/mIoU",
    "detector: box AP": "detection/bbox_AP",
    "detector: box AP50": "detection/bbox_AP50",
    "detector: mask AP": "detection/segm_AP",
    "detector: mask AP50": "detection/segm_AP50",
}


def equal_flop_runs(folder: str) -> list[str]:
    """The runs of a row of EQUAL_FLOP, a seed each."""
    return runs(EQUAL_FLOP[folder].entry, EQUAL_FLOP[folder].seeds, folder)


def equal_flop_commands() -> list[str]:
    """Trains the teacher, then trains every row at about the same FLOP; all runs segment by words."""
    commands = [f"python -m detailclip_jax.main {TEACHER} --workdir={{out}}/teacher", by_words("teacher")]
    for folder, row in EQUAL_FLOP.items():
        flags = f"--seeds={row.seeds} --budget={row.steps} {row.flags}".strip()
        commands.append(f"{COMPARE} --methods={row.entry} {flags} --workdir={{out}}/{folder}")
        commands += map(by_words, equal_flop_runs(folder))
    return commands + [
        f"{TRANSFER}/stickers_{task}.py --config.init={{out}}/{path} --workdir={{out}}/{task}/{path}"
        for task in ("linear", "detection")
        for folder in TRANSFERRED
        for path in equal_flop_runs(folder)
    ]


def head_scores(folder: Path, path: str) -> Scores:
    """The results of a linear head and a detector on the encoder of this run, by "task/metric"."""
    found = {task: read(folder / task / path / "results.json") for task in ("linear", "detection")}
    return {f"{task}/{name}": value for task, each in found.items() for name, value in each.items()}


def differences(columns: Mapping[str, str], found: Mapping[str, Sequence[Scores]]) -> list[str]:
    """Rows of EQUAL_FLOP minus `clip`, then the recipe minus patch dropout alone: what `token_set` adds to it."""
    clip, dropout, recipe = (EQUAL_FLOP[name].label for name in ("clip", "dropout", "detail"))
    pairs = {f"{row}, minus `clip`": (row, clip) for row in found if row != clip}
    pairs["the recipe, minus `clip` with patch dropout"] = recipe, dropout
    runs_of = {label: (found[row], found[control]) for label, (row, control) in pairs.items()}
    return tables.of_pairs("difference between runs of the same seed", columns, runs_of)


@number(600, *equal_flop_commands())
def equal_flop(folder: Path) -> Texts:
    """CLIP, the recipe for detail, a frozen teacher and COSMOS at equal FLOP; heads on three of the encoders."""
    found = scored(folder, {row.label: equal_flop_runs(name) for name, row in EQUAL_FLOP.items()})
    several = {row: each for row, each in found.items() if len(each) > 2}
    heads = {
        EQUAL_FLOP[name].label: [head_scores(folder, path) for path in equal_flop_runs(name)] for name in TRANSFERRED
    }
    of_readme = {label: found[label] for label in heads}
    teacher = scores(folder, "teacher")
    own = ", ".join(f"{title} {teacher[name]:.1f}" for title, name in SCORES.items())
    table = tables.of_scores("method", AT_EQUAL_FLOP, found)
    return {
        "table": table,
        "short": tables.only(table, ("steps", "zero-shot", "image to text R@1", "foreground IoU", *SHORT)),
        "readme": tables.of_scores("per cent", OF_README, of_readme),
        "differences": differences(SCORES, several),
        "heads": tables.of_scores("encoder", HEADS, heads),
        "heads_differences": differences(HEADS, heads),
        "teacher": f"The teacher: {own}.",
    }


STICKERS = "configs/stickers.py:method"
TERMS_SEEDS = 2
TERMS_FLAGS = "--flop-of=clip --budget=800 --set steps_per_epoch=60 --set optimizer.warmup_steps=60"
TWO_SENTENCES = f"data.caption=crops:long+data.num_captions=2+{LONG}"
DEBIAS = f"data.caption=debias:long+{LONG}"
TERMS = {  # entry of `compare` -> row; all at the FLOP of 800 steps of CLIP
    "clip": "`clip`",
    f"clip+{SENTENCES}": "`clip`, COSMOS's captions",
    f"clip+{SENTENCES}+losses.weights.beta=1": "`clip`, COSMOS's captions, `beta`",
    f"clip+{TWO_SENTENCES}": "`clip`, two captions of sentences",
    f"clip+{DEBIAS}": "`clip`, `debias`",
    f"clip+{DROPOUT}": "`clip`, patch dropout",
    "superclip": "`token_set`",
    f"{STICKERS}=clip,region=1": "`clip`, `region`",
    "clip+losses.weights.gram=2": "`clip`, `gram`",
    f"{STICKERS}=superclip,region=1": "`token_set`, `region`",
    "superclip+losses.weights.gram=2": "`token_set`, `gram`",
    f"{STICKERS}=detailclip,token_set=1": "`token_set`, DetailCLIP",
    f"superclip+{DROPOUT}": "`token_set`, patch dropout",
    "superclip+views.patch_dropout=0.5": "`token_set`, patch dropout to the end",
    f"superclip+{DROPOUT}+losses.weights.gram=2": "`token_set`, patch dropout, `gram`",
}
EFFECTS = (  # what is added, the row with it, the row without it
    ("`token_set`", "superclip", "clip"),
    ("`token_set`, with patch dropout", f"superclip+{DROPOUT}", f"clip+{DROPOUT}"),
    ("patch dropout", f"clip+{DROPOUT}", "clip"),
    ("patch dropout, with `token_set`", f"superclip+{DROPOUT}", "superclip"),
    ("all patches in the last tenth", f"superclip+{DROPOUT}", "superclip+views.patch_dropout=0.5"),
    ("COSMOS's captions", f"clip+{SENTENCES}", "clip"),
    ("`beta`, with COSMOS's captions", f"clip+{SENTENCES}+losses.weights.beta=1", f"clip+{SENTENCES}"),
    ("two captions of sentences", f"clip+{TWO_SENTENCES}", "clip"),
    ("`debias`, minus two captions of sentences", f"clip+{DEBIAS}", f"clip+{TWO_SENTENCES}"),
    ("`region`", f"{STICKERS}=clip,region=1", "clip"),
    ("`region`, with `token_set`", f"{STICKERS}=superclip,region=1", "superclip"),
    ("`gram`", "clip+losses.weights.gram=2", "clip"),
    ("`gram`, with `token_set`", "superclip+losses.weights.gram=2", "superclip"),
    ("`gram`, with both", f"superclip+{DROPOUT}+losses.weights.gram=2", f"superclip+{DROPOUT}"),
    ("DetailCLIP, with `token_set`", f"{STICKERS}=detailclip,token_set=1", "superclip"),
)
TERMS_RUNS = {entry: runs(entry, TERMS_SEEDS) for entry in TERMS}


@number(
    360,
    f"{COMPARE} --methods={','.join(TERMS)} {TERMS_FLAGS} --seeds={TERMS_SEEDS} --workdir={{out}}/rows",
    *map(by_words, itertools.chain(*TERMS_RUNS.values())),
)
def terms(folder: Path) -> Texts:
    """The terms of other methods with CLIP, with the recipe for detail and with DetailCLIP, at equal FLOP."""
    found = scored(folder, TERMS_RUNS)
    rows = {label: found[entry] for entry, label in TERMS.items()}
    table, added = tables.of_scores("method", AT_EQUAL_FLOP, rows), effects("added", EFFECTS, found)
    return {"table": table, "effects": added}


PARTS = {  # entry of `compare` -> row
    "cosmos": "`cosmos`",
    f"{STICKERS}=cosmos,local=False": "without local crops",
    "cosmos+data.num_captions=2": "without captions of one sentence",
    "cosmos+model.cross_pools=False": "without pools",
    "cosmos+ema.start=0.0+ema.end=0.0": "the student itself as the teacher",
    "cosmos+losses.weights.cls=0.0": "the contrast alone: two crops, six captions",
}
PARTS_FLAGS = (
    "--flop-of=cosmos --budget=150 --set model.context_length=24 --set steps_per_epoch=15 "
    "--set optimizer.warmup_steps=15"
)
PARTS_SEEDS = 2
BEFORE = "before"


def clips_before() -> list[str]:
    """The runs of `equal_flop` that those of PARTS continue, one of each seed."""
    return equal_flop_runs("dropout")[:PARTS_SEEDS]


def part_runs(entry: str) -> list[str]:
    """The runs of an entry of PARTS: seed 0 continues from the CLIP of seed 0, seed 1 from that of seed 1.

    `compare` begins with seed 0, so it also continues seed 0 from the CLIP of seed 1; no row has that run.
    """
    return [runs(entry, seed + 1, f"from-{seed}")[seed] for seed in range(PARTS_SEEDS)]


def parts_commands() -> list[str]:
    """Continues from the CLIPs with patch dropout of `equal_flop`."""
    commands = [
        f"{COMPARE} --methods={','.join(PARTS)} {PARTS_FLAGS} --seeds={seed + 1} --init={{equal_flop}}/{path} "
        f"--workdir={{out}}/from-{seed}"
        for seed, path in enumerate(clips_before())
    ]
    return commands + [by_words(path) for entry in PARTS for path in part_runs(entry)]


@number(120, *parts_commands(), after=("equal_flop",))
def parts(folder: Path) -> Texts:
    """COSMOS without each of its parts, continued from a CLIP, at equal FLOP."""
    before = scored(folder.parent / "equal_flop", {BEFORE: clips_before()})
    found = before | scored(folder, {entry: part_runs(entry) for entry in PARTS})
    rows = {label: found[entry] for entry, label in ({BEFORE: "the CLIP before"} | PARTS).items()}
    pairs = [("`cosmos`, minus the CLIP before", "cosmos", BEFORE)]
    pairs += [(f"{label}, minus `cosmos`", entry, "cosmos") for entry, label in PARTS.items() if entry != "cosmos"]
    table = tables.of_scores("continued with", AT_EQUAL_FLOP, rows)
    return {"table": table, "effects": effects("difference", pairs, found)}


def effects(title: str, pairs: Iterable[tuple[str, str, str]], found: Mapping[str, Sequence[Scores]]) -> list[str]:
    """A line for each (label, row, control): the row minus its control, with the interval of `half_of_rows`."""
    halves = {name: half_of_rows([[one[name] for one in each] for each in found.values()]) for name in SCORES.values()}
    rows = []
    for label, row, control in pairs:
        seeds = list(zip(found[row], found[control]))
        added = {name: float(np.mean([one[name] - other[name] for one, other in seeds])) for name in halves}
        rows.append((label, [tables.with_half(added[name], half) for name, half in halves.items()]))
    return tables.table([title, *SCORES], rows)


def half_of_rows(scores: Sequence[Sequence[float]]) -> float:
    """Half of the 95 % interval of the difference between the means of two rows of scores [row, seed].

    By Student's t.  Few seeds do not show how a single row varies.  So the variance is that of all rows, after each
    row's mean and each seed's mean are taken out (a randomised block design).
    """
    values = np.asarray(scores, np.float64)
    rest = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    freedom = (values.shape[0] - 1) * (values.shape[1] - 1)
    error = (2 * (rest**2).sum() / freedom / values.shape[1]) ** 0.5
    return float(scipy.stats.t.ppf(0.975, freedom) * error)


LOCKED = (  # the fields of configs/beyond/lit.py, and the demo's text encoder
    "--config.optimizer.frozen=image,image_projection --config.model.image_is_embedding=True "
    "--config.model.custom.text_width=64 --config.model.custom.text_depth=2 --config.model.custom.text_heads=4"
)
TUNED = {  # row -> run
    "CLIP from scratch": ["noise/clip/seed-0"],
    "texts for a locked encoder": ["lit"],
    "a CLIP of 1,605 steps, continued": ["continued/clip/seed-0"],
    "the same, continued with `token_set`": ["continued/superclip/seed-0"],
}


@number(
    20,
    "python -m detailclip_jax.export --checkpoint={equal_flop}/teacher --to=timm --out={out}/encoder.safetensors",
    "python -m detailclip_jax.import_torch --from=timm {out}/encoder.safetensors --out={out}/encoder",
    f"{MAIN}:method=clip,size=small --config.init={{out}}/encoder {LOCKED} --config.total_steps=300 "
    "--workdir={out}/lit",
    f"{COMPARE} --init={{equal_flop}}/clip/clip/seed-0 --methods=clip,superclip --seeds=1 --budget=300 {GENTLY} "
    "--workdir={out}/continued",
    f"{COMPARE} --methods=clip --seeds=1 --budget=300 --workdir={{out}}/noise",
    *(by_words(path) for (path,) in TUNED.values()),
    after=("equal_flop",),
)
def tuned(folder: Path) -> list[str]:
    """Locked and continued encoders on stickers, beside a training from scratch."""
    columns = METRICS | {"words, plain: mIoU": "words/plain"}
    return tables.of_scores("300 steps of", columns, scored(folder, TUNED))


FACTORS = {  # folder -> title, entries of `compare`
    "scratch": (
        "300 steps from scratch",
        (
            PAPER,
            "detailclip",
            "detailclip_random_mask+losses.weights.cls=0.1+losses.weights.patch=0.1",
            "detailclip+losses.weights.cls=0.0+losses.weights.patch=0.0",
            "detailclip+losses.weights.cls=0.0+losses.weights.patch=1.0",
            "detailclip+losses.weights.cls=1.0+losses.weights.patch=0.0",
            "detailclip_random_mask+losses.weights.cls=1.0+losses.weights.patch=1.0",
            f"{PAPER}+masking.ratio=0.25",
            f"{PAPER}+ema.start=0.99+ema.end=0.999",
            f"{PAPER}+model.prototypes=1024",
            f"{PAPER}+model.freeze_patch_embed=False",
        ),
    ),
    "long": ("600 steps from scratch", ("clip", "detailclip", "detailclip+masking.ratio=0.25")),
    "continued": (
        "continued 200 steps",
        (
            PAPER,
            "detailclip",
            f"{PAPER}+ema.start=0.99+ema.end=0.999",
            f"{PAPER}+masking.ratio=0.25",
            f"{PAPER}+masking.ratio=0.25+ema.start=0.99+ema.end=0.999",
        ),
    ),
}


def factors_of(name: str, budget: int) -> str:
    """The command that trains the rows of FACTORS[name]."""
    flags = f"--seeds=3 --budget={budget} --set data.stickers.scenes=textured --workdir={{out}}/{name}"
    return f"{COMPARE} --methods={','.join(FACTORS[name][1])} {flags}"


@number(
    200,
    factors_of("scratch", 300),
    factors_of("long", 600),
    f"{MAIN}:method=clip --config.seed=100 --config.data.stickers.scenes=textured --workdir={{out}}/clip",
    f"{factors_of('continued', 200)} --init={{out}}/clip {GENTLY}",
)
def factors(folder: Path) -> Texts:
    """DetailCLIP by one factor at a time."""
    columns = {
        "zero-shot": "zero_shot/top1",
        "R@1, both ways": "retrieval/image_to_text_r1, retrieval/text_to_image_r1",
        "foreground IoU": "segmentation/foreground_iou",
        "balanced mIoU": "segmentation/balanced_miou",
    }
    made = {}
    for name, (first, entries) in FACTORS.items():
        rows = {f"`{entry}`": runs(entry, 3, name) for entry in entries}
        made[name] = tables.of_scores(first, columns, scored(folder, rows))
    return made


# --- dense tasks


def with_encoders(rows: Mapping[str, tuple[str, int]]) -> dict[str, list[str]]:
    """The commands of each row, a seed each, with the demo's encoder and with an untrained one.

    `rows` has the config and the number of seeds of each row.
    """
    encoders = {"the demo": " --config.init={demo}", "untrained": ""}
    return {
        f"{row} | {encoder}": [
            f"{TRANSFER}/{config}{init} --config.seed={seed} --workdir={{out}}/{{place}}" for seed in range(seeds)
        ]
        for row, (config, seeds) in rows.items()
        for encoder, init in encoders.items()
    }


def of_encoders(folder: Path, first: str, columns: Mapping[str, str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """The table of the runs of the commands of `with_encoders`."""
    places = itertools.count()
    found = {row: [read(folder / f"{next(places)}/results.json") for _ in each] for row, each in rows.items()}
    return tables.of_scores(f"{first} | encoder", columns, found)


IOU = ("mIoU", "mAcc", "aAcc", "boundary_mIoU")
SEGMENTERS = with_encoders({"linear": ("stickers_linear.py", 3), "UPerNet": ("stickers_upernet.py", 3)})


@number(25, *itertools.chain(*SEGMENTERS.values()), after=("demo",))
def segmentation(folder: Path) -> list[str]:
    """Heads on stickers, with the demo's encoder and with an untrained one."""
    return of_encoders(folder, "head", dict(zip(IOU, IOU)), SEGMENTERS)


DETECTORS = with_encoders(
    {"200: the default": ("stickers_detection.py", 3), "600": ("stickers_detection.py --config.total_steps=600", 1)}
)


@number(30, *itertools.chain(*DETECTORS.values()), after=("demo",))
def detection(folder: Path) -> list[str]:
    """Detectors on stickers, with the demo's encoder and with an untrained one."""
    columns = {"box AP": "bbox_AP", "box AP50": "bbox_AP50", "mask AP": "segm_AP", "mask AP50": "segm_AP50"}
    return of_encoders(folder, "steps", columns | {"ceiling, mask AP": "ceiling_AP"}, DETECTORS)


def segmented(workdir: Path) -> str:
    """The scores of a run of segmentation, in words."""
    found = read(workdir / "results.json")
    return ", ".join(f"{name} {found[name]:.1f}" for name in IOU)


BACKGROUND = """
import json, pathlib
import numpy as np
import detailclip_jax.dense.segmentation.sticker_labels as stickers
import detailclip_jax.dense.segmentation.confusion as metrics
for labels in ("objects", "groups"):
    scenes = stickers.open_stickers(labels, "val", size=80, num_scenes=200)
    counts = metrics.no_counts(len(scenes.classes))
    for scene in scenes.source:
        counts = counts.plus(metrics.counts_of(scene["mask"], np.zeros_like(scene["mask"]), len(scenes.classes)))
    folder = pathlib.Path("{out}") / labels
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(metrics.scores(counts)))
"""


@number(1, f"python -c {shlex.quote(BACKGROUND)}")
def background(folder: Path) -> str:
    """A segmentation of stickers that is background everywhere."""
    objects, groups = segmented(folder / "objects"), segmented(folder / "groups")
    return f"A prediction of background everywhere has {objects}; with the 24 groups as classes {groups}."


def study(trained: Mapping[str, str], supervised: Mapping[str, str], variants: str = "probes.VARIANTS") -> str:
    """The command that writes the study of these encoders."""
    code = (
        "import pathlib, tools.probes as probes; "
        f"study = probes.study(dict({[*trained.items()]}), dict({[*supervised.items()]}), variants={variants}); "
        "pathlib.Path('{out}/study.md').write_text(study)"
    )
    return f"python -c {shlex.quote(code)}"


def studied(folder: Path) -> list[list[str]]:
    """The rows of the study: probe, encoder, scores."""
    lines = (folder / "study.md").read_text().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]


PROBED = {
    "clip, 300 steps": "{out}/clip",
    "detailclip, 300 steps": "{out}/detailclip",
    "detailclip, 600 steps (the demo)": "{demo}",
}
SUPERVISED = {"linear": "{out}/few", "UPerNet": "{out}/upernet", "linear, ten times the scenes": "{out}/many"}


@number(
    45,
    f"{MAIN}:method=clip --config.total_steps=300 --workdir={{out}}/clip",
    f"{MAIN}:method=detailclip --config.total_steps=300 --workdir={{out}}/detailclip",
    f"{TRANSFER}/stickers_linear.py:labels=groups --config.total_steps=300 --workdir={{out}}/few",
    f"{TRANSFER}/stickers_upernet.py:labels=groups --config.total_steps=300 --workdir={{out}}/upernet",
    f"{TRANSFER}/stickers_linear.py:labels=groups --workdir={{out}}/many",
    study(PROBED, SUPERVISED),
    after=("demo",),
)
def probe(folder: Path) -> Texts:
    """Probes from the floor to the ceiling: the first one's scores in full, of the others the first two."""
    found = {(probe, encoder): cells for probe, encoder, *cells in studied(folder)}
    first, *others = dict.fromkeys(probe for probe, _ in found)
    columns = ["foreground IoU", "mIoU of groups", "right group on object pixels", "mIoU of nouns"]
    head = ["encoder", *columns, *(f"{probe}: foreground, groups" for probe in others)]
    rows = {
        encoder: found[first, encoder] + [", ".join(found.get((probe, encoder), [])[:2]) for probe in others]
        for _, encoder in found
    }
    few, many = segmented(folder / "few"), segmented(folder / "many")
    heads = f"The linear head and the encoder, trained on 19,200 scenes: {few}; on 192,000 scenes: {many}."
    return {"table": tables.table(head, rows.items()), "heads": heads}


@number(
    100,
    f"{TRANSFER}/stickers_upernet.py:labels=groups --workdir={{out}}/run",
    study({"demo": "{demo}"}, {"UPerNet": "{out}/run"}, variants="probes.VARIANTS[:1]"),
    after=("demo",),
)
def long_upernet(folder: Path) -> str:
    """UPerNet on ten times the scenes of the study of probes."""
    rows = [cells[:2] for _, encoder, *cells in studied(folder) if encoder == "supervised, UPerNet"]
    (figure, groups), own = rows
    return (
        f"UPerNet, end to end on 192,000 scenes: {segmented(folder / 'run')}; in the table above it would have "
        f"foreground IoU {figure} and mIoU of groups {groups}, and with its own head {', '.join(own)}."
    )


# --- what a step, the data and dense tasks cost

GIB = 2**30
PLANNED = ("argument_bytes", "temp_bytes", "total_bytes")  # by the compiler
CELLS = "--set masking.granularity=cell2x2"
BENCHMARK, COST = "python -m detailclip_jax.benchmark", "python tools/cost.py"
TIMES = "python tests/time_straightforward.py"
FLOP = {  # method, masking, batch and text tokens -> flags
    "DetailCLIP S/16 | patch | 4 | 77": "--size=S/16 --batch=4",
    "DetailCLIP B/16 | patch | 32 | 77": "--batch=32",
    "DetailCLIP B/16 | patch | 32 | 32": "--batch=32 --text-length=32",
    "DetailCLIP B/16 | 2x2 cells | 32 | 77": f"--batch=32 {CELLS}",
    "DetailCLIP B/16 | 2x2 cells | 32 | 32": f"--batch=32 {CELLS} --text-length=32",
    "DetailCLIP L/16 | patch | 32 | 77": "--size=L/16 --batch=32",
    "CLIP B/16, one view | - | 32 | 77": "--method=clip --batch=32",
}


@benchmarks(
    6,
    {row: f"{BENCHMARK} step --count-only {flags}" for row, flags in FLOP.items()}
    | {"straightforward": f"{TIMES} --size=B/16 --batch=32 --count-only"},
)
def flop(found: Found) -> Texts:
    """FLOP of a step per pair, counted."""
    *ours, (_, (plain,)) = found.items()
    counts = {row: f"{record['flops_per_pair'] / 1e9:.1f}" for row, (record,) in ours}
    head = ["method, size", "masking", "batch", "text tokens", "counted"]
    sentence = (
        f"A step of ViT-B/16 costs {counts['DetailCLIP B/16 | patch | 32 | 77']} GFLOP per pair with the paper's "
        f"masking and {counts['DetailCLIP B/16 | 2x2 cells | 32 | 77']} with the published code's cells (counted "
        "before XLA optimises, batch 32, 77 tokens); a straightforward implementation costs "
        f"{plain['gflop_per_pair']:.1f}."
    )
    return {
        "table": tables.table(head, ((row, [f"{count} G"]) for row, count in counts.items()), 5),
        "sentence": sentence,
    }


@benchmarks(
    30,
    {  # size, text tokens and rounds
        "B/16, 77 | 8": f"{TIMES} --size=B/16 --rounds=8",
        "B/16, captions of at most 32, which ours cuts there | 5": f"{TIMES} --size=B/16 --words=32 --rounds=5",
        "S/16, 77 | 6": f"{TIMES} --size=S/16 --rounds=6",
    },
)
def straightforward(found: Found) -> list[str]:
    """A step compared with the straightforward one."""

    def cells(record: Any) -> list[str]:
        cpu, clock = record["cpu"], record["clock"]
        both = f"{cpu['straightforward'][0]:.3g} / {cpu['ours'][0]:.3g}"
        return [both, tables.spread(cpu["times_as_fast"], ".2f"), f"{clock['times_as_fast'][0]:.2f}"]

    head = ["size, text tokens", "rounds", "CPU seconds per step", "ratio, CPU seconds", "wall time, two cores"]
    return tables.of_records(head, found, cells, text=5)


@benchmarks(
    10,
    {
        f"`remat={remat}`, {batch} pairs": f"{BENCHMARK} step --batch={batch} --compile-only --remat={remat} {CELLS}"
        for remat, batch in itertools.product(("dots", "full"), (32, 64))
    },
)
def memory(found: Found) -> list[str]:
    """Memory of a step, planned by the compiler."""
    head = ["", "arguments", "temporaries", "together"]
    return tables.of_records(head, found, lambda one: [f"{one[size] / GIB:.2f} GiB" for size in PLANNED], text=4)


CONTINUE = {  # configs/beyond/continue_NAME.py -> fields that `config.init` sets in a run
    **dict.fromkeys(("siglip", "siglip2", "silc", "tips", "tipsv2", "cosmos", "flair"), ""),
    "silc": " --image-size=256",
}


@benchmarks(
    20,
    {
        f"`continue_{name}.py`": f"{BENCHMARK} step --config=configs/beyond/continue_{name}.py --batch=512 "
        f"--compile-only{fields}"
        for name, fields in CONTINUE.items()
    },
)
def continue_memory(found: Found) -> list[str]:
    """Memory of a step of the configs that continue a training, planned by the compiler."""
    head = ["config", "arguments, GiB", "temporaries, GiB", "together"]
    return tables.of_records(head, found, lambda one: [f"{one[size] / GIB:.1f}" for size in PLANNED])


ONE_GPU = {  # recipe of the page -> config and flags; a B/16 if nothing else is said
    "CLIP B/16 from scratch": "configs/baselines/clip.py",
    "texts for a locked B/16": "configs/beyond/lit.py:method=clip",
    "CLIP B/16 continued with `token_set`": "configs/vitb16_continue.py:method=superclip",
    "CLIP B/16 continued by adapters (LoRA, rank 8)": "configs/vitb16_continue.py:method=clip --set "
    "optimizer.lora=image:8,text:8",
    "CLIP S/16 from scratch": "configs/baselines/clip.py --size=S/16",
    "CLIP S/16 with a frozen DINOv2 L/14": "configs/beyond/distill.py --set distill.teacher={out}/teacher",
}
OF_ONE_GPU = "--batch=256 --text-length=32 --dtype=bfloat16 --compile-only"
FRESH_TEACHER = """
import sys, safetensors.torch, timm
safetensors.torch.save_model(timm.create_model("vit_large_patch14_dinov2", img_size=224), sys.argv[1])
"""


@benchmarks(
    6,
    {row: f"{BENCHMARK} step --config={flags} {OF_ONE_GPU}" for row, flags in ONE_GPU.items()},
    before=(
        f"python -c {shlex.quote(FRESH_TEACHER)} {{out}}/l14.safetensors",
        "python -m detailclip_jax.import_torch --from=dinov2 {out}/l14.safetensors --out={out}/teacher",
    ),
)
def one_gpu(found: Found) -> list[str]:
    """FLOP and memory of the recipes for small data."""

    def cells(record: Any) -> list[str]:
        sizes = (f"{record[size] / GIB:.1f} GiB" for size in ("state_bytes", "total_bytes"))
        return [f"{record['flops_per_pair'] / 1e9:.0f}", *sizes]

    return tables.of_records(["", "GFLOP per pair", "state", "memory of a step"], found, cells)


@benchmarks(1, {"clip": f"{COST} loss --term=clip --batch=65536 --width=512 --devices=8"})
def contrastive(found: Found) -> str:
    """Memory of the contrastive loss, planned by the compiler."""
    (record,) = found["clip"]
    temporaries, gradients = (record[name] / 2**20 for name in ("temp_bytes", "gradient_bytes"))
    return (
        f"The contrastive loss and its gradient alone (counted): at a global batch of {record['batch']:,} pairs of two "
        f"views and a caption, {record['width']} wide, on {record['devices']} devices, each device needs "
        f"{temporaries:,.0f} MiB of temporaries and {gradients:.0f} MiB for the gradients. The full logits would be "
        f"{record['batch'] ** 2 * 4 / record['devices'] / GIB:.0f} GiB for one view in one direction."
    )


@benchmarks(2, {"step": f"{COST} collectives --config=configs/stickers.py --batch=16 --devices=8"})
def collectives(found: Found) -> list[str]:
    """What devices send in a step of the demo."""
    head = ["collective", "times", "bytes of the result", "bytes sent per device"]
    rows = ((one["kind"], [f"{one[name]:,.0f}" for name in ("times", "result", "moved")]) for one in found["step"])
    return tables.table(head, rows, text=4)


def step_seconds(record: Mapping[str, Any]) -> str:
    """Median and range of a step's seconds."""
    return tables.spread([record["step_seconds"], *record["step_seconds_range"]])


LARGE_BATCH = f"{BENCHMARK} step --config=configs/stickers.py --batch=128 --rounds=7"


@benchmarks(
    3,
    {
        "small": f"env GLIBC_TUNABLES=glibc.malloc.hugetlb=0 {LARGE_BATCH}",
        "large": f"env GLIBC_TUNABLES=glibc.malloc.hugetlb=1 {LARGE_BATCH}",
    },
)
def pages(found: Found) -> list[str]:
    """A step of the demo with large pages."""
    head = ["pages", "seconds per step (range of 7 rounds)"]
    return tables.of_records(head, found, lambda one: [step_seconds(one)])


PRODUCTS = f"{COST} products --size=B/16 --batch=4 --scan=true --remat=dots {CELLS} --rounds=5"


@benchmarks(
    6,
    {
        "float32": f"{PRODUCTS} --dtype=float32",
        "bfloat16": f"{PRODUCTS} --dtype=bfloat16",
        "texts": f"{COST} texts --size=tiny --rounds=9",
    },
)
def rates(found: Found) -> Texts:
    """A step's share of the machine's product rate, and texts per second."""
    rows = {}
    for dtype in ("float32", "bfloat16"):
        (record,) = found[dtype]
        share = tables.spread(100 * value for value in record["product_share"])
        rows[dtype] = [step_seconds(record), f"{record['product_flops'][dtype] / 1e9:.0f}", f"{share} %"]
    head = ["ViT-B/16, batch 4", "seconds per step", "products, GFLOP/s", "share of product rate"]
    texts = found["texts"][0]["texts_per_second"]
    sentence = (
        f"Texts in evaluation, the demo's encoder (tiny): {texts['cut'][0]:,.0f} a second where each batch is cut to "
        f"what its texts need, {texts['all tokens'][0]:,.0f} with all 77 tokens."
    )
    return {"table": tables.table(head, rows.items()), "sentence": sentence}


VITB16 = "--config=configs/vitb16_yfcc.py --set data.source=stickers --set batch_size=4 --set model.dtype=float32"


@benchmarks(
    6,
    {
        "demo": f"{BENCHMARK} start --config=configs/stickers.py --rounds=3",
        "ViT-B/16": f"{BENCHMARK} start {VITB16} --rounds=3",
    },
)
def start(found: Found) -> list[str]:
    """From a command to its first step, for the demo and ViT-B/16."""
    rows: dict[str, list[str]] = {}
    for records in found.values():
        cells = {(one["part"], one["state"]): f"{one['seconds']:.1f}, {one['cpu_seconds']:.1f}" for one in records}
        for part in dict.fromkeys(part for part, _ in cells):
            rows[part] = [*rows.get(part, []), cells[part, "cold"], cells[part, "cached"]]
    head = [f"{name}, {programs}" for name in found for programs in ("nothing kept", "kept programs")]
    return tables.table(["seconds, CPU seconds", *head], rows.items())


@benchmarks(5, {"data": f"{BENCHMARK} data --rounds=9 --workers=2", "views": f"{COST} views --rounds=9"})
def stages(found: Found) -> Texts:
    """The data pipeline by stage, against torchvision, and with workers."""
    ours, theirs = ({one["stage"]: one for one in each} for each in found.values())
    rows = {}
    for stage in ("read", "decode", "crop", "colour", "tokenise", "stack"):
        one, row = ours[stage], "crop (Pillow's bicubic, as sparse products)" if stage == "crop" else stage
        seconds = [one["seconds_per_image"], *one["seconds_per_image_range"]]
        ms = tables.spread((1e3 * value for value in seconds), ".2f")
        rows[row] = [ms, f"{100 * one['share']:.1f} %", f"{one['images_per_second_per_core']:,.0f}"]
    whole, workers = ours["all"], ours["pipeline"]
    last = f"| all | {1e3 * whole['seconds_per_image']:.2f} | | {whole['images_per_second_per_core']:.0f} |"
    views, decode = (theirs[name]["times_as_fast"] for name in ("views", "decode"))
    sentence = (
        "Against torchvision (Pillow) on the same decoded images, in turn: views "
        f"{views[0]:.2f} times as fast ({views[1]:.2f}-{views[2]:.2f}), decoding {decode[0]:.2f} times "
        f"({decode[1]:.2f}-{decode[2]:.2f}). The full pipeline in wall time: {workers['images_per_second']:.0f} "
        f"images/s with {workers['workers']} workers, on the cores that also ran the process which takes the batches."
    )
    head = ["stage", "ms per image (range of 9 rounds)", "share", "images/s per core"]
    return {"table": [*tables.table(head, rows.items(), text=4), last], "sentence": sentence}


SIZES = ("1024x768", "2000x1500", "4000x3000")


@benchmarks(
    10,
    {
        f"{size}-{gap}": f"{BENCHMARK} data --rounds=7 --size={size} --set data.reducing_gap={gap}"
        for size, gap in itertools.product(SIZES, (0, 2))
    },
)
def originals(found: Found) -> list[str]:
    """Decoding large originals: seconds of all stages, with all pixels decoded and with a gap of 2."""
    seconds = {name: one["seconds_per_image"] for name, each in found.items() for one in each if one["stage"] == "all"}
    rows = {}
    for size in SIZES:
        full, reduced = seconds[f"{size}-0"], seconds[f"{size}-2"]
        rows[size.replace("x", " x ")] = [f"{1e3 * full:.1f} ms", f"{1e3 * reduced:.1f} ms", f"{full / reduced:.1f}"]
    return tables.table(["original", "all pixels", "gap 2", "times as fast"], rows.items(), text=4)


@benchmarks(
    15,
    {
        "upernet": f"{COST} segmentation --batch=2",
        "dots": f"{COST} segmentation --batch=2 --remat=dots",
        "linear": f"{COST} segmentation --batch=2 --config=configs/transfer/ade20k_linear.py --count-only",
    },
)
def segmentation_cost(found: Found) -> list[str]:
    """FLOP and memory of segmentation, counted and planned by the compiler."""
    (upernet,), (dots,), (linear,) = found.values()
    flops = {
        name: [f"{record[part]['flops_per_image'] / 1e9:,.0f}" for record in (upernet, linear)]
        for name, part in (("training, GFLOP per image", "step"), ("evaluation, GFLOP per window", "evaluation"))
    }
    memory = {
        "arguments, batch 2 (parameters, AdamW)": upernet["step"]["argument_bytes"],
        "temporaries, batch 2": upernet["step"]["temp_bytes"],
        "the same with `model.remat=dots`": dots["step"]["temp_bytes"],
        "temporaries of the evaluation, 8 windows": upernet["evaluation"]["temp_bytes"],
    }
    hours = " | ".join(f"{record['projected_hours']:.2g} hours" for record in (upernet, linear))
    return [
        *tables.table(["", "UPerNet, end to end", "linear, frozen"], flops.items()),
        *(f"| {name} | {size / GIB:.2f} GiB | |" for name, size in memory.items()),
        f"| 160,000 steps of 16 on 8 A100, projected | {hours} |",
    ]


LARGE_IMAGES = f"{COST} detection --image-size=1024"


@benchmarks(
    30,
    {
        "counted": f"{LARGE_IMAGES} --batch=1 --count-only",
        "one": f"{LARGE_IMAGES} --batch=1 --dtype=float32 --remat=full",
        "two": f"{LARGE_IMAGES} --batch=2 --dtype=float32 --remat=full",
    },
)
def detection_cost(found: Found) -> list[str]:
    """FLOP and memory of detection, counted and planned by the compiler."""
    (counted,), (one,), (two,) = found.values()
    parts = counted["parameters"]
    temporaries = ", ".join(f"{record['step']['temp_bytes'] / GIB:.1f}" for record in (one, two))
    rows = {
        f"parameters: {', '.join(parts)}": ", ".join(f"{size / 1e6:.1f} M" for size in parts.values()),
        "training, GFLOP per image": f"{counted['step']['flops_per_image'] / 1e9:,.0f}",
        "detection, GFLOP per image": f"{counted['evaluation']['flops_per_image'] / 1e9:,.0f}",
        "temporaries of training, batch 1 and 2 (`model.remat=full`)": f"{temporaries} GiB",
        "temporaries of detection, batch 1": f"{one['evaluation']['temp_bytes'] / GIB:.1f} GiB",
        "1x (12 epochs of 117,266 images) on 8 A100, projected": f"{counted['projected_hours']:.1f} hours",
    }
    return tables.table(["", ""], ((name, [value]) for name, value in rows.items()))


if __name__ == "__main__":
    main()
