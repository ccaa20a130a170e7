"""Measures numbers: runs their commands, keeps what was measured in docs/numbers.json, writes it into the documents."""

import argparse
import datetime
import functools
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
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
DATA = ROOT / "docs/numbers.json"
RUNS = ROOT / "runs/numbers"
PAGES = "evaluation experiments first_run performance segmentation small_data"
DOCUMENTS = ("README.md", *(f"docs/{name}.md" for name in PAGES.split()), "tools/measured.md")
WIDTH = 120  # of the documents' lines
MARKS = re.compile(r"<!-- numbers (?P<name>\S+) -->\n(?P<text>.*?)<!-- end -->", re.DOTALL)
VERSIONS = ("jax", "flax", "numpy", "Pillow", "opencv-python-headless")

Made = dict[str, list[str]]  # name of a mark -> the lines between
Text = str | list[str]  # a text is wrapped, lines are kept
Texts = Mapping[str, Text]  # name of a mark after that of the number -> what is between
Found = Mapping[str, list[Any]]  # name of a command -> its records


class Number(NamedTuple):
    """What is measured together, see `number`."""

    name: str
    minutes: int
    commands: Sequence[str]
    write: Callable[[Path], Texts | Text]
    files: Mapping[str, str]
    after: Sequence[str]


NUMBERS: dict[str, Number] = {}


def number(minutes: int, *commands: str, files: Mapping[str, str] = MappingProxyType({}), after: Sequence[str] = ()):
    """Decorates the function that writes the texts of a number from its folder; its name is that of the number.

    A function that returns lines writes the mark NAME.table, one that returns a text NAME.sentence.

    commands: what is run, in this order; `{out}` is the number's folder, `{NAME}` that of another number, `{place}` the
        command's place in this order.
    files: files of the repository, and where they are in the folder.
    after: numbers whose folders are read.
    """

    def declared(write: Callable[[Path], Texts | Text]) -> Callable[[Path], Texts | Text]:
        NUMBERS[write.__name__] = Number(write.__name__, minutes, commands, write, files, after)
        return write

    return declared


def benchmarks(minutes: int, commands: Mapping[str, str], before: Sequence[str] = ()):
    """Decorates the function that writes the texts of a number from the records of its commands, by their names.

    before: commands without records.
    """
    with_files = [f"{command} --json={{out}}/{place}.json" for place, command in enumerate(commands.values())]

    def declared(write: Callable[[Found], Texts | Text]) -> Callable[[Path], Texts | Text]:
        @number(minutes, *before, *with_files)
        @functools.wraps(write)
        def from_folder(folder: Path) -> Texts | Text:
            files = (folder / f"{place}.json" for place in range(len(commands)))
            return write({name: json.loads(file.read_text()) for name, file in zip(commands, files)})

        return from_folder

    return declared


def main() -> None:
    """Lists the numbers, or measures the named ones, cheapest first."""
    parser = argparse.ArgumentParser(
        "python tools/page_numbers.py", description="Measures the numbers of README and docs."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to measure (default: list all)")
    names = parser.parse_args().names
    if unknown := {*names} - NUMBERS.keys():
        parser.error(f"unknown numbers: {', '.join(sorted(unknown))}")
    numbers = sorted(NUMBERS.values(), key=lambda number: number.minutes)
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
        made, what = data.get(number.name, {}), (number.write.__doc__ or "").splitlines()[0]
        rows.append([number.name, str(number.minutes), made.get("date", ""), made.get("commit", ""), what])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def make(number: Number) -> None:
    """Runs the commands; then puts the texts into the data file and the documents."""
    if changed := git("status", "--porcelain", "--", "detailclip_jax", "configs", "tools", "tests"):
        sys.exit(f"commit first, the number would be of no commit:\n{changed}")
    for name in number.after:
        run(NUMBERS[name])
    folder = run(number)
    texts = texts_of(number, folder)
    for name, source in number.files.items():
        shutil.copyfile(folder / source, ROOT / name)
    keep(number, texts)
    for document in DOCUMENTS:
        write_document(ROOT / document, texts)


def git(*arguments: str) -> str:
    """What git prints in the repository."""
    return subprocess.check_output(["git", *arguments], cwd=ROOT, text=True).strip()


def run(number: Number) -> Path:
    """Runs the commands in the repository's root, each once, and returns the folder of the results."""
    commit = RUNS / git("rev-parse", "--short", "HEAD")
    folder, folders = commit / number.name, {name: str(commit / name) for name in NUMBERS}
    folder.mkdir(parents=True, exist_ok=True)
    for place, command in enumerate(number.commands):
        done, words = folder / f"done-{place}", shlex.split(command.format(out=folder, place=place, **folders))
        if done.exists():
            continue
        print(f"{number.name}: {shlex.join(words)}", flush=True)
        words = [sys.executable, *words[1:]] if words[0] == "python" else words
        subprocess.run(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
        done.touch()
    return folder


def texts_of(number: Number, folder: Path) -> Made:
    """The lines of each mark of the number, from its folder."""
    made = number.write(folder)
    if not isinstance(made, Mapping):
        made = {"sentence" if isinstance(made, str) else "table": made}
    return {
        f"{number.name}.{name}": textwrap.wrap(text, WIDTH) if isinstance(text, str) else text
        for name, text in made.items()
    }


def keep(number: Number, texts: Made) -> None:
    """Puts what was measured into the data file, with what it was measured on."""
    hashes = {name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in number.files}
    made = {
        "date": datetime.date.today().isoformat(),
        "commit": git("rev-parse", "--short", "HEAD"),
        "machine": f"{os.cpu_count()} x {processor()}, {platform.system()}",
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in VERSIONS}},
        "files": hashes,
        "blocks": texts,
    }
    DATA.write_text(json.dumps({**read_data(), number.name: made}, indent=1, ensure_ascii=False) + "\n")


def processor() -> str:
    """Its name, as well as the system knows it."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return named[1] if named else platform.processor() or platform.machine()


def write_document(file: Path, texts: Made) -> None:
    """Puts the texts between their marks."""

    def replaced(match: re.Match[str]) -> str:
        lines = texts.get(match["name"])
        return match[0] if lines is None else "\n".join([f"<!-- numbers {match['name']} -->", *lines, "<!-- end -->"])

    file.write_text(MARKS.sub(replaced, file.read_text()))
