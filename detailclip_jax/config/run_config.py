"""Loading, checking, resolving and storing the config of a run, from `--config=file.py:arg` or a config.json.

Pure Python: errors in flags are reported before jax is imported.
"""

import functools
import importlib.util
import inspect
import json
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from detailclip_jax.config import detection_fields, fields, segmentation_fields, sizes, stored_fields
from detailclip_jax.config.config_files import METHOD_FOLDERS, find
from detailclip_jax.config.data_path import is_endless, ratios
from detailclip_jax.config.declarations import Field, not_computable
from detailclip_jax.config.stored_fields import OtherVersion
from detailclip_jax.runtime.errors import nearest
from detailclip_jax.runtime.files import read_json, replace_text

DENSE = {segmentation_fields.METHOD: segmentation_fields, detection_fields.METHOD: detection_fields}
ABSENT = "(absent)"
MAX_LISTED = 10  # fields that a message names


def is_dense(config: ConfigDict) -> bool:
    """Whether a config is one of a dense task, which the command transfer runs; `main` runs all others."""
    return config.get("method") in DENSE


def declaration_of(config: ConfigDict | Mapping[str, Any]) -> Callable[[str], Field | None]:
    """Returns the function that finds the declaration of a field by its dotted name, for this kind of run.

    A run of a dense task has the whole group `model` of the pretraining that its encoder comes from.
    """
    kind = DENSE.get(str(config.get("method")))
    return fields.field_of if kind is None else lambda name: kind.field_of(name) or fields.field_of(name)


def check_fields(config: ConfigDict) -> None:
    """Raises ValueError for the first field of a run whose value is not allowed, see `Field.check`."""
    declaration = declaration_of(config)
    for name, value in flatten(config.to_dict()).items():
        if declared := declaration(name):
            declared.check(name, value)
        elif isinstance(value, int | float) and (problem := not_computable(value)):
            of_group = any(declaration(name.rsplit(".", depth)[0]) for depth in range(1, name.count(".") + 1))
            if of_group or isinstance(value, int):  # a number of a user's field may be infinite
                raise ValueError(f"{name} {value} must {problem}")


def load(spec: str) -> ConfigDict:
    """Loads the config of `path.py`, `path.py:arg` or `NAME:arg`, see `config_files.find`.

    Raises FileNotFoundError (with the config files that exist) and ValueError (a file without `get_config`, one that
    returns no config, or an invalid argument).
    """
    name, _, arg = spec.partition(":")
    path = str(find(name))
    get_config = getattr(module(path), "get_config", None)
    if get_config is None:
        raise ValueError(f"config file {path} has no function get_config")
    if arg and not inspect.signature(get_config).parameters:
        raise ValueError(f"config file {path} takes no argument, but got {arg!r} after the colon")
    config = get_config(arg) if arg else get_config()
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"config file {path}: get_config returns {config!r:.40}, not a config; begin it with config = "
            "detailclip_jax.default() and end it with return config"
        )
    return config


def load_pretraining(spec: str) -> ConfigDict:
    """As `load`; raises ValueError also for a config of a dense task."""
    config = load(spec)
    if is_dense(config):
        raise ValueError(
            f"{spec} is a config of the command transfer ({config.method}); this command is for those of pretraining"
        )
    return config


def made_for(spec: str, method: str) -> str:
    """Returns the spec of the config for `method`, with the method's crops, networks and learning rates.

        made_for("configs/stickers.py", "clip") == "configs/stickers.py:method=clip"

    The spec of a file without an argument `method` is returned unchanged.  Raises ValueError if there is a config of
    that method, such as configs/baselines/clip.py, which must be used instead.
    """
    path, _, arg = spec.partition(":")
    if load(spec).method == method:
        return spec
    changed = f"{path}:{arg}{',' if arg else ''}method={method}"
    try:
        load(changed)
        return changed
    except ValueError:
        if file := file_of_method(find(path), method):
            raise ValueError(
                f"{find(path)} is a config of another method than {method}; its crops, networks and learning rates do "
                f"not fit; write --config={file}"
            ) from None
        return spec


def file_of_method(path: Path, method: str) -> Path | None:
    """Returns the config file named after a method in one of METHOD_FOLDERS next to or below `path`; None without one.

    file_of_method(Path("configs/vitb16_yfcc.py"), "clip") == Path("configs/baselines/clip.py")
    """
    root = path.parent.parent if path.parent.name in METHOD_FOLDERS else path.parent
    files = (root / folder / f"{method}.py" for folder in METHOD_FOLDERS)
    return next((file for file in files if file.is_file()), None)


def module(path: str) -> Any:
    """Imports a config file as a module.  Raises ValueError if it is not a Python file."""
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"config file {path} is not a Python file (its name must end in .py)")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def check_overrides(config: ConfigDict, names: Iterable[str]) -> None:
    """Raises ValueError for the first dotted name (as in `--config.NAME=value`) that `config` does not have."""
    for name in names:
        node, above = config, ""
        for part in name.split("."):
            if not isinstance(node, ConfigDict):
                raise ValueError(f"config field {above!r} is a value, not a group; it has no field {part!r}")
            if part not in node:
                raise ValueError(_unknown_field(config, name, node, above))
            node, above = node[part], f"{above}.{part}" if above else part


def _unknown_field(config: ConfigDict, name: str, node: ConfigDict, above: str) -> str:
    """The message for an unknown field: the nearest name, and the fields of the group that was reached or suggested.

    The nearest name is that of the whole name, of the last part in any group, or of the part in the group reached.
    """
    leaves = {field: field.rsplit(".", 1)[-1] for field in flatten(config)}
    leaf, part = name.rsplit(".", 1)[-1], name.removeprefix(f"{above}.").split(".")[0]
    alike = nearest(leaf, leaves.values(), cutoff=0.85)
    in_group = [f"{above}.{field}" if above else field for field in nearest(part, node)]
    guesses = nearest(name, leaves, cutoff=0.85) + [field for field in leaves if leaves[field] in alike] + in_group
    guess = guesses[0] if guesses else ""
    if guess and not above and "." in name:
        above = guess if isinstance(at(config, guess), ConfigDict) else guess.rpartition(".")[0]
        node = at(config, above)
    hint = f"; did you mean {guess!r}?" if guess else "."
    if not node:
        return f"unknown config field {name!r}{hint} The group {above!r} is empty: only a config file can fill it"
    place = f"fields of {above!r}" if above else "fields"
    return f"unknown config field {name!r}{hint} Known {place}: {', '.join(node)}"


def at(config: ConfigDict | dict[str, Any], name: str) -> Any:
    """Returns the field or the group of a dotted name, the whole config for ""."""
    return functools.reduce(lambda group, part: group[part], name.split(".") if name else [], config)


def flatten(config: Mapping[str, Any] | ConfigDict, above: str = "") -> dict[str, Any]:
    """Returns dotted name -> value, in the order of the config; an empty group is one value."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict) and len(value):
            flat |= flatten(value, f"{above}{name}.")
        else:
            flat[above + name] = value
    return flat


def help_text(config: ConfigDict, methods: Iterable[str] = ()) -> str:
    """Formats every field of a config: value, meaning, source and allowed values; also a default that differs.

    `methods` are the allowed values of the field `method`: config cannot import their table.
    """
    known = declaration_of(config)

    def declaration(name: str) -> Field | None:
        declared = known(name)
        return declared._replace(choices=tuple(methods)) if declared and name == "method" else declared

    lines = (line for name, value in _named(config, "", declaration) for line in _help(name, value, declaration(name)))
    return "\n".join(lines) + "\n"


def _named(config: ConfigDict, above: str, declaration: Callable[[str], Field | None]) -> Iterator[tuple[str, Any]]:
    """Yields dotted names and values.  An empty group, or one with the user's fields, is yielded as one value."""
    for name, value in config.items():
        if isinstance(value, ConfigDict) and len(value) and declaration(above + name) is None:
            yield from _named(value, f"{above}{name}.", declaration)
        else:
            yield above + name, value


def _help(name: str, value: Any, declared: Field | None) -> list[str]:
    if declared is None:
        return [f"{name} = {value!r}", "    only in this config file", ""]
    value = value.to_dict() if isinstance(value, ConfigDict) else value
    other = "" if value == declared.default else f" (default: {declared.default!r})"
    about = textwrap.wrap(f"{declared.meaning} [{declared.source}]", 112)
    notes = "; ".join(filter(None, (declared.allowed(), "may change on resume" if declared.may_change else "")))
    return [f"{name} = {value!r}{other}", *(f"    {line}" for line in (*about, *textwrap.wrap(notes, 112))), ""]


def to_json(config: ConfigDict, without: Collection[str] = ()) -> str:
    """Converts a config to JSON text with the number of its schema; tuples become lists.

    `without` has dotted names of fields that are left out.
    """
    content = config.to_dict()
    for name in without:
        *groups, last = name.split(".")
        del at(content, ".".join(groups))[last]
    return json.dumps(stored_fields.marks(flatten(content), declaration_of(config)) | content, indent=2)


def from_json(text: str) -> ConfigDict:
    """Converts the text of `to_json` to a config; lists become tuples again.

    Fields that it lacks have their neutral values, and a warning names them.  Raises ValueError if the text is not a
    JSON object with values of the declared types, OtherVersion for a field that this version does not know.
    """
    return _of_fields(json.loads(text), "a stored config")[0]


def _of_fields(stored: Any, origin: str) -> tuple[ConfigDict, dict[str, Any]]:
    """Returns a stored config, and the neutral values of the fields that it lacks by their dotted names."""
    if not isinstance(stored, dict):
        raise ValueError(f"it contains a {type(stored).__name__}, not an object with all fields of a config")
    stored = _tuples(stored)
    schema, users = stored_fields.take_marks(stored)
    stored_fields.rename(stored, schema)
    kind, declaration = DENSE.get(str(stored.get("method"))), declaration_of(stored)
    missing = stored_fields.complete(stored, (kind or fields).GROUPS)
    _check_types(stored, declaration)
    if users is not None:
        stored_fields.check_known(flatten(stored), declaration, users)
    if missing:
        stored_fields.warn(missing, origin)
    return ConfigDict(stored), missing | ({} if kind else stored_fields.missing_in_crops(stored, fields.CROP))


def _check_types(stored: Mapping[str, Any], declaration: Callable[[str], Field | None], above: str = "") -> None:
    """Raises ValueError for the first declared field whose value has another type than in its declaration."""
    for name, value in stored.items():
        declared = declaration(above + name)
        if declared and not declared.takes(value):
            raise ValueError(f"{above}{name} has the value {value!r:.40}, of another type than {declared.usual!r:.40}")
        if declared is None and isinstance(value, dict):
            _check_types(value, declaration, f"{above}{name}.")


def read(file: Path) -> ConfigDict:
    """Loads a config.json.  Raises ValueError that names the file if it is invalid."""
    return _read(file)[0]


def _read(file: Path) -> tuple[ConfigDict, dict[str, Any]]:
    try:
        return _of_fields(read_json(file), str(file))
    except OtherVersion as error:
        raise ValueError(f"{file} {error}") from error
    except (ValueError, KeyError, RecursionError) as error:  # KeyError: a field with the name of a method of ConfigDict
        way_out = "copy it again from its source (the `run` of a checkpoint has a copy), or choose another --workdir"
        raise ValueError(f"{file} is damaged: {error}; {way_out}") from error


def as_in_run(config: ConfigDict, workdir: str | Path | None, set_names: Iterable[str] = ()) -> ConfigDict:
    """Returns the config with the neutral values of the fields that the run in `workdir` lacks, so that it can go on.

    Fields that the user has set, whose dotted names are `set_names`, keep their values, and so does a field that may
    change and is not at its default.  Without a run in `workdir` the config is returned unchanged.
    """
    file = Path(workdir or "") / "config.json"
    if workdir is None or not file.exists():
        return config
    config, set_by_user = ConfigDict(config.to_dict()), set(set_names)
    for name, neutral in _read(file)[1].items():
        *groups, last = name.split(".")
        group = config
        for part in groups:
            group = group.get(part, {})
        declared = declaration_of(config)(name)
        changed = declared and declared.may_change and group.get(last) != declared.default
        if last in group and name not in set_by_user and not changed:
            group[last] = neutral
    return config


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list) else value


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns dotted name -> (old, new) of the fields that differ, without those that may change on resume.

    A field that one of the two lacks does not differ from its neutral value.
    """
    before, after = (flatten(json.loads(json.dumps(config.to_dict()))) for config in (old, new))
    declaration, changed = declaration_of(new), {}
    for name in before | after:
        pair, parts = (before.get(name, ABSENT), after.get(name, ABSENT)), name.split(".")
        # an option of a field such as evaluators may change if the field may
        above = filter(None, (declaration(".".join(parts[: 1 + end])) for end in range(len(parts))))
        if pair[0] == pair[1] or any(field.may_change for field in above):
            continue
        declared = declaration(name)
        if ABSENT in pair and declared and json.loads(json.dumps(declared.neutral_value)) in pair:
            continue
        changed[name] = pair
    if is_dense(old) or is_dense(new):  # one set, read in whole epochs
        return changed
    if all(is_endless(config.data) for config in (old, new)):
        changed.pop("data.held_out", None)  # unused: scenes without end have no held-out part
    # paths may differ, but with other weights the same number of examples is another position in each set
    if "data.source" not in changed and ratios(old.data) != ratios(new.data):
        changed["data.path (its weights, which give the order of examples)"] = old.data.path, new.data.path
    return changed


def claim_workdir(workdir: Path, config: ConfigDict) -> None:
    """Checks the workdir with `check_workdir` and writes `config.json`; to be called by one process only.

    The fields that an older config.json lacks stay out of it while they have their neutral values, see `as_in_run`.
    Raises ValueError as `check_workdir` does.
    """
    check_workdir(workdir, config)
    workdir.mkdir(parents=True, exist_ok=True)
    file, fields_of_config = workdir / "config.json", flatten(config.to_dict())
    missing = _read(file)[1] if file.exists() else {}
    older = [name for name, neutral in missing.items() if fields_of_config.get(name, ABSENT) == neutral]
    replace_text(file, to_json(config, without=older) + "\n")


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Raises ValueError if the workdir has a run of another config (names the fields), or a damaged config.json."""
    file = workdir / "config.json"
    if file.exists() and (changed := differences(read(file), config)):
        raise ValueError(
            f"workdir {workdir} belongs to a run with another config. Fields that differ:\n"
            f"{listed(changed, 'in the workdir', 'now')}\n"
            "Choose another --workdir, give the workdir's values (--config.NAME=VALUE), or delete this workdir."
        )


def listed(changed: Mapping[str, tuple[Any, Any]], old: str, new: str) -> str:
    """Formats `differences`, one per line; `old` and `new` say where the two values stand."""
    names = sorted(changed, key=lambda name: name != "method")  # the method explains most of the others
    lines = [f"  {name}: {changed[name][0]!r} {old}, {changed[name][1]!r} {new}" for name in names[:MAX_LISTED]]
    more = [f"  and {len(names) - MAX_LISTED} more"] if len(names) > MAX_LISTED else []
    return "\n".join(lines + more)


def without_overridden(config: ConfigDict, set_names: Iterable[str], written: ConfigDict | None = None) -> ConfigDict:
    """Returns the config without the fields of the file that the command line overrides, or that are not for its data.

    `set_names` are the dotted names that the command line sets, `written` is the config of the file.  A `num_epochs`
    on the command line replaces the file's `total_steps`.  The file's `steps_per_epoch` applies to its data only.  It
    is cleared if the data have a known size, the command line does not set it, and either the command line sets
    `num_epochs` or the file's data are scenes without end.  In the latter case the other fields that describe the
    file's data (`Field.of_data`) get their defaults.  Raises ValueError if the command line sets both `num_epochs` and
    `total_steps`.
    """
    set_names, changed = list(set_names), ConfigDict(config.to_dict())
    if "num_epochs" in set_names:
        if "total_steps" in set_names and config.total_steps is not None:
            raise ValueError(
                "--config.num_epochs and --config.total_steps both set the length of the run; give only one of them"
            )
        changed.total_steps = None
    other_data = written is not None and is_endless(written.data)
    sized = not is_endless(config.data)
    if sized and ("num_epochs" in set_names or other_data) and "steps_per_epoch" not in set_names:
        changed.steps_per_epoch = None
    of_data = {
        f"{group}.{name}": field.value
        for group, table in fields.GROUPS.items()
        for name, field in table.items()
        if field.of_data and f"{group}.{name}" not in set_names
    }
    if sized and other_data:
        changed.update_from_flattened_dict(of_data)
    return changed


def resolve(config: ConfigDict, num_examples: int) -> ConfigDict:
    """Returns a locked copy with `steps_per_epoch` and `total_steps` set, if the config does not set them.

        steps_per_epoch = num_examples // batch_size        total_steps = num_epochs * steps_per_epoch

    The batch size is the mean one if `views.native_budget` makes several.

    If `total_steps` is set, a data set smaller than a batch has epochs of one step.  An epoch of several sets has as
    many examples as all sets together, whatever their weights.  The stickers source draws scenes without end, so it
    needs `total_steps` or `steps_per_epoch`.  Raises ValueError if both are missing for stickers, and if `total_steps`
    is missing for a data set smaller than a batch.
    """
    resolved = ConfigDict(config.to_dict())
    endless = is_endless(config.data)
    if config.total_steps is None and config.steps_per_epoch is None and endless:
        raise ValueError(
            "total_steps is not set, and num_epochs is undefined for the infinite data source 'stickers'; "
            "give --config.total_steps=N"
        )
    if resolved.steps_per_epoch is None:
        if config.total_steps is None and num_examples < sizes.mean_batch_size(config):
            raise ValueError(
                f"the data set has {num_examples} examples, fewer than batch_size {config.batch_size}; "
                "give a smaller --config.batch_size"
            )
        resolved.steps_per_epoch = max(int(num_examples // sizes.mean_batch_size(config)), 1)
    if config.total_steps is None:
        resolved.total_steps = config.num_epochs * resolved.steps_per_epoch
    return resolved.lock()


def num_epochs(config: ConfigDict, num_examples: int) -> float:
    """Returns the number of epochs of a resolved run; for scenes without end, total_steps / steps_per_epoch."""
    if is_endless(config.data):
        return config.total_steps / config.steps_per_epoch
    return config.total_steps * sizes.mean_batch_size(config) / num_examples


def default_workdir(spec: str) -> str:
    """Returns the default workdir of a config.

    runs/stickers for configs/stickers.py, runs/stickers-method=clip for configs/stickers.py:method=clip
    """
    path, _, arg = spec.partition(":")
    name = Path(path).stem + (f"-{arg}" if arg else "")
    return str(Path("runs") / "".join(c if c.isalnum() or c in "-_.=" else "-" for c in name))
