"""Checks this machine, the installation and the data; and whether a run can be launched.

    python -m detailclip_jax.doctor                                  # versions, devices, extras, disk
    python -m detailclip_jax.doctor --data --data-dir=/data          # which evaluation sets are ready
    python -m detailclip_jax.doctor --for=a100x8 --config=configs/vitb16_yfcc.py    # whether the step fits such devices
    python -m detailclip_jax.doctor --launch=main --config=... [flags]    # before a long run, with its flags

Run --launch=main in every process of a run, as you will run `main`, and --launch=transfer for `transfer` (the scripts
in launch/ do that).  It checks that this command runs the config, the devices per process, the connection between
processes, that the batch divides, that the data can be read, the memory, and that all processes can write to the
workdir.
"""

from detailclip_jax.runtime import start

if __name__ == "__main__":
    start.begin()  # before the other imports

import argparse
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from packaging.requirements import Requirement

from detailclip_jax.runtime import errors
from detailclip_jax.runtime import parser as flags
from detailclip_jax.runtime.devices import usable_cores
from detailclip_jax.runtime.terminal import LINES, counted, printable

FOR = {
    "beam": "prepare --engine=beam",
    "demo": "configs/stickers.py and figures",
    "torch": "import_torch and export, but for .safetensors",
    "data": "data sets through TensorFlow Datasets, and parquet files",
    "detection": "COCO's scores of boxes and masks",
    "hub": "models by name, such as hf://OWNER/NAME",
    "wandb": "logging to Weights & Biases",
    "docs": "building the pages",
    "targets": "benchmark step --for: the compilers of GPUs and TPUs",
    "dev": "the tests",
}
LAUNCH = "--launch"
NONE = "NONE that jax can use:"
CHECKPOINT = 2.4  # GiB of a ViT-B/16 checkpoint
NUM_CHECKPOINTS = 4  # on the disk at once: the last two, the best, and one that is being written


def parser() -> argparse.ArgumentParser:
    """Returns the argument parser."""
    command = flags.parser("doctor", __doc__)
    add = command.add_argument
    launch = "check a run of main or of transfer before it is launched (default: of the one that runs the config)"
    add(LAUNCH, nargs="?", const="", metavar="COMMAND", help=f"{launch}; takes the flags of the run")
    add("--for", dest="target", metavar="DEVICES", help="check whether a config's step fits devices such as v5e:4x4")
    add("--config", metavar="FILE", help="the config of --for (default: the paper's run)")
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the config of --for; repeatable")
    add("--data", action="store_true", help="check which evaluation sets are ready")
    add("--data-dir", metavar="DIR", help="folder of the evaluation sets of --data (default: data)")
    return command


def report() -> int:
    """Prints the machine and the installation; returns 1 if a device or a required package is missing, else 0."""
    usable = True
    for name, text in description():
        print(f"{name:<10} {text}")
        usable = usable and not text.startswith(NONE)
    try:
        missing = requirements()
    except importlib.metadata.PackageNotFoundError:
        print("packages   unknown: detailclip_jax was not installed by pip (in a checkout: pip install -e .)")
        return 0 if usable else 1
    required = f"MISSING: {', '.join(missing[''])}" if missing[""] else "all required ones are installed"
    print(f"packages   {required}")
    for extra, lacks in missing.items():
        if extra:
            way = f"not installed: {', '.join(lacks)} (pip install 'detailclip_jax[{extra}]')" if lacks else "ready"
            print(f"{'[' + extra + ']':<10} optional, for {FOR.get(extra, extra)}: {way}")
    return 1 if missing[""] or not usable else 0


def description() -> Iterator[tuple[str, str]]:
    """Yields (name, description) of versions, code, devices, host and disk."""
    import jax

    from detailclip_jax.runtime import provenance

    yield "versions", ", ".join(f"{name} {version}" for name, version in provenance.versions().items())
    yield "code", f"git {provenance.git_revision()}"
    try:
        yield "devices", devices(jax.local_devices(), shutil.which("nvidia-smi") is not None)
    except (RuntimeError, AssertionError) as error:  # AssertionError: jax has none of the requested platforms
        reason = str(error).splitlines()[0] if str(error) else "none of the platforms that it was asked for is here"
        yield "devices", f"{NONE} {reason} (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')})"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield "host", f"{counted(usable_cores(), 'core')}, {memory / 2**30:.0f} GiB of memory"
    yield "disk", disk(shutil.disk_usage(".").free)
    yield "programs", programs(os.environ.get(start.CACHE))


def devices(used: Sequence[Any], has_driver: bool) -> str:
    """Describes the devices that jax uses, and whether it does not see an installed NVIDIA GPU."""
    statistics = used[0].memory_stats() or {}
    memory = f", {statistics['bytes_limit'] / 2**30:.0f} GiB each" if "bytes_limit" in statistics else ""
    text = f"{len(used)} x {used[0].device_kind}{memory}"
    if used[0].platform != "cpu":
        return text
    if has_driver:
        return f'{text}: there is an NVIDIA driver, but this jax only sees the CPU; pip install -U "jax[cuda12]"'
    return f"{text}: enough for configs/stickers.py, not for ViT-B/16"


def disk(free: int) -> str:
    """Describes the free disk space of the current folder; `free` is in bytes."""
    needed = NUM_CHECKPOINTS * CHECKPOINT
    few = f"; a run of ViT-B/16 takes {needed:.1f} GiB for {NUM_CHECKPOINTS} checkpoints"
    return f"{free / 2**30:.1f} GiB free in {os.getcwd()}{few if free < needed * 2**30 else ''}"


def programs(folder: str | None) -> str:
    """Describes the folder where compiled programs are kept between commands."""
    if not folder:
        return f"compiled anew by each command: {start.CACHE} names no folder"
    sizes = [path.stat().st_size for path in Path(folder).glob("*") if path.is_file()]
    return f"{counted(len(sizes), 'compiled program')}, {sum(sizes) / 2**20:,.0f} MiB, in {folder} (can be deleted)"


def requirements(package: str = "detailclip_jax") -> dict[str, list[str]]:
    """Returns extra -> packages that are missing or have another version ("" for the packages that are always needed).

    Raises PackageNotFoundError if the package was not installed by pip.
    """
    wanted = [Requirement(text) for text in importlib.metadata.requires(package) or []]
    extras = importlib.metadata.metadata(package).get_all("Provides-Extra") or []
    always = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    by_extra = {name: [r for r in wanted if r.marker and r.marker.evaluate({"extra": name})] for name in extras}
    return {"": _missing(always)} | {name: _missing(set(by_extra[name]) - set(always)) for name in extras}


def _missing(wanted: Iterable[Requirement]) -> list[str]:
    return sorted({problem for r in wanted for each in (r, *_of_extras(r)) if (problem := _problem(each))})


def _of_extras(requirement: Requirement) -> list[Requirement]:
    """Returns what the extras of an installed package need: the plugins for "cuda12" of "jax[cuda12]"."""
    try:
        needs = [Requirement(text) for text in importlib.metadata.requires(requirement.name) or []]
    except importlib.metadata.PackageNotFoundError:
        return []
    extras = [{"extra": name} for name in requirement.extras]
    return [r for r in needs if (m := r.marker) and not m.evaluate({"extra": ""}) and any(map(m.evaluate, extras))]


def _problem(requirement: Requirement) -> str:
    """Describes an unmet requirement: "torch" or "jax 0.9 (needs >=0.10.2)"; "" if it is met."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return requirement.name
    fits = requirement.specifier.contains(version, prereleases=True)
    return "" if fits else f"{requirement.name} {version} (needs {requirement.specifier})"


def check_data(data_dir: str) -> int:
    """Prints the evaluation sets; returns 0 if at least one is ready, else 1."""
    from detailclip_jax.data import labelled

    sets = labelled.ready(data_dir) + labelled.ready_choices(data_dir)
    for name, ready, count, expected, how in sets:
        note = printable(how, LINES)
        print(f"{'ready  ' if ready else 'missing'} {name:<20} {count or 0:>8,} of {expected or 0:>8,}  {note}")
    number = sum(entry[1] for entry in sets)
    print(f"{number} of {len(sets)} sets are ready in {printable(data_dir)}")
    return 0 if number else 1


def check_fit(target: str, config: str | None, fields: Sequence[str]) -> int:
    """Compiles a config's step for devices that are not here and says whether it fits; returns 0 if so, else 1.

    All steps of the run have to, see `planned.plan_of_run`.
    """
    from detailclip_jax.benchmarks import planned, targets
    from detailclip_jax.config.settings import parse_setting
    from detailclip_jax.pretraining import LESS_MEMORY
    from detailclip_jax.runtime.progress import Console

    request = {"spec": config, "settings": dict(map(parse_setting, fields)), "name": config or "the paper's run"}
    records = planned.plan_of_run(targets.find(target), request, Console(stream=sys.stderr))
    for record in records:
        print(planned.verdict(record))
    fits = all(record["fits"] for record in records)
    if not fits:
        print(f"to need less: {LESS_MEMORY}")
    return 0 if fits else 1


def check_launch(words: Sequence[str]) -> NoReturn:
    """Runs the preflight checks of --launch and the flags of a run in this process, and exits with their exit code.

    The last --launch=COMMAND or --launch COMMAND names the command; --launch alone leaves it to the config.
    """
    from absl import app

    from detailclip_jax import main as training

    command, rest, words = None, [], list(words)
    while words:
        flag, *words = words
        if not is_launch(flag):
            rest.append(flag)
        elif "=" in flag:
            command = flag.partition("=")[2]
        else:
            command = words.pop(0) if words and not words[0].startswith("-") else None
    sys.argv[1:] = rest
    app.run(lambda argv: training.preflight(argv, command=command), flags_parser=training.parse_flags)


def is_launch(flag: str) -> bool:
    """Whether a flag is --launch or --launch=COMMAND."""
    return flag.partition("=")[0] == LAUNCH


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 if nothing is missing, 1 if something is missing, 2 for invalid usage."""
    words = list(sys.argv[1:] if argv is None else argv)
    if any(map(is_launch, words)) and not {"-h", "--help"} & {*words}:
        check_launch(words)
    return errors.run(lambda: _report(parser().parse_args(words)))


def _report(arguments: argparse.Namespace) -> int:
    if arguments.data_dir and not arguments.data:
        raise ValueError(f"--data-dir={arguments.data_dir} is the folder that --data checks; add --data")
    if (arguments.config or arguments.set) and not arguments.target:
        raise ValueError(
            "--config and --set are the config that --for checks; add --for=DEVICES, or --launch for a run"
        )
    if arguments.target:
        return check_fit(arguments.target, arguments.config, arguments.set)
    return check_data(arguments.data_dir or "data") if arguments.data else report()


if __name__ == "__main__":
    sys.exit(main())
