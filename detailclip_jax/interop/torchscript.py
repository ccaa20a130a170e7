"""Reads the parameters of a TorchScript archive without executing it.

`torch.jit.load` compiles an archive's code and may run some of it (`__setstate__`), so it is only for trusted files.
The parameters do not need that: `data.pkl` describes a tree of modules, whose classes are replaced by `Module`, and
every tensor is a range of an uncompressed entry of the archive.
"""

import io
import itertools
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
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
MAX_DEPTH = 50  # of nested modules
MAX_MODULES = 100_000  # a shared module counts once for each of its names
MAX_PICKLE = 4 * 2**20  # bytes of data.pkl, with at most one operation per byte; OpenAI's CLIPs have .3 MB
PROTOCOL = 2  # of the pickles that TorchScript writes
MAX_SHARED_TUPLES = 30  # uses of stored tuples: hashing nested shared tuples takes exponential time
PUTS = ("PUT", "BINPUT", "LONG_BINPUT")  # operations that store a value under an index, for which memory is reserved
GETS = ("GET", "BINGET", "LONG_BINGET")
TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")


class Module:
    """Replaces every class that the archive names; holds only its attributes."""


def is_archive(path: Path) -> bool:
    """Whether a zip archive is from TorchScript rather than from `torch.save`."""
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read(path: Path) -> dict[str, np.ndarray]:
    """Parameters and buffers by their names in the modules; raises ValueError for any other content.

    The archive must have passed `files.check_archive`, since its entries are read in full.
    """
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
        super().__init__(io.BytesIO(_checked(archive, data)))
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
        if not isinstance(key, str):
            raise pickle.UnpicklingError("the name of a storage is not a text")
        if key not in self.storages:
            self.storages[key] = np.frombuffer(self.archive.read(self.folder + key), dtype)
        return self.storages[key]


def _checked(archive: zipfile.ZipFile, data: str) -> bytes:
    """The pickle of the modules; raises UnpicklingError if reading it could need far more memory than its size."""
    size = archive.getinfo(data).file_size
    if size > MAX_PICKLE:
        raise pickle.UnpicklingError(f"the description of its modules has {size:,} bytes; the limit is {MAX_PICKLE:,}")
    content = archive.read(data)
    _check_operations(((operation, argument) for operation, argument, _ in pickletools.genops(content)), len(content))
    return content


def _check_operations(operations: Iterable[tuple[Any, Any]], size: int) -> None:
    tuples, shared = set(), 0
    for (before, _), (operation, argument) in itertools.pairwise(operations):
        if operation.proto > PROTOCOL:
            raise pickle.UnpicklingError(
                f"it has {operation.name}, an operation of a newer pickle protocol than {PROTOCOL}"
            )
        if operation.name in PUTS and not 0 <= int(argument) <= size:
            raise pickle.UnpicklingError(f"it uses memo entry {argument:,} in {size:,} bytes")
        if operation.name in PUTS and before.name in TUPLES:
            tuples.add(argument)
        shared += operation.name == "DUP" or (operation.name in GETS and argument in tuples)
    if shared > MAX_SHARED_TUPLES:
        raise pickle.UnpicklingError(f"it reuses tuples {shared:,} times; the limit is {MAX_SHARED_TUPLES}")


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


def tensors_of(root: Any) -> dict[str, np.ndarray]:
    """The tensors of a module tree by name; raises ValueError for other content and beyond the limits above."""
    found: dict[str, np.ndarray] = {}
    for number, (prefix, module) in enumerate(_modules(root, "", 0)):
        if number >= MAX_MODULES:
            raise ValueError(f"its modules have more than {MAX_MODULES:,} names")
        found |= {prefix + name: value for name, value in vars(module).items() if isinstance(value, np.ndarray)}
    return found


def _modules(module: Any, prefix: str, depth: int) -> Iterator[tuple[str, Module]]:
    """Yields a module and all its submodules, each with the prefix of its tensor names."""
    if not isinstance(module, Module) or depth > MAX_DEPTH:
        raise ValueError("it does not describe a tree of modules")
    yield prefix, module
    for name, value in vars(module).items():
        if isinstance(value, Module):
            yield from _modules(value, f"{prefix}{name}.", depth + 1)
