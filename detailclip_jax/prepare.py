"""Converts image-text data from common formats to the ArrayRecord shards that training reads.

    python -m detailclip_jax.prepare webdataset /data/cc3m --out /data/records/cc3m --dataset cc3m
    python -m detailclip_jax.prepare img2dataset-parquet /data/cc12m --out /data/records/cc12m --dataset cc12m
    python -m detailclip_jax.prepare slip-yfcc15m yfcc15m.pkl --images /data/yfcc100m/images --out /data/records/yfcc
    python -m detailclip_jax.prepare webdataset /data/cc3m --out /data/records/cc3m --captions captions.parquet \\
        --captions-key url --captions-columns raw,short,long   captions of another file, joined by URL
    python -m detailclip_jax.prepare webdataset "https://host/cc3m/{00000..00331}.tar" --out /data/records/cc3m
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

from detailclip_jax.runtime import start

if __name__ == "__main__":
    start.begin()  # before the other imports

import argparse
import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any

from detailclip_jax.convert import columns, joined_captions, local_engine, set_report, to_tfds
from detailclip_jax.convert import output_shard as shards
from detailclip_jax.convert.cleaning import CLEANING
from detailclip_jax.convert.image_checks import CHECKS
from detailclip_jax.convert.job import Job, Options, Request, located
from detailclip_jax.convert.known_sizes import KNOWN
from detailclip_jax.convert.output_shard import UNREADABLE
from detailclip_jax.convert.planning import AlreadyThere, begin, refuse_finished
from detailclip_jax.convert.prepared_set import NothingAccepted, finish, problems
from detailclip_jax.convert.readers import SOURCES, source_of
from detailclip_jax.convert.remote_files import check_login, is_remote
from detailclip_jax.runtime import errors
from detailclip_jax.runtime import parser as flags
from detailclip_jax.runtime.devices import usable_cores
from detailclip_jax.runtime.files import check_no_file
from detailclip_jax.runtime.locks import alone
from detailclip_jax.runtime.progress import Console, duration
from detailclip_jax.runtime.terminal import counted, printable

ENGINES = ("local", "beam")
WIDTH = max(map(len, SOURCES)) + 2
TABLE = "\n".join(f"  {name:{WIDTH}}{source.what}" for name, source in SOURCES.items())
MISSING = "missing file"  # reason of a rejected example
NO_CAPTIONS = (
    "no example has a caption, which contrastive methods need. Table or json: --caption-column NAME names the column "
    "or field (--help lists the usual names). imagefolder: write the captions to files like CLASS/image.txt, or give "
    "--caption-template 'a photo of a {}'. Then prepare the set again with a new --out"
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
SHARED = (
    "{num_images:,} images have the captions of {rows}, because files in different folders have the same name; "
    "if these are different images, prepare the set again with --captions-key path=COLUMN and a new --out"
)
TEXT_TABLES = ("csv", "tsv", "jsonl")
TABLES = (*TEXT_TABLES, "parquet")  # image paths may be relative to the folder of the table
WITH_FIELDS = ("webdataset", "img2dataset-parquet", *TABLES)
NAMING = (*TABLES, *(name for name, source in SOURCES.items() if source.images))  # sources that name image files
OF_SOURCES = {  # what only some sources read; the help of one leaves out the others, and its own name
    "source": (),
    "images": NAMING,
    "ids": ("yfcc-sqlite", "yfcc-tsv"),
    "subset": ("coco", "flickr30k", "tfds"),
    "image_column": TABLES,
    "caption_column": (*WITH_FIELDS, "tfds"),
    "caption_template": ("imagefolder",),
    "key_column": TABLES,
    "label_column": WITH_FIELDS,
}


def parser(shown: str = "") -> flags.Parser:
    """Returns the parser of `prepare SOURCE DIR_OR_FILE ... --out DIR`, with the help of all sources, or of one."""
    epilog = f"sources:\n{TABLE}\n\nknown sets: {', '.join(KNOWN)}"
    usage = f"%(prog)s SOURCE {flags.EITHER} ... --out DIR [flags]\n       %(prog)s tfds:NAME --out DIR [flags]"
    command = flags.parser("prepare", __doc__, usage=usage, epilog=epilog)
    command.add_argument("source", metavar="SOURCE", help="one of the sources below")
    command.add_argument("paths", metavar=flags.EITHER, nargs="*", help="what the source reads; patterns and URLs too")
    add = command.add_argument
    add("--out", required=True, metavar="DIR", help="folder of the shards")
    split = "shards are named NAME-00000.arrayrecord (default: train)"
    add("--split", type=split_name, default="train", metavar="NAME", help=split)
    number = "number of shards, at most as many as the source has (default: these, at most 1024)"
    add("--shards", type=flags.positive, default=0, metavar="N", help=number)
    known = flags.one_of("known set", KNOWN)
    add("--dataset", type=known, metavar="SET", help="known set, whose counts are compared at the end")
    _add_tables(command)
    _add_captions(command)
    _add_examples(command)
    add("--workers", type=flags.positive, default=usable_cores(), metavar="N", help="processes (default: all cores)")
    add("--engine", choices=ENGINES, default="local", help="beam: run on Apache Beam, whose options follow after --")
    if shown:
        command.description, command.epilog = f"{shown}: {SOURCES[shown].what}", None
        command.usage = f"%(prog)s {shown} {flags.EITHER} ... --out DIR [flags]"
        for flag in command.arguments:
            flag.help = flag.help if shown in OF_SOURCES.get(flag.dest, SOURCES) else argparse.SUPPRESS
    return command


def split_name(text: str) -> str:
    """Checks the name of a split, with which names of files in --out begin, as the `type` of a flag."""
    if not text.strip() or text.startswith(".") or "/" in text or "\\" in text or printable(text) != text:
        raise argparse.ArgumentTypeError(
            f"{text!r}: a name without / is required, which does not begin with a dot; choose another --out for a "
            "subfolder"
        )
    return text


def template_text(text: str) -> str:
    """Checks a caption with a place for the class name, as the `type` of a flag."""
    if "{}" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} has no {{}} in place of the class name, as in 'a photo of a {{}}'")
    return text


def _add_tables(command: flags.Parser) -> None:
    add = command.add_argument
    add("--images", default="", metavar=flags.EITHER, help="folder or zip of the images that a table names")
    flags.add_follow_links(command)
    add(
        "--ids",
        action="append",
        default=[],
        metavar="FILE",
        help="YFCC100M: keep the photos that are in every FILE; may be repeated",
    )
    add("--subset", default="", metavar="NAME", help="split of a Karpathy file or tfds set (default: --split)")
    tables = "column of csv, tsv, jsonl, parquet"
    first = "default: the first that exists of"
    add(
        "--image-column",
        default="",
        metavar="NAME",
        help=f"{tables}: path or bytes ({first} {', '.join(columns.IMAGE)})",
    )
    captions = f"{' and '.join(columns.PAIR)}, else the first of {', '.join((*columns.CAPTION, *columns.PAIR))}"
    help = (
        f"{tables}, and json or text members of tars; may be repeated; captions keep these names, by which "
        f"--config.data.caption of training selects them (default: {captions})"
    )
    add("--caption-column", action="append", default=[], metavar="NAME", help=help)
    template = (
        "imagefolder: caption of the images that have no text file, with the name of the class in place of {}, as in "
        "'a photo of a {}'; may be repeated, an image then has all of them"
    )
    add("--caption-template", action="append", default=[], type=template_text, metavar="TEXT", help=template)
    key = f"{first} {', '.join(columns.KEY)}, else file and line"
    add("--key-column", default="", metavar="NAME", help=f"{tables}: name of an example ({key})")
    label = f"{first} {', '.join(columns.LABEL)}, else none"
    add("--label-column", default="", metavar="NAME", help=f"{tables}: a whole number ({label})")


def _add_captions(command: flags.Parser) -> None:
    add = command.add_argument
    what = "join captions from parquet, csv, tsv or jsonl, plain or compressed; patterns and URLs too; may be repeated"
    add("--captions", action="append", default=[], metavar=flags.EITHER, help=what)
    key = (
        "what of an image equals COLUMN of a caption (default: a column of the same name): key; path, as the source "
        "names its file, where COLUMN may begin with the path of the source's folder; file, where the folders of both "
        "are ignored; or a field of a tar's json, or column of a table, such as url"
    )
    add("--captions-key", default="", metavar="KEY[=COLUMN]", help=key)
    names = "names of the captions, and their columns if these differ; a name with several columns has several texts"
    add("--captions-columns", default=(), type=names_of, metavar="NAME[=COLUMN],...", help=names)
    least = "stop if a smaller share of the images has a row of captions (default: 0.5); 0 accepts any"
    add("--captions-min-matched", default=0.5, type=share, metavar="SHARE", help=least)


def names_of(text: str) -> tuple[str, ...]:
    """Splits NAME[=COLUMN],... as the `type` of a flag."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def share(text: str) -> float:
    """Parses a number from 0 to 1, as the `type` of a flag."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} must be a number from 0 to 1")


def _add_examples(command: flags.Parser) -> None:
    add = command.add_argument
    add("--clean", choices=tuple(CLEANING), help="captions: slip decodes escapes, removes tags and URLs (YFCC: slip)")
    add("--check", choices=CHECKS, default="decode", help="decode every image (default), or read only its header")
    add("--max-side", type=flags.positive, default=0, metavar="PIXELS", help="shrink images with a longer side")
    add("--require-caption", action="store_true", help="reject examples without a caption")
    add(
        "--context-length",
        type=flags.positive,
        default=77,
        metavar="T",
        help="captions of more tokens are counted as truncated (default: 77)",
    )
    add("--limit", type=flags.positive, default=0, metavar="N", help="read only the first N examples of the source")


def prepare(argv: Sequence[str]) -> int:
    """Runs `prepare SOURCE PATH ... --out DIR`; returns the exit code."""
    end = argv.index("--") if "--" in argv else len(argv)
    words, beam_options = argv[:end], argv[end + 1 :]
    name = words[0].partition(":")[0] if words else ""
    command = parser(name if name in SOURCES else "")
    if not words:
        command.error("SOURCE is missing, for example: prepare webdataset /data/cc3m --out /data/records/cc3m")
    arguments = command.parse_intermixed_args(words)
    console = Console()
    request = request_of(arguments)
    try:
        refuse_finished(request)  # before the lock, as the folder of a finished set may be read-only
        with alone(request.lock):
            part = _convert(request, arguments, beam_options, console)
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
    console.say(f"written to {arguments.out}; peak memory of a process {local_engine.peak_memory():.0f} MiB")
    return 0


def request_of(arguments: argparse.Namespace) -> Request:
    """Returns the request of parsed arguments; raises ValueError for unknown names and missing arguments."""
    source = source_of(arguments.source)
    if source.images and not arguments.images:
        raise ValueError(f"{arguments.source} needs --images ROOT, the folder or zip of its images")
    if not arguments.paths and ":" not in arguments.source:
        raise ValueError(f"{arguments.source} needs a PATH: {source.what}")
    for path in (*arguments.paths, arguments.out, arguments.images, *arguments.ids, *arguments.captions):
        check_login(path)
    sources = [] if arguments.source.startswith("tfds") else arguments.paths
    check_places(arguments.source, sources, arguments.images)
    for path in (arguments.out, arguments.images, *arguments.ids):
        check_local(path)
    check_no_file(arguments.out)
    if arguments.images and not os.path.exists(arguments.images):
        raise FileNotFoundError(f"--images {arguments.images}: this folder or zip does not exist")
    if arguments.caption_template and arguments.source != "imagefolder":
        raise ValueError("--caption-template: only the classes of an imagefolder have names; leave it out")
    out, paths = os.path.abspath(arguments.out), located(arguments.source, arguments.paths)
    options = _options(arguments)
    check_beside(out, (*paths, options.images))
    joined_captions.check_options(options)
    joined_by, always = options.joined_by, ("key",) if arguments.source.startswith("tfds") else columns.MATCHED_BY
    if joined_by and joined_by not in always and arguments.source not in WITH_FIELDS:
        raise ValueError(
            f"--captions-key {joined_by}: {arguments.source} has only {', '.join(always)}, fields are of "
            f"{', '.join(WITH_FIELDS)}"
        )
    request = Request(arguments.source, paths, out, arguments.split, "", options)
    return dataclasses.replace(request, dataset=arguments.dataset or source.dataset(request))


def check_beside(out: str, paths: Iterable[str]) -> None:
    """Raises ValueError if the output is one of the source's folders or in it, where a next run would read it.

    The folder of a table may hold the output: of its files only the images that the table lists are read.
    """
    real = os.path.realpath(out)
    for path in filter(os.path.isdir, paths):
        if os.path.commonpath([real, os.path.realpath(path)]) == os.path.realpath(path):
            raise ValueError(f"--out {out} is in the source {path}; choose another --out, such as {path}-records")


def check_places(kind: str, paths: Iterable[str], images: str) -> None:
    """Raises ValueError, with a way out, for URLs of a source that is not read from other machines."""
    if not (remote := next(filter(is_remote, paths), "")):
        return
    if kind not in WITH_FIELDS:
        check_local(remote)
    if kind in TEXT_TABLES and not images:
        raise ValueError(
            f"{remote}: {kind} names its images by their paths, and images are read from local or mounted folders; "
            "give --images DIR_OR_FILE"
        )


def check_local(path: str) -> None:
    """Raises ValueError, with a way out, for gs://, s3:// and other remote paths."""
    if is_remote(path):
        raise ValueError(
            f"{path}: a local or mounted folder is required; mount the bucket (gcsfuse, mount-s3), or copy (gcloud "
            f"storage rsync -r, aws s3 sync).  Only the sources {', '.join(WITH_FIELDS)}, and --captions, may "
            "be URLs; training reads finished shards from gs://"
        )


def _options(arguments: argparse.Namespace) -> Options:
    # A restart may run in another working directory
    images = os.path.abspath(arguments.images) if arguments.images else ""
    ids = tuple(map(os.path.abspath, arguments.ids))
    texts = {"caption_columns": tuple(arguments.caption_column), "caption_templates": tuple(arguments.caption_template)}
    named = {"images": images, "ids": ids, "captions": located("", arguments.captions), **texts}
    clean = arguments.clean or source_of(arguments.source).clean
    others = {field.name for field in dataclasses.fields(Options)} - {*named, "clean"}
    return Options(**named, clean=clean, **{name: getattr(arguments, name) for name in others})


def _convert(
    request: Request, arguments: argparse.Namespace, beam_options: Sequence[str], console: Console
) -> dict[str, Any]:
    """Plans or resumes the job, converts its shards and finishes it; returns the description of the split."""
    with local_engine.planning(request, console):
        job = begin(request, arguments.shards)
    if request.options.captions:
        _index_captions(job, arguments.captions_min_matched, console)
    if arguments.engine == "beam":
        from detailclip_jax.convert import beam_engine

        beam_engine.run(job, beam_options)
    else:
        local_engine.run(job, arguments.workers, console)
    return finish(job, arguments.captions_min_matched)


def _index_captions(job: Job, min_matched: float, console: Console) -> None:
    """Builds the index of captions, and ends a run whose keys seem to be wrong before it converts an image."""
    start = time.monotonic()
    show = local_engine.at_times(console)
    joined_captions.write_index(
        job.request, lambda num: show(f"captions {num:,} rows | {duration(time.monotonic() - start)}")
    )
    console.end_live()
    if len(shards.unconverted(job)) == job.num_shards:
        counts = joined_captions.total(job.request, shards.sampled(job))
        if not counts["matched"]:
            number = counted(min(shards.SAMPLED_SHARDS, len(job.shards)), "shard")
            some = f"that were looked at first (in {number}, up to {shards.SAMPLED} each)"
            joined_captions.check(job.request, counts, min_matched, some)


def _warnings(request: Request, part: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is probably wrong with a finished split, and the way out."""
    if hint := _hint(request, part["rejected"]):
        yield f"{counted(part['rejected'][MISSING], 'image')} not found{hint}"
    if num_damaged := part["rejected"].get(UNREADABLE):
        yield f"damage in {counted(num_damaged, 'input shard')}; the examples after the damage are missing"
    if request.options.joined_by == "file":
        joined = part["joined"]
        num_rows = joined["rows"] - sum(joined[name] for name in ("doubled", "unusable", "unused"))
        if joined["matched"] > num_rows:
            yield SHARED.format(num_images=joined["matched"], rows=counted(num_rows, "row"))
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
    command = _folder_parser("to-tfds", "Copies the set to detailclip_image_text/NAME, for tfds.data_source.")
    command.add_argument(
        "--name", required=True, metavar="NAME", help="name of the config of the builder: letters, digits and _"
    )
    command.add_argument("--data-dir", metavar="DIR", help="folder of TensorFlow Datasets (default: its own)")
    arguments = command.parse_args(argv)
    Console().say(f"written to {to_tfds.write(arguments.folder, arguments.name, arguments.data_dir)}")
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
