"""Command-line arguments of `prepare`."""

import argparse
import dataclasses
import os

from detailclip_jax.data.prepare import columns
from detailclip_jax.data.prepare.cleaning import CLEANING
from detailclip_jax.data.prepare.image_checks import CHECKS
from detailclip_jax.data.prepare.job import Options, Request
from detailclip_jax.data.prepare.known import KNOWN
from detailclip_jax.data.prepare.sources import SOURCES, source_of
from detailclip_jax.runtime.cores import usable_cores

ENGINES = ("local", "beam")
WIDTH = max(map(len, SOURCES)) + 2
TABLE = "\n".join(f"  {name:{WIDTH}}{source.what}" for name, source in SOURCES.items())


def parser(description: str) -> argparse.ArgumentParser:
    """Returns the parser of `prepare SOURCE PATH ... --out DIR`."""
    made = argparse.ArgumentParser(
        "detailclip_jax.prepare",
        description=description,
        epilog=f"sources:\n{TABLE}\n\nknown sets: {', '.join(KNOWN)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("source", metavar="SOURCE", help="one of those below")
    made.add_argument("paths", metavar="PATH", nargs="*", help="files, folders or patterns of the source")
    _add_output(made)
    _add_tables(made)
    _add_examples(made)
    _add_engine(made)
    return made


def _add_output(made: argparse.ArgumentParser) -> None:
    add = made.add_argument
    add("--out", required=True, metavar="DIR", help="folder of the shards; twice their size must fit meanwhile")
    add("--split", default="train", metavar="NAME", help="shards are called NAME-00000.arrayrecord (default: train)")
    add("--shards", type=_count, default=0, metavar="N", help="how many (default: as many as the source has)")
    add("--dataset", default="", metavar="SET", help="which known set it is, to compare counts with at the end")


def _add_tables(made: argparse.ArgumentParser) -> None:
    add = made.add_argument
    add("--images", default="", metavar="ROOT", help="folder or zip that holds all images a table names")
    add("--follow-links", action="store_true", help="links among the images may lead out of their folder")
    add("--ids", action="append", default=[], metavar="LIST", help="YFCC100M: keep what every LIST has; repeatable")
    add("--subset", default="", metavar="NAME", help="split of a Karpathy file or tfds set (default: --split)")
    tables = "of csv, tsv, jsonl, parquet"
    first = "default: the first that is there of"
    add(
        "--image-column",
        default="",
        metavar="NAME",
        help=f"{tables}: path or bytes ({first} {', '.join(columns.IMAGE)})",
    )
    captions = f"{' and '.join(columns.PAIR)}, else the first of {', '.join(columns.CAPTION)}"
    help = f"{tables}, and json members of tars: repeatable, kept under their names (default: {captions})"
    add("--caption-column", action="append", default=[], metavar="NAME", help=help)
    key = f"{first} {', '.join(columns.KEY)}, else file and line"
    add("--key-column", default="", metavar="NAME", help=f"{tables}: a name for each example ({key})")
    label = f"{first} {', '.join(columns.LABEL)}, else none"
    add("--label-column", default="", metavar="NAME", help=f"{tables}: a whole number ({label})")


def _add_examples(made: argparse.ArgumentParser) -> None:
    add = made.add_argument
    add("--clean", choices=tuple(CLEANING), help="captions: slip decodes escapes, drops tags and URLs (YFCC: slip)")
    add("--check", choices=CHECKS, default="decode", help="decode every pixel (default), or believe the header")
    add("--max-side", type=_count, default=0, metavar="PIXELS", help="make images with a longer side smaller")
    add("--require-caption", action="store_true", help="reject examples without any caption")
    add("--context-length", type=_count, default=77, metavar="T", help="longer captions count as truncated (77)")
    add("--limit", type=_count, default=0, metavar="N", help="only the first N examples of the source")


def _add_engine(made: argparse.ArgumentParser) -> None:
    add = made.add_argument
    add("--workers", type=_count, default=usable_cores(), metavar="N", help="processes (default: all cores)")
    add("--engine", choices=ENGINES, default="local", help="beam: on Apache Beam, whose options follow behind --")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def request_of(arguments: argparse.Namespace) -> Request:
    """Returns the request of parsed arguments; raises ValueError for unknown names and missing arguments."""
    source = source_of(arguments.source)
    if source.images and not arguments.images:
        raise ValueError(f"{arguments.source} needs --images ROOT: where its images are")
    if not arguments.paths and ":" not in arguments.source:
        raise ValueError(f"{arguments.source} needs a PATH: {source.what}")
    if arguments.dataset and arguments.dataset not in KNOWN:
        raise ValueError(f"unknown --dataset {arguments.dataset}; known: {', '.join(KNOWN)}")
    for path in (arguments.out, *([] if arguments.source.startswith("tfds") else arguments.paths)):
        check_local(path)
    if arguments.images and not os.path.exists(arguments.images):
        raise FileNotFoundError(f"--images {arguments.images}: there is no such folder or zip")
    out, paths = os.path.abspath(arguments.out), tuple(arguments.paths)
    request = Request(arguments.source, paths, out, arguments.split, "", _options(arguments))
    return dataclasses.replace(request, dataset=arguments.dataset or source.dataset(request))


def check_local(path: str) -> None:
    """Raises ValueError, with a way out, for gs://, s3:// and other remote paths."""
    if "://" in path:
        raise ValueError(
            f"{path}: prepare reads and writes local or mounted folders; mount the bucket (gcsfuse, mount-s3), or copy "
            "(gcloud storage rsync -r, aws s3 sync): finished shards may lie in gs:// for training"
        )


def _options(arguments: argparse.Namespace) -> Options:
    # A restart may run in another working directory
    images = os.path.abspath(arguments.images) if arguments.images else ""
    named = {"images": images, "caption_columns": tuple(arguments.caption_column), "ids": tuple(arguments.ids)}
    clean = arguments.clean or source_of(arguments.source).clean
    others = {field.name for field in dataclasses.fields(Options)} - {*named, "clean"}
    return Options(**named, clean=clean, **{name: getattr(arguments, name) for name in others})
