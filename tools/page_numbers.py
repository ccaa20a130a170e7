"""Measures the marked numbers of the README and of docs/ again.

    python tools/page_numbers.py                       # lists every number: minutes, date, commit, what
    python tools/page_numbers.py demo evaluation       # measures these
    make numbers ONLY="demo evaluation"                # the same, in the environment of the tests

`NUMBERS` says how each one is made; docs/numbers.json holds what was measured, with date, commit, machine and versions.
In README.md, docs/*.md and tools/measured.md a measured text stands between `<!-- numbers NAME -->` and `<!-- end -->`,
exactly as the data file has it (a test).  The commands write to runs/numbers/COMMIT/NAME and resume there.
"""

import argparse
import datetime
import hashlib
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import scipy.stats

ROOT = Path(__file__).parents[1]
DATA = ROOT / "docs/numbers.json"
RUNS = ROOT / "runs/numbers"
DOCUMENTS = (
    "README.md",
    *(f"docs/{name}.md" for name in ("detection", "evaluation", "experiments", "first_run", "small_data")),
)
DOCUMENTS += ("docs/performance.md", "docs/segmentation.md", "tools/measured.md")
WIDTH = 120  # of the documents' lines
MARKS = re.compile(r"<!-- numbers (?P<name>\S+) -->\n(?P<text>.*?)<!-- end -->", re.DOTALL)
VERSIONS = ("jax", "flax", "numpy", "Pillow", "opencv-python-headless")
GIB = 2**30

Made = dict[str, list[str]]  # name of a mark -> the lines between


class Number(NamedTuple):
    """What is measured together.

    commands: what is run, in this order; `{out}` is its own folder, `{NAME}` that of another number.
    blocks: the texts, from the folder.
    files: files of the repository, and where they are in the folder.
    after: numbers whose folders the commands read.
    """

    name: str
    what: str
    minutes: int
    commands: tuple[str, ...]
    blocks: Callable[[Path], Made]
    files: Mapping[str, str] = {}
    after: tuple[str, ...] = ()


def main(arguments: Sequence[str] | None = None) -> None:
    """Lists the numbers, or measures the named ones, cheapest first."""
    numbers = sorted(NUMBERS, key=lambda number: number.minutes)
    parser = argparse.ArgumentParser("python tools/page_numbers.py", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to measure (default: list all)")
    names = parser.parse_args(arguments).names
    if unknown := {*names} - {number.name for number in numbers}:
        parser.error(f"unknown numbers: {', '.join(sorted(unknown))}")
    if not names:
        print(listed(numbers))
    for number in (number for number in numbers if number.name in names):
        make(number)


def read_data() -> dict[str, Any]:
    """The data file: name -> what was measured."""
    return json.loads(DATA.read_text())


def listed(numbers: Sequence[Number]) -> str:
    """A line per number."""
    data = read_data()
    rows = [["number", "minutes", "made", "commit", "what"]]
    for number in numbers:
        made = data.get(number.name, {})
        rows.append([number.name, str(number.minutes), made.get("date", ""), made.get("commit", ""), number.what])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def make(number: Number) -> None:
    """Runs the commands; then puts the texts into the data file and the documents."""
    if changed := git("status", "--porcelain", "--", "detailclip_jax", "configs", "tools", "tests"):
        sys.exit(f"commit first, the number would be of no commit:\n{changed}")
    for before in (each for each in NUMBERS if each.name in number.after):
        run(before)
    folder = run(number)
    blocks = number.blocks(folder)
    for name, source in number.files.items():
        shutil.copyfile(folder / source, ROOT / name)
    keep(number, blocks)
    for document in DOCUMENTS:
        write_document(ROOT / document, blocks)


def git(*arguments: str) -> str:
    """What git prints in the repository."""
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def run(number: Number) -> Path:
    """Runs the commands in the repository's root, each once, and returns the folder of the results."""
    commit = RUNS / git("rev-parse", "--short", "HEAD")
    folder, folders = commit / number.name, {each.name: str(commit / each.name) for each in NUMBERS}
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for place, command in enumerate(number.commands):
        done, words = folder / f"done-{place}", shlex.split(command.format(out=folder, **folders))
        if done.exists():
            continue
        print(f"{number.name}: {shlex.join(words)}", flush=True)
        words = [sys.executable, *words[1:]] if words[0] == "python" else words
        subprocess.run(words, cwd=ROOT, env=environment, check=True)
        done.touch()
    return folder


def keep(number: Number, blocks: Made) -> None:
    """Puts what was measured into the data file, with what it was measured on."""
    hashes = {name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in number.files}
    made = {
        "date": datetime.date.today().isoformat(),
        "commit": git("rev-parse", "--short", "HEAD"),
        "machine": f"{os.cpu_count()} x {processor()}, {platform.system()}",
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in VERSIONS}},
        "files": hashes,
        "blocks": blocks,
    }
    DATA.write_text(json.dumps({**read_data(), number.name: made}, indent=1, ensure_ascii=False) + "\n")


def processor() -> str:
    """Its name, as well as the system knows it."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return named[1] if named else platform.processor() or platform.machine()


# --- the documents


def owner(mark: str) -> str:
    """The number of a mark: "demo" of "demo.table"."""
    return mark.partition(".")[0]


def marked() -> Made:
    """Every mark of the documents, and the lines between."""
    found = [match for name in DOCUMENTS for match in MARKS.finditer((ROOT / name).read_text())]
    return {match["name"]: match["text"].splitlines() for match in found}


def write_document(file: Path, blocks: Made) -> None:
    """Puts the texts between their marks."""

    def replaced(match: re.Match[str]) -> str:
        lines = blocks.get(match["name"])
        return match[0] if lines is None else "\n".join([f"<!-- numbers {match['name']} -->", *lines, "<!-- end -->"])

    file.write_text(MARKS.sub(replaced, file.read_text()))


# --- the numbers

FONT_ROW = "other artists' drawings"  # needs Noto Color Emoji
OVERVIEW = "--what=overview --num-images=2"
BENCHMARK = "python -m detailclip_jax.benchmark"
COST = "python tools/cost.py"
MAIN = "python -m detailclip_jax.main --config=configs/stickers.py"
COMPARE = "python -m detailclip_jax.compare"
TRANSFER = "python -m detailclip_jax.transfer --config=configs/transfer"
GENTLY = "--set optimizer.loaded_rate=0.3 --set optimizer.layer_decay=0.75"
TEXTURED = "--set data.stickers.scenes=textured"  # what the factors were measured on
PAPER = "detailclip+losses.weights.cls=1.0+losses.weights.patch=1.0"
COMPARED = {  # row of `compare` -> its name in the tables
    "clip": "`clip`",
    "clip_two_views": "`clip_two_views` (control)",
    "maskclip": "`maskclip`",
    "aclip": "`aclip`",
    "detailclip": "`detailclip`",
    PAPER: "`detailclip`, the paper's weights",
}
FLOORS = {"untrained": "untrained", "raw pixels": "raw pixels"}
LATER = {  # the same for the methods after DetailCLIP
    **{name: f"`{name}`" for name in ("clip", "siglip", "silc", "tips", "tipsv2", "detailclip")},
    "detailclip+losses.patch_over=all": "`detailclip`, patch loss over all tokens",
    **{name: f"`{name}`" for name in ("cosmos", "flair")},
}
LATER_SEEDS, LATER_LONGER_SEEDS = 3, 1  # at one budget, at eight times that budget
LATER_READOUTS = ("plain", "naclip")


class EqualFlop(NamedTuple):
    """A row of the table at equal FLOP: at most the FLOP of 300 steps of COSMOS."""

    label: str
    entry: str  # of `compare`
    steps: int
    seeds: int
    flags: str = ""


TEACHER = "--config=configs/stickers.py:method=superclip,size=small --config.total_steps=900"
EQUAL_FLOP = {  # folder -> row
    "clip": EqualFlop("`clip`", "clip", 1605, 3),
    "mean": EqualFlop("`clip`, mean of the patches", "clip+model.image_style.pooling=mean", 1600, 1),
    "token_set": EqualFlop("`clip` with `token_set`", "superclip", 1540, 2),
    "detail": EqualFlop("`configs/detail.py`: `token_set`, patch dropout", "configs/detail.py", 2834, 3),
    "both": EqualFlop("`token_set`, mean of the patches", "superclip+model.image_style.pooling=mean", 1540, 1),
    "distil": EqualFlop(
        "`clip` with `distill`",
        "clip",
        477,
        3,
        "--set losses.weights.distill=4 --set distill.teacher={out}/teacher",
    ),
    "cosmos": EqualFlop("`cosmos`", "cosmos", 300, 1),
}
LINEAR_HEADS = ("clip", "detail")  # rows on whose frozen encoders a linear head is trained
STICKERS = "configs/stickers.py:method"
SENTENCES = "data.caption=crops:long+data.num_captions=6+model.context_length=64+data.text_buckets=()"  # as for COSMOS
DROPOUT = "views.patch_dropout=0.5+views.patch_dropout_until=0.9"
TERMS_SEEDS = 2
TERMS_FLAGS = "--flop-of=clip --budget=800 --set steps_per_epoch=60 --set optimizer.warmup_steps=60"
BETA, GRAM = "losses.weights.beta=1", "losses.weights.gram=2"
TERMS = {  # entry of `compare` -> row; all at the FLOP of 800 steps of CLIP
    "clip": "`clip`",
    f"clip+{SENTENCES}": "`clip`, COSMOS's captions",
    f"clip+{SENTENCES}+{BETA}": "`clip`, COSMOS's captions, `beta`",
    f"{STICKERS}=clip,region=1": "`clip`, `region`",
    f"clip+{DROPOUT}": "`clip`, patch dropout",
    "superclip": "`token_set`",
    f"superclip+{SENTENCES}": "`token_set`, COSMOS's captions",
    f"superclip+{SENTENCES}+{BETA}": "`token_set`, COSMOS's captions, `beta`",
    f"{STICKERS}=superclip,region=1": "`token_set`, `region`",
    f"superclip+{GRAM}": "`token_set`, `gram`",
    f"{STICKERS}=detailclip,token_set=1": "`token_set`, DetailCLIP",
    f"superclip+{DROPOUT}": "`token_set`, patch dropout",
    "superclip+views.patch_dropout=0.5": "`token_set`, patch dropout to the end",
    f"superclip+{DROPOUT}+{GRAM}": "`token_set`, patch dropout, `gram`",
}
EFFECTS = (  # what is added, the row with it, the row without it
    ("`token_set`", "superclip", "clip"),
    ("`token_set`, with patch dropout", f"superclip+{DROPOUT}", f"clip+{DROPOUT}"),
    ("patch dropout", f"clip+{DROPOUT}", "clip"),
    ("patch dropout, with `token_set`", f"superclip+{DROPOUT}", "superclip"),
    ("all patches in the last tenth", f"superclip+{DROPOUT}", "superclip+views.patch_dropout=0.5"),
    ("COSMOS's captions", f"clip+{SENTENCES}", "clip"),
    ("COSMOS's captions, with `token_set`", f"superclip+{SENTENCES}", "superclip"),
    ("`beta`", f"clip+{SENTENCES}+{BETA}", f"clip+{SENTENCES}"),
    ("`beta`, with `token_set`", f"superclip+{SENTENCES}+{BETA}", f"superclip+{SENTENCES}"),
    ("`region`", f"{STICKERS}=clip,region=1", "clip"),
    ("`region`, with `token_set`", f"{STICKERS}=superclip,region=1", "superclip"),
    ("`gram`, with `token_set`", f"superclip+{GRAM}", "superclip"),
    ("`gram`, with `token_set` and patch dropout", f"superclip+{DROPOUT}+{GRAM}", f"superclip+{DROPOUT}"),
    ("DetailCLIP, with `token_set`", f"{STICKERS}=detailclip,token_set=1", "superclip"),
)
ONE_GPU = {  # recipe of the page -> config and flags; a B/16 if nothing else is said
    "CLIP B/16 from noise": "configs/baselines/clip.py",
    "texts for a locked B/16": "configs/beyond/lit.py:method=clip",
    "CLIP B/16 continued with `token_set`": "configs/vitb16_continue.py:method=superclip",
    "CLIP S/16 from noise": "configs/baselines/clip.py --size=S/16",
    "CLIP S/16 with a frozen DINOv2 L/14": "configs/beyond/distill.py --set distill.teacher={out}/teacher",
}
FRESH_TEACHER = """
import sys
import safetensors.torch
import timm
model = timm.create_model("vit_large_patch14_dinov2", img_size=224)
safetensors.torch.save_model(model, sys.argv[1])
"""
LOCKED = (  # the fields of configs/beyond/lit.py, and the demo's text encoder
    "--config.optimizer.frozen=image,image_projection --config.model.image_is_embedding=True "
    "--config.model.custom.text_width=64 --config.model.custom.text_depth=2 --config.model.custom.text_heads=4"
)
TUNED = {  # folder of the run -> its name in the table
    "noise/clip/seed-0": "CLIP from noise",
    "lit": "texts for a locked encoder",
    "continued/clip/seed-0": "a CLIP of 1,605 steps, continued",
    "continued/superclip/seed-0": "the same, continued with `token_set`",
}
WORDS = ("plain", "maskclip", "naclip")  # read-outs of the tables at equal FLOP
SUPERVISED = {  # name in the study -> config and flags; 19,200 scenes, ten times
    "linear": "stickers_linear.py:labels=groups --config.total_steps=300",
    "UPerNet": "stickers_upernet.py:labels=groups --config.total_steps=300",
    "linear, ten times the scenes": "stickers_linear.py:labels=groups",
}
STUDY = """
import pathlib
import tools.probes as probes
trained = dict([("clip, 300 steps", "{out}/clip"), ("detailclip, 300 steps", "{out}/detailclip"),
    ("detailclip, 600 steps (the demo)", "{demo}")])
supervised = dict((name, "{out}/" + str(place)) for place, name in enumerate(NAMES))
pathlib.Path("{out}/study.md").write_text(probes.study(trained, supervised))
""".replace("NAMES", repr(tuple(SUPERVISED)))
EXAMPLES = """
import contextlib, pathlib, re
(block,) = re.findall("```python\\n(.*?)```", pathlib.Path("docs/first_run.md").read_text(), re.DOTALL)
with open("{out}/first_run.txt", "w") as file, contextlib.redirect_stdout(file):
    exec(block.replace("runs/stickers", "{demo}"))
"""
DETECTORS = {  # name in the table -> fields of the config, seeds
    "200: the default": ("", 3),
    "600": (" --config.total_steps=600", 1),
}
ENCODERS = {"the demo": " --config.init={demo}", "untrained": ""}
AP = {  # heading -> score
    **{"box AP": "bbox_AP", "box AP50": "bbox_AP50", "mask AP": "segm_AP", "mask AP50": "segm_AP50"},
    "ceiling, mask AP": "ceiling_AP",
}
HEADS = {"linear": "stickers_linear.py", "UPerNet": "stickers_upernet.py"}
LONG_UPERNET = """
import pathlib
import tools.probes as probes
supervised = dict([("UPerNet", "{out}/run")])
pathlib.Path("{out}/study.md").write_text(probes.study(dict(demo="{demo}"), supervised, variants=probes.VARIANTS[:1]))
"""
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
SCORES = ("mIoU", "mAcc", "aAcc", "boundary_mIoU")
READOUTS = ("plain", "maskclip", "maskclip_bare", "sclip", "naclip", "clearclip", "gem", "tips")
FACTORS = (  # each one in addition to the paper's weights, or instead of them
    PAPER,
    "detailclip",
    "detailclip_random_mask+losses.weights.cls=0.1+losses.weights.patch=0.1",
    "detailclip+losses.weights.cls=0.0+losses.weights.patch=0.0",
    "detailclip+losses.weights.cls=0.0+losses.weights.patch=1.0",
    "detailclip+losses.weights.cls=1.0+losses.weights.patch=0.0",
    "detailclip_random_mask+losses.weights.cls=1.0+losses.weights.patch=1.0",
    *(
        f"{PAPER}+{change}"
        for change in (
            "masking.ratio=0.25",
            "ema.start=0.99+ema.end=0.999",
            "model.prototypes=1024",
            "model.freeze_patch_embed=False",
        )
    ),
)
CONTINUED_FACTORS = (
    PAPER,
    "detailclip",
    *(
        f"{PAPER}+{change}"
        for change in (
            "ema.start=0.99+ema.end=0.999",
            "masking.ratio=0.25",
            "masking.ratio=0.25+ema.start=0.99+ema.end=0.999",
        )
    ),
)
GROUNDS_ROWS = {
    "zero-shot, on white": ("on_white", "top1"),
    "on white, object of half of the side": ("on_white", "top1_50"),
    "on white, object of three quarters of the side": ("on_white", "top1_75"),
    "zero-shot, other artists' drawings": ("other_drawings", "top1"),
    "zero-shot, unseen scenes": ("zero_shot", "top1"),
    "image to text R@1": ("retrieval", "image_to_text_r1"),
}
LONG_ROWS = ("clip", "detailclip", "detailclip+masking.ratio=0.25")
METRICS = {  # heading -> task/metric
    "zero-shot": "zero_shot/top1",
    "image to text R@1": "retrieval/image_to_text_r1",
    "text to image R@1": "retrieval/text_to_image_r1",
    "foreground IoU": "segmentation/foreground_iou",
    "balanced mIoU": "segmentation/balanced_miou",
    "kept objects": "kept_objects/share",
}
BY_WORDS = {f"words, {name}: mIoU": f"words/{name}" for name in WORDS}
PAGES = {"small": "glibc.malloc.hugetlb=0", "large": "glibc.malloc.hugetlb=1"}  # GLIBC_TUNABLES
DTYPES = ("float32", "bfloat16")
MEMORY_ROWS = tuple(itertools.product(("dots", "full"), (32, 64)))  # remat, pairs
SIZES, GAPS = ("1024x768", "2000x1500", "4000x3000"), (0, 2)
STAGES = {
    **{name: name for name in ("read", "decode", "crop", "colour", "tokenise", "stack")},
    "crop": "crop (Pillow's bicubic, as sparse products)",
}
STEP_ROWS = (
    ("B/16, 77", "--size=B/16 --rounds=8"),
    ("B/16, captions of at most 32, which ours cuts there", "--size=B/16 --words=32 --rounds=5"),
    ("S/16, 77", "--size=S/16 --rounds=6"),
)
STEP_TIMES = "python tests/time_straightforward.py"
CONTINUE = {  # configs/beyond/continue_NAME.py -> fields that `config.init` sets in a run
    **dict.fromkeys(("siglip", "siglip2", "silc", "tips", "tipsv2", "cosmos", "flair"), ""),
    "silc": " --image-size=256",
}
DENSE_RATES = {"segmentation": "UPerNet", "detection": "The detector"}
FLOP_ROWS = (  # name in the table, masking, the command's flags
    ("DetailCLIP S/16", "patch", "--size=S/16 --batch=4"),
    ("DetailCLIP B/16", "patch", "--batch=32"),
    ("DetailCLIP B/16", "patch", "--batch=32 --text-length=32"),
    ("DetailCLIP B/16", "2x2 cells", "--batch=32 --set masking.granularity=cell2x2"),
    ("DetailCLIP B/16", "2x2 cells", "--batch=32 --set masking.granularity=cell2x2 --text-length=32"),
    ("DetailCLIP L/16", "patch", "--size=L/16 --batch=32"),
    ("CLIP B/16, one view", "-", "--method=clip --batch=32"),
)


def demo(folder: Path) -> Made:
    """The table of the report, but the row that needs a font which `make demo` does not install.

    Ends the script if another row was not measured.
    """
    lines = (folder / "report.md").read_text().splitlines()
    if missing := [line for line in lines if line.startswith("Not measured") and FONT_ROW not in line]:
        sys.exit(f"{folder}/report.md says: {missing[0]}")
    return {"demo.table": [line for line in lines if line.startswith("|") and FONT_ROW not in line]}


def overview(folder: Path) -> Made:
    """The caption of the figure."""
    caption = (
        f"*`python -m detailclip_jax.visualize --checkpoint=runs/stickers {OVERVIEW}` after `make demo`: scenes of "
        "unseen pairs, the EMA teacher's CLS attention (eq. 9), the patches that the student keeps, the prediction of "
        "the others, and each noun's map minus the mean of all 96 nouns (yellow: its maximum). "
        "[OpenMoji](https://openmoji.org), CC BY-SA 4.0.*"
    )
    return {"overview.caption": textwrap.wrap(caption, WIDTH)}


def grounds(folder: Path) -> Made:
    """What plain grounds change: EMA weights of the demo, without them and with them."""
    columns = [
        {
            (one["task"], one["metric"]): one["value"]
            for one in json.loads(file.read_text())["results"]
            if one["weights"] == "ema"
        }
        for file in (folder / "results.json", folder.parent / "demo" / "results.json")
    ]
    lines = ["| | textured grounds, large objects | plain grounds and any size too |", "|---|---:|---:|"]
    for name, metric in GROUNDS_ROWS.items():
        lines.append(f"| {name} | {' | '.join(f'{100 * column[metric]:.1f}' for column in columns)} |")
    return {"grounds.table": lines}


def evaluation(folder: Path) -> Made:
    """One sentence, of the student."""
    lines = (json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines())
    found = {(one["task"], one["dataset"], one["metric"]): one for one in lines if one["weights"] == "student"}

    def percent(task: str, dataset: str, metric: str = "top1") -> str:
        return f"{100 * found[task, dataset, metric]['value']:.1f}"

    nearest, linear = percent("knn", "stickers", "k10_top1"), percent("linear", "stickers")
    sentence = (
        f"Unseen scenes: zero-shot {percent('zero_shot', 'stickers')}, k-NN (k = 10) {nearest}, linear probe {linear}; "
        "chance 1.04 each."
    )
    return {"evaluation.sentence": textwrap.wrap(sentence, WIDTH)}


def read(folder: Path, name: str) -> Any:
    """The content of a JSON file."""
    return json.loads((folder / f"{name}.json").read_text())


def flop(folder: Path) -> Made:
    """The table of the performance page, and its summary."""
    lines = ["| method, size | masking | batch | text tokens | counted |", "|---|---|---|---|---|"]
    counts = {}
    for place, (name, masking, flags) in enumerate(FLOP_ROWS):
        (record,) = read(folder, str(place))
        batch = re.search(r"--batch=(\d+)", flags)
        text = re.search(r"--text-length=(\d+)", flags)
        counted = f"{record['flops_per_pair'] / 1e9:.1f}"
        cells = [name, masking, batch[1] if batch else "", text[1] if text else "77", f"{counted} G"]
        lines.append(f"| {' | '.join(cells)} |")
        counts[name, masking, cells[3]] = counted
    patch, cells2 = (counts["DetailCLIP B/16", masking, "77"] for masking in ("patch", "2x2 cells"))
    plain = read(folder, "straightforward")["gflop_per_pair"]
    sentence = (
        f"A step of ViT-B/16 costs {patch} GFLOP per pair with the paper's masking and {cells2} with the published "
        "code's cells (counted before XLA optimises, batch 32, 77 tokens); a straightforward implementation costs "
        f"{plain:.1f}."
    )
    return {"flop.table": lines, "flop.sentence": textwrap.wrap(sentence, WIDTH)}


def memory(folder: Path) -> Made:
    """Bytes of a step, as the compiler plans them."""
    lines = ["| | arguments | temporaries | together |", "|---|---|---|---|"]
    for remat, batch in MEMORY_ROWS:
        (record,) = read(folder, f"{remat}-{batch}")
        cells = [f"{record[f'{name}_bytes'] / GIB:.2f} GiB" for name in ("argument", "temp", "total")]
        lines.append(f"| `remat={remat}`, {batch} pairs | {' | '.join(cells)} |")
    return {"memory.table": lines}


def contrastive(folder: Path) -> Made:
    """Memory of the contrastive loss alone."""
    (record,) = read(folder, "clip")
    temporaries, gradients = (record[name] / 2**20 for name in ("temp_bytes", "gradient_bytes"))
    sentence = (
        f"The contrastive loss and its gradient alone (counted): at a global batch of {record['batch']:,} pairs of two "
        f"views and a caption, {record['width']} wide, on {record['devices']} devices, each device needs "
        f"{temporaries:,.0f} MiB of temporaries and {gradients:.0f} MiB for the gradients. The full logits would be "
        f"{record['batch'] ** 2 * 4 / record['devices'] / GIB:.0f} GiB for one view in one direction."
    )
    return {"contrastive.sentence": textwrap.wrap(sentence, WIDTH)}


def collectives(folder: Path) -> Made:
    """What devices send in a step of the demo."""
    lines = ["| collective | times | bytes of the result | bytes sent per device |", "|---|---|---|---|"]
    for one in read(folder, "step"):
        cells = [one["kind"], *(f"{one[name]:,.0f}" for name in ("times", "result", "moved"))]
        lines.append(f"| {' | '.join(cells)} |")
    return {"collectives.table": lines}


def stages(folder: Path) -> Made:
    """The data pipeline by stage, against torchvision, and with workers."""
    records = {one["stage"]: one for one in read(folder, "data")}
    theirs = {one["stage"]: one for one in read(folder, "views")}
    lines = [
        "| stage | ms per image (range of 9 rounds) | share | images/s per core |",
        "|---|---|---|---|",
    ]
    for stage in STAGES:
        one = records[stage]
        low, high = one["seconds_per_image_range"]
        ms = f"{1e3 * one['seconds_per_image']:.2f} ({1e3 * low:.2f}-{1e3 * high:.2f})"
        rate = f"{one['images_per_second_per_core']:,.0f}"
        lines.append(f"| {STAGES[stage]} | {ms} | {one['share']:.1%} | {rate} |".replace("%", " %"))
    whole = records["all"]
    lines.append(f"| all | {1e3 * whole['seconds_per_image']:.2f} | | {whole['images_per_second_per_core']:.0f} |")
    views, decode = (theirs[name]["times_as_fast"] for name in ("views", "decode"))
    workers = records["pipeline"]
    sentence = (
        "Against torchvision (Pillow) on the same decoded images, in turn: views "
        f"{views[0]:.2f} times as fast ({views[1]:.2f}-{views[2]:.2f}), decoding {decode[0]:.2f} times "
        f"({decode[1]:.2f}-{decode[2]:.2f}). The full pipeline in wall time: {workers['images_per_second']:.0f} "
        f"images/s with {workers['workers']} workers, on the cores that also ran the process which takes the batches."
    )
    return {"stages.table": lines, "stages.sentence": textwrap.wrap(sentence, WIDTH)}


def originals(folder: Path) -> Made:
    """All stages for large JPEGs, with all pixels decoded and with a gap of 2."""
    lines = ["| original | all pixels | gap 2 | times as fast |", "|---|---|---|---|"]
    for size in SIZES:
        full, reduced = (
            next(one for one in read(folder, f"{size}-{gap}") if one["stage"] == "all")["seconds_per_image"]
            for gap in GAPS
        )
        name = size.replace("x", " x ")
        lines.append(f"| {name} | {1e3 * full:.1f} ms | {1e3 * reduced:.1f} ms | {full / reduced:.1f} |")
    return {"originals.table": lines}


def straightforward(folder: Path) -> Made:
    """A step against the straightforward one."""
    lines = [
        "| size, text tokens | rounds | CPU seconds per step | ratio, CPU seconds | wall time, two cores |",
        "|---|---|---|---|---|",
    ]
    for place, (name, flags) in enumerate(STEP_ROWS):
        record = read(folder, str(place))
        theirs, ours = (f"{record['cpu'][who][0]:.3g}" for who in ("straightforward", "ours"))
        middle, low, high = record["cpu"]["times_as_fast"]
        rounds = re.search(r"--rounds=(\d+)", flags)
        cells = [name, rounds[1] if rounds else "", f"{theirs} / {ours}", f"{middle:.2f} ({low:.2f}-{high:.2f})"]
        lines.append(f"| {' | '.join(cells)} | {record['clock']['times_as_fast'][0]:.2f} |")
    return {"straightforward.table": lines}


def mean_and_std(records: Sequence[Mapping[str, Any]], row: str, metric: str, weights: str = "student") -> str:
    """A metric of a row of `compare` in per cent: "21.8 ± 3.5"; "" if it was not measured."""
    found = [
        one
        for one in records
        if (one["method"], one["weights"], one["metric"]) == (row, weights, METRICS.get(metric, metric))
    ]
    if not found:
        return ""
    deviation = f" ± {100 * found[0]['std']:.1f}" if found[0]["num_seeds"] > 1 else ""
    return f"{100 * found[0]['mean']:.1f}{deviation}"


def rows_table(folder: Path, shown: Mapping[str, str]) -> list[str]:
    """The rows of a comparison with all their metrics and their cost."""
    made = read(folder, "comparison")
    lines = [f"| method | {' | '.join(METRICS)} | GFLOP per image |", "|---|" + "---:|" * (len(METRICS) + 1)]
    for row, name in shown.items():
        cost = made["costs"].get(row, "").partition(" ")[0]
        cells = [mean_and_std(made["results"], row, metric) for metric in METRICS]
        lines.append(f"| {name} | {' | '.join(cells)} | {cost} |")
    return lines


def comparison(folder: Path) -> Made:
    """Methods at one budget, from scratch."""
    return {"comparison.table": rows_table(folder / "rows", COMPARED | FLOORS)}


def later_runs(seeds: int) -> Iterator[tuple[str, int, str]]:
    """Row, seed, and the part of the run's path below the number's folder."""
    for row in LATER:
        for seed in range(seeds):
            yield row, seed, f"{quote(row, safe='=+')}/seed-{seed}"


def later_commands(seeds: int, budget: int) -> tuple[str, ...]:
    """Trains and scores the methods after DetailCLIP, then segments by words with each run."""
    return (
        f"{COMPARE} --methods={','.join(LATER)} --seeds={seeds} --budget={budget} --workdir={{out}}/rows",
        *(
            f"python -m detailclip_jax.evaluate --checkpoint={{out}}/rows/{path} --out={{out}}/dense/{path} "
            f"--weights={'student,ema' if row == 'cosmos' else 'student'} --num-examples=100 "
            f"--tasks=dense:{','.join(f'stickers:{name}' for name in LATER_READOUTS)}"
            for row, _, path in later_runs(seeds)
        ),
    )


def later(folder: Path) -> Made:
    """The methods after DetailCLIP at one budget."""
    return {"later.table": later_table(folder, LATER_SEEDS), "later.differences": differences(folder, "clip")}


def later_longer(folder: Path) -> Made:
    """The same methods at eight times that budget."""
    return {"later_longer.table": later_table(folder, LATER_LONGER_SEEDS)}


def equal_flop_commands() -> Iterator[str]:
    """Trains the teacher, then trains every row at about the same FLOP; all runs segment by words."""
    yield f"python -m detailclip_jax.main {TEACHER} --workdir={{out}}/teacher"
    yield by_words("teacher")
    for folder, row in EQUAL_FLOP.items():
        flags = f"--seeds={row.seeds} --budget={row.steps} {row.flags}".strip()
        yield f"{COMPARE} --methods={row.entry} {flags} --workdir={{out}}/{folder}"
        yield from (by_words(path) for path in paths_of(folder))
    for path in itertools.chain(*map(paths_of, LINEAR_HEADS)):
        yield f"{TRANSFER}/stickers_linear.py --config.init={{out}}/{path} --workdir={{out}}/linear/{path}"


def by_words(path: str) -> str:
    """The command that segments by words with the student of the run in this folder."""
    return (
        f"python -m detailclip_jax.evaluate --checkpoint={{out}}/{path} --out={{out}}/dense/{path} --weights=student "
        f"--num-examples=100 --tasks=dense:{','.join(f'stickers:{name}' for name in WORDS)}"
    )


def paths_of(folder: str) -> list[str]:
    """The runs of a row of the table at equal FLOP, a seed each."""
    row = EQUAL_FLOP[folder]
    return [f"{folder}/{quote(row.entry, safe='=+')}/seed-{seed}" for seed in range(row.seeds)]


def equal_flop(folder: Path) -> Made:
    """CLIP, changes that let its losses read the patches, a frozen teacher, and COSMOS, all at the same FLOP."""
    columns = METRICS | BY_WORDS
    table = [f"| method | steps | {' | '.join(columns)} | GFLOP per image |", "|---|" + "---:|" * (len(columns) + 2)]
    paired = [f"| minus `clip` of the same seed | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    scores = {name: [all_scores(folder, path) for path in paths_of(name)] for name in EQUAL_FLOP}
    for name, row in EQUAL_FLOP.items():
        cells = [mean_and_spread([one[metric] for one in scores[name]]) for metric in columns.values()]
        cost = read(folder / paths_of(name)[0], "cost")["gflop_per_image"]
        table.append(f"| {row.label} | {row.steps:,} | {' | '.join(cells)} | {cost:.3f} |")
        pairs = list(zip(scores[name], scores["clip"]))
        if name != "clip" and row.seeds > 2:
            cells = [interval([one[metric] - other[metric] for one, other in pairs]) for metric in columns.values()]
            paired.append(f"| {row.label} | {' | '.join(cells)} |")
    return {
        "equal_flop.table": table,
        "equal_flop.differences": paired,
        "equal_flop.linear": linear_heads(folder),
        "equal_flop.teacher": teacher(folder, columns),
    }


def linear_heads(folder: Path) -> list[str]:
    """The mIoU of a linear head on frozen encoders."""
    paths = {f"`{EQUAL_FLOP[name].entry}`": paths_of(name) for name in LINEAR_HEADS}
    found = {
        label: [read(folder / "linear" / path, "results")["mIoU"] for path in each] for label, each in paths.items()
    }
    each = ", ".join(f"{label} {mean_and_spread(values)}" for label, values in found.items())
    about = "A linear head (configs/transfer/stickers_linear.py) on the frozen encoder; mIoU of objects and background"
    return textwrap.wrap(f"{about}: {each}.", WIDTH)


def teacher(folder: Path, columns: Mapping[str, str]) -> list[str]:
    """What the frozen teacher of the table at equal FLOP scores itself."""
    scores = all_scores(folder, "teacher")
    found = ", ".join(f"{name} {scores[metric]:.1f}" for name, metric in columns.items())
    return textwrap.wrap(f"The teacher: {found}.", WIDTH)


def term_runs() -> dict[str, list[str]]:
    """The runs of each row of the table of terms, a seed each."""
    names = {entry: quote(entry, safe="=+") for entry in TERMS}
    return {entry: [f"rows/{name}/seed-{seed}" for seed in range(TERMS_SEEDS)] for entry, name in names.items()}


def terms(folder: Path) -> Made:
    """CLIP and the terms of other methods, alone and together, at the FLOP of 800 steps of CLIP; what each adds."""
    columns, runs = METRICS | BY_WORDS, term_runs()
    scores = {entry: [all_scores(folder, path) for path in runs[entry]] for entry in TERMS}
    table = [f"| method | steps | {' | '.join(columns)} | GFLOP per image |", "|---|" + "---:|" * (len(columns) + 2)]
    for entry, label in TERMS.items():
        cells = [mean_and_spread([one[metric] for one in scores[entry]]) for metric in columns.values()]
        steps = read(folder / runs[entry][0], "config")["total_steps"]
        cost = read(folder / runs[entry][0], "cost")["gflop_per_image"]
        table.append(f"| {label} | {steps:,} | {' | '.join(cells)} | {cost:.3f} |")
    return {"terms.table": table, "terms.effects": effects(scores, columns)}


def effects(scores: Mapping[str, Sequence[Mapping[str, float]]], columns: Mapping[str, str]) -> list[str]:
    """What each addition changes: the row with it minus the row without it, and the interval of `half_of_rows`."""
    lines = [f"| added | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    halves = {
        metric: half_of_rows([[one[metric] for one in each] for each in scores.values()]) for metric in columns.values()
    }
    for label, row, control in EFFECTS:
        cells = []
        for metric, half in halves.items():
            added = np.mean([one[metric] - other[metric] for one, other in zip(scores[row], scores[control])])
            cells.append(with_half(float(added), half))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


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


def one_gpu(folder: Path) -> Made:
    """FLOP and memory of a step of the recipes for small data."""
    lines = ["| | GFLOP per pair | state | memory of a step |", "|---|---:|---:|---:|"]
    for place, name in enumerate(ONE_GPU):
        (record,) = read(folder, f"{place}")
        sizes = " | ".join(f"{record[key] / GIB:.1f} GiB" for key in ("state_bytes", "total_bytes"))
        lines.append(f"| {name} | {record['flops_per_pair'] / 1e9:.0f} | {sizes} |")
    return {"one_gpu.table": lines}


def tuned(folder: Path) -> Made:
    """What a locked and a continued encoder reach on stickers, beside a training from noise."""
    columns = {**METRICS, "words, plain: mIoU": "words/plain"}
    lines = [f"| 300 steps of | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for path, name in TUNED.items():
        scores = all_scores(folder, path)
        lines.append(f"| {name} | {' | '.join(f'{scores[metric]:.1f}' for metric in columns.values())} |")
    return {"tuned.table": lines}


def all_scores(folder: Path, path: str) -> dict[str, float]:
    """The scores of a run's student and of its words, by "task/metric" and "words/READOUT", in per cent."""
    lines = map(json.loads, (folder / "dense" / path / "results.jsonl").read_text().splitlines())
    words = {f"words/{one['dataset'].rpartition(':')[2]}": one for one in lines if one["metric"] == "mean_iou"}
    scores = scores_of(folder / path) | {name: one["value"] for name, one in words.items()}
    return {name: 100 * value for name, value in scores.items()}


def later_table(folder: Path, seeds: int) -> list[str]:
    """All scores of the methods after DetailCLIP; COSMOS by its teacher too, which is its own choice of weights."""
    made = read(folder / "rows", "comparison")
    dense: dict[tuple[str, str, str], list[float]] = {}
    for row, _, path in later_runs(seeds):
        for line in (folder / "dense" / path / "results.jsonl").read_text().splitlines():
            one = json.loads(line)
            if one["metric"] == "mean_iou":
                key = row, one["weights"], one["dataset"].rpartition(":")[2]
                dense.setdefault(key, []).append(100 * one["value"])
    heads = [*METRICS, *(f"words, {name}: mIoU" for name in LATER_READOUTS), "GFLOP per image"]
    lines = [f"| method | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for row, weights in [*((row, "student") for row in LATER), ("cosmos", "ema")]:
        cells = [mean_and_std(made["results"], row, metric, weights) for metric in METRICS]
        cells += [mean_and_spread(dense[row, weights, name]) for name in LATER_READOUTS]
        name = f"{LATER[row]}, the teacher" if weights == "ema" else LATER[row]
        lines.append(f"| {' | '.join([name, *cells, made['costs'][row].partition(' ')[0]])} |")
    return lines


def differences(folder: Path, baseline: str) -> list[str]:
    """The later methods minus the baseline, paired by seed: mean over the seeds and 95 % interval, see `interval`."""
    found = {(row, seed): scores_of(folder / "rows" / path) for row, seed, path in later_runs(LATER_SEEDS)}
    lines = [f"| method, minus `{baseline}` | {' | '.join(METRICS)} |", "|---|" + "---:|" * len(METRICS)]
    for row in (row for row in LATER if row != baseline):
        cells = []
        for metric in METRICS.values():
            pairs = [(found[row, seed][metric], found[baseline, seed][metric]) for seed in range(LATER_SEEDS)]
            cells.append(interval([100 * (one - other) for one, other in pairs]))
        lines.append(f"| {LATER[row]} | {' | '.join(cells)} |")
    return lines


def scores_of(workdir: Path) -> dict[str, float]:
    """The scores of a run's student by "task/metric"."""
    records = read(workdir, "results")["results"]
    return {f"{one['task']}/{one['metric']}": one["value"] for one in records if one["weights"] == "student"}


def interval(values: Sequence[float]) -> str:
    """The mean and half of its 95 % interval, by Student's t: "+2.1 ± 1.5"; bold if the interval does not contain 0.

    >>> interval([1.0, 2.0, 3.0])
    '+2.0 ± 2.5'
    """
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return with_half(float(np.mean(values)), half)


def with_half(mean: float, half: float) -> str:
    """A difference and half of its interval: "+2.1 ± 1.5"; bold if the interval does not contain 0."""
    text = f"{round(mean, 1) + 0.0:+.1f} ± {half:.1f}"  # + 0.0: no "-0.0"
    return f"**{text}**" if abs(mean) > half else text


def longer(folder: Path) -> Made:
    """CLIP and DetailCLIP at eight times that budget."""
    return {"longer.table": rows_table(folder / "rows", {row: COMPARED[row] for row in ("clip", "detailclip")})}


def continued(folder: Path) -> Made:
    """Methods at one budget, from one CLIP."""
    return {"continued.table": rows_table(folder / "rows", COMPARED)}


def probe(folder: Path) -> Made:
    """Probes of raw pixels, untrained, trained and supervised encoders: the comparison's in full, the others in two."""
    text = (folder / "study.md").read_text().splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text]
    found = {(name, encoder): scores for name, encoder, *scores in rows}
    probes = list(dict.fromkeys(name for name, *_ in rows))
    columns = ["foreground IoU", "mIoU of groups", "right group on object pixels", "mIoU of nouns"]
    lines = [f"| encoder | {' | '.join([*columns, *(f'{name}: foreground, groups' for name in probes[1:])])} |"]
    lines.append("|---|" + "---:|" * (len(columns) + len(probes) - 1))
    for encoder in dict.fromkeys(row[1] for row in rows):
        others = [", ".join(found.get((name, encoder), [])[:2]) for name in probes[1:]]
        lines.append(f"| {encoder} | {' | '.join([*found[probes[0], encoder], *others])} |")
    few, many = (segmented(folder / str(place)) for place, name in enumerate(SUPERVISED) if name.startswith("linear"))
    heads = f"The linear head and the encoder, trained on 19,200 scenes: {few}; on 192,000 scenes: {many}."
    return {"probe.table": lines, "probe.heads": textwrap.wrap(heads, WIDTH)}


def detectors() -> Iterator[tuple[str, str, str]]:
    """Name of the row and of the encoder, and flags, of every run; equal names are seeds."""
    for row, (flags, seeds) in DETECTORS.items():
        for encoder, init in ENCODERS.items():
            for seed in range(seeds):
                yield row, encoder, f"{flags}{init} --config.seed={seed}"


def segmenters() -> Iterator[tuple[str, str, str]]:
    """Name of the head and of the encoder, config and flags, of every run; equal names are seeds."""
    for head, config in HEADS.items():
        for encoder, init in ENCODERS.items():
            for seed in range(3):
                yield head, encoder, f"{config}{init} --config.seed={seed}"


def table_of_seeds(
    folder: Path, first: str, runs: Iterator[tuple[str, str, str]], scores: Mapping[str, str]
) -> list[str]:
    """A row of `scores` (heading -> name in results.json) for each pair of names; folders are numbered as the runs."""
    found: dict[tuple[str, str], list[Any]] = {}
    for place, (row, encoder, _) in enumerate(runs):
        found.setdefault((row, encoder), []).append(read(folder / str(place), "results"))
    lines = [f"| {first} | encoder | {' | '.join(scores)} |", "|---|---|" + "---:|" * len(scores)]
    for (row, encoder), results in found.items():
        cells = [mean_and_spread([each[name] for each in results]) for name in scores.values()]
        lines.append(f"| {row} | {encoder} | {' | '.join(cells)} |")
    return lines


def detection(folder: Path) -> Made:
    """Detectors on stickers, from a pretrained and from an untrained encoder."""
    return {"detection.table": table_of_seeds(folder, "steps", detectors(), AP)}


def segmentation(folder: Path) -> Made:
    """Objects against background on stickers, from a pretrained and from an untrained encoder."""
    return {"segmentation.table": table_of_seeds(folder, "head", segmenters(), dict(zip(SCORES, SCORES)))}


def segmented(workdir: Path) -> str:
    """The scores of a run of segmentation, in words."""
    scores = read(workdir, "results")
    return ", ".join(f"{name} {scores[name]:.1f}" for name in SCORES)


def mean_and_spread(values: Sequence[float]) -> str:
    """The mean, with the standard deviation where there are several values: "21.8 ± 3.5"."""
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def examples(folder: Path) -> Made:
    """What the Python of a page prints with the demo's checkpoint."""
    printed = (folder / "first_run.txt").read_text().splitlines()
    return {"examples.first_run": [f"    {line}" for line in printed]}


def readouts(folder: Path) -> Made:
    """The dense read-outs with the demo's student."""
    lines = (json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines())
    found = {(one["dataset"].rpartition(":")[2], one["metric"]): one for one in lines}
    table = ["| read-out | mIoU | accuracy of pixels |", "|---|---:|---:|"]
    for name in READOUTS:
        miou, low, high = (100 * found[name, "mean_iou"][key] for key in ("value", "low", "high"))
        right = 100 * found[name, "pixel_accuracy"]["value"]
        table.append(f"| `{name}` | {miou:.1f} ({low:.1f}-{high:.1f}) | {right:.1f} |")
    return {"readouts.table": table}


def factor_table(folder: Path, head: str, rows: Sequence[str]) -> list[str]:
    """One row per factor: zero-shot, retrieval both ways, segmentation in two ways."""
    records = read(folder, "comparison")["results"]
    lines = [f"| {head} | zero-shot | R@1, both ways | foreground IoU | balanced mIoU |", "|---|" + "---:|" * 4]
    for row in rows:
        seen, there, back, figure, detail = (mean_and_std(records, row, metric) for metric in list(METRICS)[:5])
        lines.append(f"| `{row}` | {seen} | {there}, {back} | {figure} | {detail} |")
    return lines


def factors(folder: Path) -> Made:
    """DetailCLIP by one factor at a time."""
    return {
        "factors.scratch": factor_table(folder / "scratch", "300 steps from scratch", FACTORS),
        "factors.long": factor_table(folder / "long", "600 steps from scratch", LONG_ROWS),
        "factors.continued": factor_table(folder / "continued", "continued 200 steps", CONTINUED_FACTORS),
    }


def background(folder: Path) -> Made:
    """The scores of a prediction that is background everywhere."""
    objects, groups = (segmented(folder / labels) for labels in ("objects", "groups"))
    sentence = f"A prediction of background everywhere has {objects}; with the 24 groups as classes {groups}."
    return {"background.sentence": textwrap.wrap(sentence, WIDTH)}


def long_upernet(folder: Path) -> Made:
    """UPerNet at ten times the budget of the study: its own scores, and those of the probe of its encoder."""
    rows = [line.split("|") for line in (folder / "study.md").read_text().splitlines() if "supervised, UPerNet" in line]
    (figure, groups), own = ([cell.strip() for cell in row[3:5]] for row in rows)
    sentence = (
        f"UPerNet, end to end on 192,000 scenes: {segmented(folder / 'run')}; in the table above it would have "
        f"foreground IoU {figure} and mIoU of groups {groups}, and with its own head {', '.join(own)}."
    )
    return {"long_upernet.sentence": textwrap.wrap(sentence, WIDTH)}


def rates(folder: Path) -> Made:
    """A step's share of the machine's own product rate, and texts per second in evaluation."""
    lines = ["| ViT-B/16, batch 4 | seconds per step | products, GFLOP/s | share of product rate |"]
    lines.append("|---|---:|---:|---:|")
    for dtype in DTYPES:
        (record,) = read(folder, dtype)
        seconds = spread((record["step_seconds"], *record["step_seconds_range"]))
        share = spread([100 * value for value in record["product_share"]])
        rate = f"{record['product_flops'][dtype] / 1e9:.0f}"
        lines.append(f"| {dtype} | {seconds} | {rate} | {share} % |")
    (texts,) = read(folder, "texts")
    whole, cut = (f"{texts['texts_per_second'][name][0]:,.0f}" for name in ("all tokens", "cut"))
    sentence = (
        f"Texts in evaluation, the demo's encoder (tiny): {cut} a second where each batch is cut to what its texts "
        f"need, {whole} with all 77 tokens."
    )
    return {"rates.table": lines, "rates.sentence": textwrap.wrap(sentence, WIDTH)}


def spread(values: Sequence[float]) -> str:
    """Median and range: "5.31 (5.20-5.52)"."""
    middle, low, high = (f"{value:.3g}" for value in values)
    return f"{middle} ({low}-{high})"


def continue_memory(folder: Path) -> Made:
    """Memory of a step of the configs that continue a training, as the compiler plans it."""
    lines = ["| config | arguments, GiB | temporaries, GiB | together |", "|---|---:|---:|---:|"]
    for name in CONTINUE:
        (record,) = read(folder, name)
        sizes = [f"{record[f'{kind}_bytes'] / GIB:.1f}" for kind in ("argument", "temp", "total")]
        lines.append(f"| `continue_{name}.py` | {' | '.join(sizes)} |")
    return {"continue_memory.table": lines}


def start(folder: Path) -> Made:
    """From a command to the end of its first step, by parts."""
    found: dict[str, dict[str, Any]] = {}
    for record in read(folder, "start"):
        found.setdefault(record["part"], {})[record["state"]] = record
    lines = ["| part | cold: seconds, CPU seconds | kept: seconds, CPU seconds |", "|---|---:|---:|"]
    for part, states in found.items():
        cells = [f"{states[name]['seconds']:.1f}, {states[name]['cpu_seconds']:.1f}" for name in ("cold", "cached")]
        lines.append(f"| {part} | {' | '.join(cells)} |")
    return {"start.table": lines}


def gigabytes(count: float) -> str:
    """Bytes as "8.35 GiB"."""
    return f"{count / GIB:.2f} GiB"


def segmentation_cost(folder: Path) -> Made:
    """FLOP, memory and projected hours of the heads of ADE20K."""
    (upernet,), (dots,), (linear,) = (read(folder, name) for name in ("upernet", "dots", "linear"))
    lines = ["| | UPerNet, end to end | linear, frozen |", "|---|---:|---:|"]
    for name, key in (("training, GFLOP per image", "step"), ("evaluation, GFLOP per window", "evaluation")):
        cells = [f"{record[key]['flops_per_image'] / 1e9:,.0f}" for record in (upernet, linear)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name, record, key, field in (
        ("arguments, batch 2 (parameters, AdamW)", upernet, "step", "argument_bytes"),
        ("temporaries, batch 2", upernet, "step", "temp_bytes"),
        ("the same with `model.remat=dots`", dots, "step", "temp_bytes"),
        ("temporaries of the evaluation, 8 windows", upernet, "evaluation", "temp_bytes"),
    ):
        lines.append(f"| {name} | {gigabytes(record[key][field])} | |")
    hours = [f"{record['projected_hours']:.2g} hours" for record in (upernet, linear)]
    return {"segmentation_cost.table": [*lines, f"| 160,000 steps of 16 on 8 A100, projected | {' | '.join(hours)} |"]}


def dense_rates(folder: Path) -> Made:
    """How fast heads on stickers train and predict."""
    made: Made = {}
    for name, what in DENSE_RATES.items():
        (record,) = read(folder, name)
        training, prediction = (
            f"{record[key]['images'] / record[key]['seconds']:,.0f}" for key in ("step", "evaluation")
        )
        sentence = (
            f"{what} of the stickers, {os.cpu_count()} CPU cores: {training} images/s in training, {prediction} in "
            "evaluation."
        )
        made[f"dense_rates.{name}"] = textwrap.wrap(sentence, WIDTH)
    return made


def detection_cost(folder: Path) -> Made:
    """FLOP, memory and projected hours of Cascade Mask R-CNN on images of 1024 x 1024 pixels."""
    counted, one, two = (read(folder, name)[0] for name in ("counted", "1", "2"))
    parts = counted["parameters"]
    temporaries = ", ".join(f"{record['step']['temp_bytes'] / GIB:.1f}" for record in (one, two))
    sizes = ", ".join(f"{size / 1e6:.1f} M" for size in parts.values())
    lines = [
        "| | |",
        "|---|---:|",
        f"| parameters: {', '.join(parts)} | {sizes} |",
        f"| training, GFLOP per image | {counted['step']['flops_per_image'] / 1e9:,.0f} |",
        f"| detection, GFLOP per image | {counted['evaluation']['flops_per_image'] / 1e9:,.0f} |",
        f"| temporaries of training, batch 1 and 2 (`model.remat=full`) | {temporaries} GiB |",
        f"| temporaries of detection, batch 1 | {one['evaluation']['temp_bytes'] / GIB:.1f} GiB |",
        f"| 1x (12 epochs of 117,266 images) on 8 A100, projected | {counted['projected_hours']:.1f} hours |",
    ]
    return {"detection_cost.table": lines}


def pages(folder: Path) -> Made:
    """The demo's step with glibc's small pages and with its large ones."""
    lines = ["| pages | seconds per step (range of 7 rounds) |", "|---|---:|"]
    for name in PAGES:
        (record,) = read(folder, name)
        lines.append(f"| {name} | {spread((record['step_seconds'], *record['step_seconds_range']))} |")
    return {"pages.table": lines}


def scenes(folder: Path) -> Made:
    """How fast sticker scenes are drawn."""
    rates = {}
    for kind in ("mixed", "textured"):
        (read,) = [one for one in json.loads((folder / f"{kind}.json").read_text()) if one["stage"] == "read"]
        rates[kind] = round(read["images_per_second_per_core"], -1)
    sentence = (
        f"Scenes of stickers on the demo's canvas (80 pixels): a core draws {rates['mixed']:.0f} a second as training "
        f"has them (`mixed`), and {rates['textured']:.0f} with textured grounds and large objects alone (`textured`); "
        "CPU time."
    )
    return {"scenes.sentence": textwrap.wrap(sentence, WIDTH)}


NUMBERS = (
    Number(
        "demo",
        "the demo's table and figures",
        15,
        (f"{MAIN} --workdir={{out}}",),
        demo,
        {f"docs/{name}.png": f"figures/{name}.png" for name in ("attention", "reconstructions")},
    ),
    Number(
        "overview",
        "the first figure of the README, from the demo's checkpoint",
        1,
        (f"python -m detailclip_jax.visualize --checkpoint={{demo}} {OVERVIEW} --formats=png --out={{out}}",),
        overview,
        {"docs/overview.png": "overview.png"},
        after=("demo",),
    ),
    Number(
        "examples",
        "what the Python of docs/first_run.md prints, with the demo's checkpoint",
        1,
        (f"python -c {shlex.quote(EXAMPLES)}",),
        examples,
        after=("demo",),
    ),
    Number(
        "grounds",
        "what plain grounds in training change",
        15,
        (f"{MAIN} --config.data.stickers.scenes=textured --workdir={{out}}",),
        grounds,
        after=("demo",),
    ),
    Number(
        "evaluation",
        "the demo's checkpoint by the command `evaluate`",
        10,
        (
            "python -m detailclip_jax.evaluate --checkpoint={demo} --out={out} --weights=student "
            "'--tasks=zero_shot:stickers;knn:stickers;linear:stickers'",
        ),
        evaluation,
        after=("demo",),
    ),
    Number(
        "flop",
        "FLOP of a step per pair, counted",
        6,
        (
            *(
                f"{BENCHMARK} step --count-only {flags} --json={{out}}/{i}.json"
                for i, (*_, flags) in enumerate(FLOP_ROWS)
            ),
            f"{STEP_TIMES} --size=B/16 --batch=32 --count-only --json={{out}}/straightforward.json",
        ),
        flop,
    ),
    Number(
        "contrastive",
        "memory of the contrastive loss, planned by the compiler",
        1,
        (f"{COST} loss --term=clip --batch=65536 --width=512 --devices=8 --json={{out}}/clip.json",),
        contrastive,
    ),
    Number(
        "collectives",
        "what devices send in a step of the demo",
        2,
        (f"{COST} collectives --config=configs/stickers.py --batch=16 --devices=8 --json={{out}}/step.json",),
        collectives,
    ),
    Number(
        "scenes",
        "scenes of stickers that a core draws in a second",
        2,
        tuple(
            f"{BENCHMARK} data --config=configs/stickers.py --set data.stickers.scenes={kind} --examples=256 "
            f"--json={{out}}/{kind}.json"
            for kind in ("mixed", "textured")
        ),
        scenes,
    ),
    Number(
        "start",
        "from the demo's command to its first step",
        4,
        (f"{BENCHMARK} start --config=configs/stickers.py --rounds=3 --json={{out}}/start.json",),
        start,
    ),
    Number(
        "rates",
        "a step's share of the machine's product rate, and texts per second",
        6,
        (
            *(
                f"{COST} products --size=B/16 --batch=4 --dtype={dtype} --scan=true --remat=dots --set "
                f"masking.granularity=cell2x2 --rounds=5 --json={{out}}/{dtype}.json"
                for dtype in DTYPES
            ),
            f"{COST} texts --size=tiny --rounds=9 --json={{out}}/texts.json",
        ),
        rates,
    ),
    Number(
        "continue_memory",
        "memory of a step of the configs that continue a training, planned by the compiler",
        20,
        tuple(
            f"{BENCHMARK} step --config=configs/beyond/continue_{name}.py --batch=512 --compile-only{fields} "
            f"--json={{out}}/{name}.json"
            for name, fields in CONTINUE.items()
        ),
        continue_memory,
    ),
    Number(
        "segmentation_cost",
        "FLOP and memory of segmentation, counted and planned by the compiler",
        15,
        (
            f"{COST} segmentation --batch=2 --json={{out}}/upernet.json",
            f"{COST} segmentation --batch=2 --remat=dots --json={{out}}/dots.json",
            f"{COST} segmentation --batch=2 --config=configs/transfer/ade20k_linear.py --count-only "
            "--json={out}/linear.json",
        ),
        segmentation_cost,
    ),
    Number(
        "dense_rates",
        "how fast heads on stickers train and predict",
        5,
        (
            f"{COST} segmentation --config=configs/transfer/stickers_upernet.py --run --rounds=7 "
            "--json={out}/segmentation.json",
            f"{COST} detection --config=configs/transfer/stickers_detection.py --run --rounds=7 "
            "--json={out}/detection.json",
        ),
        dense_rates,
    ),
    Number(
        "detection_cost",
        "FLOP and memory of detection, counted and planned by the compiler",
        30,
        (
            f"{COST} detection --batch=1 --image-size=1024 --count-only --json={{out}}/counted.json",
            *(
                f"{COST} detection --batch={batch} --image-size=1024 --dtype=float32 --remat=full "
                f"--json={{out}}/{batch}.json"
                for batch in (1, 2)
            ),
        ),
        detection_cost,
    ),
    Number(
        "pages",
        "a step of the demo with large pages",
        3,
        tuple(
            f"env GLIBC_TUNABLES={value} {BENCHMARK} step --config=configs/stickers.py --batch=128 --rounds=7 "
            f"--json={{out}}/{name}.json"
            for name, value in PAGES.items()
        ),
        pages,
    ),
    Number(
        "comparison",
        "methods at one budget, from scratch",
        180,
        (f"{COMPARE} --methods={','.join(COMPARED)} --seeds=3 --budget=300 --workdir={{out}}/rows",),
        comparison,
    ),
    Number(
        "later",
        "the methods after DetailCLIP at one budget, from scratch",
        480,
        later_commands(LATER_SEEDS, 300),
        later,
    ),
    Number(
        "later_longer",
        "the methods after DetailCLIP at eight times that budget",
        960,
        later_commands(LATER_LONGER_SEEDS, 2400),
        later_longer,
    ),
    Number(
        "equal_flop",
        "CLIP, the recipe for detail, a frozen teacher and COSMOS at equal FLOP",
        180,
        tuple(equal_flop_commands()),
        equal_flop,
    ),
    Number(
        "terms",
        "the terms of other methods with CLIP, with the recipe for detail and with DetailCLIP, at equal FLOP",
        300,
        (
            f"{COMPARE} --methods={','.join(TERMS)} {TERMS_FLAGS} --seeds={TERMS_SEEDS} --workdir={{out}}/rows",
            *(by_words(path) for paths in term_runs().values() for path in paths),
        ),
        terms,
    ),
    Number(
        "one_gpu",
        "FLOP and memory of the recipes for small data",
        5,
        (
            f"python -c {shlex.quote(FRESH_TEACHER)} {{out}}/l14.safetensors",
            "python -m detailclip_jax.import_torch --from=dinov2 {out}/l14.safetensors --out={out}/teacher",
            *(
                f"{BENCHMARK} step --config={flags} --batch=256 --text-length=32 --dtype=bfloat16 --compile-only "
                f"--json={{out}}/{place}.json"
                for place, flags in enumerate(ONE_GPU.values())
            ),
        ),
        one_gpu,
    ),
    Number(
        "tuned",
        "locked and continued encoders on stickers",
        20,
        (
            "python -m detailclip_jax.export --checkpoint={equal_flop}/teacher --to=timm "
            "--out={out}/encoder.safetensors",
            "python -m detailclip_jax.import_torch --from=timm {out}/encoder.safetensors --out={out}/encoder",
            f"{MAIN}:method=clip,size=small --config.init={{out}}/encoder {LOCKED} --config.total_steps=300 "
            "--workdir={out}/lit",
            f"{COMPARE} --init={{equal_flop}}/clip/clip/seed-0 --methods=clip,superclip --seeds=1 --budget=300 "
            f"{GENTLY} --workdir={{out}}/continued",
            f"{COMPARE} --methods=clip --seeds=1 --budget=300 --workdir={{out}}/noise",
            *(by_words(path) for path in TUNED),
        ),
        tuned,
        after=("equal_flop",),
    ),
    Number(
        "longer",
        "CLIP and DetailCLIP at eight times that budget",
        90,
        (f"{COMPARE} --methods=clip,detailclip --seeds=1 --budget=2400 --workdir={{out}}/rows",),
        longer,
    ),
    Number(
        "probe",
        "probes from the floor to the ceiling",
        45,
        (
            *(
                f"{MAIN}:method={method} --config.total_steps=300 --workdir={{out}}/{method}"
                for method in ("clip", "detailclip")
            ),
            *(f"{TRANSFER}/{flags} --workdir={{out}}/{place}" for place, flags in enumerate(SUPERVISED.values())),
            f"python -c {shlex.quote(STUDY)}",
        ),
        probe,
        after=("demo",),
    ),
    Number(
        "segmentation",
        "heads on stickers, with the demo's encoder and with an untrained one",
        25,
        tuple(f"{TRANSFER}/{flags} --workdir={{out}}/{place}" for place, (*_, flags) in enumerate(segmenters())),
        segmentation,
        after=("demo",),
    ),
    Number(
        "background",
        "a segmentation of stickers that is background everywhere",
        1,
        (f"python -c {shlex.quote(BACKGROUND)}",),
        background,
    ),
    Number(
        "long_upernet",
        "UPerNet on ten times the scenes of the study of probes",
        100,
        (
            f"{TRANSFER}/stickers_upernet.py:labels=groups --workdir={{out}}/run",
            f"python -c {shlex.quote(LONG_UPERNET)}",
        ),
        long_upernet,
        after=("demo",),
    ),
    Number(
        "detection",
        "detectors on stickers, with the demo's encoder and with an untrained one",
        30,
        tuple(
            f"{TRANSFER}/stickers_detection.py{flags} --workdir={{out}}/{place}"
            for place, (*_, flags) in enumerate(detectors())
        ),
        detection,
        after=("demo",),
    ),
    Number(
        "readouts",
        "the dense read-outs with the demo's student",
        3,
        (
            "python -m detailclip_jax.evaluate --checkpoint={demo} --weights=student --tasks=dense:stickers:all "
            "--num-examples=100 --out={out}",
        ),
        readouts,
        after=("demo",),
    ),
    Number(
        "continued",
        "methods at one budget, from one CLIP",
        110,
        (
            f"{MAIN}:method=clip --config.seed=100 --workdir={{out}}/clip",
            f"{COMPARE} --init={{out}}/clip --methods={','.join(COMPARED)} --seeds=1 --budget=300 {GENTLY} "
            f"--workdir={{out}}/rows",
        ),
        continued,
    ),
    Number(
        "factors",
        "DetailCLIP by one factor at a time",
        200,
        (
            f"{COMPARE} --methods={','.join(FACTORS)} --budget=300 {TEXTURED} --workdir={{out}}/scratch",
            f"{COMPARE} --methods={','.join(LONG_ROWS)} --budget=600 {TEXTURED} --workdir={{out}}/long",
            f"{MAIN}:method=clip --config.seed=100 --config.data.stickers.scenes=textured --workdir={{out}}/clip",
            f"{COMPARE} --init={{out}}/clip --methods={','.join(CONTINUED_FACTORS)} "
            f"--budget=200 {GENTLY} {TEXTURED} --workdir={{out}}/continued",
        ),
        factors,
    ),
    Number(
        "stages",
        "the data pipeline by stage",
        5,
        (
            f"{BENCHMARK} data --rounds=9 --workers=2 --json={{out}}/data.json",
            f"{COST} views --rounds=9 --json={{out}}/views.json",
        ),
        stages,
    ),
    Number(
        "originals",
        "decoding large originals",
        10,
        tuple(
            f"{BENCHMARK} data --rounds=7 --size={size} --set data.reducing_gap={gap} --json={{out}}/{size}-{gap}.json"
            for size in SIZES
            for gap in GAPS
        ),
        originals,
    ),
    Number(
        "straightforward",
        "a step compared with the straightforward one",
        30,
        tuple(f"{STEP_TIMES} {flags} --json={{out}}/{i}.json" for i, (_, flags) in enumerate(STEP_ROWS)),
        straightforward,
    ),
    Number(
        "memory",
        "memory of a step, planned by the compiler",
        10,
        tuple(
            f"{BENCHMARK} step --batch={batch} --compile-only --remat={remat} --set masking.granularity=cell2x2 "
            f"--json={{out}}/{remat}-{batch}.json"
            for remat, batch in MEMORY_ROWS
        ),
        memory,
    ),
)

if __name__ == "__main__":
    main()
