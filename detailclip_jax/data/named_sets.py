"""Names and variants of training sets: several published sets share a name such as YFCC15M and differ in their images.

`prepare` writes both to dataset.json, beside the shards.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from detailclip_jax.config.data_path import KINDS, components
from detailclip_jax.data.sources import DATASET


def named_sets(data: ConfigDict) -> list[dict[str, str]]:
    """Returns "path", "dataset" and, if it has one, "variant" of every set of `data.path` that has a name.

    A set has a name if its folder has a dataset.json with the name of the split `data.split`.  Sets of other kinds than
    "records" have none.  A dataset.json that does not have the form that `prepare` writes is logged.
    """
    sets = components(data) if data.source in KINDS else ()
    folders = [each.path for each in sets if each.kind == "records" and each.path]
    return [{"path": folder, **name} for folder in folders if (name := _name(folder, str(data.split)))]


def listed(sets: Sequence[Mapping[str, str]]) -> str:
    """Returns the sets as a text such as "cc3m, yfcc15m-declip (the DeCLIP subset of YFCC100M (V2))"."""
    return ", ".join(one["dataset"] + (f" ({one['variant']})" if "variant" in one else "") for one in sets)


def _name(folder: str, split: str) -> dict[str, str]:
    """Returns "dataset" and "variant" of a split, without empty ones; empty if nothing names the set."""
    file = epath.Path(folder) / DATASET
    try:
        described = json.loads(file.read_text())["splits"].get(split, {}) if file.exists() else {}
        fields = {name: _text(described, name) for name in ("dataset", "variant")}
    except Exception as error:  # remote storage raises many types; a run does not need the name
        logging.warning("%s: the results do not name the set, %s: %s", file, type(error).__name__, error)
        return {}
    return {name: text for name, text in fields.items() if text} if fields["dataset"] else {}


def _text(described: Mapping[str, Any], name: str) -> str:
    """Returns a field of a split, "" if it is missing; TypeError if it is not a text."""
    text = described.get(name, "")
    if not isinstance(text, str):
        raise TypeError(f"{name} is not a text: {text!r:.80}")
    return text
