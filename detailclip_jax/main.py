"""Trains the run that a config file describes, and resumes a stopped run from its last checkpoint.

    python -m detailclip_jax.main --config=configs/stickers.py
    python -m detailclip_jax.main --config=configs/stickers.py:method=clip --config.seed=1 --workdir=runs/clip-1

--config names a file of configs/, with an optional argument after a colon.  --config.NAME=VALUE sets a field.
--help-config lists all fields with value, meaning and source; with --config, the fields of that file.
The workdir (default: runs/ and the config's name) receives config.json, metrics.jsonl, tensorboard/, checkpoints/,
and at the end results.json, report.md and figures/.  The same command continues from the last checkpoint; Ctrl-C and
SIGTERM save a checkpoint first.  Several processes (on one or several hosts) connect through SLURM or Open MPI 4, on a
TPU pod with --distributed, or with --coordinator, --num-processes and --process-id (or the environment variables
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID).  launch/ has a script for each way.  To check a launch
before the run: python -m detailclip_jax.doctor --launch=main with the same flags.
"""

from detailclip_jax.runtime import start

if __name__ == "__main__":
    start.begin()  # before the other imports

import gc
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from detailclip_jax.config import command_line, default, detection_fields, run_config, segmentation_fields
from detailclip_jax.config.data_path import check_path_is_read
from detailclip_jax.config.run_config import is_dense
from detailclip_jax.runtime import errors, parser, processes
from detailclip_jax.runtime.files import with_home
from detailclip_jax.runtime.progress import Console
from detailclip_jax.runtime.start import part_ended

READERS = {
    segmentation_fields.METHOD: "ade20k",
    detection_fields.METHOD: "coco",
}  # a data.source of the task that reads data.path
COMMANDS = "main", "transfer"  # of training
NEW_OBJECTS = 50_000  # between two searches for cycles, not Python's 700: tracing makes many objects and few cycles

_CONFIG = config_flags.DEFINE_config_file("config", None, "a file of configs/, or FILE:ARGUMENT (required to train)")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run (default: runs/ and the config's name)")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "address of process 0, to run as several processes")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "number of processes")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "index of this process, from 0")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "connect to the other processes that jax finds (TPU pods)")

VALUES = {"config": "FILE", "workdir": "DIR", "coordinator": "HOST:PORT", "num_processes": "N", "process_id": "N"}


class Usage(NamedTuple):
    """What --help and --help-config of a command show.

    config: makes the config whose fields --help-config lists without --config; `config_note` says which one that is.
    add_flags: adds the flags that only this command has to the parser of --help.
    shape: the usage line, with the flags that are required.
    """

    module: str
    description: str | None
    config: Callable[[], ConfigDict] = default
    config_note: str = ""
    add_flags: Callable[[parser.Parser], None] = lambda _: None
    shape: str = "%(prog)s --config FILE [flags]"


TRAIN = Usage("main", __doc__)


def parse_flags(argv: Sequence[str], usage: Usage = TRAIN) -> list[str]:
    """Parses the flags with absl, after checking the names of flags and of config fields.

    Invalid flags end the program with a message, without a traceback.  `usage` is for --help and --help-config.
    """
    parsed: list[str] = []
    code = errors.run(lambda: parsed.extend(_parsed(argv, usage)) or 0)
    if code or not parsed:  # invalid, or --help
        sys.exit(code)
    return parsed


def _parsed(argv: Sequence[str], usage: Usage) -> list[str]:
    """Returns the arguments that are not flags.  Raises ValueError or FileNotFoundError; exits after --help."""
    argv = [with_home(with_underscores(argument)) for argument in argv]
    spec = command_line.spec_of(argv)
    if any(re.fullmatch(r"--?help-config", argument) for argument in argv):
        _help_config(spec, usage)
    if any(argument in ("-h", "-help", "--help") for argument in argv):
        _help(usage)
    helps = any(re.match(r"--?help", argument) for argument in argv)
    if not helps:
        command_line.check_names(argv, [*flags.FLAGS])
        if spec is None:
            file = next((word for word in argv[1:] if re.fullmatch(r"[^-].*\.py(:.*)?", word)), "")
            raise ValueError("--config is missing" + (f"; write --config={file}" if file else f". {_example()}"))
        argv = command_line.checked(argv, spec)
    sys.argv[:] = argv  # config_flags reads sys.argv
    try:
        return flags.FLAGS(list(sys.argv))
    except flags.Error as error:
        raise ValueError(f"{command_line.invalid_value(error, argv) or error} (--help lists the flags)") from error
    except SystemExit as end:
        sys.exit(0 if helps and end.code == 1 else end.code)  # absl exits with 1 after --help


def with_underscores(argument: str) -> str:
    """Returns --num-processes=2 as --num_processes=2, the name that absl knows; other arguments are unchanged."""
    name, equals, value = argument.partition("=")
    known = name.lstrip("-").replace("-", "_")
    return f"--{known}{equals}{value}" if name.startswith("--") and known in VALUES else argument


def _help(usage: Usage) -> NoReturn:
    """Prints what the command does and its flags, in the form of the other commands, and ends the program."""
    epilog = "--helpfull lists the flags of all libraries too."
    shown = parser.parser(usage.module, usage.description, usage=usage.shape, epilog=epilog)
    for name, value in VALUES.items():
        shown.add_argument(f"--{name.replace('_', '-')}", metavar=value, help=flags.FLAGS[name].help)
    shown.add_argument("--distributed", action="store_true", help=flags.FLAGS[_DISTRIBUTED.name].help)
    shown.add_argument("--config.NAME", metavar="VALUE", help="a field of the config, for example --config.seed=1")
    shown.add_argument("--help-config", action="store_true", help="list the fields of the config, and exit")
    usage.add_flags(shown)
    shown.print_help()
    sys.exit(0)


def _help_config(spec: str | None, usage: Usage) -> NoReturn:
    """Prints every field of the config, or of the command's default one, and ends the program."""
    try:
        config = run_config.load(spec) if spec else usage.config()
        if usage.config_note and not spec:
            print(f"{usage.config_note}\n")
        names = [config.method]
        if not is_dense(config):
            from detailclip_jax.methods import METHODS  # imports jax

            names = [*METHODS]
        print(run_config.help_text(config, tuple(names)), end="", flush=True)
    except BrokenPipeError:  # `| head` has closed the pipe; the interpreter would flush to it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _example() -> str:
    return "For example: python -m detailclip_jax.main --config=configs/stickers.py (--help says more)"


def join_processes() -> None:
    """Connects this process to the others of the run, if it was launched as several processes."""
    processes.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _DISTRIBUTED.value)


def from_flags(command: str | None = None) -> dict[str, Any]:
    """Returns the arguments of `prepare` that the flags describe, by name.

    They are the config, the workdir, and `given`, the names of the fields that the flags set; of a pretraining run also
    `written`, the config of the file.

    `command` is "main" or "transfer", by default the one that runs the config.
    Raises ValueError for an unknown command, for one that does not run the config, and for a workdir in a bucket.
    """
    config, spec, right = _CONFIG.value, command_line.spec_of(sys.argv), command_of_config()
    if command not in (None, *COMMANDS):
        raise ValueError(errors.unknown("command", command, COMMANDS, {"train": ["main"]}))
    if command not in (None, right):
        raise ValueError(
            f"{spec} is a config of the command {right} ({config.get('method')}); write "
            f"python -m detailclip_jax.{right} --config={spec}"
        )
    workdir = _WORKDIR.value or run_config.default_workdir(spec or "run")
    if "://" in workdir:
        raise ValueError(
            f"--workdir={workdir}: metrics grow line by line, which buckets do not allow; name a local or shared "
            "folder, and copy it when the run has ended (gcloud storage rsync -r, aws s3 sync)"
        )
    names = command_line.override_names(sys.argv)
    check_path_is_read(config.data, names, READERS.get(config.get("method") or "", "records"))
    if is_dense(config):  # its length is counted in steps alone
        return {"config": ConfigDict(config.to_dict()), "workdir": workdir, "given": names}
    written = run_config.load(spec or "")
    config = run_config.without_overridden(config, names, written)
    return {"config": config, "workdir": workdir, "given": names, "written": written}


def command_of_config() -> str:
    """Returns the command that runs the config of the flags: "main" or "transfer"."""
    return "transfer" if is_dense(_CONFIG.value) else "main"


def preflight(argv: Sequence[str], command: str | None = None) -> int:
    """Checks the run of a command that the flags describe, without training (`doctor --launch=COMMAND`).

    Returns the exit code.  Without a command it is the one that runs the config.
    """

    def check() -> int:
        check_no_others(argv)
        arguments = from_flags(command)  # before joining the other processes, which can take minutes
        join_processes()
        from detailclip_jax.training import preflight

        prepare = prepare_of(command_of_config())
        return preflight.run(lambda: prepare(**arguments))

    return errors.run(check)


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code; errors that a user can correct are printed without a traceback."""
    return errors.run(partial(run, argv, "main", next_commands))


def run(argv: Sequence[str], command: str, following: Callable[[Sequence[str], Path, int], str]) -> int:
    """Prepares and trains a run of a command; returns the exit code.

    `following` gives the commands to print when the run has ended, from the flags, the workdir and the number of steps.
    """
    gc.set_threshold(NEW_OBJECTS)
    check_no_others(argv)
    if processes.is_first(_PROCESS_ID.value):
        Console().say(f"{command_line.spec_of(sys.argv)}: importing jax and opening the data ...")
    join_processes()
    from detailclip_jax.training.train import prepare_on_all, train  # imports jax: --help needs none

    prepare = prepare_of(command)
    part_ended("imports")
    prepared = prepare_on_all(lambda: from_flags(command), prepare)
    with processes.leaving_at_once(), errors.at_work():
        if (code := train(prepared)) == 0:
            prepared.console.say(following(sys.argv[1:], prepared.workdir, prepared.config.total_steps))
        return code


def prepare_of(command: str) -> Callable[..., Any]:
    """Returns the function that prepares the runs of a command; imports jax."""
    if command == "transfer":
        from detailclip_jax.dense import runs as task
    else:
        from detailclip_jax import pretraining as task
    return task.prepare


def check_no_others(argv: Sequence[str]) -> None:
    """Raises ValueError for an argument that is not a flag; `argv` is what absl left of the command line."""
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}; every argument starts with --. {_example()}")


def next_commands(flags: Sequence[str], workdir: Path, total_steps: int) -> str:
    """Returns commands to run next: train twice as long with the same flags; look at, search with, evaluate, export."""
    length = re.compile(r"--?config\.(?:total_steps|num_epochs)(=.*)?")
    kept, skipped = [], False
    for flag in flags:
        match = length.fullmatch(flag)
        if not (skipped or match):
            kept.append(flag)
        skipped = bool(match and not match.group(1))  # --config.total_steps N: the value is the next argument
    loop = shlex.join([*kept, f"--config.total_steps={2 * total_steps}"])
    there = shlex.quote(str(workdir))
    return (
        f"to train on:   python -m detailclip_jax.main {loop}\n"
        f"to explore:    python -m detailclip_jax.demo --checkpoint={there}\n"
        f"to search:     python -m detailclip_jax.embed --checkpoint={there} --images=DIR --query=TEXT\n"
        f"on stickers:   python -m detailclip_jax.evaluate --checkpoint={there}\n"
        f"on your pairs: python -m detailclip_jax.evaluate --checkpoint={there} --tasks=retrieval:folder:PATH\n"
        f"on classes:    python -m detailclip_jax.evaluate --checkpoint={there} --tasks=zero_shot:folder:PATH\n"
        f"to PyTorch:    python -m detailclip_jax.export --checkpoint={there} --to=safetensors --out=model.safetensors"
    )


def command() -> None:
    """Runs the command with the arguments in `sys.argv` and exits."""
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    command()
