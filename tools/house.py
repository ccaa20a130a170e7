"""Measures the structure of the package: what a reader has to hold in mind, as numbers.

    python tools/house.py                                    # tables of rooms, repeated names, imports of commands
    python tools/house.py --calls evaluate --checkpoint=runs/stickers     # files that a command enters, in its rooms

Lines are lines as they are formatted, with docstrings and blank ones.
"""

import argparse
import ast
import collections
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "detailclip_jax"
CORE = ("data", "kernels", "losses", "models", "methods", "training", "inference", "evaluation")
CORE += ("dense",)
LOADED = """
import importlib, sys, time
before = time.process_time()
importlib.import_module(f"detailclip_jax.{sys.argv[1]}")
own = sum(name.startswith("detailclip_jax") for name in sys.modules)
print(f"{time.process_time() - before:.2f} {own} {len(sys.modules)} {'jax' in sys.modules}")
"""


def modules() -> dict[str, Path]:
    """Returns every module of the package: dotted name -> file."""
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(path: Path) -> str:
    """Returns the folder of a file below the package; the name of the file for one at the top."""
    return path.relative_to(PACKAGE).parts[0]


def rooms() -> str:
    """Returns a table of modules and lines of each room, and the sums of core and shell."""
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for path in modules().values():
        name, num_lines = room(path), len(path.read_text().splitlines())
        kind = "core" if name in CORE else "shell"
        for key in (name if (PACKAGE / name).is_dir() else "commands and other files", f"= {kind}", "= all"):
            counts[key][0] += 1
            counts[key][1] += num_lines
    return table(["room", "modules", "lines"], ([name, *count] for name, count in sorted(counts.items())))


def imported(path: Path) -> set[str]:
    """Returns the dotted names that a file imports, wherever the statement is."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def names() -> str:
    """Returns how many modules have exactly one importer, and the file names that occur more than once."""
    found = modules()
    importers = collections.Counter(name for path in found.values() for name in imported(path) if name in found)
    places = collections.defaultdict(list)
    for path in found.values():
        if path.stem not in ("__init__", "__main__"):
            places[path.stem].append(room(path))
    repeated = {name: where for name, where in sorted(places.items()) if len(where) > 1}
    single = sum(importers[name] == 1 for name in found)
    lines = [f"{single} modules have exactly one importer; {len(repeated)} file names occur more than once:"]
    return "\n".join([*lines, *(f"  {name}: {', '.join(where)}" for name, where in repeated.items())])


def commands() -> list[str]:
    """Returns the modules at the top of the package that have a `main`."""
    return [path.stem for path in sorted(PACKAGE.glob("*.py")) if "def main(" in path.read_text()]


def imports() -> str:
    """Returns what the import of each command costs: CPU seconds, modules of the package, all modules, jax or not."""
    rows = []
    for name in commands():
        run = subprocess.run([sys.executable, "-c", LOADED, name], cwd=ROOT, capture_output=True, text=True, check=True)
        rows.append([name, *run.stdout.split()])
    return table(["import of", "CPU seconds", "own modules", "all modules", "jax"], rows)


def calls(command: Sequence[str]) -> str:
    """Runs a command in this process; returns how many files it enters, and how often the room changes at a call."""
    files: set[str] = set()
    before_loss: list[int] = []
    pairs: set[tuple[str, str]] = set()
    prefix = f"{PACKAGE}{os.sep}"

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not (name := frame.f_code.co_filename).startswith(prefix):
            return
        if frame.f_code.co_name == "<module>":
            return
        if room(Path(name)) == "losses" and not before_loss:
            before_loss.append(len(files))
        files.add(name)
        caller = frame.f_back
        while caller and not caller.f_code.co_filename.startswith(prefix):
            caller = caller.f_back
        if caller and room(Path(caller.f_code.co_filename)) != room(Path(name)):
            pairs.add((caller.f_code.co_filename, name))

    module, *flags = command
    sys.argv = [f"python -m detailclip_jax.{module}", *flags]
    sys.path.insert(0, str(ROOT))
    threading.setprofile(look)
    sys.setprofile(look)
    try:
        runpy.run_module(f"detailclip_jax.{module}", run_name="__main__")
    except SystemExit:
        pass
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # pyright: ignore[reportArgumentType]
    counts = collections.Counter(room(Path(name)) for name in files)
    by_room = ", ".join(f"{name} {count}" for name, count in counts.most_common())
    first = f" ({before_loss[0]} until the first loss)" if before_loss else ""
    return f"{module}: {len(files)} files{first}, {len(pairs)} pairs of files whose calls change the room; {by_room}"


def table(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """Returns aligned columns."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)


def main() -> None:
    """Prints the measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", nargs=argparse.REMAINDER, metavar="COMMAND FLAG", help="run a command and follow it")
    arguments = parser.parse_args()
    if arguments.calls:
        print(calls(arguments.calls))
        return
    print("\n\n".join([rooms(), names(), imports()]))


if __name__ == "__main__":
    main()
