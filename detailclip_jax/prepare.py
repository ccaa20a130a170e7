"""Converts image-text data from common formats to the ArrayRecord shards that training reads.

    python -m detailclip_jax.prepare webdataset /data/cc3m --out /data/records/cc3m --dataset cc3m
    python -m detailclip_jax.prepare img2dataset-parquet /data/cc12m --out /data/records/cc12m --dataset cc12m
    python -m detailclip_jax.prepare slip-yfcc15m yfcc15m.pkl --images /data/yfcc100m/images --out /data/records/yfcc
    python -m detailclip_jax.prepare coco captions_train2017.json --images /data/coco --out /data/records/coco
    python -m detailclip_jax.prepare verify DIR      re-reads every checksum
    python -m detailclip_jax.prepare stats DIR       prints and draws the statistics, and a contact sheet
    python -m detailclip_jax.prepare to-tfds DIR --name NAME   the same data as detailclip_image_text/NAME

Image files are stored unchanged; each is decoded once as a check.  Unreadable examples are left out, counted by reason
and listed in SPLIT-rejected.jsonl; dataset.json describes the set.  Each shard of the source, and each 10,000 rows of a
table, become one shard (of more than 1,024, consecutive ones together), whatever the number of workers.  The same
command continues where it was stopped or killed, and produces the same bytes.  Train with --config.data.source=records
--config.data.path=DIR.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any

from detailclip_jax.convert import local, prepare_flags, set_report, to_tfds
from detailclip_jax.convert.job import Request
from detailclip_jax.convert.planning import AlreadyThere, begin, refuse_finished
from detailclip_jax.convert.prepared_set import NothingAccepted, finish, problems
from detailclip_jax.convert.shard import UNREADABLE
from detailclip_jax.runtime import errors
from detailclip_jax.runtime import parser as flags
from detailclip_jax.runtime.locks import alone
from detailclip_jax.runtime.progress import Console
from detailclip_jax.runtime.terminal import counted

MISSING = "missing file"  # reason of a rejected example
NO_CAPTIONS = (
    "no example has a caption, which contrastive methods need; --caption-column NAME names the column of a table or "
    "the field of a json (--help lists the usual names), and CLASS/image.txt is the caption of an imagefolder, or "
    "--caption-template 'a photo of a {}'; then prepare the set again with a new --out"
)
BLANK = (
    "the caption {names} is blank in every example; if --caption-column is misspelt, prepare the set again with a new "
    "--out"
)
MOSTLY = 0.5  # the share of examples without a caption above which there is a warning
FEW_CAPTIONS = (
    "{without:,} of {num_examples:,} examples have no caption, and train with the empty text; --require-caption leaves "
    "them out, and --caption-column NAME names another column or field: prepare the set again with a new --out"
)
TABLES = ("csv", "tsv", "jsonl", "parquet")  # image paths may be relative to the folder of the table


def prepare(argv: Sequence[str]) -> int:
    """Runs `prepare SOURCE PATH ... --out DIR`; returns the exit code."""
    own, beam_options = _divided(argv)
    parser = prepare_flags.parser(__doc__ or "")
    if not own:
        parser.error("SOURCE is missing, for example: prepare webdataset /data/cc3m --out /data/records/cc3m")
    given = parser.parse_intermixed_args(own)
    console = Console()
    request = prepare_flags.request_of(given)
    try:
        refuse_finished(request)  # before the lock, as the folder of a finished set may be read-only
        with alone(request.lock):
            part = _made(request, given, beam_options, console)
    except AlreadyThere as there:
        console.say(str(there))
        return 0
    except NothingAccepted as error:
        raise errors.RunError(f"{error}{_hint(request, error.rejected)}") from error
    except BrokenExecutor as error:
        lost = "a worker was killed, perhaps for its memory; the same command continues, try fewer --workers"
        raise errors.RunError(lost) from error
    console.say("\n".join(set_report.summary(part)))
    for warning in _warnings(request, part):
        console.warn(warning)
    console.say(f"written to {given.out}; peak memory of a process {local.peak_memory():.0f} MiB")
    return 0


def _made(request: Request, given: argparse.Namespace, beam_options: Sequence[str], console: Console) -> dict[str, Any]:
    """Plans or resumes the job, converts its shards and finishes it; returns the description of the split."""
    with local.planning(request, console):
        job = begin(request, given.shards)
    if given.engine == "beam":
        from detailclip_jax.convert import beam

        beam.run(job, beam_options)
    else:
        local.run(job, given.workers, console)
    return finish(job)


def _warnings(request: Request, part: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is probably wrong with a finished split, and the way out."""
    if hint := _hint(request, part["rejected"]):
        yield f"{counted(part['rejected'][MISSING], 'image')} not found{hint}"
    if num_damaged := part["rejected"].get(UNREADABLE):
        yield f"damage in {counted(num_damaged, 'input shard')}; the examples after the damage are missing"
    num_examples, without = part["num_examples"], part["statistics"]["without_caption"]
    if without == num_examples:
        yield NO_CAPTIONS
        return
    if blank := set_report.blank_captions(part):
        yield BLANK.format(names=", ".join(blank))
    if without > MOSTLY * num_examples:
        yield FEW_CAPTIONS.format(without=without, num_examples=num_examples)


def _hint(request: Request, rejected: Mapping[str, int]) -> str:
    """Says where a table's images were searched, if some are missing and --images is not given."""
    if MISSING not in rejected or request.options.images or request.kind not in TABLES:
        return ""
    return "; paths are relative to the folder of the table that names them, unless --images ROOT names another"


def _divided(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments before and after "--"."""
    at = argv.index("--") if "--" in argv else len(argv)
    return list(argv[:at]), list(argv[at + 1 :])


def verify(argv: Sequence[str]) -> int:
    """Runs `prepare verify DIR`; returns 0 if all shards are as they were written, else 1."""
    folder = _folder_parser("verify", "Reads every shard again and compares size, checksum and number of records.")
    console, wrong = Console(), 0
    for problem in problems(folder.parse_args(argv).folder, lambda name: console.live(f"reading {name}")):
        console.say(f"error: {problem}")
        wrong += 1
    console.say(counted(wrong, "problem") if wrong else "all shards are as they were written")
    return errors.RUN_ERROR if wrong else 0


def stats(argv: Sequence[str]) -> int:
    """Runs `prepare stats DIR`: prints the statistics and draws them into DIR; returns 0."""
    folder = _folder_parser("stats", "Prints the statistics; draws them and a contact sheet into DIR.")
    set_report.show(folder.parse_args(argv).folder, Console())
    return 0


def tfds(argv: Sequence[str]) -> int:
    """Runs `prepare to-tfds DIR --name NAME`; returns 0."""
    parser = _folder_parser("to-tfds", "Copies the set to detailclip_image_text/NAME, for tfds.data_source.")
    parser.add_argument("--name", required=True, help="name of the config of the builder: letters, digits and _")
    parser.add_argument("--data-dir", help="folder of TensorFlow Datasets (default: its own)")
    given = parser.parse_args(argv)
    Console().say(f"written to {to_tfds.write(given.folder, given.name, given.data_dir)}")
    return 0


def _folder_parser(name: str, what: str) -> flags.Parser:
    command = flags.Parser(f"{flags.prog('prepare')} {name}", description=what)
    command.add_argument("folder", metavar="DIR", help="folder that `prepare` wrote")
    return command


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"verify": verify, "stats": stats, "to-tfds": tfds}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 1 if it failed, 2 for invalid usage, 130 if interrupted.  Prints no traceback."""
    argv = sys.argv[1:] if argv is None else argv
    command = COMMANDS.get(argv[0]) if argv else None
    if command:
        return errors.run(lambda: command(argv[1:]))
    return errors.run(lambda: prepare(argv), kept="finished shards stay, and the same command continues")


if __name__ == "__main__":
    sys.exit(main())
