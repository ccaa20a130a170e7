"""Exit codes, and the one place that turns an error of a command into a message and an exit code.

    def main(argv=None) -> int:
        return errors.run(lambda: work(parser().parse_args(argv)))

The first entry of CODES whose class fits the error decides.  An error of another class is a fault of the program, and
Python shows its traceback.
"""

import contextlib
import difflib
import logging as python_logging
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from absl import flags, logging

from detailclip_jax.runtime import signals
from detailclip_jax.runtime.terminal import complain

USAGE_ERROR, RUN_ERROR, INTERRUPTED = 2, 1, 130  # 130, as a shell reports SIGINT; 143 after SIGTERM
FAULT = "is_fault"  # attribute of an error inside `at_work`


class RunError(RuntimeError):
    """The work failed and the user can act on it; the message says how."""


class EvaluatorError(RunError):
    """An evaluator failed; the message names it, the weights and the step."""


class Unmeasurable(ValueError):
    """The data, or the weights on these data, cannot be measured; the message says why.

    Raise it only for a property of values that are equal on all processes (gathered features and labels, captions,
    prompts). Then all processes raise it at the same place and continue with the next task together. Any other
    exception in a task may concern one process alone (a disk, a damaged file, a connection); some of these are
    ValueErrors too.
    """


class NotApplicable(ValueError):
    """The model has no output that the task measures; the message says which. Raise it when a task is built."""


CODES: tuple[tuple[type[BaseException], int], ...] = (
    (KeyboardInterrupt, INTERRUPTED),
    (RunError, RUN_ERROR),
    (FileNotFoundError, USAGE_ERROR),  # a path that the user gave
    (OSError, RUN_ERROR),  # the disk is full, or a folder cannot be written
    (ImportError, USAGE_ERROR),  # a package of an extra is missing
    (ValueError, USAGE_ERROR),
)


def run(command: Callable[[], int], kept: str = "") -> int:
    """Runs a command; returns its exit code, or the code of its error, after a message.

    `kept` says what remains and how to continue; it is appended to the message of a signal and of an OSError.
    An argument parser may exit inside (`--help`, invalid usage); its exit code is returned.  Raises errors of classes
    that CODES lacks.
    """
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # the checkpoint library logs many info messages
    python_logging.basicConfig(format="*** %(levelname)s: %(message)s")  # as `Console.warn`; no effect in `main`
    try:
        with signals.if_ended(lambda: kept):
            return command()
    except SystemExit as end:
        return _exit_code(end)
    except BaseException as error:
        code = explain(error, kept)
        if code is None:
            raise
        return code


def explain(error: BaseException, kept: str = "") -> int | None:
    """Prints the message of an error and returns its exit code; None, and no message, for a fault of the program."""
    codes = (code for kind, code in CODES if isinstance(error, kind))
    code = None if getattr(error, FAULT, False) else next(codes, None)
    if code is None:
        return None
    logging.debug("the error was raised here", exc_info=error)  # -v 1 of `main` shows it
    complain(message(error, kept))
    return getattr(error, "exit_code", code)


def message(error: BaseException, kept: str = "") -> str:
    """Returns the text for the user: "error: ...", or "interrupted; ..." on a new line, below the ^C."""
    notes = [*getattr(error, "__notes__", ()), *([kept] if kept else [])]
    if isinstance(error, KeyboardInterrupt):
        return "\n" + "; ".join(["interrupted", *notes])
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        return "error: " + "; ".join([_os_error(error), *notes])
    said = getattr(error, "__notes__", ()) if isinstance(error, RunError) else ()  # the work had begun
    return "error: " + "; ".join([_os_error(error) if isinstance(error, OSError) else str(error), *said])


def _os_error(error: OSError) -> str:
    """The reason and the file, without the number: "Permission denied: /runs"."""
    if not error.strerror:
        return str(error)
    return f"{error.strerror}: {error.filename}" if error.filename else error.strerror


def first_line(error: BaseException) -> str:
    """Returns the error's class and the first line of its text, at most 200 characters of it.

    first_line(ValueError("no such size\\nknown: ...")) == "ValueError: no such size"
    first_line(AssertionError()) == "AssertionError"
    """
    line, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {line[:200]}" if line else type(error).__name__


def status(error: BaseException) -> int:
    """Prints an error as the end of a program does, and returns the exit code; with a traceback for a fault."""
    if isinstance(error, SystemExit):
        return _exit_code(error)
    code = explain(error)
    if code is None:
        traceback.print_exception(error)
        return RUN_ERROR
    return code


def _exit_code(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    complain(str(end.code))
    return RUN_ERROR


@contextlib.contextmanager
def at_work() -> Iterator[None]:
    """Context of the work on arguments that were checked before: a ValueError is not the user's mistake any more.

    Inside it every error but an interrupt and a RunError is a fault of the program and keeps its traceback.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, RunError):
            setattr(error, FAULT, True)
        raise


Meant = Mapping[str, Sequence[str]]  # a word of users, in lower case -> the known names that they may mean by it


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5, count: int = 1) -> list[str]:
    """Returns up to `count` known names that are similar to a name, the most similar one first."""
    return difflib.get_close_matches(name, list(known), count, cutoff)


def near(
    name: str,
    known: Iterable[str],
    cutoff: float = 0.5,
    meant: Meant | None = None,
    shown: Callable[[str], str] = str,
) -> str:
    """Returns "; did you mean 'NAME'?" with what is `meant` by the name, else the nearest known one; "" without one.

    `shown` converts a known name to what the user writes.

    near("hf", FORMATS, meant={"hf": ["huggingface"]}) == "; did you mean 'huggingface'?"
    """
    known = list(known)
    names = [each for each in (meant or {}).get(name.lower(), ()) if each in known] or nearest(name, known, cutoff)
    return f"; did you mean {' or '.join(repr(shown(each)) for each in names)}?" if names else ""


def near_path(path: Path, tried: Iterable[Path] = (), is_meant: Callable[[Path], bool] = Path.is_dir) -> str:
    """Returns "; did you mean 'runs/stickers'?" for a missing folder beside one of a similar name, or "" without one.

    Folders in `tried` are not named.  A parent that cannot be listed has none.  For a missing file `is_meant` is
    Path.is_file.
    """
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = [each.name for each in path.parent.iterdir() if is_meant(each) and each not in {*tried}]
    return near(path.name, names, cutoff=0.7, shown=lambda name: str(path.parent / name))


def unknown(kind: str, name: str, known: Iterable[str], meant: Meant | None = None) -> str:
    """Returns the message for an unknown name, with the nearest (see `near`) and all known names.

    unknown("method", "detailclp", METHODS) == "unknown method 'detailclp'; did you mean 'detailclip'? Known: ..."
    """
    known = list(known)
    shown = ", ".join(each or "''" for each in known)
    return f"unknown {kind} {name!r}{near(name, known, meant=meant) or '.'} Known: {shown}"
