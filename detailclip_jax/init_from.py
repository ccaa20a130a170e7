"""Training on from a checkpoint of another run or from elsewhere: `--config.init=DIR`.

What the checkpoint has is loaded, what the row needs besides is fresh, the teacher starts as a copy.  The networks
keep the sizes and kinds that they have there, and the images its normalisation.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from detailclip_jax import checkpoint, experiment, methods, run_config
from detailclip_jax.interop.tables import flatten
from detailclip_jax.models.vit import Style
from detailclip_jax.train_state import TrainState
from detailclip_jax.types import Params

OF_IMAGES = ("size", "custom", "image_size", "image_style")
OF_TEXT = ("context_length", "vocab_size", "text_activation")
OF_HEADS = {"prototype_head": "prototypes", "decoder": "decoder_depth"}


def adopt(config: ConfigDict) -> ConfigDict:
    """The config with what `config.init` decides: sizes, kinds, normalisation, and the rates of what it brings.

    Without `init` the config as it is.  Raises FileNotFoundError if there is no run at `init`.
    """
    if not config.init:
        return config
    source, adopted = _config_of(config.init), ConfigDict(config.to_dict())
    brought = methods.build(source).parts
    fields = [*OF_IMAGES, *(OF_TEXT if "text" in brought else ())]
    for name in [*fields, *(field for part, field in OF_HEADS.items() if part in brought)]:
        adopted.model[name] = source.model[name]
    adopted.views.mean, adopted.views.std = source.views.mean, source.views.std
    for crop in adopted.views.crops.values():
        crop.size = source.model.image_size if crop.size == config.model.image_size else crop.size
    loaded = [part for part in methods.build(adopted).parts if part in brought]
    rates = adopted.optimizer.part_rates.to_dict()
    adopted.optimizer.part_rates = ConfigDict(dict.fromkeys(loaded, adopted.optimizer.loaded_rate) | rates)
    return adopted


def _config_of(workdir: str) -> ConfigDict:
    file = Path(workdir) / "config.json"
    if not file.is_file() or not any((Path(workdir) / checkpoint.FOLDER).glob("*")):
        raise FileNotFoundError(
            f"config.init {workdir!r} is no workdir with a config.json and a checkpoint; "
            "python -m detailclip_jax.import_torch makes one of a PyTorch checkpoint"
        )
    return run_config.from_json(file.read_text())


def load(config: ConfigDict, state: TrainState) -> tuple[TrainState, list[str]]:
    """A fresh state with the parts of `config.init` in it, and lines that say what came from where.

    The teacher takes the checkpoint's where it has one, and a copy of the student's part else.  Raises
    CheckpointError that lists the tensors of another shape.
    """
    _, variables, source = checkpoint.load(config.init)
    parts = methods.build(config).parts
    loaded = {part: variables["params"][part] for part in parts if part in variables["params"]}
    _check_shapes(config.init, loaded, state.params)
    params = {part: _like(loaded.get(part, fresh), fresh) for part, fresh in state.params.items()}
    teacher = {
        part: _like(variables["ema_params"].get(part, params[part]), old) for part, old in state.ema_params.items()
    }
    fresh = [part for part in parts if part not in loaded]
    lines = report(config, source, list(loaded), fresh, [part for part in parts if part in teacher])
    return state.replace(params=params, ema_params=teacher), lines


def _like(value: Params, old: Params) -> Params:
    """A copy in buffers of its own, placed as the old one is."""
    return jax.tree.map(lambda new, leaf: jax.device_put(jnp.copy(new), leaf.sharding), value, old)


def _check_shapes(init: str, loaded: dict[str, Params], params: Params) -> None:
    theirs, ours = flatten(loaded), flatten({part: params[part] for part in loaded})
    wrong = [
        f"{path}: {theirs[path].shape if path in theirs else 'missing'} there, {value.shape} here"
        for path, value in ours.items()
        if path not in theirs or theirs[path].shape != value.shape
    ]
    if wrong:
        raise checkpoint.CheckpointError(f"the networks of config.init {init!r} do not fit: {'; '.join(wrong[:10])}")


def report(
    config: ConfigDict, source: ConfigDict, loaded: list[str], fresh: list[str], teacher: list[str]
) -> list[str]:
    """What is loaded, fresh and copied, and the recipe."""
    opt, style = config.optimizer, Style(**config.model.image_style)
    rates = ", ".join(f"{part} x {opt.part_rates[part]:g}" for part in loaded)
    kept = ", ".join(f"{name} {value}" for name, value in style._asdict().items() if name != "init")
    return [
        f"starting from {config.init} ({source.method}, {source.model.size})",
        f"  loaded        {', '.join(loaded) or 'nothing'}",
        f"  fresh         {', '.join(fresh) or 'nothing'}",
        f"  teacher       {', '.join(teacher) or 'none'}: a copy",
        f"  learning rate {opt.learning_rate:g} after {experiment.warmup_steps(config)} steps of warm-up; {rates}",
        f"  layer decay   {opt.layer_decay:g} in those",
        f"  teacher moves {config.ema.start:g} -> {config.ema.end:g}",
        f"  image tower   {kept}",
    ]
