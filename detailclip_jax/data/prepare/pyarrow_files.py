"""Parquet through pyarrow, which the extra `data` brings."""

from collections.abc import Sequence
from typing import Any

from detailclip_jax.data.prepare.files import FREE_BYTES, MAX_RATIO


def parquet_file(path: str) -> Any:
    """An open pyarrow.parquet.ParquetFile; ValueError where it is none, ImportError without pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("parquet files need pyarrow: pip install -e '.[data]'") from error
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # of the disk, not of the file
            raise
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


def largest_chunk(file: Any, path: str, names: Sequence[str]) -> int:
    """Unpacked bytes of the largest chunk of the columns; ValueError where one claims to be a bomb."""
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    wanted = [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in names]
    for chunk in wanted:
        if chunk.total_uncompressed_size > MAX_RATIO * chunk.total_compressed_size + FREE_BYTES:
            raise ValueError(f"{path}: column {chunk.path_in_schema} unpacks to more than {MAX_RATIO} times its size")
    return max((chunk.total_uncompressed_size for chunk in wanted), default=0)


def num_rows(path: str) -> int:
    """How many rows a file has, from its footer."""
    with parquet_file(path) as file:
        return file.metadata.num_rows


def require(path: str, wanted: Sequence[str]) -> None:
    """ValueError that lists the columns of a file where some of the wanted are missing."""
    there = column_names(path)
    if missing := [name for name in wanted if name not in there]:
        raise ValueError(f"{path} has no column {', '.join(missing)}; its columns are {', '.join(there)}")
