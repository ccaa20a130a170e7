"""What this machine and this installation have, as `doctor` shows it: versions, devices, memory, disk and packages."""

import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from detailclip_jax.runtime import start
from detailclip_jax.runtime.devices import usable_cores
from detailclip_jax.runtime.terminal import counted

NONE = "NONE that jax can use:"
CHECKPOINT = 2.4  # GiB of a ViT-B/16 checkpoint
NUM_CHECKPOINTS = 4  # on the disk at once: the last two, the best, and one that is being written


def description() -> Iterator[tuple[str, str]]:
    """Yields (name, description) of versions, code, devices, host and disk."""
    import jax

    from detailclip_jax.runtime import provenance

    found = provenance.versions()
    yield "versions", ", ".join(f"{name} {version}" for name, version in found.items())
    yield "code", f"git {provenance.git_revision()}"
    yield "devices", _usable(jax.local_devices)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield "host", f"{counted(usable_cores(), 'core')}, {memory / 2**30:.0f} GiB of memory"
    yield "disk", disk(shutil.disk_usage(".").free)
    yield "programs", programs(os.environ.get(start.CACHE))


def _usable(find: Callable[[], Sequence[Any]]) -> str:
    """Describes the devices that jax finds, or why it finds none."""
    try:
        return devices(find(), shutil.which("nvidia-smi") is not None)
    except (RuntimeError, AssertionError) as error:  # AssertionError: jax has none of the requested platforms
        reason = str(error).splitlines()[0] if str(error) else "none of the platforms that it was asked for is here"
        return f"{NONE} {reason} (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')})"


def devices(found: Sequence[Any], has_driver: bool) -> str:
    """Describes the devices that jax uses, and whether it does not see an installed NVIDIA GPU."""
    statistics = found[0].memory_stats() or {}
    memory = f", {statistics['bytes_limit'] / 2**30:.0f} GiB each" if "bytes_limit" in statistics else ""
    text = f"{len(found)} x {found[0].device_kind}{memory}"
    if found[0].platform != "cpu":
        return text
    if has_driver:
        return f'{text}: there is an NVIDIA driver, but this jax only sees the CPU; pip install -U "jax[cuda13]"'
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


def _missing(wanted: Any) -> list[str]:
    return sorted(problem for r in wanted if (problem := _problem(r)))


def _problem(requirement: Requirement) -> str:
    """Describes an unmet requirement: "torch" or "jax 0.9 (needs >=0.10.2)"; "" if it is met."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return requirement.name
    fits = requirement.specifier.contains(version, prereleases=True)
    return "" if fits else f"{requirement.name} {version} (needs {requirement.specifier})"
