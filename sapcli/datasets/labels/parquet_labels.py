"""Label files that are Parquet tables, read by pyarrow where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from sapcli.datasets.arrays.parquet_files import as_list, check_columns, open_parquet
from sapcli.errors import DatasetError

PARQUET = ".parquet"


def parquet_header(file: Path) -> list[str]:
    """The names of the columns.

    Raises:
        DatasetError: If it is damaged, or pyarrow is not there.
    """
    return [str(name) for name in _opened(file).schema.to_arrow_schema().names]


def parquet_columns(file: Path, names: list[str]) -> list[list[Any]]:
    """All values of some columns.

    Raises:
        DatasetError: If it is damaged, or pyarrow is not there.
    """
    table = _opened(file)
    try:
        for name in names:
            check_columns(file, table, name)
        return [as_list(table.read(columns=[name], use_threads=False).column(0)) for name in names]
    except (OSError, ValueError, MemoryError) as error:
        raise _damaged(file, error) from error


def _opened(file: Path) -> Any:
    if importlib.util.find_spec("pyarrow") is None:
        raise DatasetError(f"{file}: reading Parquet files needs pyarrow", "pip install 'sapcli[datasets]'")
    import pyarrow

    try:
        return open_parquet(file)
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> DatasetError:
    return DatasetError(f"{file}: not a whole table: {' '.join(str(error).split())[:200]}", "Get the file again.")
