"""Reads tensors from untrusted files: nothing in them is executed or extracted.

Safetensors and npz files contain only numbers. PyTorch files are read with `torch.load(weights_only=True)`, TorchScript
archives (OpenAI's CLIP) by `torchscript`. Files that would require more are refused.
"""

import argparse
import contextlib
import pickle
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from detailclip_jax.interop import torchscript
from detailclip_jax.runtime import extras
from detailclip_jax.runtime.files import written_atomically

LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # start of PyTorch files before 1.6
NPY = ".npy"  # suffix of the arrays in an npz file
TAR_BLOCK = 512  # bytes of a tar archive's first header
TORCH = (2, 10)  # the first version without known vulnerabilities of `weights_only`
PYTORCH = "PyTorch 2.10 or newer"


def read(path: Path) -> Any:
    """The content of a file: tensors by name, or a checkpoint that contains such a dictionary.

    Raises FileNotFoundError, and ValueError for a file that is damaged, of an unknown kind, or not safe to read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    with path.open("rb") as file:
        start = file.read(TAR_BLOCK)
    with contextlib.suppress(tarfile.HeaderError):
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
        raise ValueError(  # PyTorch's format before 0.1.10: its pickles require trust
            f"{path} is refused: it is a tar archive of PyTorch before version 0.1.10; load it in a "
            "protected environment and save its tensors only (torch.save(model.state_dict(), FILE))"
        )
    if start.startswith(b"PK\x03\x04"):
        return _archive(path)
    if start.startswith(LEGACY):
        return _torch(path, mmap=False)
    if len(start) > 8 and start[8:9] == b"{":
        with _safetensors_errors(path):
            return load_file(path)
    raise ValueError(
        f"{path} is neither a PyTorch file nor a safetensors file nor an npz file (it starts with {start[:8]!r})"
    )


def _archive(path: Path) -> Any:
    """The content of a zip archive of PyTorch or NumPy; raises ValueError for one that somebody else has packed."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # a damaged file can cause any error in the reader
        raise ValueError(f"{path} is damaged: {error}") from None
    names = [entry.filename for entry in entries]
    if names and all(name.endswith(NPY) for name in names):
        try:
            with np.load(path, allow_pickle=False) as content:  # arrays of objects, which are pickles, are refused
                return dict(content)
        except Exception as error:  # a damaged file can cause any error in the reader
            raise ValueError(f"{path} is damaged: {_first_line(error)}") from None
    if not any(name.endswith("/data.pkl") for name in names):
        raise ValueError(f"{path} is a zip archive of {', '.join(names[:5]) or 'nothing'}, not of tensors; unpack it")
    if any(name.endswith("/constants.pkl") for name in names):
        return torchscript.read(path)
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{path} contains {entry.filename!r} compressed, which PyTorch never writes")
    return _torch(path, mmap=True)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else repr(error)


def _torch(path: Path, mmap: bool) -> Any:
    torch = extras.load("torch", f"reading {path} needs {PYTORCH}", "torch", error=ValueError)
    if tuple(map(int, torch.__version__.split(".")[:2])) < TORCH:
        needs = f"reading {path} safely needs {PYTORCH}, but this is {torch.__version__}"
        raise ValueError(extras.missing(needs, "torch"))
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # training scripts store their flags in it
            return arrays(torch.load(path, map_location="cpu", weights_only=True, mmap=mmap))
    except pickle.UnpicklingError as error:
        called = re.search(r"GLOBAL ([\w.]+)", str(error))
        if called:
            why = f"loading it would execute {called[1]}; save its tensors only (model.state_dict())"
        else:
            why = f"it is not a file of tensors ({_first_line(error)})"
        raise ValueError(f"{path} is refused: {why}") from None
    except RepeatsNumbers as error:
        raise ValueError(f"{path} is refused: {error}") from None
    except Exception as error:  # a damaged file can cause any error in the reader
        raise ValueError(f"{path} is damaged: {_first_line(error)}") from None


class RepeatsNumbers(ValueError):
    """A tensor is larger than its storage."""


def arrays(value: Any, name: str = "") -> Any:
    """Converts dictionaries of PyTorch tensors to dictionaries of arrays that share their memory.

    Raises RepeatsNumbers for a tensor that is larger than its storage: a copy of it could exhaust the memory. `name` is
    that of the tensor, for the message.
    """
    if isinstance(value, Mapping):
        return {key: arrays(inner, str(key)) for key, inner in value.items()}
    if not hasattr(value, "detach"):
        return value
    tensor = value.detach().cpu()
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        shape = tuple(tensor.shape)
        raise RepeatsNumbers(f"tensor {name} of shape {shape} repeats numbers of its storage; save a clone() of it")
    if str(tensor.dtype) == "torch.bfloat16":
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.numpy()


def metadata(path: Path) -> dict[str, str]:
    """The notes in the header of a safetensors file."""
    with _safetensors_errors(path), safe_open(path, framework="np") as file:
        return file.metadata() or {}


@contextlib.contextmanager
def _safetensors_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    except AttributeError as error:  # of numbers with 8 bits or fewer
        raise ValueError(f"{path} is refused: {error}; save its tensors as float32") from None


def write(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    notes: Mapping[str, str] | None = None,
    parts: Sequence[str] = (),
) -> None:
    """Writes a state dict atomically: as safetensors if the name ends so, else with PyTorch (then required).

    With `parts` a PyTorch file holds a state dict for each, with the names behind "PART."; safetensors has no such
    structure and keeps the whole names.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_atomically(path) as partial, partial.open("wb") as stream:
        if path.suffix == ".safetensors":
            contiguous = {name: np.asarray(value, order="C") for name, value in tensors.items()}
            # safetensors' `save_file` raises no OSError for a full disk
            stream.write(save(contiguous, dict(notes) if notes else None))
        else:
            other, needs = "choose a name that ends in .safetensors", f"writing this file needs {PYTORCH}"
            torch = extras.load("torch", needs, "torch", otherwise=other, error=ValueError)
            converted = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
            torch.save({part: part_of(converted, part) for part in parts} if parts else converted, stream)


def part_of(tensors: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The state dict `part` of a checkpoint that holds several, nested or under names that begin with "PART."."""
    nested = tensors.get(part)
    if isinstance(nested, Mapping):
        return dict(nested)
    return {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}
