"""Parameters out of a TorchScript archive, without running it.

`torch.jit.load` compiles an archive's code and may run some of it (`__setstate__`), so it is for files that are
trusted.  The parameters need none of that: `data.pkl` describes a tree of modules, whose class names we only pass
over, and every tensor is a range of one of the archive's plain entries.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
MAX_DEPTH = 50  # of modules within modules


class Module:
    """Stands for whatever class the archive names: its attributes and nothing else."""


def is_archive(path: Path) -> bool:
    """Whether a zip archive is TorchScript's rather than `torch.save`'s."""
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read(path: Path) -> dict[str, np.ndarray]:
    """Parameters and buffers by their names in the modules; ValueError if the archive holds anything else.

    The archive must have passed `files.check_archive`: its entries are read whole.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (data,) = (name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1)
            root = Reader(archive, data).load()
        return _tensors(root, "", 0)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is refused: {error}") from None
    except Exception as error:  # a damaged file can fail anywhere in the readers
        raise ValueError(f"{path} is damaged: {error}") from None


class Reader(pickle.Unpickler):
    """Unpickles module trees: of all that a pickle may call, only the functions below can be."""

    def __init__(self, archive: zipfile.ZipFile, data: str):
        super().__init__(io.BytesIO(archive.read(data)))
        self.archive, self.folder = archive, data.removesuffix("data.pkl") + "data/"
        self.storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name; UnpicklingError for any that is not needed to describe modules."""
        if module == "__torch__" or module.startswith("__torch__."):
            return Module
        if module == "torch" and name in STORAGES:
            return np.dtype(STORAGES[name])
        if (module, name) in FUNCTIONS:
            return FUNCTIONS[module, name]
        raise pickle.UnpicklingError(f"it needs {module}.{name} to be executed while it is read")

    def persistent_load(self, pid: Any) -> np.ndarray:
        """A storage: the numbers of one of the archive's entries."""
        _, dtype, key, _, _ = pid
        if key not in self.storages:
            self.storages[key] = np.frombuffer(self.archive.read(self.folder + key), dtype)
        return self.storages[key]


def tensor(storage: np.ndarray, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    """A view of a storage; ValueError if it would leave it or repeat numbers."""
    count = int(np.prod(shape, dtype=object))
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if count else offset
    if min((offset, *shape, *stride)) < 0 or count > storage.size or (count and last >= storage.size):
        raise ValueError(f"a tensor of shape {shape} does not lie in its storage of {storage.size}")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False)


FUNCTIONS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): tensor,
    ("torch._utils", "_rebuild_parameter"): lambda value, *_: value,
    ("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
    ("torch.jit._pickle", "build_intlist"): lambda values: values,
    ("torch.jit._pickle", "build_doublelist"): lambda values: values,
    ("torch.jit._pickle", "build_boollist"): lambda values: values,
    ("torch.jit._pickle", "build_tensorlist"): lambda values: values,
    ("collections", "OrderedDict"): OrderedDict,
}


def _tensors(module: Any, prefix: str, depth: int) -> dict[str, np.ndarray]:
    if not isinstance(module, Module) or depth > MAX_DEPTH:
        raise ValueError("it does not describe a tree of modules")
    found: dict[str, np.ndarray] = {}
    for name, value in vars(module).items():
        if isinstance(value, Module):
            found |= _tensors(value, f"{prefix}{name}.", depth + 1)
        elif isinstance(value, np.ndarray):
            found[prefix + name] = value
    return found
