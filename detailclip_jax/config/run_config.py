"""From `--config=file.py:arg` to the resolved configuration of a run, and back from a workdir's config.json.

Pure Python: flags and their errors answer before jax is imported.
"""

import difflib
import functools
import importlib.util
import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from detailclip_jax.config.components import components, is_endless, ratios
from detailclip_jax.config.config_files import find
from detailclip_jax.config.fields import CLIP_MEAN, default
from detailclip_jax.runtime.files import replace_text

# How long, how often and where to: a run may go on with other values of these (a trailing dot: all below it).
MAY_DIFFER = (
    "total_steps",
    "num_epochs",
    "log_every",
    "checkpoint_every",
    "max_to_keep",
    "best_metric",
    "evaluate_every",
    "evaluate_at_end",
    "evaluators.",
    "profile_steps",
    "data.path",
    "data.text_buckets",
    "data.num_workers",
    "data.prefetch",
    "data.max_bad_ratio",
    "preprocess.filter",  # these three: of evaluation alone
    "preprocess.resize",
    "preprocess.crop_ratio",
    "model.remat",
    "model.attention",
    "losses.chunk_logits",
    "accumulation",
    "mesh.",
    "losses.clip_block",
)
ABSENT = "(absent)"


def load(spec: str) -> ConfigDict:
    """The configuration that `path.py`, `path.py:arg` or `NAME:arg` describes, see `config_files.find`.

    Raises FileNotFoundError (with the config files that exist) and ValueError (a file without `get_config`,
    or an argument that it refuses).
    """
    name, _, arg = spec.partition(":")
    path = str(find(name))
    get_config = getattr(module(path), "get_config", None)
    if get_config is None:
        raise ValueError(f"config file {path} has no function get_config")
    if arg and not inspect.signature(get_config).parameters:
        raise ValueError(f"config file {path} takes no argument, but got {arg!r} after the colon")
    return get_config(arg) if arg else get_config()


def made_for(spec: str, method: str) -> str:
    """The spec whose config is made for `method`: with its crops, networks and rates, not another's.

        made_for("configs/stickers.py", "clip") == "configs/stickers.py:method=clip"

    A file of one's own that takes no such argument stays as it is.  Raises ValueError where there is a baseline to take
    instead.
    """
    path, _, arg = spec.partition(":")
    if load(spec).method == method:
        return spec
    changed = f"{path}:{arg}{',' if arg else ''}method={method}"
    try:
        load(changed)
        return changed
    except ValueError:
        _check_no_baseline(find(path), method)
        return spec


def _check_no_baseline(path: Path, method: str) -> None:
    folder = path.parent if path.parent.name == "baselines" else path.parent / "baselines"
    file = folder / f"{method}.py"
    if file.is_file():
        raise ValueError(
            f"{path} is made for another method than {method}: its crops, networks and rates would be wrong; "
            f"write --config={file}"
        )


def module(path: str) -> Any:
    """A config file as a module; ValueError unless it is Python."""
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"config file {path} is not a Python file (its name must end in .py)")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def check_overrides(config: ConfigDict, names: Iterable[str]) -> None:
    """Raises ValueError for the first dotted name, as in `--config.NAME=value`, that `config` does not have."""
    for name in names:
        _check_override(config, name)


def _check_override(config: ConfigDict, name: str) -> None:
    node, above = config, ""
    for part in name.split("."):
        if not isinstance(node, ConfigDict):
            raise ValueError(f"config field {above!r} is a value and has no field {part!r} below it")
        if part not in node:
            raise ValueError(_unknown_field(config, name, node, above))
        node, above = node[part], f"{above}.{part}" if above else part


def _unknown_field(config: ConfigDict, name: str, node: ConfigDict, above: str) -> str:
    """Suggests the nearest name, and lists the fields of the group that was reached, or else of the one meant."""
    guess = _nearest_field(config, name, node, above)
    if guess and not above and "." in name:
        above = guess if isinstance(_at(config, guess), ConfigDict) else guess.rpartition(".")[0]
        node = _at(config, above)
    hint = f"; did you mean {guess!r}?" if guess else "."
    place = f"fields of {above!r}" if above else "fields"
    return f"unknown config field {name!r}{hint} Known {place}: {', '.join(node)}"


def _at(config: ConfigDict, name: str) -> Any:
    return functools.reduce(lambda group, part: group[part], name.split(".") if name else [], config)


def _nearest_field(config: ConfigDict, name: str, node: ConfigDict, above: str) -> str:
    """By the whole name, then by its last part anywhere, then at the level where it went wrong; "" if none is near."""
    leaves = {field: field.rsplit(".", 1)[-1] for field in flatten(config)}
    leaf, part = name.rsplit(".", 1)[-1], name.removeprefix(f"{above}.").split(".")[0]
    near = functools.partial(difflib.get_close_matches, n=1)
    alike = near(leaf, leaves.values(), cutoff=0.85)
    at_level = [f"{above}.{field}" if above else field for field in near(part, list(node), cutoff=0.5)]
    found = near(name, leaves, cutoff=0.85) + [field for field in leaves if leaves[field] in alike] + at_level
    return found[0] if found else ""


def flatten(config: Mapping[str, Any] | ConfigDict, above: str = "") -> dict[str, Any]:
    """Dotted name -> value, in the order of the configuration; an empty group stands as itself."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict) and len(value):
            flat |= flatten(value, f"{above}{name}.")
        else:
            flat[above + name] = value
    return flat


def as_text(config: ConfigDict) -> str:
    """One `name = value` a line: what the golden files hold and what a reader compares."""
    plain = flatten(config.to_dict())
    return "".join(f"{name} = {value!r}\n" for name, value in plain.items())


def to_json(config: ConfigDict) -> str:
    """The configuration as JSON text (tuples become lists)."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ConfigDict:
    """The configuration back from `to_json`, lists as tuples again.

    Fields that this version knows and the text does not, since an earlier one wrote it, have their default.  Raises
    ValueError for a text that is no JSON object.
    """
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError(f"it holds a {type(fields).__name__}, not the object with all fields of a configuration")
    return ConfigDict(_over(default().to_dict(), _with_preprocess(_tuples(fields))))


def _with_preprocess(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a version that had mean and deviation among the views, and no filter of evaluation.

    Only imported models have OpenAI's normalisation or a pre-norm, and both kinds were trained with bicubic resizing.
    """
    views = fields.get("views")
    if "preprocess" in fields or not isinstance(views, dict):
        return fields
    moved = {name: views[name] for name in ("mean", "std") if name in views}
    if moved.get("mean") == CLIP_MEAN or _at_or(False, fields, "model", "image_style", "pre_norm"):
        moved["filter"] = "bicubic"
    rest = {name: value for name, value in views.items() if name not in moved}
    return {**fields, "views": rest, "preprocess": moved}


def _at_or(missing: Any, fields: Any, *names: str) -> Any:
    """The value below these names, `missing` where one of them is not there."""
    for name in names:
        fields = fields.get(name, missing) if isinstance(fields, dict) else missing
    return fields


def read(file: Path) -> ConfigDict:
    """The configuration of a config.json; ValueError that names the file where it is none."""
    try:
        return from_json(file.read_text())
    except (ValueError, RecursionError) as error:
        way_out = "copy it again where it came from (a checkpoint's `run` holds it too), or choose another --workdir"
        raise ValueError(f"{file} is damaged: {error}; {way_out}") from error


def _over(below: Any, above: Any) -> Any:
    """Nested dictionaries, `above` laid over `below`."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {name: _over(below.get(name), value) for name, value in above.items()}


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list) else value


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (old, new) of every field that differs and must not within one workdir (see MAY_DIFFER).

    A field that one of them lacks, written by an earlier version, counts as the default's.
    """
    usual, before, after = (flatten(json.loads(to_json(config))) for config in (default(), old, new))
    fields = [name for name in before | after if not _may_differ(name)]
    before, after = (dict.fromkeys(fields, ABSENT) | usual | values for values in (before, after))
    pairs = {name: (before[name], after[name]) for name in fields}
    changed = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if all(is_endless(components(config.data)) for config in (old, new)):
        changed.pop("data.held_out", None)  # nothing is held back of scenes without end
    return changed if "data.source" in changed else changed | _other_order(old, new)


def _other_order(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[str, str]]:
    """A set may lie elsewhere, but by other weights the same count of examples leads to another place of each set."""
    if ratios(old.data) == ratios(new.data):
        return {}
    return {"data.path (its weights, which give the order of examples)": (old.data.path, new.data.path)}


def _may_differ(name: str) -> bool:
    return any(name == field.rstrip(".") or (field.endswith(".") and name.startswith(field)) for field in MAY_DIFFER)


def claim_workdir(workdir: Path, config: ConfigDict, write: bool = True) -> None:
    """Makes the workdir this run's: writes `config.json` (one process does, all of them check).

    Raises ValueError as `check_workdir` does.
    """
    check_workdir(workdir, config)
    if write:
        workdir.mkdir(parents=True, exist_ok=True)
        replace_text(workdir / "config.json", to_json(config) + "\n")


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Raises ValueError, naming the fields, if the workdir holds a run of another configuration, or a damaged one."""
    file = workdir / "config.json"
    if file.exists() and (changed := differences(read(file), config)):
        lines = "\n".join(f"  {name}: {old!r} there, {new!r} now" for name, (old, new) in changed.items())
        raise ValueError(
            f"workdir {workdir} belongs to a run of another config. Differing fields:\n{lines}\n"
            "Choose another --workdir, or delete this one."
        )


def count_epochs(config: ConfigDict, given: Iterable[str], written: ConfigDict | None = None) -> ConfigDict:
    """The config with the epoch of the data it reads, and a num_epochs given on the command line in force.

    `given` are the dotted names that the command line sets, `written` the config as the file has it.  A num_epochs that
    is given counts, and the file's total_steps does not.  The file's `steps_per_epoch` holds for its own data: where
    the file reads scenes without end and the command line names data of a known size, or num_epochs, an epoch is the
    data's own, unless steps_per_epoch is given too.  Raises ValueError where both lengths are given.
    """
    given, counted = list(given), ConfigDict(config.to_dict())
    if "num_epochs" in given:
        if "total_steps" in given:
            raise ValueError("--config.num_epochs and --config.total_steps both say how long the run is; give one")
        counted.total_steps = None
    other_data = written is not None and is_endless(components(written.data))
    sized = not is_endless(components(config.data))
    if sized and ("num_epochs" in given or other_data) and "steps_per_epoch" not in given:
        counted.steps_per_epoch = None
    return counted


def resolve(config: ConfigDict, num_examples: int) -> ConfigDict:
    """A copy with `steps_per_epoch` and `total_steps` filled in.

        steps_per_epoch = num_examples // batch_size        total_steps = num_epochs * steps_per_epoch

    `total_steps` counts where the config has it; a data set smaller than a batch then has epochs of one step.  An epoch
    of several sets is as many examples as they have together, whatever their weights.  Scenes drawn on the fly have no
    size: the stickers source needs `total_steps`, or `steps_per_epoch`.  Raises ValueError for that, and without
    `total_steps` for a data set smaller than a batch.
    """
    resolved = ConfigDict(config.to_dict())
    endless = is_endless(components(config.data))
    if config.total_steps is None and config.steps_per_epoch is None and endless:
        raise ValueError(
            "total_steps is not set, and 'stickers' draws scenes without end, so num_epochs says nothing; "
            "give --config.total_steps=N"
        )
    if resolved.steps_per_epoch is None:
        if config.total_steps is None:
            _check_size(config.batch_size, num_examples)
        resolved.steps_per_epoch = max(num_examples // config.batch_size, 1)
    if config.total_steps is None:
        resolved.total_steps = config.num_epochs * resolved.steps_per_epoch
    return resolved.lock()


def _check_size(batch_size: int, num_examples: int) -> None:
    if num_examples < batch_size:
        raise ValueError(f"the data set has {num_examples} examples, less than one batch_size of {batch_size}")


def num_epochs(config: ConfigDict, num_examples: int) -> float:
    """How often a resolved run sees its data; on scenes without end, total_steps over `steps_per_epoch`."""
    if is_endless(components(config.data)):
        return config.total_steps / config.steps_per_epoch
    return config.total_steps * config.batch_size / num_examples


def default_workdir(spec: str) -> str:
    """runs/stickers for configs/stickers.py, runs/stickers-method=clip for configs/stickers.py:method=clip."""
    path, _, arg = spec.partition(":")
    name = Path(path).stem + (f"-{arg}" if arg else "")
    return str(Path("runs") / "".join(c if c.isalnum() or c in "-_.=" else "-" for c in name))
