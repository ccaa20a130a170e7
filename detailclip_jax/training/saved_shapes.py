"""Shapes of the arrays in a checkpoint, and the message for a checkpoint whose arrays differ from the run's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from detailclip_jax.config.run_config import ABSENT
from detailclip_jax.types import PyTree


def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Returns path -> shape of every array of a tree; a path is the names joined by "/"."""
    return {"/".join(_key(k) for k in path): tuple(leaf.shape) for path, leaf in jax.tree.leaves_with_path(tree)}


def _key(entry: Any) -> str:
    """The name of one entry of a path, without its kind: field of a tuple, index of a list or key of a dict."""
    return str(next(getattr(entry, kind) for kind in ("key", "name", "idx") if hasattr(entry, kind)))


def saved_tree(folder: Path) -> dict[str, Any]:
    """Returns the state in a checkpoint with shape and dtype in place of each array; no array is loaded."""
    return ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder)).tree


def other_version(
    step: int,
    folder: Path,
    run: Mapping[str, Any],
    saved: Mapping[str, Any],
    wanted: Mapping[str, Any],
    wrong: list[str],
) -> str:
    """Returns the message for a checkpoint whose arrays `wrong` differ in shape from the run's."""
    shown = "".join(
        f"\n  {n}: {saved.get(n, ABSENT)} in the checkpoint, {wanted.get(n, ABSENT)} now" for n in wrong[:5]
    )
    return (
        f"checkpoint {step} in {folder} was written by another version (git {run.get('git_revision')}); "
        f"{len(wrong)} of its arrays differ:{shown}\nContinue with that version, or start a new run in another "
        f"--workdir with --config.init={folder.parent} to load the networks that fit."
    )
