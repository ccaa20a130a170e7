"""Opens parquet files with pyarrow, which the extra `data` installs."""

from collections.abc import Sequence
from typing import Any

from detailclip_jax.convert.limited_files import FREE_BYTES, MAX_RATIO


def parquet_file(path: str) -> Any:
    """Returns an open pyarrow.parquet.ParquetFile; ValueError if it is not valid, ImportError without pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("parquet files need pyarrow: pip install 'detailclip_jax[data]'") from error
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # an error of the disk, not of the file
            raise
        raise ValueError(f"{path} is not readable as parquet: {error}") from error


def damage() -> tuple[type[Exception], ...]:
    """Returns the exceptions that reading a damaged file may raise."""
    try:
        import pyarrow
    except ImportError:
        return ()
    return (pyarrow.ArrowException,)


def column_names(path: str) -> list[str]:
    """Returns the columns of a file, from its footer."""
    with parquet_file(path) as file:
        return list(file.schema_arrow.names)


def largest_chunk(file: Any, path: str, names: Sequence[str]) -> int:
    """Returns the uncompressed bytes of the columns' largest chunk; ValueError if one is a decompression bomb."""
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    wanted = [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in names]
    for chunk in wanted:
        if chunk.total_uncompressed_size > MAX_RATIO * chunk.total_compressed_size + FREE_BYTES:
            raise ValueError(f"{path}: column {chunk.path_in_schema} unpacks to more than {MAX_RATIO} times its size")
    return max((chunk.total_uncompressed_size for chunk in wanted), default=0)


def num_rows(path: str) -> int:
    """Returns the number of rows of a file, from its footer."""
    with parquet_file(path) as file:
        return file.metadata.num_rows


def require(path: str, wanted: Sequence[str]) -> None:
    """Raises ValueError, with the file's columns, if some of the wanted ones are missing."""
    there = column_names(path)
    if missing := [name for name in wanted if name not in there]:
        raise ValueError(f"{path} has no column {', '.join(missing)}; its columns are {', '.join(there)}")
