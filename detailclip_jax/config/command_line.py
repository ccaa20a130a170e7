"""The fields of a config on the command line: --config=FILE:ARGUMENT and --config.NAME=VALUE, before absl parses them.

Pure Python, without jax, so that mistakes are answered at once.
"""

import re
from collections.abc import Collection, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from detailclip_jax.config import default, run_config, settings
from detailclip_jax.config.config_files import find
from detailclip_jax.runtime import errors

UNSET = "None"
DICTIONARIES = ("evaluators", "optimizer.part_rates")  # groups without fields of their own
KINDS = {int: "a whole number", float: "a number", bool: "true or false", tuple: "a tuple, for example (0.1, 0.5)"}


class OrUnset(flags.ArgumentParser):
    """Parses a value, or None, for fields whose default is no value; `check_unset` refuses None for the others."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser
        self.syntactic_help = parser.syntactic_help

    def parse(self, argument: Any) -> Any:
        """Returns None for "None", and else what the wrapped parser returns."""
        return None if argument == UNSET else self._parser.parse(argument)

    def flag_type(self) -> str:
        """Names the type, for --help."""
        return self._parser.flag_type()


for _kind, _parser in ((int, flags.IntegerParser()), (float, flags.FloatParser())):
    config_flags.register_flag_parser_for_type(_kind, OrUnset(_parser))


def spec_of(argv: Sequence[str]) -> str | None:
    """Returns the value of --config; None without it."""
    return value_of("config", argv)


def value_of(flag: str, argv: Sequence[str]) -> str | None:
    """Returns the value of --FLAG=VALUE or --FLAG VALUE, the last one if there are several; None without it."""
    value = None
    for index, argument in enumerate(argv):
        if match := re.match(rf"--?{re.escape(flag)}=(.*)", argument):
            value = match.group(1)
        elif re.fullmatch(rf"--?{re.escape(flag)}", argument) and index + 1 < len(argv):
            value = argv[index + 1]
    return value


def override_names(argv: Sequence[str]) -> list[str]:
    """Returns the dotted names in --config.NAME=VALUE and in --noconfig.NAME, which switches a bool off."""
    matches = (re.match(r"--?(?:no)?config\.([^=]+)", argument) for argument in argv)
    return [match.group(1) for match in matches if match]


def check_names(argv: Sequence[str], known: Collection[str]) -> None:
    """Raises ValueError for a flag that is neither one of `known` nor a field.

    It comes first, so that a typing error in --config is not reported as a missing --config.
    """
    for argument in argv[1:]:
        name = argument.partition("=")[0].lstrip("-")
        is_flag = argument.startswith("-") and re.match("[a-z]", name)
        group, dot, field = name.partition(".")
        if is_flag and group not in ("config", "noconfig") and {name, name.removeprefix("no")}.isdisjoint(known):
            spec = spec_of(argv)
            meant = near_field(name, run_config.load(spec) if spec else default())
            hint = "" if dot and meant else errors.near(f"--{group}", [f"--{flag}" for flag in known], cutoff=0.7)
            rest = f" (with .{field})" if dot and hint else ""
            raise ValueError(f"unknown flag --{name}{hint or meant}{rest} (--help lists the flags)")


def near_field(name: str, config: ConfigDict) -> str:
    """Returns "; did you mean '--config.batch_size'?" for "batch-size", and "" where no field has a similar name."""
    wanted = name.replace("-", "_")
    fields = sorted(run_config.flatten(config), key=lambda field: field.count("."))
    if "." in wanted:  # --data.path
        return errors.near(wanted, fields, cutoff=0.9, shown=lambda field: f"--config.{field}")
    last = [field.rpartition(".")[2] for field in fields]
    containing = [word for word in last if wanted in word and len(wanted) > 3]
    shown = lambda word: f"--config.{fields[last.index(word)]}"  # noqa: E731
    return errors.near(wanted, containing or last, cutoff=0.0 if containing else 0.7, shown=shown)


def checked(argv: Sequence[str], spec: str) -> list[str]:
    """Returns the command line with the file and the recipe of its config, as absl must read it.

    Raises ValueError for an unknown field, for a value of a group, for None in place of a number, and for a method that
    has a config file of its own; FileNotFoundError for a missing file.
    """
    argv = with_recipe(argv, spec)
    spec = spec_of(argv) or spec
    name, colon, argument = spec.partition(":")
    argv = _with_spec(argv, spec, f"{find(name)}{colon}{argument}")  # config_flags needs a path
    config = run_config.load(spec_of(argv) or spec)
    run_config.check_overrides(config, override_names(argv))
    check_values(config, argv)
    return argv


def with_recipe(argv: Sequence[str], spec: str) -> list[str]:
    """Replaces the config by that of --config.method, with the method's crops and learning rates.

    --config=stickers.py --config.method=clip becomes --config=stickers.py:method=clip --config.method=clip
    """
    method = value_of("config.method", argv)
    if method is None:
        return list(argv)
    return _with_spec(argv, spec, run_config.made_for(spec, method))


def _with_spec(argv: Sequence[str], old: str, new: str) -> list[str]:
    spelled = old, f"--config={old}", f"-config={old}"
    return [new.join(argument.rsplit(old, 1)) if argument in spelled else argument for argument in argv]


def check_values(config: ConfigDict, argv: Sequence[str]) -> None:
    """Raises ValueError for --config.NAME=VALUE of a group of fields, and for None as a number that has a default.

    A group of DICTIONARIES takes a dictionary.
    """
    declaration = run_config.declaration_of(config)
    for name in override_names(argv):
        above, _, last = name.rpartition(".")
        group = run_config.at(config, above)
        old, value, takes_any = group[last], value_of(f"config.{name}", argv), name in DICTIONARIES
        if isinstance(old, ConfigDict) and not (takes_any and settings.is_dictionary(settings.literal(value or ""))):
            known = f"; known: {', '.join(old)}" if old else ""
            whole = "; or a dictionary: \"{'FIELD': VALUE}\"" if takes_any else ""
            raise ValueError(f"{settings.is_a_group(f'--config.{name}', value)}{known}{whole}")
        kind, declared = KINDS.get(group.get_type(last)), declaration(name)
        if kind and value == UNSET and not (declared and declared.kind):
            raise ValueError(f"--config.{name}={UNSET}: expected {kind}")


def invalid_value(error: flags.Error, argv: Sequence[str]) -> str:
    """Returns the message for a value that a config field does not accept; "" for another error of absl."""
    match = re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
    if not match:
        return ""
    above, _, name = match[1].rpartition(".")
    group = run_config.at(run_config.load(spec_of(argv) or ""), above)
    kind = KINDS.get(group.get_type(name) or object)
    return f"--config.{match[1]}={match[2]}: expected {kind}" if kind else ""
