"""Parquet files, read by pyarrow within bounds: what is small on the disk is not large in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sapcli.errors import DatasetError

# Images are compressed already, and have some bytes each; labels that are written once are in memory once.
_TIMES_COMPRESSED, _SMALL = 16, 64 << 20
_ROWS, _BYTES_PER_ROW = 1_000_000, 8
_AGAIN = "Get the file again."


def open_parquet(file: Path) -> Any:
    """Open a Parquet file so that what is written once and pointed at is read so.

    Raises:
        DatasetError: It has more rows than there is room for.
        OSError: It cannot be read; pyarrow's own errors, that it is damaged.
    """
    import pyarrow.parquet

    # Threads would be lost in the processes that decode images.
    schema = pyarrow.parquet.ParquetFile(file, memory_map=True).schema
    columns = [schema.column(number) for number in range(len(schema))]
    texts = [each.path for each in columns if each.physical_type == "BYTE_ARRAY" and not each.max_repetition_level]
    opened = pyarrow.parquet.ParquetFile(file, memory_map=True, read_dictionary=texts)
    rows = opened.metadata.num_rows
    if rows > _ROWS + file.stat().st_size // _BYTES_PER_ROW:
        raise DatasetError(f"{file} says that it has {rows:,} rows", _AGAIN)
    return opened


def check_columns(file: Path, parquet: Any, name: str, group: int | None = None) -> None:
    """Make sure that a column, or that of a row group, is not much larger inside of the file than outside.

    Raises:
        DatasetError: It is.
    """
    groups = range(parquet.metadata.num_row_groups) if group is None else (group,)
    packed = unpacked = 0
    for each in map(parquet.metadata.row_group, groups):
        for column in map(each.column, range(each.num_columns)):
            if f"{column.path_in_schema}.".startswith(f"{name}."):
                packed += column.total_compressed_size
                unpacked += column.total_uncompressed_size
    if unpacked > _TIMES_COMPRESSED * packed + _SMALL:
        raise DatasetError(f"{file}: {name!r} unpacks from {packed:,} to {unpacked:,} bytes", _AGAIN)


def as_list(column: Any) -> list[Any]:
    """The values of a column; those that are written once and pointed at are one object."""
    values: list[Any] = []
    for chunk in column.chunks:
        dictionary = getattr(chunk, "dictionary", None)
        if dictionary is None:
            values += chunk.to_pylist()
        else:
            known = dictionary.to_pylist()
            values += [None if index is None else known[index] for index in chunk.indices.to_pylist()]
    return values
