"""The argument parser of every command but `main`, whose flags are those of absl and of the config's fields.

Flags are spelled `--batch-size`, in full.  An unknown flag or name is answered with the nearest known one, invalid
usage with one message and exit code 2.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from detailclip_jax.runtime.errors import USAGE_ERROR, Meant, near, unknown
from detailclip_jax.runtime.files import with_home
from detailclip_jax.runtime.terminal import complain

MODEL = "DIR_OR_NAME"
A_MODEL = "workdir of a run, a file of weights, or a name such as hf://OWNER/NAME or timm:NAME.TAG"
EITHER = "DIR_OR_FILE"  # the value of a flag that takes a folder or a file; other flags take DIR or FILE
RENAMED = {"--workdir": "--checkpoint", "--texts": "--text"}  # old spellings, refused by commands that have the new one
WEIGHTS = ("ema", "student")
NUMBER = re.compile(r"-\d*\.?\d+(e[+-]?\d+)?")  # a negative value, which is not a flag


def prog(module: str) -> str:
    """Returns the command line of a module, which usage, examples and messages show."""
    return f"python -m detailclip_jax.{module}"


class Parser(argparse.ArgumentParser):
    """An argparse parser whose --help keeps the lines of the description, and whose errors are one message.

    `arguments` are all that `add_argument` has added, with --help; `has_commands` says whether it has subcommands.
    """

    def __init__(self, *args: Any, **options: Any):
        self.arguments: list[argparse.Action] = []
        self.has_commands = False
        options = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False} | options
        super().__init__(*args, **options)

    def add_argument(self, *args: Any, **options: Any) -> argparse.Action:
        """Adds an argument as argparse does, and remembers it."""
        self.arguments.append(super().add_argument(*args, **options))
        return self.arguments[-1]

    def add_subparsers(self, **options: Any) -> Any:
        """Adds subcommands as argparse does, and remembers it."""
        self.has_commands = True
        return super().add_subparsers(**options)

    def error(self, message: str) -> NoReturn:
        """Prints the message and exits with code 2."""
        complain(f"error: {message} ({self.prog} --help lists the flags)")
        sys.exit(USAGE_ERROR)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses as argparse does, with home folders in full, after a look for unknown flags: these are often misspelt.

        All other ways to parse come here, and so does a subcommand.
        """
        arguments = [with_home(argument) for argument in (sys.argv[1:] if args is None else args)]
        known = {flag for argument in self.arguments for flag in argument.option_strings}
        for argument in [] if self.has_commands else arguments:  # a parser of subcommands leaves it to them
            name = argument.partition("=")[0]
            if argument == "--":
                break
            if not name.startswith("-") or name == "-" or " " in name or name in known or NUMBER.fullmatch(argument):
                continue
            if RENAMED.get(name) in known:
                self.error(f"{name} is {RENAMED[name]} here")
            flags = [flag for flag in known if flag.startswith("--")]
            self.error(f"unknown flag {name}{near(name.replace('_', '-').lower(), flags, cutoff=0.6)}")
        return super().parse_known_args(arguments, namespace)


def parser(module: str, description: str | None, **options: Any) -> Parser:
    """Returns an empty parser of the command in `detailclip_jax.MODULE`."""
    return Parser(prog(module), description=description, **options)


class _WithoutEffect(argparse.Action):
    """A flag of earlier versions: accepted, with a warning."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        complain(f"*** WARNING: {option_string} has no effect any more: links are followed; leave it out")


def add_follow_links(to: Parser) -> None:
    """Adds --follow-links, which versions before 0.2 had; it goes with 0.4."""
    to.add_argument("--follow-links", nargs=0, action=_WithoutEffect, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def one_of(kind: str, names: Iterable[str], meant: Meant | None = None) -> Callable[[str], str]:
    """Returns the `type` of a flag that takes one of these names.

    An unknown name is answered with what is `meant` by it (see `errors.near`), else with the nearest name.
    """
    names = tuple(names)

    def checked(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(unknown(kind, text, names, meant))
        return text

    return checked


def positive(text: str) -> int:
    """Parses a whole number of at least 1, as the `type` of a flag."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def add_checkpoint(to: Parser) -> None:
    """Adds --checkpoint and --step."""
    to.add_argument("--checkpoint", required=True, metavar=MODEL, help=A_MODEL)
    to.add_argument("--step", type=int, metavar="N", help="step of the checkpoint (default: the last)")


def add_weights(to: Parser) -> None:
    """Adds --weights, for commands that use one of the two."""
    text = "student or ema, the teacher's moving average (default: the method's, mostly ema)"
    to.add_argument("--weights", type=one_of("weights", WEIGHTS), metavar="NAME", help=text)


def add_image_size(to: Parser) -> None:
    """Adds --image-size and --interpolation; None without them."""
    to.add_argument(
        "--image-size", type=positive, metavar="PIXELS", help="interpolate the positions to this image size"
    )
    how = "of positions, now and later: bicubic, ibot, timm, bilinear or tips (default: as the model's code does)"
    to.add_argument("--interpolation", metavar="NAME", help=how)


def add_preprocessing(to: Parser, default: str = "as the model's config says") -> None:
    """Adds flags that override the preprocessing of evaluation, see `preprocessing_of`; `default` is for --help."""
    add = to.add_argument
    add("--resize-filter", metavar="NAME", help=f"filter that resizes images: bicubic or bilinear (default: {default})")
    what = "shorter_side, squash (both sides, without keeping the shape), or native (the whole image, in its own shape)"
    add("--resize", metavar="NAME", help=f"{what} (default: {default})")
    most = "patches of an image that is resized native, at most"
    add("--max-patches", type=positive, metavar="N", help=f"{most} (default: {default})")
    text = "side of the center crop over the resized side, such as .875 for 224 of 256"
    add("--crop-ratio", type=float, metavar="R", help=f"{text} (default: {default})")
    rule = "upright (by EXIF, alpha over white) or pillow (its convert('RGB'), which open_clip and timm take)"
    add("--decoding", metavar="NAME", help=f"{rule} (default: {default})")


def preprocessing_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the values of those flags by field of `config.preprocess`; None for a flag that is absent."""
    same = {name: name for name in ("resize", "max_patches", "crop_ratio", "decoding")}
    return {field: getattr(arguments, flag) for field, flag in {"filter": "resize_filter", **same}.items()}
