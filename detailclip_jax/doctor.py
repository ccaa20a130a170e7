"""What this machine, this install and this data can do; and whether a run can be launched.

    python -m detailclip_jax.doctor                                  # versions, devices, extras, disk
    python -m detailclip_jax.doctor --data --data-dir=/data          # which evaluation sets are ready
    python -m detailclip_jax.doctor --launch --config=... [flags]    # before a long run, with the flags of `main`

--launch is given to every process of a run, as `main` will be (launch/* do that): devices per process, addresses
reachable, batch divides, data readable, memory, workdir writable from all.
"""

import argparse
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from packaging.requirements import Requirement

from detailclip_jax.runtime.cores import usable_cores

FOR = {
    "demo": "configs/stickers.py and figures",
    "torch": "import_torch and export, but for .safetensors",
    "data": "data sets through TensorFlow Datasets",
    "dev": "the tests",
}
NONE = "NONE that jax can use:"
MIN_FREE = 10 * 2**30  # bytes; a ViT-B/16 checkpoint has 2.4 GiB, and the last two and the best are kept


def parser() -> argparse.ArgumentParser:
    """The command's arguments; those of `main` may follow --launch."""
    arguments = argparse.ArgumentParser(
        "detailclip_jax.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    arguments.add_argument("--launch", action="store_true", help="check a run before it is launched")
    arguments.add_argument("--data", action="store_true", help="check the evaluation sets")
    arguments.add_argument("--data-dir", "--data_dir", default="data", metavar="DIR", help="where they lie")
    return arguments


def machine() -> Iterator[tuple[str, str]]:
    """(what, how it stands) of this machine."""
    import jax

    from detailclip_jax.runtime import provenance

    found = provenance.versions()
    yield "versions", ", ".join(f"{name} {version}" for name, version in found.items())
    yield "code", f"git {provenance.git_revision()}"
    yield "devices", _usable(jax.local_devices)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield "host", f"{usable_cores()} cores, {memory / 2**30:.0f} GiB of memory"
    yield "disk", disk(shutil.disk_usage(".").free)


def _usable(find: Callable[[], Sequence[Any]]) -> str:
    """The devices that jax finds, or why it finds none."""
    try:
        return devices(find(), shutil.which("nvidia-smi") is not None)
    except (RuntimeError, AssertionError) as error:  # the second where jax passes over all that it was asked for
        reason = str(error).splitlines()[0] if str(error) else "none of the platforms that it was asked for is here"
        return f"{NONE} {reason} (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')})"


def devices(found: Sequence[Any], has_driver: bool) -> str:
    """What jax computes on, and whether it misses a card."""
    statistics = found[0].memory_stats() or {}
    memory = f", {statistics['bytes_limit'] / 2**30:.0f} GiB each" if "bytes_limit" in statistics else ""
    text = f"{len(found)} x {found[0].device_kind}{memory}"
    if found[0].platform != "cpu":
        return text
    if has_driver:
        return f'{text}: there is an NVIDIA driver, but this jax only sees the CPU; pip install -U "jax[cuda13]"'
    return f"{text}: enough for configs/stickers.py, not for ViT-B/16"


def disk(free: int) -> str:
    """Free bytes here."""
    few = "" if free >= MIN_FREE else "; little for checkpoints of ViT-B/16, 2.4 GiB each"
    return f"{free / 2**30:.0f} GiB free in {os.getcwd()}{few}"


def requirements(package: str = "detailclip_jax") -> dict[str, list[str]]:
    """What is missing or of another version, by extra ("" for what is always needed).

    Raises PackageNotFoundError where the package was not installed by pip.
    """
    wanted = [Requirement(text) for text in importlib.metadata.requires(package) or []]
    extras = importlib.metadata.metadata(package).get_all("Provides-Extra") or []
    always = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    by_extra = {name: [r for r in wanted if r.marker and r.marker.evaluate({"extra": name})] for name in extras}
    return {"": _missing(always)} | {name: _missing(set(by_extra[name]) - set(always)) for name in extras}


def _missing(wanted: Any) -> list[str]:
    return sorted(problem for r in wanted if (problem := _problem(r)))


def _problem(requirement: Requirement) -> str:
    """ "torch", "jax 0.9 (needs >=0.10.2)", or nothing."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return requirement.name
    fits = requirement.specifier.contains(version, prereleases=True)
    return "" if fits else f"{requirement.name} {version} (needs {requirement.specifier})"


def report() -> int:
    """Prints the machine and the install; 1 without a device or a package that is always needed."""
    usable = True
    for name, text in machine():
        print(f"{name:<10} {text}")
        usable = usable and not text.startswith(NONE)
    try:
        missing = requirements()
    except importlib.metadata.PackageNotFoundError:
        print("packages   unknown: the code was not installed by pip (pip install -e .)")
        return 0 if usable else 1
    print(f"{'packages':<10} {'all there' if not missing[''] else 'MISSING: ' + ', '.join(missing[''])}")
    for extra, lacks in missing.items():
        if extra:
            way = f"without {', '.join(lacks)}: pip install -e '.[{extra}]'" if lacks else "ready"
            print(f"{'[' + extra + ']':<10} {FOR.get(extra, 'optional')}: {way}")
    return 1 if missing[""] or not usable else 0


def check_data(data_dir: str) -> int:
    """Prints the evaluation sets; 0 if at least one is ready."""
    from detailclip_jax.data import labelled
    from detailclip_jax.runtime.terminal import LINES, printable

    sets = labelled.ready(data_dir)
    for name, ready, found, expected, how in sets:
        note = printable(how, LINES)
        print(f"{'ready  ' if ready else 'missing'} {name:<20} {found or 0:>8,} of {expected or 0:>8,}  {note}")
    number = sum(entry[1] for entry in sets)
    print(f"{number} of {len(sets)} sets are ready in {data_dir}")
    return 0 if number else 1


def check_launch(flags_of_main: Sequence[str]) -> NoReturn:
    """The preflight of this process, which ends with its exit code."""
    from absl import app

    from detailclip_jax import main as training

    sys.argv[1:] = flags_of_main
    app.run(training.preflight, flags_parser=training.parse_flags)


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 if all is well, 1 if something is missing, 2 for a mistake in the flags."""
    arguments, others = parser().parse_known_args(argv)
    if arguments.launch:
        check_launch(others)
    if others:
        parser().error(f"unrecognized arguments: {' '.join(others)}")
    return check_data(arguments.data_dir) if arguments.data else report()


if __name__ == "__main__":
    sys.exit(main())
