"""Command-line arguments of `prepare`."""

import argparse
import dataclasses
import os
from collections.abc import Iterable

from detailclip_jax.convert import columns
from detailclip_jax.convert.cleaning import CLEANING
from detailclip_jax.convert.image_checks import CHECKS
from detailclip_jax.convert.job import Options, Request, located
from detailclip_jax.convert.known_sizes import KNOWN
from detailclip_jax.convert.readers import SOURCES, source_of
from detailclip_jax.runtime import parser as flags
from detailclip_jax.runtime.devices import usable_cores
from detailclip_jax.runtime.files import check_no_file
from detailclip_jax.runtime.terminal import printable

ENGINES = ("local", "beam")
WIDTH = max(map(len, SOURCES)) + 2
TABLE = "\n".join(f"  {name:{WIDTH}}{source.what}" for name, source in SOURCES.items())


def parser(description: str) -> flags.Parser:
    """Returns the parser of `prepare SOURCE PATH ... --out DIR`."""
    epilog = f"sources:\n{TABLE}\n\nknown sets: {', '.join(KNOWN)}"
    command = flags.parser("prepare", description, epilog=epilog)
    command.add_argument("source", metavar="SOURCE", help="one of the sources below")
    command.add_argument("paths", metavar="PATH", nargs="*", help="files, folders or patterns of the source")
    _add_output(command)
    _add_tables(command)
    _add_examples(command)
    _add_engine(command)
    return command


def _add_output(command: flags.Parser) -> None:
    add = command.add_argument
    add("--out", required=True, metavar="DIR", help="folder of the shards")
    split = "shards are named NAME-00000.arrayrecord (default: train)"
    add("--split", type=split_name, default="train", metavar="NAME", help=split)
    shards = "number of shards, at most as many as the source has (default: these, at most 1024)"
    add("--shards", type=flags.positive, default=0, metavar="N", help=shards)
    known = flags.one_of("known set", KNOWN)
    add("--dataset", type=known, metavar="SET", help="known set, whose counts are compared at the end")


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
    add("--images", default="", metavar="ROOT", help="folder or zip of the images that a table names")
    add("--follow-links", action="store_true", help=flags.FOLLOW_LINKS)
    add(
        "--ids",
        action="append",
        default=[],
        metavar="LIST",
        help="YFCC100M: keep the photos that are in every LIST; may be repeated",
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


def _add_engine(command: flags.Parser) -> None:
    add = command.add_argument
    add("--workers", type=flags.positive, default=usable_cores(), metavar="N", help="processes (default: all cores)")
    add("--engine", choices=ENGINES, default="local", help="beam: run on Apache Beam, whose options follow after --")


def request_of(arguments: argparse.Namespace) -> Request:
    """Returns the request of parsed arguments; raises ValueError for unknown names and missing arguments."""
    source = source_of(arguments.source)
    if source.images and not arguments.images:
        raise ValueError(f"{arguments.source} needs --images ROOT, the folder or zip of its images")
    if not arguments.paths and ":" not in arguments.source:
        raise ValueError(f"{arguments.source} needs a PATH: {source.what}")
    for path in (arguments.out, *([] if arguments.source.startswith("tfds") else arguments.paths)):
        check_local(path)
    check_no_file(arguments.out)
    if arguments.images and not os.path.exists(arguments.images):
        raise FileNotFoundError(f"--images {arguments.images}: this folder or zip does not exist")
    if arguments.caption_template and arguments.source != "imagefolder":
        raise ValueError("--caption-template: only the classes of an imagefolder have names; leave it out")
    out, paths = os.path.abspath(arguments.out), located(arguments.source, arguments.paths)
    check_beside(out, paths)
    request = Request(arguments.source, paths, out, arguments.split, "", _options(arguments))
    return dataclasses.replace(request, dataset=arguments.dataset or source.dataset(request))


def check_beside(out: str, paths: Iterable[str]) -> None:
    """Raises ValueError if the output is one of the source's folders or in it, where the next run would read it."""
    real = os.path.realpath(out)
    for path in filter(os.path.isdir, paths):
        if os.path.commonpath([real, os.path.realpath(path)]) == os.path.realpath(path):
            raise ValueError(f"--out {out} is in the source {path}; choose another --out, such as {path}-records")


def check_local(path: str) -> None:
    """Raises ValueError, with a way out, for gs://, s3:// and other remote paths."""
    if "://" in path:
        raise ValueError(
            f"{path}: prepare reads and writes local or mounted folders; mount the bucket (gcsfuse, mount-s3), or copy "
            "(gcloud storage rsync -r, aws s3 sync): training can read finished shards from gs://"
        )


def _options(arguments: argparse.Namespace) -> Options:
    # A restart may run in another working directory
    images = os.path.abspath(arguments.images) if arguments.images else ""
    ids = tuple(map(os.path.abspath, arguments.ids))
    texts = {"caption_columns": tuple(arguments.caption_column), "caption_templates": tuple(arguments.caption_template)}
    named = {"images": images, "ids": ids, **texts}
    clean = arguments.clean or source_of(arguments.source).clean
    others = {field.name for field in dataclasses.fields(Options)} - {*named, "clean"}
    return Options(**named, clean=clean, **{name: getattr(arguments, name) for name in others})
