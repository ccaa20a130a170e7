"""The formats of `export`: for each, the function that writes it, and notes for its user."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from detailclip_jax.data import preprocessing
from detailclip_jax.interop import (
    clip_names,
    compiled_functions,
    export_notes,
    hub_configs,
    hub_tokenizer,
    hub_vocabulary,
    own_safetensors,
    tensor_files,
)
from detailclip_jax.interop.model_to_export import Export
from detailclip_jax.interop.state_dicts import OTHER_NAMES, networks_in, to_state_dict
from detailclip_jax.runtime.errors import unknown
from detailclip_jax.runtime.files import replace_text
from detailclip_jax.types import Params

OF_OPEN_CLIP, OF_HUGGINGFACE = "open_clip_model.safetensors", "model.safetensors"
README = "README.md"


class Format(NamedTuple):
    """A format of `export`; `write` returns the tensors that it wrote.

    `networks` are those that the format has a place for, given a config; None stands for all of them. `notes` says how
    the written model is read, and what belongs to it.
    """

    write: Callable[[Export, Path], Mapping[str, Any]]
    networks: Callable[[ConfigDict], Collection[str]] | None
    notes: Callable[[ConfigDict, Path], list[str]] = lambda config, path: []
    is_directory: bool = False
    weights: str = ""  # the file in that directory that other libraries, and `import_torch`, read
    beside: tuple[str, ...] = ()  # the other files there that it may write
    holds_teacher: bool = False


def in_file(
    layout: Callable[[ConfigDict], str],
    said: Callable[[ConfigDict, Path], list[str]] = export_notes.card_notes,
    card: Callable[[ConfigDict], Mapping[str, Any]] = hub_configs.state_dict_card,
    parts: Sequence[str] = (),
    holds_teacher: bool = False,
) -> Format:
    """The format of a state dict in one file, with a card beside it for what the state dict has no place for.

    `layout` names the layout of a model, or raises ValueError for a model that the format is not for.
    """

    def write(export: Export, path: Path) -> Mapping[str, Any]:
        variables = export.variables if holds_teacher else {**export.variables, "params": export.params}
        tensors = to_state_dict(variables, export.config, layout(export.config))
        tensor_files.write(path, tensors, {"format": "pt"}, parts)
        origins = {"origins": list(export.origins)} if export.origins else {}
        _write_json(hub_configs.card_of(path), {**card(export.config), **origins, "bytes": path.stat().st_size})
        return tensors

    networks = lambda config: networks_in(config, layout(config))  # noqa: E731
    return Format(write, networks, said, holds_teacher=holds_teacher)


def layout_of_method(name: str) -> Callable[[ConfigDict], str]:
    """The layout of this name, for models of the method of this name alone."""

    def layout(config: ConfigDict) -> str:
        if config.method != name:
            raise ValueError(
                f"--to={name} writes the networks of the method {name}, but this model is of {config.method}; "
                "use --to=safetensors, which has a place for every network"
            )
        return name

    return layout


def write_open_clip(export: Export, path: Path) -> Mapping[str, Any]:
    """Writes open_clip_config.json and the weights; removes the trunk of an earlier export that this model lacks."""
    tensors = to_state_dict({"params": export.params}, export.config, "open_clip")
    content, trunk = (
        hub_configs.open_clip_config(export.config, path),
        path / hub_configs.TRUNK / hub_configs.HUGGINGFACE,
    )
    write_weights(path / OF_OPEN_CLIP, tensors)  # first: if the disk is full, an earlier export stays whole
    if hub_configs.needs_trunk(export.config):
        _write_json(trunk, hub_configs.timm_trunk_config(export.config))
    else:
        trunk.unlink(missing_ok=True)
    if hub_vocabulary.fits(export.config):
        content |= hub_vocabulary.write(path, export.config)
    _write_json(path / hub_configs.OPEN_CLIP, content)
    return tensors


def write_huggingface(export: Export, path: Path) -> Mapping[str, Any]:
    """Writes config.json, preprocessor_config.json, the tokenizer's files, README.md and the weights."""
    tensors = to_state_dict({"params": export.params}, export.config, "huggingface")
    content = hub_configs.huggingface_config(export.config)
    write_weights(path / OF_HUGGINGFACE, tensors)  # first: if the disk is full, an earlier export stays whole
    written = ()  # files of the tokenizer
    if hub_vocabulary.fits(export.config):
        written = hub_vocabulary.FILES
        content |= hub_vocabulary.write(path, export.config)
    elif hub_tokenizer.fits(export.config):
        written = hub_tokenizer.FILES
        hub_tokenizer.write(path, export.config)
    if not _has_tokenizer(export, path):
        for name in set(hub_tokenizer.FILES).difference(written):
            (path / name).unlink(missing_ok=True)  # of an earlier export
    _write_json(path / hub_configs.HUGGINGFACE, content)
    _write_json(path / hub_configs.PREPROCESSOR, hub_configs.preprocessor_config(export.config))
    replace_text(path / README, export_notes.readme(export.config, export.origins))
    return tensors


def _has_tokenizer(export: Export, folder: Path) -> bool:
    """Whether the tokenizer of the training is in this folder."""
    return Path(export.config.data.tokenizer).resolve().parent == folder.resolve()


def not_of_export(fmt: Format, export: Export, folder: Path) -> list[str]:
    """Returns the files in a folder without weights that an export would replace; not the training's own tokenizer."""
    own = hub_tokenizer.FILES if _has_tokenizer(export, folder) else ()
    return [name for name in fmt.beside if (folder / name).exists() and name not in own]


def write_weights(file: Path, tensors: Mapping[str, Any]) -> None:
    """Writes the weights of a folder; removes the card of an earlier export of this name, a single file."""
    tensor_files.write(file, tensors, {"format": "pt"})
    if hub_configs.is_card(hub_configs.card_of(file)):
        hub_configs.card_of(file).unlink()


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, json.dumps(content, indent=2) + "\n")


def write_safetensors(export: Export, path: Path) -> Mapping[str, Any]:
    """Writes our parameter tree; the header holds the config needed to build the model, and the best read-out."""
    if path.suffix != ".safetensors":
        raise ValueError(f"--out={path}: the name of a safetensors file ends in .safetensors")
    return own_safetensors.write(path, export.params, export.config, statistics(export), export.choice)


def statistics(export: Export) -> Params:
    """The running statistics of the chosen weights: the teacher's for networks taken from the teacher."""
    stats, teacher = export.variables["batch_stats"], export.variables["ema_params"]
    moved = {name for name in teacher if export.params[name] is teacher[name]}
    return {**stats["student"], **{name: tree for name, tree in stats["teacher"].items() if name in moved}}


def in_layout(name: str) -> Callable[[ConfigDict], Collection[str]]:
    """`Format.networks` of a format that writes a state dict in this layout."""
    return lambda config: networks_in(config, name)


FORMATS = {
    "reference": in_file(
        lambda config: "reference",
        export_notes.reference_notes,
        partial(hub_configs.state_dict_card, heads=hub_configs.ALL_HEADS),
        holds_teacher=True,
    ),
    "slip": in_file(lambda config: "slip" if config.method == "slip" else "clip"),  # with SLIP's head, or CLIP's
    "timm": in_file(lambda config: "timm", export_notes.timm_notes, hub_configs.timm_card),
    "cosmos": in_file(layout_of_method("cosmos"), parts=clip_names.COSMOS_PARTS, holds_teacher=True),
    "flair": in_file(layout_of_method("flair")),
    "open_clip": Format(
        write_open_clip,
        in_layout("open_clip"),
        export_notes.open_clip_notes,
        is_directory=True,
        weights=OF_OPEN_CLIP,
        beside=(hub_configs.OPEN_CLIP, *hub_vocabulary.FILES),
    ),
    "huggingface": Format(
        write_huggingface,
        in_layout("huggingface"),
        export_notes.huggingface_notes,
        is_directory=True,
        weights=OF_HUGGINGFACE,
        beside=(hub_configs.HUGGINGFACE, hub_configs.PREPROCESSOR, README, *hub_tokenizer.FILES),
    ),
    "safetensors": Format(write_safetensors, None),
    "stablehlo": Format(
        compiled_functions.write_stablehlo,
        lambda _: compiled_functions.TOWERS,
        export_notes.stablehlo_notes,
        is_directory=True,
    ),
    "onnx": Format(
        compiled_functions.write_onnx,
        lambda _: compiled_functions.TOWERS,
        export_notes.signature_notes,
        is_directory=True,
    ),
}


def named(name: str) -> Format:
    """Returns the format `name`; raises ValueError with the nearest name for an unknown one."""
    if name not in FORMATS:
        raise ValueError(unknown("format", name, FORMATS, OTHER_NAMES))
    return FORMATS[name]


def summary(name: str, export: Export, path: Path, written: Mapping[str, Any]) -> list[str]:
    """Returns lines that describe the tensors `written` to `path` in the format `name`, with all notes."""
    fmt, count = FORMATS[name], sum(int(np.prod(value.shape)) for value in written.values())
    left_out = [] if fmt.networks is None else export_notes.left_out(fmt.networks(export.config), export)
    return [
        f"format      {name}",
        f"weights     {'student and ema' if fmt.holds_teacher else export.which}",
        f"tensors     {len(written)}",
        f"parameters  {count:,}",
        f"preprocess  {preprocessing.description(export.config)}",
        *(f"origin      {line}" for line in export_notes.origin_lines(export.origins)),
        *(f"note        {note}" for note in export_notes.of_a_run(export.run)),
        *(f"note        {note}" for note in left_out),
        *(f"note        {note}" for note in fmt.notes(export.config, path)),
    ]
