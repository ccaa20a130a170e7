"""A folder's manifest: the length and SHA-256 of every file in it, the name that it must have, and the run's id.

    write(folder, "55", run_id)    # folder/manifest.json
    problem(folder)                # "", or which file is missing, cut or changed, or that the folder was renamed

Files that were added later are ignored, because nothing reads them.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path

from detailclip_jax.runtime.files import read_json

NAME = "manifest.json"
LAST = "_CHECKPOINT_METADATA"  # of Orbax, which adds the time of the last renaming to it; nothing is read from it
NO_MANIFEST = "the file was deleted, or this is not a checkpoint of detailclip_jax"


def write(folder: Path, name: str, run: str) -> None:
    """Writes the manifest of a folder whose final name is `name`; syncs the manifest and all files to the disk.

    `run` is the id of the run that wrote the folder.
    """
    whole = (file for file in sorted(folder.rglob("*")) if file.is_file() and file != folder / LAST)
    files = {}
    for file in whole:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())  # without it a power cut can leave a renamed folder with empty files
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files[str(file.relative_to(folder))] = {"bytes": file.stat().st_size, "sha256": digest}
    with (folder / NAME).open("w") as stream:
        json.dump({"folder": name, "run": run, "files": files}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())


def problem(folder: Path) -> str:
    """Describes what is wrong with a folder; "" if its files and its name are as they were written."""
    if not (folder / NAME).is_file():
        return f"{NAME} is missing: {NO_MANIFEST}"
    try:
        listed = read_json(folder / NAME)
        name, files = str(listed["folder"]), dict(listed["files"])
        for file, entry in files.items():
            if not (path := folder / file).is_file():
                return f"{file} is missing"
            if (size := path.stat().st_size) != entry["bytes"]:
                return f"{file} has {size:,} bytes instead of {entry['bytes']:,}"
            with path.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != entry["sha256"]:
                    return f"{file} has changed since it was written (its SHA-256 differs)"
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{NAME} is damaged ({type(error).__name__}: {error})"
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror}"
    if name != folder.name:
        return f"this folder was written as {name} and renamed to {folder.name}: rename it to {name}"
    return ""


def run_of(folder: Path) -> str:
    """Returns the id of the run that wrote a folder; "" if its manifest does not say."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return str(read_json(folder / NAME).get("run", ""))
    return ""
