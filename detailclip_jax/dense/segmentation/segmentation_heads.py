"""Heads by name.  A head is a Flax module `head(features, train, keys) -> logits [B, h, w, K]`.

`features(blocks, norm)` gives the maps of encoder blocks (see `taps`).  A head's own fields beyond `num_classes`,
`blocks`, `norm`, `axis` and `dtype` are the options of `config.head`.
"""

import dataclasses
from typing import Any

from detailclip_jax.dense.segmentation.fcn_head import FcnHead
from detailclip_jax.dense.segmentation.linear_head import LinearHead
from detailclip_jax.dense.segmentation.upernet import UperNetHead
from detailclip_jax.runtime.errors import unknown

HEADS: dict[str, Any] = {"linear": LinearHead, "upernet": UperNetHead, "fcn": FcnHead}
NUM_LEVELS = 4  # of UPerNet's pyramid
GIVEN = ("num_classes", "blocks", "norm", "axis", "dtype", "parent", "name")  # fields that no option sets


def build(name: str, options: dict[str, Any], **given: Any) -> Any:
    """Builds a head: `given` holds num_classes, blocks, norm, axis and dtype, `options` the head's own fields.

    Raises ValueError, with the known ones, for an unknown head or option, and for a wrong number of blocks.
    """
    if name not in HEADS:
        raise ValueError(unknown("head.name", name, HEADS))
    known = [field.name for field in dataclasses.fields(HEADS[name]) if field.name not in GIVEN]
    for option in options:
        if option not in known:
            raise ValueError(unknown(f"option of head {name}:", option, known or ["none"]))
    head = HEADS[name](**given, **options)
    _check_blocks(name, head)
    return head


def _check_blocks(name: str, head: Any) -> None:
    """Raises ValueError for a number of blocks that the head cannot read."""
    count = len(head.blocks)
    if isinstance(head, UperNetHead) and count != NUM_LEVELS:
        raise ValueError(f"encoder.blocks has {count} blocks; the head {name} reads {NUM_LEVELS}: give {NUM_LEVELS}")
    if isinstance(head, FcnHead) and count <= head.tap:
        raise ValueError(
            f"encoder.blocks has {count} blocks; the head {name} reads number {head.tap + 1} of them: give more, or a "
            "smaller `tap` among its options"
        )


__all__ = ["HEADS", "FcnHead", "LinearHead", "UperNetHead", "build"]
