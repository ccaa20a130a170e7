"""Makes the measured numbers of the README and of docs/ again, and says which are older than the code they measure.

    python docs/numbers.py --list              # every number: minutes, date, commit, up to date or old
    make numbers                               # makes the old ones that take at most an hour each, cheapest first
    make numbers ONLY=demo,evaluation          # these, whatever their age and cost
    make numbers ALL=1                         # all old ones, also those that take hours
    python docs/numbers.py --take=comparison   # the text between the marks was measured by hand at this commit

`NUMBERS` says how each one is made; docs/numbers.json holds what was measured, with date, commit, machine and versions.
In README.md and docs/*.md a measured text stands between `<!-- numbers NAME -->` and `<!-- end -->`, exactly as the
data file has it (a test).  A number is old when a file that it measures (`paths`) differs from the one it was made
with.  What was made is kept after each number, and the commands go on where they were stopped, in
runs/numbers/NAME-DIGEST.
"""

import argparse
import datetime
import glob
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
DATA = ROOT / "docs/numbers.json"
RUNS = ROOT / "runs/numbers"
DOCUMENTS = ("README.md", "docs/data.md", "docs/evaluation.md", "docs/experiments.md", "docs/performance.md")
WIDTH = 120  # of the documents' lines
LONG = 60  # minutes; longer ones are made only when named or with --all
MARKS = re.compile(r"<!-- numbers (?P<name>\S+) -->\n(?P<text>.*?)\n<!-- end -->", re.DOTALL)
VERSIONS = ("jax", "flax", "numpy", "Pillow", "opencv-python-headless")

Made = dict[str, list[str]]  # name of a mark -> the lines between


class Number(NamedTuple):
    """What is measured together.

    paths: globs of the files whose change makes it old.
    commands: what is run, in this order; `{out}` is its own folder, `{NAME}` that of another number.
    blocks: the texts, from the folder; None where they are copied by hand from what the commands leave there.
    files: files of the repository, and where they lie in the folder.
    after: numbers whose folders the commands read.
    """

    name: str
    what: str
    minutes: int
    paths: tuple[str, ...]
    commands: tuple[str, ...]
    blocks: Callable[[Path], Made] | None = None
    files: Mapping[str, str] = {}
    after: tuple[str, ...] = ()


def main(arguments: Sequence[str] | None = None) -> int:
    """Lists, takes or makes numbers; the exit status."""
    asked = parser().parse_args(arguments)
    try:
        known = [number for number in NUMBERS if chosen(number, asked)]
        if asked.list:
            print(listed(known))
            return 0
        if asked.take:
            return take(asked.take)
        return make_all(known, asked)
    except NumbersError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


class NumbersError(Exception):
    """What cannot be made or read, and the way out."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser("python docs/numbers.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument("--list", action="store_true", help="list the numbers and their age, make none")
    made.add_argument("--only", type=lambda text: text.split(","), metavar="NAME,...", help="these, whatever their age")
    made.add_argument("--all", action="store_true", help=f"also old ones that take more than {LONG} minutes")
    made.add_argument("--take", metavar="NAME", help="keep the text between the marks as measured at this commit")
    return made


def chosen(number: Number, asked: argparse.Namespace) -> bool:
    """Whether --only names it; NumbersError for a name that there is not."""
    names = [number.name for number in NUMBERS]
    for name in [*(asked.only or []), *([asked.take] if asked.take else [])]:
        if name not in names:
            raise NumbersError(f"unknown number {name!r}; known: {', '.join(names)}")
    return not asked.only or number.name in asked.only


# --- what there is


def read_data() -> dict[str, Any]:
    """The data file: name -> what was measured."""
    return json.loads(DATA.read_text())


def write_data(data: Mapping[str, Any]) -> None:
    """Replaces the data file in one piece."""
    partial = DATA.with_suffix(".partial")
    partial.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    partial.replace(DATA)


def digest(number: Number) -> str:
    """Twelve hexadecimal digits of the files that the number measures."""
    names = sorted({name for path in number.paths for name in glob.glob(path, root_dir=ROOT, recursive=True)})
    if not names:
        raise NumbersError(f"{number.name}: no file is called {', '.join(number.paths)}")
    return digest_of((name, (ROOT / name).read_bytes()) for name in names)


def digest_of(files: Iterable[tuple[str, bytes]]) -> str:
    """Of names and contents, in their order."""
    whole = hashlib.sha256()
    for name, content in files:
        whole.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return whole.hexdigest()[:12]


def is_old(number: Number, data: Mapping[str, Any]) -> bool:
    """Whether it was never made, or made with other files."""
    return data.get(number.name, {}).get("digest") != digest(number)


def listed(numbers: Sequence[Number]) -> str:
    """A line per number, the cheapest first."""
    data = read_data()
    rows = [["number", "minutes", "made", "commit", "state", "what"]]
    for number in by_cost(numbers):
        made = data.get(number.name, {})
        state = state_of(number, data)
        rows.append(
            [number.name, str(number.minutes), made.get("date", ""), made.get("commit", ""), state, number.what]
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def state_of(number: Number, data: Mapping[str, Any]) -> str:
    """In words."""
    if number.name not in data:
        return "never made"
    hand = "" if number.blocks else ", copied by hand"
    return ("older than its code" if is_old(number, data) else "up to date") + hand


def by_cost(numbers: Iterable[Number]) -> list[Number]:
    """The cheapest first."""
    return sorted(numbers, key=lambda number: number.minutes)


# --- making


def make_all(numbers: Sequence[Number], asked: argparse.Namespace) -> int:
    """Makes the old (or the named) numbers, lists the old ones that it did not make, and returns 1 after a failure."""
    data, failed = read_data(), []
    old = [number for number in by_cost(numbers) if asked.only or is_old(number, data)]
    wanted = [number for number in old if asked.only or asked.all or (number.minutes <= LONG and number.blocks)]
    for number in wanted:
        try:
            make(number)
        except (NumbersError, OSError, KeyError, ValueError) as error:
            print(f"{number.name}: not made: {error}", file=sys.stderr)
            failed.append(number.name)
    for number in (number for number in old if number not in wanted):
        print(f"{number.name} is older than its code: about {number.minutes} minutes, make numbers ONLY={number.name}")
    if not old:
        print("every number is as new as the code that it measures")
    return 1 if failed else 0


def make(number: Number) -> None:
    """Runs the commands; then puts the texts into the data file and the documents, or says where the results are."""
    clean(number)
    for before in (each for each in NUMBERS if each.name in number.after):
        run(before)
    folder = run(number)
    if number.blocks is None:
        print(f"{number.name}: results in {folder}; copy them between the marks, then --take={number.name}")
        return
    blocks = number.blocks(folder)
    for name, source in number.files.items():
        shutil.copyfile(folder / source, ROOT / name)
    keep(number, blocks)
    for document in DOCUMENTS:
        write_document(ROOT / document, blocks)


def clean(number: Number) -> None:
    """NumbersError where a measured file has changes that no commit holds: the commit would not say what ran."""
    text = git("status", "--porcelain", "--", *(f":(glob){path}" for path in number.paths))
    if text:
        raise NumbersError(f"commit first, the number would be of no commit:\n{text}")


def git(*arguments: str) -> str:
    """What git prints in the repository."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip("\n")
    except (OSError, subprocess.CalledProcessError) as error:
        raise NumbersError(f"{shlex.join(command)} failed: {getattr(error, 'stderr', '') or error}") from error


def folder_of(number: Number) -> Path:
    """Where its results lie; other code has another folder, so nothing of an older run is taken for new."""
    return RUNS / f"{number.name}-{digest(number)}"


def run(number: Number) -> Path:
    """Runs the commands in the repository's root, each once, and returns the folder of the results."""
    folder, folders = folder_of(number), {each.name: str(folder_of(each)) for each in NUMBERS}
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for place, command in enumerate(number.commands):
        done, words = folder / f"done-{place}", shlex.split(command.format(out=folder, **folders))
        if done.exists():
            continue
        print(f"{number.name}: {shlex.join(words)}", flush=True)
        words = [sys.executable, *words[1:]] if words[0] == "python" else words
        code = subprocess.run(words, cwd=ROOT, env=environment).returncode
        if code:
            raise NumbersError(f"exit status {code} of {shlex.join(words)}; the same command goes on")
        done.touch()
    return folder


def keep(number: Number, blocks: Made) -> None:
    """Puts what was measured into the data file, with what it was measured on."""
    hashes = {name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in number.files}
    made = {
        "date": datetime.date.today().isoformat(),
        "commit": git("rev-parse", "--short", "HEAD"),
        "digest": digest(number),
        "machine": f"{os.cpu_count()} x {processor()}, {platform.system()}",
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in VERSIONS}},
        "files": hashes,
        "blocks": blocks,
    }
    write_data({**read_data(), number.name: made})


def processor() -> str:
    """Its name, as well as the system knows it."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return named[1] if named else platform.processor() or platform.machine()


def take(name: str) -> int:
    """Keeps the texts between the marks of a number that is copied by hand."""
    number = next(number for number in NUMBERS if number.name == name)
    if number.blocks is not None:
        raise NumbersError(f"{name} is no number that is copied by hand: make numbers ONLY={name}")
    clean(number)
    keep(number, {mark: text for mark, text in marked().items() if owner(mark) == name})
    return 0


# --- the documents


def owner(mark: str) -> str:
    """The number of a mark: "demo" of "demo.table"."""
    return mark.partition(".")[0]


def marked() -> Made:
    """Every mark of the documents, and the lines between."""
    found = [match for name in DOCUMENTS for match in MARKS.finditer((ROOT / name).read_text())]
    return {match["name"]: match["text"].split("\n") for match in found}


def write_document(file: Path, blocks: Made) -> None:
    """Puts the texts between their marks."""

    def replaced(match: re.Match[str]) -> str:
        lines = blocks.get(match["name"])
        return match[0] if lines is None else "\n".join([f"<!-- numbers {match['name']} -->", *lines, "<!-- end -->"])

    file.write_text(MARKS.sub(replaced, file.read_text()))


# --- the numbers

COMPUTED = tuple(f"detailclip_jax/{room}/*.py" for room in ("kernels", "losses", "methods", "models"))
LEARNING = (
    "configs/stickers.py",
    "detailclip_jax/config/fields.py",
    "detailclip_jax/data/stickers/*.py",
    *COMPUTED,
    *(
        f"detailclip_jax/data/{name}.py"
        for name in ("caption_rules", "images", "pipeline", "resizing", "tokenizer", "views")
    ),
    *(
        f"detailclip_jax/training/{name}.py"
        for name in ("centering", "ema", "experiment", "optimizer", "schedules", "train_state", "train_step")
    ),
)
JUDGING = tuple(
    f"detailclip_jax/evaluation/{name}.py"
    for name in (
        *("classification", "kept_objects", "metrics", "retrieval", "segmentation", "stickers", "zero_shot"),
        *("knn", "linear", "sets"),
    )
)
COUNTING = (
    *COMPUTED,
    *(f"detailclip_jax/benchmarks/{name}.py" for name in ("counting", "step", "theory", "variants")),
    *(f"detailclip_jax/training/{name}.py" for name in ("optimizer", "train_step")),
)
DECODING = (
    *(f"detailclip_jax/data/{name}.py" for name in ("decoding", "images", "resizing", "views")),
    *(f"detailclip_jax/benchmarks/{name}.py" for name in ("data", "synthetic_images", "stages")),
)
BENCHMARK = "python -m detailclip_jax.benchmark"
MAIN = "python -m detailclip_jax.main --config=configs/stickers.py"
COMPARE = "python -m detailclip_jax.compare"
GENTLY = "--set optimizer.loaded_rate=0.3 --set optimizer.layer_decay=0.75"
TEXTURED = "--set data.stickers.scenes=textured"  # what the comparisons were measured on
PAPER = "detailclip+losses.weights.cls=1.0+losses.weights.patch=1.0"
FACTORS = (  # each one, beside the paper's weights or instead of them
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
    """The table of the report."""
    return {"demo.table": [line for line in (folder / "report.md").read_text().splitlines() if line.startswith("|")]}


def evaluation(folder: Path) -> Made:
    """One sentence, of the student."""
    lines = (json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines())
    found = {(one["task"], one["dataset"], one["metric"]): one for one in lines if one["weights"] == "student"}

    def percent(task: str, dataset: str, metric: str = "top1") -> str:
        return f"{100 * found[task, dataset, metric]['value']:.1f}"

    seen, other = percent("zero_shot", "stickers"), percent("zero_shot", "stickers_style")
    nearest, linear = percent("knn", "stickers", "k10_top1"), percent("linear", "stickers")
    sentence = (
        f"Zero-shot {seen} on unseen scenes and {other} on those drawings, k-NN (k = 10) {nearest}, linear probe "
        f"{linear}, chance 1.04 each."
    )
    return {"evaluation.sentence": textwrap.wrap(sentence, WIDTH)}


def flop(folder: Path) -> Made:
    """The table of the performance page."""
    lines = ["| method, size | masking | batch | tokens of text | counted | on paper |", "|---|---|---|---|---|---|"]
    for place, (name, masking, flags) in enumerate(FLOP_ROWS):
        (record,) = json.loads((folder / f"{place}.json").read_text())
        batch = re.search(r"--batch=(\d+)", flags)
        text = re.search(r"--text-length=(\d+)", flags)
        counted, paper = (f"{record[key] / 1e9:.1f} G" for key in ("flops_per_pair", "flops_per_pair_on_paper"))
        cells = [name, masking, batch[1] if batch else "", text[1] if text else "77", counted, paper]
        lines.append(f"| {' | '.join(cells)} |")
    return {"flop.table": lines}


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
        (*LEARNING, *JUDGING),
        (f"{MAIN} --workdir={{out}}",),
        demo,
        {f"docs/{name}.png": f"figures/{name}.png" for name in ("attention", "reconstructions")},
    ),
    Number(
        "evaluation",
        "the demo's checkpoint by the command `evaluate`",
        10,
        (*LEARNING, *JUDGING),
        (
            "python -m detailclip_jax.evaluate --checkpoint={demo} --out={out} --weights=student "
            "'--tasks=zero_shot:stickers,stickers_style;knn:stickers;linear:stickers'",
        ),
        evaluation,
        after=("demo",),
    ),
    Number(
        "flop",
        "FLOP of a step per pair, counted",
        6,
        COUNTING,
        tuple(
            f"{BENCHMARK} step --count-only {flags} --json={{out}}/{i}.json" for i, (*_, flags) in enumerate(FLOP_ROWS)
        ),
        flop,
    ),
    Number(
        "scenes",
        "scenes of stickers that a core draws in a second",
        2,
        ("detailclip_jax/data/stickers/*.py",),
        tuple(
            f"{BENCHMARK} data --config=configs/stickers.py --set data.stickers.scenes={kind} --examples=256 "
            f"--json={{out}}/{kind}.json"
            for kind in ("mixed", "textured")
        ),
        scenes,
    ),
    Number(
        "comparison",
        "rows side by side, from scratch",
        180,
        (*LEARNING, *JUDGING),
        (
            f"{COMPARE} --methods=clip,clip_two_views,maskclip,aclip,{PAPER} --seeds=3 "
            f"--budget=300 {TEXTURED} --workdir={{out}}/rows",
            f"{MAIN}:method=supervised --config.total_steps=300 --config.data.stickers.scenes=textured "
            "--workdir={out}/supervised",
        ),
    ),
    Number(
        "continued",
        "rows side by side, from one CLIP",
        110,
        (*LEARNING, *JUDGING, "detailclip_jax/run/init_from.py"),
        (
            f"{MAIN}:method=clip --config.seed=100 --config.data.stickers.scenes=textured --workdir={{out}}/clip",
            f"{COMPARE} --init={{out}}/clip --methods=clip,maskclip,aclip,{PAPER} --seeds=3 "
            f"--budget=200 {GENTLY} {TEXTURED} --workdir={{out}}/rows",
        ),
    ),
    Number(
        "factors",
        "DetailCLIP by one factor at a time",
        200,
        (*LEARNING, *JUDGING, "detailclip_jax/run/init_from.py"),
        (
            f"{COMPARE} --methods={','.join(FACTORS)} --budget=300 {TEXTURED} --workdir={{out}}/scratch",
            f"{COMPARE} --methods=clip,detailclip,detailclip+masking.ratio=0.25 --budget=600 "
            f"{TEXTURED} --workdir={{out}}/long",
            f"{MAIN}:method=clip --config.seed=100 --config.data.stickers.scenes=textured --workdir={{out}}/clip",
            f"{COMPARE} --init={{out}}/clip --methods={','.join(CONTINUED_FACTORS)} "
            f"--budget=200 {GENTLY} {TEXTURED} --workdir={{out}}/continued",
        ),
    ),
    Number(
        "golden",
        "one step beside the authors' code",
        2,
        (*COUNTING, "tests/test_golden.py", "tests/golden/*.npz"),
        ("python -m pytest tests/test_golden.py -s",),
    ),
    Number(
        "stages",
        "the data pipeline by stage",
        5,
        DECODING,
        (f"{BENCHMARK} data --rounds=9 --against=torchvision --workers=2",),
    ),
    Number(
        "originals",
        "decoding large originals",
        10,
        DECODING,
        tuple(
            f"{BENCHMARK} data --rounds=7 --size={size} --set data.reducing_gap={gap}"
            for size in ("1024x768", "2000x1500", "4000x3000")
            for gap in ("0", "2")
        ),
    ),
    Number(
        "straightforward",
        "a step beside the straightforward one",
        30,
        (*COUNTING, "tests/straightforward.py", "tests/time_straightforward.py"),
        ("python tests/time_straightforward.py --size=B/16 --rounds=8",),
    ),
    Number(
        "memory",
        "memory of a step, planned by the compiler",
        10,
        COUNTING,
        tuple(
            f"{BENCHMARK} step --batch=32 --compile-only --remat={remat} --set masking.granularity=cell2x2"
            for remat in ("dots", "full")
        ),
    ),
)

if __name__ == "__main__":
    sys.exit(main())
