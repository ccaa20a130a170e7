"""The encoder of a dense task: any image encoder of this library, with positions for the size of the task's images."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax.config.run_config import flatten
from detailclip_jax.models import positions, stacking
from detailclip_jax.models.towers import Networks
from detailclip_jax.models.vit import VisionTransformer
from detailclip_jax.types import Params

OWN = (  # fields of `model` of the run itself
    *("dtype", "remat", "attention", "drop_path", "matmul_precision", "scan", "freeze_patch_embed"),
)


def adopt(config: ConfigDict, source: ConfigDict, given: Iterable[str] = ()) -> ConfigDict:
    """Returns the config with the encoder's sizes, kinds of layers and preprocessing, from the config that trained it.

    Data type, recomputation, attention kernel, drop path and whether the patch embedding is frozen stay those
    of the dense run.  `given` has the dotted names of fields that the user has set, e.g. "preprocess.mean": those of
    the preprocessing keep their values.

    Raises ValueError for a given field of `model` whose value contradicts the encoder.
    """
    named = {name.partition("[")[0] for name in given}
    fields = {name: value for name, value in source.model.items() if name not in OWN}
    for name, value in fields.items():
        asked = {field for field in named if f"{field}.".startswith(f"model.{name}.")}
        if asked and flatten({name: config.model[name]}) != flatten({name: value}):
            raise ValueError(
                f"{', '.join(sorted(asked))}: config.init {config.init!r} has model.{name} {value!r}, which a loaded "
                "encoder keeps; leave that flag out, or leave out --config.init for an untrained encoder"
            )
    adopted = ConfigDict(config.to_dict())
    adopted.model.update(fields)
    adopted.preprocess = ConfigDict(source.preprocess.to_dict())
    for name in adopted.preprocess:
        if f"preprocess.{name}" in named:
            adopted.preprocess[name] = config.preprocess[name]
    return adopted


def image_encoder(networks: Networks) -> VisionTransformer:
    """The image encoder of some networks.  Raises ValueError if they have none."""
    if "image" not in networks.table:
        raise ValueError("these networks have no image encoder, which dense tasks need")
    return networks.image


def fitted(vit: VisionTransformer, config: ConfigDict, size: int) -> VisionTransformer:
    """Returns the encoder with separate blocks and learnt positions on the grid of square images of `size` pixels."""
    return vit.clone(
        image_size=size,
        scan=False,
        gather=None,
        interpolation=config.encoder.other_sizes,
        style=vit.style._replace(positions="learnt"),
        drop_path=config.model.drop_path,
    )


def weights(
    vit: VisionTransformer, params: Params, config: ConfigDict, size: int | tuple[int, int]
) -> tuple[dict[str, Any], list[str]]:
    """Returns the parameters of a trained encoder, and lines that say what was changed.

    An attention pool (SigLIP) is left out: dense tasks read the patches, and the pool comes after them.
    `size` is the side of the images, or (height, width), in pixels.  Blocks become separate, as in `fitted`.
    Fixed sin-cos positions (MAE) become learnt ones with the same values, as its users fine-tune them; computing them
    for the larger grid would give positions that the encoder has never seen.
    """
    used = {name: value for name, value in stacking.unstack(params).items() if name != "pool"}
    sides = (size, size) if isinstance(size, int) else size
    old, (rows, columns) = vit.image_size // vit.patch_size, (side // vit.patch_size for side in sides)
    fixed = vit.style.positions == "sincos"
    table = jnp.asarray(positions.sincos_positions(vit.width, old)) if fixed else jnp.asarray(used["positions"])
    recipe = config.encoder.positions
    resized = positions.interpolate(table, (rows, columns), recipe, vit.style.num_cls)
    kind = "fixed sin-cos positions, learnt from here on," if fixed and not config.encoder.frozen else "positions"
    changed = (old, old) != (rows, columns)
    how = f"resized once from {old} x {old} to {rows} x {columns} ({recipe})" if changed else f"kept at {old} x {old}"
    lines = [f"{kind} {how}; images of another size interpolate them ({config.encoder.other_sizes})"]
    if "pool" in params:
        lines.append("the encoder's attention pool is left out: dense tasks read the patches")
    return {**used, "positions": resized}, lines


def check_recipes(config: ConfigDict) -> None:
    """Raises ValueError for an unknown recipe of positions."""
    for name in ("positions", "other_sizes"):
        if config.encoder[name] not in positions.RECIPES:
            known = ", ".join(positions.RECIPES)
            raise ValueError(f"encoder.{name} {config.encoder[name]!r} is unknown; known: {known}")
