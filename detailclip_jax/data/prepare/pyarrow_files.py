"""Parquet through pyarrow, which the extra `data` brings."""

from collections.abc import Sequence
from typing import Any


def parquet_file(path: str) -> Any:
    """An open pyarrow.parquet.ParquetFile; ValueError where it is none, ImportError without pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("parquet files need pyarrow: pip install -e .[data]") from error
    try:
        return parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not readable as parquet: {error}") from error


def damage() -> tuple[type[Exception], ...]:
    """What reading a damaged file may raise."""
    try:
        import pyarrow
    except ImportError:
        return ()
    return (pyarrow.ArrowException,)


def column_names(path: str) -> list[str]:
    """The columns of a file, from its footer."""
    with parquet_file(path) as file:
        return list(file.schema_arrow.names)


def num_rows(path: str) -> int:
    """How many rows a file has, from its footer."""
    with parquet_file(path) as file:
        return file.metadata.num_rows


def require(path: str, wanted: Sequence[str]) -> None:
    """ValueError that lists the columns of a file where some of the wanted are missing."""
    there = column_names(path)
    if missing := [name for name in wanted if name not in there]:
        raise ValueError(f"{path} has no column {', '.join(missing)}; its columns are {', '.join(there)}")
