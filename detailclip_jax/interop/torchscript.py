"""Reads the parameters of a TorchScript archive without executing it.

`torch.jit.load` compiles an archive's code and may run some of it (`__setstate__`), so it is only for trusted files.
The parameters do not need that: `data.pkl` describes a tree of modules, whose classes are replaced by `Module`, and
every tensor is a range of an entry of the archive.
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


class Module:
    """Replaces every class that the archive names; holds only its attributes."""


def read(path: Path) -> dict[str, np.ndarray]:
    """Parameters and buffers by their names in the modules; raises ValueError for any other content."""
    try:
        with zipfile.ZipFile(path) as archive:
            (data,) = (name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1)
            root = Reader(archive, data).load()
        return tensors_of(root)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is refused: {error}") from None
    except Exception as error:  # a damaged file can cause any error in the readers
        raise ValueError(f"{path} is damaged: {error}") from None


class Reader(pickle.Unpickler):
    """Unpickles module trees; a pickle can call only the functions in FUNCTIONS."""

    def __init__(self, archive: zipfile.ZipFile, data: str):
        super().__init__(io.BytesIO(archive.read(data)))
        self.archive, self.folder = archive, data.removesuffix("data.pkl") + "data/"
        self.storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The replacement for a class or function; raises UnpicklingError for any that module trees do not need."""
        if module == "__torch__" or module.startswith("__torch__."):
            return Module
        if module == "torch" and name in STORAGES:
            return np.dtype(STORAGES[name])
        if (module, name) in FUNCTIONS:
            return FUNCTIONS[module, name]
        raise pickle.UnpicklingError(f"loading it would execute {module}.{name}")

    def persistent_load(self, pid: Any) -> np.ndarray:
        """A storage: the numbers of one entry of the archive."""
        _, dtype, key, _, _ = pid
        if key not in self.storages:
            self.storages[key] = np.frombuffer(self.archive.read(self.folder + key), dtype)
        return self.storages[key]


def tensor(storage: np.ndarray, offset: Any, shape: Any, stride: Any, *_: Any) -> np.ndarray:
    """A view of a storage; raises ValueError if it would exceed the storage or repeat numbers."""
    numbers = (offset, *shape, *stride)
    if not all(isinstance(number, int) and abs(number) < 2**63 for number in numbers):
        raise ValueError("a tensor whose offset, shape and strides are not 64-bit integers")
    count = int(np.prod(shape, dtype=object))
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if count else offset
    if min(numbers) < 0 or count > storage.size or (count and last >= storage.size):
        raise ValueError(f"a tensor of shape {shape} exceeds its storage of {storage.size} numbers")
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


def tensors_of(module: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """The tensors of a module tree by name; raises ValueError for other content."""
    if not isinstance(module, Module):
        raise ValueError("it does not describe a tree of modules")
    tensors: dict[str, np.ndarray] = {}
    for name, value in vars(module).items():
        if isinstance(value, np.ndarray):
            tensors[prefix + name] = value
        elif isinstance(value, Module):
            tensors |= tensors_of(value, f"{prefix}{name}.")
    return tensors
