"""Converts between PyTorch state dicts and our models: `load` imports, `to_state_dict` exports."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.config import crop as crop_config
from detailclip_jax.config import default
from detailclip_jax.config.sizes import num_side_patches
from detailclip_jax.data import preprocessing, vocabularies
from detailclip_jax.interop import (
    dinotxt_names,
    hub_configs,
    hub_vocabulary,
    key_tables,
    own_safetensors,
    tensor_files,
    tips_names,
)
from detailclip_jax.interop.image_size import fit_granularity, resize
from detailclip_jax.interop.key_tables import StateDict, Table
from detailclip_jax.interop.layouts import LAYOUTS
from detailclip_jax.interop.model_sizes import Spec, spec_of, write_spec
from detailclip_jax.interop.tensor_layout import NORMALISATIONS, TensorLayout
from detailclip_jax.methods.masking import RemovalRule
from detailclip_jax.models import stacking
from detailclip_jax.models.image_blocks import has_blocks
from detailclip_jax.models.networks import Networks
from detailclip_jax.runtime import errors, weight_files
from detailclip_jax.training import experiment
from detailclip_jax.types import Params

OPTIONS = (
    *("num_heads", "text_heads", "decoder_heads", "activation", "text_activation", "pooling", "norm_eps"),
    *("normalisation", "mean", "std", "resize_filter", "resize", "max_patches", "crop_ratio"),
    *("image_size", "interpolation"),
    *("decoding", "tokenizer"),
)
OWN = "safetensors"
NAMES = (*dict.fromkeys(layout.name for layout in LAYOUTS), OWN)
OTHER_NAMES = {  # what users write for a format or layout whose name is not near
    "hf": ["huggingface"],
    "transformers": ["huggingface"],
    "clip": ["open_clip", "slip"],
    "laion": ["open_clip"],
    "vit": ["timm"],
    "backbone": ["timm"],
    **{word: ["big_vision", "huggingface"] for word in ("siglip", "siglip2")},
    "jax": [OWN, "stablehlo"],
    "flax": [OWN, "stablehlo"],
    **{word: ["open_clip", "huggingface", "timm"] for word in ("torch", "pytorch", "pt", "pth")},
}
MAX_LISTED = 20


def load(
    source: str | Path | Mapping[str, Any], layout: str | None = None, **options: Any
) -> tuple[Networks, dict[str, Params], ConfigDict]:
    """Loads a model from another library: networks, variables and config from a file, its folder, or a state dict.

    The tensors of a state dict may be arrays or PyTorch tensors; the state dict may be nested in a checkpoint.

        model, variables, config = interop.load("ViT-B-16.pt", "openai")
        encoders(model, config).image(variables["params"], images)

    Without `layout`, it is inferred from the names of the tensors. Of FG-CLIP's text sides the short one is taken.
    Sizes are inferred from the shapes. `options` supply what neither the shapes nor a config file in the same folder
    state:

        num_heads, text_heads          default: the usual number for the width
        decoder_heads                  of DetailCLIP's decoder; default: 16, or 4 for narrow ones
        activation, text_activation    "gelu" | "quick_gelu" | "gelu_tanh" | "relu"; required for open_clip without its
                                       config
        pooling, norm_eps              see models.vit.Style
        normalisation                  "imagenet" | "clip" | "satellite" (DINOv3's) | "half" | "none": mean and standard
                                       deviation of the pixels
        resize_filter, resize, max_patches, crop_ratio    evaluation preprocessing, see config.preprocess; default: the
                                       config file with the weights, else the usual evaluation of the model family
        decoding                       "upright" (default) | "pillow", see data.decoding
        image_size                     interpolates the positions to another image size, now and for good
        tokenizer                      file of the model's own vocabulary, see the field data.tokenizer
        interpolation                  of positions, to `image_size` and to other sizes later: "bicubic" | "ibot" |
                                       "timm" | "bilinear" | "tips", see models.positions.RECIPES; default: that of the
                                       model's own code, and "bicubic" where it has none (OpenAI, SLIP's family)

    For the layouts of DetailCLIP and A-CLIP, the config has the settings of their published code (`reference_preset`).
    A `mask_ratio` among the flags in such a file is the share of patches that is kept; masking.ratio, the share that is
    removed, becomes 1 - mask_ratio.

    All tensors are converted to float32. Raises ValueError for tensors that are missing, unknown, of a wrong shape, not
    finite or not floating-point; the message lists them, with expected and found shapes.
    """
    networks, variables, config, _ = load_side(source, layout, **options)
    return networks, variables, config


def load_side(
    source: str | Path | Mapping[str, Any], layout: str | None = None, **options: Any
) -> tuple[Networks, dict[str, Params], ConfigDict, str]:
    """As `load`; returns also the layout that takes the model's long text side, "" if it has no other side."""
    if unknown := options.keys() - set(OPTIONS):
        raise ValueError(f"unknown options {sorted(unknown)}; known: {', '.join(OPTIONS)}")
    if layout is not None and layout not in NAMES:
        raise ValueError(errors.unknown("layout", layout, NAMES, OTHER_NAMES))
    options = {name: value for name, value in options.items() if value is not None}
    if layout in (None, OWN) and not isinstance(source, Mapping) and own_safetensors.is_own_format(Path(source)):
        if conflicting := set(options) - {"image_size", "interpolation", "tokenizer"}:
            raise ValueError(f"{source} already contains {', '.join(sorted(conflicting))}; omit these options")
        _, variables, config = own_safetensors.read(Path(source))
        _set_tokenizer(config, options)
        config.model.interpolation = options.get("interpolation", config.model.interpolation)
        return *_resized(variables, config, options), ""
    if isinstance(source, Mapping):
        tensors, sidecar, config_file = tensor_files.arrays(source), {}, None
    else:
        tensors, sidecar, config_file = _open(Path(source))
    if "normalisation" in options:
        sidecar = {name: value for name, value in sidecar.items() if name not in ("mean", "std")}
    if "activation" in options:  # of both encoders
        sidecar.pop("text_activation", None)
    given, options = options, {name: value for name, value in (sidecar | options).items() if value is not None}
    try:
        chosen, state_dict = choose(tensors, layout)
        for name in ("text_heads", "text_activation"):
            if name in given and not chosen.text:
                raise ValueError(f"{name} is given, but a model of layout {chosen.name!r} has no text encoder; omit it")
        _check_required(chosen, options, config_file)
        options = {**chosen.stated({key: value.shape for key, value in state_dict.items()}), **options}
        state_dict = chosen.prepare(state_dict)
        spec = chosen.measure({key: value.shape for key, value in state_dict.items()}, options)
        config = config_of(chosen, spec, options)
        preprocessing.check_used(config.preprocess, given)
        if chosen.keeps_mask_ratio and "mask_ratio" in flags_of(tensors):
            _set_ratio(config, flags_of(tensors)["mask_ratio"])
        variables = _read(chosen, state_dict, spec, experiment.weight_shapes(config))
        return *_resized(variables, config, options), chosen.long_texts
    except ValueError as error:
        raise ValueError(f"{error}{_other_layout(source, tensors, layout)}") from error


def flags_of(tensors: Any) -> dict[str, Any]:
    """The flags of the training script, if the checkpoint contains them."""
    args = tensors.get("args") if isinstance(tensors, Mapping) else None
    if isinstance(args, argparse.Namespace):
        return vars(args)
    return dict(args) if isinstance(args, Mapping) else {}


def _set_ratio(config: ConfigDict, kept: Any) -> None:
    """Sets masking.ratio, the share removed, from a published mask_ratio, the share kept."""
    try:
        removed = 1.0 - kept
        RemovalRule(num_side_patches(config.model), removed, config.masking.granularity).checked()
    except (TypeError, ValueError):
        logging.warning(
            "mask_ratio %r among the flags of the file is not a valid share of kept patches; "
            "masking.ratio (the removed share) stays %g",
            kept,
            config.masking.ratio,
        )
        return
    config.masking.ratio = removed
    logging.warning(
        "mask_ratio %g in the file is the kept share: masking.ratio, the removed share, is %g", kept, removed
    )


def _other_layout(source: Any, tensors: Any, layout: str | None) -> str:
    """A hint for a user who named a layout: the layout that fits the names of the tensors."""
    if layout is None:
        return ""
    try:
        is_own = not isinstance(source, Mapping) and own_safetensors.is_own_format(Path(source))
        name = OWN if is_own else choose(tensors, None)[0].name
    except ValueError:
        return ""
    return "" if name == layout else f"\nThe tensor names fit another layout: --from={name}"


def _resized(
    variables: dict[str, Params], config: ConfigDict, options: Mapping[str, Any]
) -> tuple[Networks, dict[str, Params], ConfigDict]:
    if "image_size" in options:
        variables, config = resize(variables, config, int(options["image_size"]))
    return methods.build_networks(config), variables, config


def _open(path: Path) -> tuple[Any, dict[str, Any], Path | None]:
    """The tensors of a file or folder, and the options from the config file beside them, if there is one."""
    if path.is_dir() and (pair := tips_names.pair_in(path) or dinotxt_names.pair_in(path)):
        return pair, {}, None
    file = weight_files.model_in(path) if path.is_dir() else path
    if file is None:
        raise FileNotFoundError(f"no weights in {path}; looked for {', '.join(weight_files.NAMES)}")
    content, *others = map(tensor_files.read, weight_files.shards_of(file))
    if others:  # a model that is divided into several files
        content = {name: tensor for part in (content, *others) for name, tensor in part.items()}
    return content, hub_configs.sidecar_options(file), hub_configs.config_beside(file)


def choose(tensors: Any, name: str | None) -> tuple[TensorLayout, dict[str, np.ndarray]]:
    """The layout that fits the names, with its number of registers, and the state dict under that layout's keys.

    If none of the given name does, the nearest one is returned, so that `check` can list what is missing. Raises
    ValueError for tensors that fit no layout.
    """
    candidates = [layout for layout in LAYOUTS if name in (None, layout.name)]
    if not candidates:
        raise ValueError("the file was not written by `export --to=safetensors`; choose another --from")
    nearest, has_marks = candidates[-1], False
    for layout in candidates:
        state_dict = _state_dict(tensors, layout)
        if layout.fits(state_dict):
            if layout.counts_registers(state_dict):
                return layout, _only_tensors(state_dict)
            nearest, has_marks = layout, True
    state_dict = _only_tensors(_state_dict(tensors, nearest))
    if name is None and not has_marks:
        raise ValueError(f"no known layout has the tensors {_list(state_dict)}; known layouts: {', '.join(NAMES)}")
    return nearest, state_dict


def _state_dict(tensors: Any, layout: TensorLayout) -> dict[str, Any]:
    """The state dict within a checkpoint, without the prefixes of wrappers in its keys.

    It is at one of the layout's `roots`, in its `parts`, or the checkpoint itself.
    """
    if layout.parts and isinstance(tensors, Mapping) and all(isinstance(tensors.get(p), Mapping) for p in layout.parts):
        tensors = {f"{part}.{layout.clean(str(key))}": x for part in layout.parts for key, x in tensors[part].items()}
    else:
        for root in layout.roots:
            if isinstance(tensors, Mapping) and isinstance(tensors.get(root), Mapping):
                tensors = tensors[root]
    if not isinstance(tensors, Mapping) or not tensors:
        raise ValueError(
            f"the file has no state dict (looked for named tensors at the top level and under {layout.roots})"
        )
    cleaned: dict[str, Any] = {}
    for key, value in tensors.items():
        clean = layout.clean(str(key))
        if clean in cleaned:
            raise ValueError(f"two tensors have the name {clean} without the prefixes of wrappers")
        cleaned[clean] = value
    return cleaned


def _only_tensors(entries: Mapping[str, Any]) -> dict[str, np.ndarray]:
    if strays := [key for key, value in entries.items() if not hasattr(value, "shape")]:
        raise ValueError(f"the state dict contains entries that are not tensors: {_list(strays)}")
    return dict(entries)


def _check_required(layout: TensorLayout, options: Mapping[str, Any], config_file: Path | None) -> None:
    """Raises ValueError if neither the options nor the config file state what the tensors do not show."""
    if missing := [name for name in layout.needs if name not in options]:
        flag = missing[0].replace("_", "-")
        unread = f"{config_file} does not state it" if config_file else "there is no config file"
        raise ValueError(
            f"{' and '.join(missing)} of this {layout.name} model cannot be inferred from the tensors, "
            f"and {unread}; give --{flag}=gelu (most models of open_clip, timm's names without quickgelu) or "
            "quick_gelu (OpenAI's weights, names with quickgelu, models of this package) to detailclip_jax.import_torch"
        )


def config_of(layout: TensorLayout, spec: Spec, options: Mapping[str, Any]) -> ConfigDict:
    """The config of an imported model: all that is needed to build it and to preprocess its inputs."""
    config = default()
    config.method = layout.method
    write_spec(spec, config.model)
    config.model.class_tokens = spec.class_tokens
    config.model.interpolation = options.get("interpolation", layout.interpolation)
    config.model.freeze_patch_embed = layout.method in ("detailclip", "aclip")
    config = preprocessing.changed(config, preprocess_of(layout, options))
    config.total_steps = config.steps_per_epoch = 1
    for crop, fields in layout.crops.items():
        config.views.crops[crop] = crop_config(**fields)
    config.views.teacher = "enclosing" if "enclosing" in layout.crops else "same"
    config = layout.published(config)
    _set_tokenizer(config, options)
    for crop in config.views.crops.values():
        crop.size = spec.image_size
    fit_granularity(config)
    return config


def _set_tokenizer(config: ConfigDict, options: Mapping[str, Any]) -> None:
    """Records the tokenizer's file of the options, if there is one.

    Raises ValueError for a file that does not fit, and without one if a card states a vocabulary other than CLIP's or a
    config another end token.
    """
    stated, end = options.get(hub_vocabulary.KEY, {}), options.get(hub_configs.TEXT_END)
    if "tokenizer" in options:
        if end is not None and end != vocabularies.pieces_of(str(options["tokenizer"])).size - 1:
            config.model.text_style.end = end
        config.data.tokenizer = str(options["tokenizer"])
        config.data.tokenizer_digest = stated.get("digest", config.data.tokenizer_digest)
        vocabularies.record(config)
    elif stated:
        raise ValueError(
            f"the texts of this model are tokenized by the file {stated['file']} (digest {stated['digest']}), and not "
            "by CLIP's tokenizer; give --tokenizer=FILE, the path of that file here"
        )
    if end is not None and end != hub_vocabulary.end_of(config):
        raise ValueError(
            f"this text encoder pools at eos_token_id {end}, but the last token of a text is "
            f"{hub_vocabulary.end_of(config)} by data.tokenizer {config.data.tokenizer!r}; give --tokenizer=FILE, the "
            "tokenizer.json of the model"
        )


def preprocess_of(layout: TensorLayout, options: Mapping[str, Any]) -> dict[str, Any]:
    """`config.preprocess` from the options, which include the config file with the weights, or the family's default.

    Raises ValueError for an unknown normalisation.
    """
    name = options.get("normalisation", layout.normalisation)
    if name not in NORMALISATIONS:
        raise ValueError(f"normalisation {name!r} is unknown; known: {', '.join(NORMALISATIONS)}")
    mean, std = NORMALISATIONS[name]
    return {
        "filter": options.get("resize_filter", layout.filter),
        "resize": options.get("resize") or layout.resize,
        "max_patches": options.get("max_patches"),
        "crop_ratio": options.get("crop_ratio", layout.crop_ratio),
        "decoding": options.get("decoding"),
        "mean": _per_channel(options.get("mean", mean)),
        "std": _per_channel(options.get("std", std)),
    }


def _per_channel(value: Any) -> Any:
    """One number, which the libraries take for all three channels, as three numbers; others unchanged."""
    return (value,) * 3 if isinstance(value, int | float) else value


def _read(layout: TensorLayout, state_dict: StateDict, spec: Spec, our_shapes: Any) -> dict[str, Params]:
    """Student and teacher of a checked state dict, in newly allocated memory."""
    table = layout.table(spec)
    check(layout, table, state_dict, our_shapes)
    _check_numbers({key: value for key, value in state_dict.items() if key not in table.counters}, layout)
    _check_known(table, state_dict)
    variables = {}
    for name, entries in table.trees().items():
        empty = {network: {} for network, leaves in getattr(our_shapes, name).items() if not leaves}
        fixed = key_tables.unflatten(table.fixed) if name == "params" else {}
        ours = {**key_tables.read(entries, state_dict), **fixed}
        variables[name] = {**empty, **jax.device_put(jax.tree.map(lambda x: np.array(x, np.float32), ours))}
    return variables


def expected_shapes(table: Table, our_shapes: Any) -> dict[str, tuple[int, ...]]:
    """The expected shape of every tensor of a layout, computed from the shapes of our parameters."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, entries in table.trees().items():
        flat = {path: leaf.shape for path, leaf in key_tables.flatten(getattr(our_shapes, name)).items()}
        shapes = key_tables.shapes(entries, flat) | shapes
    copies = {copy: shapes[original] for copy, original in table.copies.items()}
    return shapes | copies | {key: value.shape for key, value in table.constants.items()}


def check(layout: TensorLayout, table: Table, state_dict: StateDict, our_shapes: Any) -> None:
    """Raises ValueError that lists missing, unknown and wrongly shaped tensors."""
    expected = expected_shapes(table, our_shapes)
    missing = [f"{key} {expected[key]}" for key in expected if key not in state_dict]
    known = expected.keys() | table.counters.keys()
    unknown = [key for key in state_dict if key not in known and not layout.drops_key(key)]
    wrong = [
        f"{key}: expected {expected[key]}, found {state_dict[key].shape}"
        for key in expected
        if key in state_dict and tuple(state_dict[key].shape) != expected[key]
    ]
    faults = {"missing": missing, "unknown": unknown, "with a wrong shape": wrong}
    if any(faults.values()):
        lines = "\n".join(f"  {len(names)} {fault}: {_list(names)}" for fault, names in faults.items() if names)
        raise ValueError(f"the state dict does not fit layout {layout.name!r}:\n{lines}")


def _check_known(table: Table, state_dict: StateDict) -> None:
    """Raises ValueError if a tensor that is determined by others (or is a constant) has another value.

    A constant may differ by the rounding of the precision in which it was saved.
    """
    copies = {copy: state_dict[original] for copy, original in table.copies.items()}
    for key, value in (copies | dict(table.constants)).items():
        tensor = np.asarray(state_dict[key])
        rounding = 1e-5 if key in copies else max(1e-5, float(jnp.finfo(tensor.dtype).eps))
        if not np.allclose(tensor.astype(np.float32), np.asarray(value, np.float32), atol=rounding):
            only = f"{table.copies[key]}, of which it must be a copy" if key in copies else "its only supported value"
            raise ValueError(f"tensor {key} differs from {only}; this package has no parameter for it")


def _check_numbers(state_dict: StateDict, layout: TensorLayout) -> None:
    kept = {key: value for key, value in state_dict.items() if not layout.drops_key(key)}
    kinds = {key: str(np.asarray(value).dtype) for key, value in kept.items()}
    floats = ("float64", "float32", "float16", "bfloat16")
    if other := [f"{key} ({kind})" for key, kind in kinds.items() if kind not in floats]:
        raise ValueError(f"these tensors are not floating-point: {_list(other)}")
    if bad := [key for key, value in kept.items() if not np.isfinite(np.asarray(value, np.float32)).all()]:
        raise ValueError(f"these tensors are not finite: {_list(bad)}")
    if others := sorted(set(kinds.values()) - {"float32"}):
        logging.warning("tensors in %s are converted to float32", ", ".join(others))
    if dropped := [key for key in state_dict if key not in kept]:
        logging.warning(
            "%d tensors have no counterpart in this package and are ignored: %s", len(dropped), _list(dropped)
        )


def _list(names: Any) -> str:
    names = list(names)
    more = f", ... ({len(names) - MAX_LISTED} more)" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def to_state_dict(variables: Mapping[str, Params], config: ConfigDict, layout: str) -> dict[str, np.ndarray]:
    """The state dict of our model in a layout: the inverse of `load`. Accepts stacked parameters.

    A layout with keys for a teacher also uses `variables["ema_params"]`; the others use only `params`. Raises
    ValueError if the layout cannot represent this model.
    """
    chosen, spec = layout_for(config, layout), spec_of(config.model)
    table = chosen.table(spec)
    ours = key_tables.flatten(variables["params"]) if table.fixed else {}
    if trained := [path for path, value in table.fixed.items() if not np.array_equal(ours[path], value)]:
        raise ValueError(f"layout {layout!r} has no tensor for {_list(trained)}, which this model has trained")
    written: dict[str, np.ndarray] = {}
    for name, entries in table.trees().items():
        tree = stacking.unstack(jax.device_get(variables.get(name) or {}))
        if missing := sorted({entry.path for entry in entries} - key_tables.flatten(tree).keys()):
            raise ValueError(
                f"layout {layout!r} needs tensors of {name} that this model lacks: {_list(missing)}; "
                "--to=safetensors writes any model, --to=timm an image encoder"
            )
        written = key_tables.write(entries, tree) | written
    copies = {copy: written[original] for copy, original in {**table.copies, **table.echoes}.items()}
    return {**written, **copies, **table.constants, **table.counters}


def networks_in(config: ConfigDict, layout: str) -> set[str]:
    """The networks of a model of which `to_state_dict` writes parameters; raises ValueError as it does."""
    table = layout_for(config, layout).table(spec_of(config.model))
    return {path.split("/")[0] for path in (*(entry.path for entry in table.params), *table.fixed)}


def layout_for(config: ConfigDict, name: str) -> TensorLayout:
    """The layout of this name that can represent a model; raises ValueError with the reason if there is none."""
    if name not in NAMES[:-1]:
        raise ValueError(f"layout {name!r} is unknown; known: {', '.join(NAMES[:-1])}")
    candidates = [layout for layout in LAYOUTS if layout.name == name and not layout.read_only]
    if not candidates:
        raise ValueError(f"layout {name!r} is only read; --to=safetensors writes any model")
    with_text = any(layout.text for layout in candidates)
    if with_text and has_blocks(methods.build(config).networks):
        raise ValueError(
            f"layout {name!r} has no place for the blocks that method {config.method} has after the image encoder; "
            "--to=safetensors and stablehlo write them, --to=timm the encoder alone"
        )
    spec = spec_of(config.model)
    fitting = [layout for layout in candidates if not layout.refused(spec)]
    if not fitting:
        general = [row for row in LAYOUTS if row.name in ("open_clip", "huggingface") and not row.read_only]
        formats = {layout.name for layout in general if not layout.refused(spec)}
        recipe = f", as configs/beyond/{name}.py has" if name in ("cosmos", "flair") else ""
        needs = min((layout.refused(spec) for layout in candidates), key=len)
        raise ValueError(
            f"layout {name!r} cannot represent these encoders: it needs {', '.join(needs)}{recipe}; use "
            f"--to={' or '.join([*sorted(formats), 'safetensors'])}"
        )
    return fitting[0]
