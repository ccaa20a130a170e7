"""The folder in which the package keeps what can be made again: compiled programs, converted models."""

import os
from collections.abc import Mapping
from pathlib import Path


def folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Returns `detailclip_jax` in XDG_CACHE_HOME, by default in ~/.cache; it may not exist yet.

    Raises RuntimeError if the user has no home.
    """
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detailclip_jax"
