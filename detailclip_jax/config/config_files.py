"""Search for config files: in the working directory, and among the files that come with the package.

find("configs/stickers.py")    # a file in the working directory has priority
find("stickers")               # the same file by its name, in any folder
"""

import difflib
from pathlib import Path

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
    for candidate in _candidates(name):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(_no_file(name))


def _candidates(name: str) -> list[Path]:
    """The candidate paths for `name`; the first existing one is used."""
    inner = name.removeprefix(f"{FOLDER}/")
    stem = inner if inner.endswith(".py") else f"{inner}.py"
    return [Path(name), Path(FOLDER) / stem, bundled_folder() / stem]


def known() -> list[str]:
    """Returns the names of all config files, as `find` takes them."""
    folders = [Path(FOLDER), bundled_folder()]
    files = {str(Path(FOLDER) / file.relative_to(folder)) for folder in folders for file in folder.glob("**/*.py")}
    return sorted(files)


def _no_file(name: str) -> str:
    stems = {Path(file).stem: file for file in known()}
    near = difflib.get_close_matches(Path(name).stem, stems, n=1)
    hint = f"did you mean {stems[near[0]]!r}?" if near else f"known: {', '.join(known())}"
    return f"unknown config file {name!r}; {hint}"
