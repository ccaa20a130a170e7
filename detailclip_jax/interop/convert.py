"""`load`: their tensors into our model; `to_state_dict`: ours into their names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from detailclip_jax import experiment
from detailclip_jax.config import default
from detailclip_jax.interop import files, hub, stacking, tables
from detailclip_jax.interop.layouts import LAYOUTS, NORMALISATIONS, Layout
from detailclip_jax.interop.measure import Spec, spec_of, write_spec
from detailclip_jax.interop.tables import StateDict, Table
from detailclip_jax.mesh import make_mesh
from detailclip_jax.models.positions import interpolate
from detailclip_jax.models.towers import Networks
from detailclip_jax.types import Params

OPTIONS = (
    *("num_heads", "text_heads", "activation", "text_activation", "pooling", "norm_eps"),
    *("normalisation", "mean", "std", "image_size"),
)
NAMES = tuple(dict.fromkeys(layout.name for layout in LAYOUTS))
MAX_LISTED = 20


def load(
    source: str | Path | StateDict, layout: str | None = None, **options: Any
) -> tuple[Networks, dict[str, Params], ConfigDict]:
    """Networks, variables and config of a model from elsewhere: a file, a folder of one, or a state dict.

        model, variables, config = interop.load("ViT-B-16.pt", "openai")
        encoders(model, config).image(variables["params"], images)

    Without `layout` it is told by the names of the tensors.  Sizes come from the shapes; `options` give what shapes
    do not tell and no config file beside the weights says:

        num_heads, text_heads          the field's habit for the width otherwise
        activation, text_activation    "gelu" | "quick_gelu"; needed for open_clip's weights without their config
        pooling, norm_eps              see models.vit.Style
        normalisation                  "imagenet" | "clip" | "half": mean and deviation of the pixels
        image_size                     interpolates the positions (bicubic) to another size of image

    Every tensor becomes float32.  Raises ValueError that lists missing, unknown and misshapen tensors with the shapes
    expected and found, and tensors that are not finite or not floating-point numbers.
    """
    if unknown := set(options) - set(OPTIONS):
        raise ValueError(f"unknown options {sorted(unknown)}; known: {', '.join(OPTIONS)}")
    tensors, beside = (source, {}) if isinstance(source, Mapping) else _open(Path(source))
    options = {name: value for name, value in (beside | _given(options)).items() if value is not None}
    chosen, state_dict = choose(tensors, layout)
    _check_told(chosen, options)
    spec = chosen.measure({key: value.shape for key, value in state_dict.items()}, options)
    config = config_of(chosen, spec, options)
    built = experiment.build(config, make_mesh(jax.local_devices()[:1]))
    variables = _read(chosen, state_dict, spec, built.state_shapes)
    if "image_size" in options:
        variables, config = resize(variables, config, int(options["image_size"]))
        built = experiment.build(config, make_mesh(jax.local_devices()[:1]))
    return built.model, variables, config


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _open(path: Path) -> tuple[Any, dict[str, Any]]:
    file = files.weights_in(path) if path.is_dir() else path
    return files.read(file), hub.options_beside(file)


def choose(tensors: Any, name: str | None) -> tuple[Layout, dict[str, np.ndarray]]:
    """The layout whose marks are all there, and the state dict under that layout's keys.

    Raises ValueError for an unknown name, and for tensors that no (or not this) layout knows.
    """
    if name is not None and name not in NAMES:
        raise ValueError(f"layout {name!r} is unknown; known: {', '.join(NAMES)}")
    candidates = [layout for layout in LAYOUTS if name in (None, layout.name)]
    for layout in candidates:
        state_dict = _state_dict(tensors, layout)
        if all(mark in state_dict for mark in layout.marks):
            return layout, state_dict
    state_dict = _state_dict(tensors, candidates[0])
    if len(candidates) == 1 or (name and state_dict):
        return candidates[-1], _state_dict(tensors, candidates[-1])  # whose check lists what is missing
    raise ValueError(f"no layout is known that has the tensors {_list(state_dict)}; known: {', '.join(NAMES)}")


def _state_dict(tensors: Any, layout: Layout) -> dict[str, np.ndarray]:
    """The dictionary of tensors in a checkpoint, under clean keys and without what the layout drops."""
    for root in layout.roots:
        if isinstance(tensors, Mapping) and isinstance(tensors.get(root), Mapping):
            tensors = tensors[root]
    if not isinstance(tensors, Mapping) or not tensors:
        raise ValueError(f"there is no state dict (looked for tensors by name, at the top and under {layout.roots})")
    found: dict[str, np.ndarray] = {}
    for key, value in tensors.items():
        clean = layout.clean(str(key))
        if clean in found:
            raise ValueError(f"two tensors are called {clean} once wrappers' prefixes are cut off")
        found[clean] = value
    if strays := [key for key, value in found.items() if not hasattr(value, "shape")]:
        raise ValueError(f"the state dict holds other things than tensors: {_list(strays)}")
    return found


def _check_told(layout: Layout, options: Mapping[str, Any]) -> None:
    if missing := [name for name in layout.needs if name not in options]:
        raise ValueError(
            f"neither the tensors nor a config file beside them say {' and '.join(missing)} of this {layout.name} "
            "model: gelu (most of open_clip's own) or quick_gelu (OpenAI's weights, names with -quickgelu, ours)"
        )


def config_of(layout: Layout, spec: Spec, options: Mapping[str, Any]) -> ConfigDict:
    """The configuration of an imported model: all that it takes to build it again and to feed it."""
    config = default()
    config.method = layout.method
    write_spec(spec, config.model)
    config.model.freeze_patch_embed = layout.method == "detailclip"
    name = options.get("normalisation", layout.normalisation)
    if name not in NORMALISATIONS:
        raise ValueError(f"normalisation {name!r} is unknown; known: {', '.join(NORMALISATIONS)}")
    mean, std = NORMALISATIONS[name]
    config.views.mean, config.views.std = tuple(options.get("mean", mean)), tuple(options.get("std", std))
    config.total_steps = config.steps_per_epoch = 1
    _set_image_size(config, spec.image_size)
    return config


def _set_image_size(config: ConfigDict, image_size: int) -> None:
    config.model.image_size = config.views.crops["global"].size = image_size


def _read(layout: Layout, state_dict: StateDict, spec: Spec, ours: Any) -> dict[str, Params]:
    """Student and teacher from a checked state dict, in memory of their own."""
    table = layout.table(spec)
    check(layout, table, state_dict, ours)
    _check_numbers(layout, state_dict)
    return {
        "params": _own(tables.read(table.params, state_dict)),
        "ema_params": _own(tables.read(table.ema_params, state_dict)),
        "batch_stats": {},
    }


def _own(params: Params) -> Params:
    return jax.tree.map(lambda x: jnp.array(np.asarray(x, np.float32), copy=True), dict(params))


def expected_shapes(table: Table, ours: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a layout has, from those of our parameters."""
    params, ema_params = (
        {path: leaf.shape for path, leaf in tables.flatten(tree).items()} for tree in (ours.params, ours.ema_params)
    )
    shapes = tables.shapes(table.ema_params, ema_params) | tables.shapes(table.params, params)
    copies = {copy: shapes[original] for copy, original in table.copies.items()}
    return shapes | copies | {key: value.shape for key, value in table.constants.items()}


def check(layout: Layout, table: Table, state_dict: StateDict, ours: Any) -> None:
    """ValueError that lists every tensor that is missing, unknown, or of another shape than the sizes ask for."""
    expected = expected_shapes(table, ours)
    missing = [f"{key} {expected[key]}" for key in expected if key not in state_dict]
    unknown = [key for key in state_dict if key not in expected and not layout.drops_key(key)]
    wrong = [
        f"{key}: expected {expected[key]}, found {state_dict[key].shape}"
        for key in expected
        if key in state_dict and tuple(state_dict[key].shape) != expected[key]
    ]
    faults = {"missing": missing, "unknown": unknown, "of another shape": wrong}
    if any(faults.values()):
        lines = "\n".join(f"  {len(names)} {fault}: {_list(names)}" for fault, names in faults.items() if names)
        raise ValueError(f"this is no state dict of layout {layout.name!r}:\n{lines}")
    _check_known(table, state_dict)


def _check_known(table: Table, state_dict: StateDict) -> None:
    """Tensors that follow from others must have the values that follow."""
    copies = {copy: state_dict[original] for copy, original in table.copies.items()}
    for key, value in (copies | dict(table.constants)).items():
        if not np.allclose(np.asarray(state_dict[key], np.float32), np.asarray(value, np.float32), atol=1e-5):
            what = f"{table.copies[key]}, which it repeats" if key in table.copies else "the only value that is known"
            raise ValueError(f"tensor {key} differs from {what}; our networks have no parameter for it")


def _check_numbers(layout: Layout, state_dict: StateDict) -> None:
    kept = {key: value for key, value in state_dict.items() if not layout.drops_key(key)}
    kinds = {key: str(np.asarray(value).dtype) for key, value in kept.items()}
    floats = ("float64", "float32", "float16", "bfloat16")
    if other := [f"{key} ({kind})" for key, kind in kinds.items() if kind not in floats]:
        raise ValueError(f"these tensors do not hold floating-point numbers: {_list(other)}")
    if bad := [key for key, value in kept.items() if not np.isfinite(np.asarray(value, np.float32)).all()]:
        raise ValueError(f"these tensors are not finite: {_list(bad)}")
    if others := sorted(set(kinds.values()) - {"float32"}):
        logging.warning("tensors in %s are converted to float32", ", ".join(others))
    if dropped := [key for key in state_dict if key not in kept]:
        logging.warning("%d tensors have no place in our networks and are left out: %s", len(dropped), _list(dropped))


def _list(names: Any) -> str:
    names = list(names)
    more = f", ... ({len(names) - MAX_LISTED} more)" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def resize(
    variables: Mapping[str, Params], config: ConfigDict, image_size: int
) -> tuple[dict[str, Params], ConfigDict]:
    """The model for another size of image: positions interpolated (bicubic, as PyTorch without antialias), and said so.

    Raises ValueError unless the size is a multiple of the patch.
    """
    patch_size, old = spec_of(config.model).size.patch_size, config.model.image_size
    if image_size % patch_size:
        raise ValueError(f"image_size {image_size} is not a multiple of the patch size {patch_size}")
    logging.warning("positions interpolated (bicubic) from %d px to %d px", old, image_size)
    config = ConfigDict(config.to_dict())
    _set_image_size(config, image_size)
    side = image_size // patch_size
    return {name: _resize_image(params, side) for name, params in variables.items()}, config


def _resize_image(params: Params, side: int) -> Params:
    if "positions" not in params.get("image", {}):
        return params
    image = params["image"]
    return {**params, "image": {**image, "positions": interpolate(image["positions"], side)}}


def to_state_dict(variables: Mapping[str, Params], config: ConfigDict, layout: str) -> dict[str, np.ndarray]:
    """The state dict of a model of ours in a layout, the inverse of `load`; stacked parameters may be given.

    A layout with a place for the teacher takes `variables["ema_params"]` too; for the others, `params` are written.
    Raises ValueError where the layout cannot hold this model.
    """
    chosen, spec = layout_for(config, layout), spec_of(config.model)
    table = chosen.table(spec)
    params, ema_params = (stacking.unstack(variables.get(name) or {}) for name in ("params", "ema_params"))
    if table.ema_params and not ema_params:
        raise ValueError(f"layout {layout!r} holds a teacher, and method {config.method} has none")
    written = {**tables.write(table.ema_params, ema_params), **tables.write(table.params, params)}
    copies = {copy: written[original] for copy, original in table.copies.items()}
    return {**written, **copies, **table.constants}


def layout_for(config: ConfigDict, name: str) -> Layout:
    """The layout of that name that can hold a model; ValueError with the reason if none of them does."""
    candidates = [layout for layout in LAYOUTS if layout.name == name]
    if not candidates:
        raise ValueError(f"layout {name!r} is unknown; known: {', '.join(NAMES)}")
    spec = spec_of(config.model)
    fitting = [layout for layout in candidates if layout.fits(spec)]
    if not fitting:
        candidates[-1].check(spec)
    return fitting[0]
