"""Provenance stored in checkpoints: package versions, git revision and data fingerprint."""

import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from detailclip_jax.version import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "ml_collections")


def versions() -> dict[str, str]:
    """Returns the versions of Python, of this package and of the packages that affect training."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "detailclip_jax": __version__, **packages}


def git_revision(folder: Path = Path(__file__).parents[1]) -> str:
    """Returns the commit of this code, with "+changes" if files were modified; "unknown" without a git checkout."""
    tracked = _git(folder, "ls-files", "version.py")  # site-packages may be inside another git repository
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not (tracked and commit):
        return "unknown"
    return commit + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or no checkout: the revision is "unknown"
        return ""


def data_fingerprint(source: Any, num_samples: int = 8) -> str:
    """Hashes a data set to twelve hexadecimal digits: its length, and key, captions and label of some examples.

    A source with an attribute `identity` (a hash of its annotations) adds it.  For several sets mixed by weight, the
    hash is over the fingerprint and weight of each.
    """
    if members := getattr(source, "members", ()):
        text = repr([(data_fingerprint(member.source, num_samples), member.weight) for member in members])
        return hashlib.sha256(text.encode()).hexdigest()[:12]
    described: list[Any] = [len(source), source.identity] if hasattr(source, "identity") else [len(source)]
    for index in sorted({len(source) * i // num_samples for i in range(num_samples)}):
        try:
            example = source[index]
            described.append((example["key"], tuple(example["captions"]), int(example["label"])))
        except ValueError:  # an unreadable record: the data pipeline replaces and counts it
            described.append(("unreadable",))
    return hashlib.sha256(repr(described).encode()).hexdigest()[:12]
