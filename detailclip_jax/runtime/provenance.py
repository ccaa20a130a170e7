"""What a checkpoint says about the code that wrote it."""

import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from detailclip_jax.version import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "ml_collections")


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that a trajectory depends on."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "detailclip_jax": __version__, **packages}


def git_revision(folder: Path = Path(__file__).parents[1]) -> str:
    """The commit of this code, with "+changes" if the working tree differs; "unknown" outside its git checkout."""
    tracked = _git(folder, "ls-files", "version.py")  # site-packages may lie inside somebody else's repository
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not (tracked and commit):
        return "unknown"
    return commit + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or not a checkout: the revision is called unknown
        return ""


def data_fingerprint(source: Any, num_samples: int = 8) -> str:
    """Twelve hexadecimal digits of a data set: its length, and key, captions and label of a few examples.

    Of several sets, mixed by weight: those of each, and the weights.
    """
    if parts := getattr(source, "parts", ()):
        text = repr([(data_fingerprint(part.source, num_samples), part.weight) for part in parts])
        return hashlib.sha256(text.encode()).hexdigest()[:12]
    places = sorted({len(source) * i // num_samples for i in range(num_samples)})
    text = repr([len(source), *(_description(source, place) for place in places)])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _description(source: Any, place: int) -> tuple[Any, ...]:
    try:
        example = source[place]
    except ValueError:  # a record that cannot be read: the pipeline skips and counts it
        return ("unreadable",)
    return example["key"], tuple(example["captions"]), int(example["label"])
