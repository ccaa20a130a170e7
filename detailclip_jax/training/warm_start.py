"""The weights that a run loads from another run or an imported checkpoint: `--config.init=DIR`.

The networks of the checkpoint are loaded, with its teacher, its centers and BatchNorm's running statistics.  Networks
that the method needs and the checkpoint lacks are initialised; a missing teacher is a copy of the student.  With
`--config.init_text=DIR` the text encoder is that of another checkpoint.  `adopted_config` sets the config before.
"""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.config.settings import split_list
from detailclip_jax.data import preprocessing
from detailclip_jax.models import lora, positions, stacking
from detailclip_jax.models.vit import INITIAL, Style
from detailclip_jax.renamed import former_names
from detailclip_jax.training import checkpoint, experiment
from detailclip_jax.training.adopted_config import CONTEXT, KEEP, loaded_networks
from detailclip_jax.training.schedules import clamp_warmup
from detailclip_jax.training.sharding import path_name
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.types import Array, Leaf, Params, PyTree

__getattr__ = former_names(__name__)


def load(config: ConfigDict, state: TrainState) -> tuple[TrainState, list[str]]:
    """Loads the networks of `config.init` into a fresh state; returns the state and lines that report the origins.

    A decoder that the method cannot use is not loaded.  Each network of the teacher is loaded from the checkpoint's
    teacher, or else copied from the student.  Centers are loaded if the checkpoint's teacher has the prototype head.
    Raises CheckpointError that lists tensors of other shapes.
    """
    fresh_adapters, state = state.params, state.replace(params=lora.base(state.params))
    _, variables, source = checkpoint.load(config.init)
    method, saved, texts = methods.build(config), variables.pop("running"), None
    if config.init_text:  # the text encoder is that of another checkpoint; the projection is left out
        _, other, texts = checkpoint.load(config.init_text)
        for tree in ("params", "ema_params"):
            rest = {name: value for name, value in variables[tree].items() if name not in ("text", "text_projection")}
            variables[tree] = rest | {name: value for name, value in other[tree].items() if name == "text"}
    networks = method.networks
    variables = {name: _as_here(tree, state.params) for name, tree in variables.items()}
    for tree in ("params", "ema_params"):
        tokens = _with_class_tokens(variables[tree], state.params)
        variables[tree] = dict(_with_context(tokens, state.params, config.init_text_positions))
    loaded = {name: variables["params"][name] for name in loaded_networks(config, method, source, variables["params"])}
    _check_shapes(f"config.init {config.init!r}", loaded, state.params)
    params = {
        network: _like(loaded[network], old) if network in loaded else old for network, old in state.params.items()
    }
    theirs = variables["ema_params"]
    known = {**loaded, **theirs}
    teacher = {
        network: _like(known[network], old) if network in known else jax.tree.map(jnp.copy, params[network])
        for network, old in state.ema_params.items()
    }
    centers = {name: saved[name] for name in method.centers if name in saved and "prototype_head" in theirs}
    running = {name: _like(centers[name], old) if name in centers else old for name, old in state.running.items()}
    stats = {
        "student": _statistics(state.batch_stats["student"], variables["batch_stats"]["student"], {}),
        "teacher": _statistics(
            state.batch_stats["teacher"], variables["batch_stats"]["teacher"], variables["batch_stats"]["student"]
        ),
    }
    fresh = [network for network in networks if network not in loaded]
    copied = {network: network in theirs for network in networks if network in teacher}
    lines = report(config, source, list(loaded), fresh, copied, texts)
    lines += [f"  centers       {', '.join(centers) or 'fresh'}"] if method.centers else []
    unused = [network for network in variables["params"] if network not in loaded]
    unused += [f"teacher's {network}" for network in theirs if network not in teacher]
    lines += [f"  not used      {', '.join(unused)}"] if unused else []
    params = lora.with_adapters(params, fresh_adapters)
    state = state.replace(params=params, ema_params=teacher, batch_stats=stats, running=running)
    return state, lines


def load_terms(config: ConfigDict, state: TrainState) -> tuple[TrainState, list[str]]:
    """Loads what terms take from other workdirs into a fresh state; returns the state and lines that describe it.

    Raises CheckpointError that lists tensors of other shapes.
    """
    lines: list[str] = []
    folders: list[str] = []

    def saved(folder: str) -> tuple[dict[str, Params], ConfigDict, str]:
        folders.append(folder)
        _, variables, source = checkpoint.load(folder)
        return variables, source, methods.build(source).weights

    for name, term in methods.TERMS.items():
        if term.load and config.losses.weights[name]:
            loaded, about = term.load(config, saved)
            loaded = _as_here(loaded, state.params)
            _check_shapes(f"losses.weights.{name}, from {folders[-1]},", loaded, state.params)
            placed = {network: _like(value, state.params[network]) for network, value in loaded.items()}
            state, lines = state.replace(params={**state.params, **placed}), lines + about
    return state, lines


def _with_class_tokens(tree: Params, params: Params) -> Params:
    """Gives an image encoder the number of class tokens of the new networks: its first ones, then fresh ones."""
    name = "extra_tokens"
    if "image" not in tree:
        return tree
    fresh, known = params.get("image", {}).get(name), tree["image"].get(name)
    kept = {path: leaf for path, leaf in tree["image"].items() if path != name}
    if fresh is None:
        return {**tree, "image": kept}
    if known is None:
        return {**tree, "image": {**kept, name: fresh}}
    tokens = np.concatenate([np.asarray(known)[: len(fresh)], np.asarray(fresh)[len(known) :]])
    return {**tree, "image": {**kept, name: jnp.asarray(tokens)}}


def _with_context(tree: Params, params: Params, rule: str) -> Params:
    """Stretches the text positions of a checkpoint to the context of the new networks, unless it has that context."""
    if rule == KEEP or "text" not in tree or "text" not in params:
        return tree
    table, length = np.asarray(tree["text"]["positions"]), len(params["text"]["positions"])
    if len(table) == length:  # as in an import of Long-CLIP
        return tree
    stretched = positions.stretched_text(table, length, rule)
    return {**tree, "text": {**tree["text"], "positions": stretched}}


def _statistics(old: Params, theirs: Params, student: Params) -> Params:
    """Running statistics of each network: the checkpoint's, else those of `student`, else the fresh ones."""
    known = {**student, **theirs}
    return {network: _like(known[network], leaves) if network in known else leaves for network, leaves in old.items()}


def _as_here(tree: Params, params: Params) -> dict[str, Params]:
    """Stacks or separates the blocks as in the new networks."""
    return {network: stacking.like(jax.device_get(value), params.get(network, {})) for network, value in tree.items()}


def _like(value: PyTree, old: PyTree) -> PyTree:
    """Copies `value` to new buffers with the shardings of `old`; every process fills its own devices."""

    def place(new: Leaf, leaf: Array) -> Array:
        host = np.asarray(new)
        return jax.make_array_from_callback(host.shape, leaf.sharding, lambda index: np.array(host[index]))

    return jax.tree.map(place, value, old)


def _check_shapes(origin: str, loaded: dict[str, Params], params: Params) -> None:
    used = {network: params[network] for network in loaded}
    theirs, ours = (
        {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)} for tree in (loaded, used)
    )
    wrong = [
        f"{path}: {theirs[path].shape if path in theirs else 'missing'} there, {value.shape} here"
        for path, value in ours.items()
        if path not in theirs or theirs[path].shape != value.shape
    ]
    if wrong:
        raise checkpoint.CheckpointError(f"the networks of {origin} do not fit: {'; '.join(wrong[:10])}")


def report(
    config: ConfigDict,
    source: ConfigDict,
    loaded: list[str],
    fresh: list[str],
    teacher: dict[str, bool],
    texts: ConfigDict | None = None,
) -> list[str]:
    """Formats which networks are loaded, fresh or copied, and the learning rates.

    `teacher` says for each network of the teacher whether the checkpoint's teacher has it. `texts` is the config of the
    checkpoint `init_text`.
    """
    opt, model, rule = config.optimizer, config.model, config.init_text_positions
    lines = [
        f"starting from {config.init} ({source.method}, {source.model.size})",
        f"  loaded        {', '.join(loaded) or 'nothing'}",
        f"  fresh         {', '.join(fresh) or 'nothing'}",
    ]
    if model.class_tokens != source.model.class_tokens:
        lines.append(f"  class tokens  {model.class_tokens} (checkpoint: {source.model.class_tokens})")
    if texts:
        lines.append(f"  text          from {config.init_text} ({texts.method}, {texts.model.size})")
    stretched = (texts or source).model[CONTEXT]
    if rule != KEEP and model[CONTEXT] != stretched:
        lines.append(
            f"  context       {model[CONTEXT]} tokens: {stretched} text positions of the checkpoint, stretched ({rule})"
        )
    along, copied = ([name for name, is_loaded in teacher.items() if is_loaded is kind] for kind in (True, False))
    lines += [f"  teacher       {', '.join(along)}: loaded"] if along else []
    lines += [f"  teacher       {', '.join(copied)}: a copy of the student"] if copied else []
    lines += [] if teacher else ["  teacher       none"]

    frozen = split_list(opt.frozen)
    rates = ", ".join(
        f"{network} frozen" if network in frozen else f"{network} x {opt.part_rates[network]:g}" for network in loaded
    )
    warmup = clamp_warmup(experiment.warmup_steps(config), config.total_steps)
    lines.append(f"  learning rate {opt.learning_rate:g} after {warmup} steps of warm-up; {rates}")
    lines.append(f"  layer decay   {opt.layer_decay:g} in those")
    if teacher:
        start, end = config.ema.start, config.ema.end
        moving = f"{start:g} -> {end:g}" if start != end else f"with the constant momentum {start:g}"
        lines.append(f"  teacher moves {moving}")
    style = Style(**model.image_style)._asdict().items()
    kept = ", ".join(f"{name} {value}" for name, value in style if name not in INITIAL)
    lines.append(f"  image tower   {kept}, interpolation {model.interpolation}")
    lines.append(f"  preprocess    {preprocessing.description(config)}")
    theirs = source.preprocess
    changed = [
        f"{name} {value} (checkpoint: {theirs.get(name)})"
        for name, value in config.preprocess.to_dict().items()
        if value != theirs[name]
    ]
    return lines + ([f"    set by you: {', '.join(changed)}"] if changed else [])
