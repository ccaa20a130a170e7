"""Config files: the search for them, in the working directory and in the package, and their arguments.

find("configs/stickers.py")    # a file in the working directory has priority
find("stickers")               # the same file by its name, in any folder
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from detailclip_jax.runtime.errors import near

PACKAGE = Path(__file__).parents[1]
BUNDLED = "bundled_configs"  # in a wheel; see setup.py
FOLDER = "configs"
METHOD_FOLDERS = ("baselines", "beyond")  # in it: a file per method of the paper's tables, and of later work


def bundled_folder() -> Path:
    """Returns the folder of the configs that come with the package: inside a wheel, or `configs/` of a checkout."""
    inside = PACKAGE / BUNDLED
    return inside if inside.is_dir() else PACKAGE.parent / FOLDER


def find(name: str) -> Path:
    """Finds a config file by its path, or by a name such as "stickers" or "baselines/slip".

    Searches the working directory first, then the bundled files.
    Raises FileNotFoundError with the nearest and all known names.
    """
    stem = f"{name.removeprefix(f'{FOLDER}/').removesuffix('.py')}.py"
    for candidate in (Path(name), Path(FOLDER) / stem, bundled_folder() / stem):
        if candidate.is_file():
            return candidate
    stems = {Path(file).stem: file for file in known()}
    hint = near(Path(name).stem, stems, cutoff=0.6, shown=lambda stem: stems[stem])
    raise FileNotFoundError(f"unknown config file {name!r}{hint or '; known: ' + ', '.join(known())}")


def known() -> list[str]:
    """Returns the names of all config files, as `find` takes them."""
    folders = [Path(FOLDER), bundled_folder()]
    files = {str(Path(FOLDER) / file.relative_to(folder)) for folder in folders for file in folder.glob("**/*.py")}
    return sorted(files)


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """Parses "name=value,name=value" with typed defaults; a value without a name sets the first name.

        parse_arg("epochs=50", epochs=25, preset="paper").epochs == 50    # configs/vitb16_yfcc.py:epochs=50

    Raises ValueError that lists the known names for an unknown one, and names the type for an invalid value.
    """
    parsed = ConfigDict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, _, value = item.rpartition("=")
        name = name or next(iter(defaults))
        if name not in defaults:
            raise ValueError(f"unknown config argument {name!r}; known: {', '.join(defaults)}")
        kind = type(defaults[name])
        try:
            parsed[name] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError):
            expected = "True or False" if kind is bool else kind.__name__
            raise ValueError(f"config argument {name}={value}: expected {expected}") from None
    return parsed
