"""Measures the structure of the package: what a reader has to hold in mind, as numbers.

python tools/house.py                                  # the package beside tools/
python tools/house.py FOLDER --list                    # a package elsewhere; with the lines that were counted
python tools/house.py --run                            # and what runs in one step: a minute or two
python tools/house.py --follow train_step main --config=tests/configs/smallest.py --workdir=/tmp/run    # one command
"""

import argparse
import ast
import builtins
import collections
import contextlib
import functools
import inspect
import io
import os
import re
import runpy
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

PACKAGE = Path(__file__).parents[1] / "detailclip_jax"
WORDS = "given", "found", "own", "told", "asked"
# Of the standard library, documented as public although they begin with an underscore.
PUBLIC = {"_exit", "_replace", "_asdict", "_fields", "_field_defaults", "_make", "_getframe"}
INTERNAL = "uvicorn.protocols", "orbax.checkpoint.path.atomicity"  # modules that their documentation does not list
NAMING = "methods", "losses", "config"  # rooms that may name methods and loss terms
TABLES = "METHODS", "WEIGHTS"  # dictionaries whose keys are the names of methods and of loss terms
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
DOCUMENTED = ast.Module | ast.ClassDef | FUNCTIONS
STORED = PACKAGE.parent / "tests/stored/f96aa7d8.tar.xz"  # its `run` is evaluated
SHORT = "--config.total_steps=1 --config.data.num_workers=0 --workdir={0}/{1}"
# Each step: the function that it is, as [FILE:]NAME, and the command that calls it.
# {0} is a folder with STORED, {1} the step.
STEPS = {
    "pretraining": ("train_step", f"main --config=tests/configs/smallest.py {SHORT}"),
    "evaluation": ("zero_shot:run", "evaluate --checkpoint={0}/run --tasks=zero_shot:stickers --num-examples=8"),
    "segmentation": ("train_step", f"transfer --config=configs/transfer/stickers_upernet.py {SHORT}"),
    "detection": ("train_step", f"transfer --config=configs/transfer/stickers_detection.py {SHORT}"),
}
REPORT = "=== frames and files: "  # before the counts of `Follower`, after what the command prints
LOADED = """
import importlib, sys, time
before = time.process_time()
importlib.import_module(f"{sys.argv[1]}.{sys.argv[2]}")
inner = sum(name.startswith(sys.argv[1]) for name in sys.modules)
print(f"{time.process_time() - before:.2f} {inner} {len(sys.modules)} {'jax' in sys.modules}")
"""


class Module(NamedTuple):
    """A file of the package, parsed."""

    path: Path
    name: str  # relative to the package
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The folder below the package; of a file at the top, "commands and other files"."""
        room, slash, _ = self.name.partition("/")
        return room if slash else "commands and other files"

    def at(self, node: ast.AST) -> str:
        """Where a node is, as FILE:LINE."""
        return f"{self.name}:{getattr(node, 'lineno', 1)}"


def modules(package: Path) -> list[Module]:
    """Reads and parses every file of the package."""
    texts = {path: path.read_text() for path in sorted(package.rglob("*.py"))}
    return [Module(path, path.relative_to(package).as_posix(), text, ast.parse(text)) for path, text in texts.items()]


def docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yields the docstrings of a module, its classes and functions."""
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            yield node.body[0].value  # pyright: ignore[reportAttributeAccessIssue]


def comments(text: str) -> list[tokenize.TokenInfo]:
    """Returns the comments of a file."""
    return [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT]


# Functions


def body_length(function: FUNCTIONS, lines: Sequence[str]) -> int:
    """Lines of a function's body without its docstring, blank lines and those of comments alone."""
    first = function.body[0]
    documented = ast.get_docstring(function, clean=False) is not None
    start = (first.end_lineno if documented else first.lineno - 1) or 0
    body = (line.strip() for line in lines[start : function.end_lineno])
    return sum(bool(line) and not line.startswith("#") for line in body)


def functions(parsed: Sequence[Module]) -> tuple[dict[str, Any], list[str]]:
    """Returns the measures of functions, and the single-use functions of one or two lines, as FILE:LINE:NAME.

    A use is a name or an attribute with the name of the function, anywhere in the package.  Only names that one
    function has are counted.  The count cannot see a use through a string (`getattr`, `__all__`), a call by a library
    (a method that overrides one of a library's class), and whether an attribute of this name is another object's.  It
    takes a module of the same name for a use.  "(passed on)" in the list: the one use is no call, so the function may
    have to stay; properties are marked like this too.
    """
    uses: collections.Counter[str] = collections.Counter()
    called: set[str] = set()
    defined: list[tuple[str, str, int]] = []
    for module in parsed:
        lines = module.text.splitlines()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                uses[node.id] += 1
            elif isinstance(node, ast.Attribute):
                uses[node.attr] += 1
            elif isinstance(node, ast.Call):
                called.add(getattr(node.func, "id", getattr(node.func, "attr", "")))
            elif isinstance(node, FUNCTIONS):
                defined.append((node.name, module.at(node), body_length(node, lines)))
    lengths = [length for *_, length in defined]
    times = collections.Counter(name for name, *_ in defined)
    single = [each for each in defined if uses[each[0]] == 1 and times[each[0]] == 1]
    short = [(name, where) for name, where, length in single if length <= 2]
    longest = max(defined, key=lambda each: each[2])
    return {
        "functions and methods": len(defined),
        "body, median lines": statistics.median(lengths),
        "body, 90th percentile": statistics.quantiles(lengths, n=10, method="inclusive")[-1],
        "body, longest": f"{longest[2]} ({longest[1]}:{longest[0]})",
        "bodies of more than 70 lines": sum(length > 70 for length in lengths),
        "functions with one use": len(single),
        "of these, of one or two lines": len(short),
        "of these, called": sum(name in called for name, _ in short),
    }, [f"{where}:{name}{'' if name in called else ' (passed on)'}" for name, where in short]


# Words


def identifiers(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Yields every identifier of a module with its node."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node
            case ast.AsyncFunctionDef(name=name):
                yield name, node
            case ast.arg(arg=name) | ast.keyword(arg=str(name)) | ast.alias(asname=str(name)):
                yield name, node
            case ast.alias(name=name):
                yield name.rpartition(".")[2], node


def words(parsed: Sequence[Module]) -> str:
    """Returns how often each word of WORDS is an identifier or a part of one, and how often it is in prose.

    Identifiers of Python itself, such as FileNotFoundError, are not counted.  Prose: comments and strings, so also
    docstrings and messages.
    """
    named, written = collections.Counter(), collections.Counter()
    for module in parsed:
        for name, _ in identifiers(module.tree):
            if not hasattr(builtins, name):
                named.update(part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name))
        strings = [n.value for n in ast.walk(module.tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        for text in (*strings, *(comment.string for comment in comments(module.text))):
            written.update(re.findall(r"[a-z]+", text.lower()))
    return table(["word", "identifiers", "prose"], ([word, named[word], written[word]] for word in WORDS))


# Libraries


def imported_names(tree: ast.Module, package: str) -> dict[str, str]:
    """Names that a module binds by importing from libraries -> what they are; the standard library is one too."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = alias.name
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {name: origin for name, origin in names.items() if origin.partition(".")[0] != package}


def root_of(node: ast.expr) -> str | None:
    """The name that a chain of attributes begins with."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def is_private(name: str) -> bool:
    """Whether a name begins with one underscore, and is not documented as public all the same."""
    return bool(re.match(r"_[A-Za-z]", name)) and name not in PUBLIC


def within_functions(tree: ast.Module, parameter: str, first: bool = False) -> set[ast.AST]:
    """Returns the nodes of functions that have a parameter of this name; `first`: as their first one."""
    functions = (node for node in ast.walk(tree) if isinstance(node, FUNCTIONS))
    taking = (f for f in functions if parameter in [a.arg for a in (f.args.args[:1] if first else all_arguments(f))])
    return {node for function in taking for node in ast.walk(function)}


def all_arguments(function: FUNCTIONS) -> list[ast.arg]:
    """Returns all named parameters of a function."""
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def is_of(libraries: Mapping[str, str], tree: ast.Module, value: ast.expr) -> bool:
    """Whether a chain of attributes begins with an imported name that no parameter of its function hides."""
    root = root_of(value)
    return root is not None and root in libraries and value not in within_functions(tree, root)


def private_uses(parsed: Sequence[Module], package: str) -> list[str]:
    """Returns the uses of private parts of libraries, as FILE:LINE kind expression.

    "imported": a private module or name, or a module of INTERNAL.  "read": a private attribute of an imported module or
    object, also by `getattr`; of any other object, if nothing in the package defines its name.  "patched": an
    assignment to an attribute of an imported module or object, private or not.  "overridden": a private method of a
    class with an imported base, if nothing in the package calls it.
    Not seen: other modules that are private by documentation only.
    """
    defined, used = set(), set()
    for name, node in (each for module in parsed for each in identifiers(module.tree)):
        stored = isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store)
        (defined if stored or isinstance(node, DOCUMENTED | ast.arg) else used).add(name)
    uses = []
    for module in parsed:
        libraries = imported_names(module.tree, package)
        of_library = functools.partial(is_of, libraries, module.tree)
        for node in ast.walk(module.tree):
            match node:
                case ast.Import() | ast.ImportFrom():
                    origin = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                    paths = [origin + alias.name for alias in node.names]
                    uses += [(module, node, "imported", path) for path in paths if is_private_path(path, package)]
                case ast.Attribute(value=value, attr=name, ctx=context):
                    if not isinstance(context, ast.Load) and of_library(value):
                        if (text := ast.unparse(node)) != "sys.argv":  # documented as one to assign
                            uses.append((module, node, "patched", text))
                    elif is_private(name) and (of_library(value) or name not in defined):
                        uses.append((module, node, "read", ast.unparse(node)))
                case ast.Call(func=ast.Name(id="getattr" | "hasattr"), args=[value, ast.Constant(value=str(name)), *_]):
                    if is_private(name) and (of_library(value) or name not in defined):
                        uses.append((module, node, "read", ast.unparse(node)))
                case ast.Call(func=ast.Name(id="setattr"), args=[value, *_]) if of_library(value):
                    uses.append((module, node, "patched", ast.unparse(node)))
                case ast.ClassDef(bases=bases, body=body) if any(map(of_library, bases)):
                    methods = (each for each in body if isinstance(each, FUNCTIONS) and is_private(each.name))
                    uses += [(module, each, "overridden", each.name) for each in methods if each.name not in used]
    return [f"{module.at(node)} {kind} {text}" for module, node, kind, text in uses]


def is_private_path(path: str, package: str) -> bool:
    """Whether an imported dotted name is of a library and private, see `private_uses`."""
    first, *rest = path.split(".")
    internal = any(f"{path}.".startswith(f"{name}.") for name in INTERNAL)
    return first != package and (internal or any(map(is_private, rest)))


# Methods and loss terms


def names_of_tables(parsed: Sequence[Module]) -> set[str]:
    """Returns the keys of TABLES in methods/ and config/.  Raises ValueError if one is not a dictionary there."""
    names: dict[str, set[str]] = {}
    for module in parsed:
        if module.room not in ("methods", "config"):
            continue
        for node in module.tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets:
                if isinstance(target, ast.Name) and target.id in TABLES and isinstance(value := node.value, ast.Dict):
                    names[target.id] = {key.value for key in value.keys if isinstance(key, ast.Constant)}
    for table_name in TABLES:
        if not names.get(table_name):
            raise ValueError(f"methods/ and config/ have no dictionary {table_name}; correct TABLES")
    return set().union(*names.values())


def naming_lines(parsed: Sequence[Module], package: str) -> tuple[dict[str, int], list[str]]:
    """Returns the lines outside NAMING that name a method or a term: their number for each name, and the lines.

    A line counts if a string or an identifier of it equals a name.  Attributes of libraries (`np.clip`) and the first
    argument `cls` of class methods are left out.  Other ordinary words remain, such as `labels` and `patch`.
    """
    names, lines = names_of_tables(parsed), {}
    for module in parsed:
        if module.room in NAMING:
            continue
        libraries, documentation = imported_names(module.tree, package), set(docstrings(module.tree))
        class_methods = within_functions(module.tree, "cls", first=True)
        named = [
            (name, node)
            for name, node in identifiers(module.tree)
            if not (isinstance(node, ast.Attribute) and root_of(node) in libraries)
            and not (name == "cls" and node in class_methods)
        ]
        named += [
            (node.value, node)
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documentation
        ]
        for name, node in named:
            if name in names:
                lines.setdefault((module.name, getattr(node, "lineno", 1)), set()).add(name)
    counts = collections.Counter(name for of in lines.values() for name in of)
    return dict(counts.most_common()), [f"{file}:{n} {' '.join(sorted(of))}" for (file, n), of in sorted(lines.items())]


# Lines


def rooms(parsed: Sequence[Module]) -> str:
    """Returns a table of modules and lines of each room.  A blank line in a docstring is one of the docstring."""
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0] * 5)
    for module in parsed:
        lines = module.text.splitlines()
        prose = {n for node in docstrings(module.tree) for n in range(node.lineno, (node.end_lineno or 0) + 1)}
        prose |= {c.start[0] for c in comments(module.text) if lines[c.start[0] - 1].lstrip().startswith("#")}
        blank = sum(not line.strip() for number, line in enumerate(lines, 1) if number not in prose)
        row = 1, len(lines), len(lines) - len(prose) - blank, len(prose), blank
        for key in (module.room, "= all"):
            counts[key] = [a + b for a, b in zip(counts[key], row)]
    head = ["room", "modules", "lines", "code", "docstrings and comments", "blank"]
    return table(head, ([room, *row] for room, row in sorted(counts.items())))


def names(parsed: Sequence[Module], package: str) -> str:
    """Returns how many modules have exactly one importer, and the file names that occur more than once."""
    dotted = {".".join((package, *Path(module.name).with_suffix("").parts)) for module in parsed}
    importers: collections.Counter[str] = collections.Counter()
    places = collections.defaultdict(list)
    for module in parsed:
        seen: set[str] = set()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                seen |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                seen |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        importers.update(seen & dotted)
        if module.path.stem not in ("__init__", "__main__"):
            places[module.path.stem].append(module.room)
    repeated = [f"  {name}: {', '.join(where)}" for name, where in sorted(places.items()) if len(where) > 1]
    single = sum(count == 1 for count in importers.values())
    head = f"{single} modules have exactly one importer; {len(repeated)} file names occur more than once:"
    return "\n".join([head, *repeated])


# What runs


def imports(package: Path) -> str:
    """Returns what the import of each command costs: CPU seconds, modules of the package, all modules, jax or not."""
    rows = []
    for name in (path.stem for path in sorted(package.glob("*.py")) if "def main(" in path.read_text()):
        command = [sys.executable, "-c", LOADED, package.name, name]
        run = subprocess.run(command, cwd=package.parent, capture_output=True, text=True, check=True)
        rows.append([name, *run.stdout.split()])
    return table(["import of", "CPU seconds", "modules of the package", "all modules", "jax"], rows)


class Follower:
    """Profiles a command: its stack when a function is first called, and the files that run within this call.

    Prints the report and ends the process when the function returns: a step is traced, not compiled.
    Frames and files are those of the package; bodies of modules and classes are left out.
    """

    def __init__(self, package: Path, entry: str):
        self._prefix = f"{package}{os.sep}"
        self._file, _, self._name = entry.rpartition(":")
        self._thread: int | None = None  # the one in which the function was called first
        self.before: set[str] = set()
        self.stack: list[str] = []
        self.within: set[str] = set()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Called by Python at every call and return."""
        if event not in ("call", "return") or not self._is_inner(frame):
            return
        code, thread = frame.f_code, threading.get_ident()
        if code.co_name == self._name and self._file in ("", Path(code.co_filename).stem):
            if event == "return":
                print(self.report(), flush=True)
                os._exit(0)
            if self._thread is None:
                self._thread, self.stack = thread, self._stack(frame)
        if self._thread is None:
            self.before.add(code.co_filename)
        elif thread == self._thread:
            self.within.add(code.co_filename)

    def _is_inner(self, frame: FrameType) -> bool:
        code = frame.f_code
        return code.co_filename.startswith(self._prefix) and bool(code.co_flags & inspect.CO_OPTIMIZED)

    def _stack(self, frame: FrameType | None) -> list[str]:
        """The frames from the command's `main` to this one, as FILE:LINE:FUNCTION."""
        frames = []
        while frame:
            if self._is_inner(frame):
                file = frame.f_code.co_filename.removeprefix(self._prefix)
                frames.insert(0, f"{file}:{frame.f_lineno}:{frame.f_code.co_name}")
            frame = frame.f_back
        first = next((n for n, each in enumerate(frames) if each.endswith(":main")), 0)
        return frames[first:]

    def report(self) -> str:
        """Returns the counts in one line, then the frames and the files, one in a line."""
        files = {frame.partition(":")[0] for frame in self.stack}
        counts = len(self.stack), len(files), len(self.before), len(self.within)
        within = [f"  within: {file.removeprefix(self._prefix)}" for file in sorted(self.within)]
        return "\n".join([REPORT + " ".join(map(str, counts)), *(f"  frame: {frame}" for frame in self.stack), *within])


def follow(package: Path, entry: str, command: Sequence[str]) -> NoReturn:
    """Runs a command in this process with a `Follower`.  Raises ValueError if it does not call the function."""
    module, *flags = command
    sys.argv = [f"python -m {package.name}.{module}", *flags]
    sys.path.insert(0, str(package.parent))
    follower = Follower(package, entry)
    threading.setprofile(follower)
    sys.setprofile(follower)
    with contextlib.suppress(SystemExit):
        runpy.run_module(f"{package.name}.{module}", run_name="__main__")
    raise ValueError(f"{module} ended without a call of {entry}; if this function has another name now, correct STEPS")


def steps(package: Path, with_list: bool) -> str:
    """Runs STEPS, each in a process; returns a table of their frames and files."""
    rows, lists = [], []
    with tempfile.TemporaryDirectory() as folder, tarfile.open(STORED) as stored:
        stored.extractall(folder, filter="data")
        for step, (entry, command) in STEPS.items():
            flags = command.format(folder, step).split()
            run = [sys.executable, __file__, str(package), "--follow", entry, *flags]
            done = subprocess.run(run, cwd=package.parent, capture_output=True, text=True)
            if done.returncode:
                raise ValueError(f"{step} failed: {' '.join(flags)}\n{done.stdout}{done.stderr}")
            report = done.stdout.rpartition(REPORT)[2].strip().splitlines()
            rows.append([step, *report[0].split()])
            lists += [f"{step}:", *report[1:]] if with_list else []
    head = ["step", "frames to it", "their files", "files entered before", "files within"]
    return "\n".join([table(head, rows), *lists])


def table(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """Returns aligned columns."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)


def measures(package: Path, with_list: bool = False) -> str:
    """Returns all measures that need no run."""
    parsed = modules(package)
    counted, short = functions(parsed)
    private = private_uses(parsed, package.name)
    named, lines = naming_lines(parsed, package.name)
    of_name = ", ".join(f"{name} {count}" for name, count in named.items())
    return "\n\n".join(
        [
            "\n".join([table(["functions", ""], counted.items()), *(short if with_list else [])]),
            words(parsed),
            "\n".join([f"{len(private)} uses of private parts of libraries, and patches:", *private]),
            "\n".join(
                [f"{len(lines)} lines outside {', '.join(NAMING)} name a method or a term: {of_name}"]
                + (lines if with_list else [])
            ),
            rooms(parsed),
            names(parsed, package.name),
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=PACKAGE, help="the package (default: the one beside tools/)"
    )
    parser.add_argument("--list", action="store_true", help="also the functions, lines, frames and files counted")
    parser.add_argument("--run", action="store_true", help="also run one step of each kind, and import each command")
    parser.add_argument(
        "--follow",
        nargs=argparse.REMAINDER,
        metavar="FUNCTION COMMAND FLAG",
        help="follow a command to FUNCTION, and within it",
    )
    arguments = parser.parse_args(argv)
    package = arguments.folder.resolve()
    try:
        if arguments.follow:
            entry, *command = arguments.follow
            follow(package, entry, command)
        print(measures(package, arguments.list))
        if arguments.run:
            print("", steps(package, arguments.list), imports(package), sep="\n\n")
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
