"""Tables with a column of images: Parquet files and Arrow files as `datasets` writes them, read in place by pyarrow.

Without pyarrow nothing here is imported; it is asked for only where such a file is given.
"""

from __future__ import annotations

import bisect
import functools
import importlib.util
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

from sapcli.datasets.arrays.parquet_files import as_list, check_columns, open_parquet
from sapcli.datasets.containers.found import MOST_OF_MEMBER, GivenLabels, Listing, joined
from sapcli.errors import DatasetError

TABLE_SUFFIXES = (".parquet", ".arrow")
"""What the names of tables end in."""

_DIGITS = 8
_IMAGES = ("image", "img", "jpg", "jpeg", "png", "image_bytes", "bytes", "picture", "pixel_values", "file")
_LABELS = (
    *("label", "labels", "fine_label", "coarse_label", "class", "target", "category", "class_name", "class_label"),
    *("label_name", "cls", "y", "class_id", "label_id", "category_id"),
)
_COLUMNS_SHOWN = 12
# Row groups of images are some hundred megabytes; what says that it has more is not read.
_MOST_GROUP_BYTES = 8 << 30
_SMALL = 64 << 20
_KEPT_GROUPS = 2


class _Table(Protocol):
    """A file of rows."""

    @property
    def schema(self) -> Any:
        """Its columns."""

    def __len__(self) -> int: ...

    def column(self, name: str) -> list[Any]:
        """All values of a column."""

    def value(self, column: str, row: int) -> Any:
        """One value."""

    def part(self, column: str, field: str) -> list[Any]:
        """All values of a field of a column of structures."""


def _pyarrow(file: Path) -> ModuleType:
    if importlib.util.find_spec("pyarrow") is None:
        raise DatasetError(f"{file}: reading Parquet and Arrow files needs pyarrow", "pip install 'sapcli[datasets]'")
    import pyarrow

    return cast("ModuleType", pyarrow)


class _Parquet:
    def __init__(self, file: Path) -> None:
        _pyarrow(file)
        self._file = file
        self._parquet = open_parquet(file)
        self.schema = self._parquet.schema.to_arrow_schema()
        metadata = self._parquet.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = list(itertools.accumulate(sizes, initial=0))
        self._group = functools.lru_cache(maxsize=_KEPT_GROUPS)(self._read_group)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def column(self, name: str) -> list[Any]:
        check_columns(self._file, self._parquet, name)
        return as_list(self._parquet.read(columns=[name], use_threads=False).column(0))

    def value(self, column: str, row: int) -> Any:
        group = bisect.bisect_right(self._starts, row) - 1
        return self._group(group, column)[row - self._starts[group]].as_py()

    def part(self, column: str, field: str) -> list[Any]:
        check_columns(self._file, self._parquet, f"{column}.{field}")
        values = self._parquet.read(columns=[f"{column}.{field}"], use_threads=False).column(0).to_pylist()
        return [None if value is None else value.get(field) for value in values]

    def _read_group(self, group: int, column: str) -> Any:
        size = self._parquet.metadata.row_group(group).total_byte_size
        if size > _MOST_GROUP_BYTES:
            raise DatasetError(f"{self._file}: a row group of {size:,} bytes", "Write smaller row groups.")
        check_columns(self._file, self._parquet, column, group)
        return self._parquet.read_row_group(group, columns=[column], use_threads=False).column(0)


class _Arrow:
    def __init__(self, file: Path) -> None:
        pyarrow = _pyarrow(file)
        source = pyarrow.memory_map(str(file))
        most = _SMALL + source.size()
        # `datasets` writes streams, others files; both are mapped, and their images not copied.
        try:
            reader = pyarrow.ipc.open_stream(source)
            batches: Iterable[Any] = reader
        except pyarrow.ArrowInvalid:
            source.seek(0)
            reader = pyarrow.ipc.open_file(source)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        kept = []
        for batch in batches:
            kept.append(batch)
            if pyarrow.total_allocated_bytes() > most:
                raise DatasetError(f"{file} unpacks to more than {most:,} bytes", "Write it without compression.")
        self._table = pyarrow.Table.from_batches(kept, reader.schema)
        self.schema = self._table.schema

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def column(self, name: str) -> list[Any]:
        return as_list(self._table.column(name))

    def value(self, column: str, row: int) -> Any:
        return self._table.column(column)[row].as_py()

    def part(self, column: str, field: str) -> list[Any]:
        return [value for chunk in self._table.column(column).chunks for value in chunk.field(field).to_pylist()]


class ImageTable:
    """A table with a column of images.

    Attributes:
        table: The rows.
        image: The column of the images.

    Raises:
        DatasetError: If it is damaged or has no such column, or pyarrow is not there.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        pyarrow = _pyarrow(file)
        try:
            self.table: _Table = _Parquet(file) if file.suffix.lower() == ".parquet" else _Arrow(file)
        except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DatasetError(f"{file}: not a whole table: {reason}", "Get the file again.") from error
        self.features = _features(self.table.schema)
        self.image = self._image_column()

    def read(self, name: str) -> bytes:
        """The bytes of a row's image."""
        if not (name.isascii() and name.isdigit()) or int(name) >= len(self.table):
            raise KeyError(name)
        value = self.table.value(self.image, int(name))
        content = value.get("bytes") if isinstance(value, Mapping) else value
        if not isinstance(content, bytes):
            raise ValueError("the row has no image, or only the path of one")
        if len(content) > MOST_OF_MEMBER:
            raise ValueError(f"larger than {MOST_OF_MEMBER:,} bytes, expected an image")
        return content

    def files(self) -> list[str] | None:
        """Where each row's image lies, where the table holds but their paths; None where it holds the images."""
        first = self.table.value(self.image, 0) if len(self.table) else None
        if not isinstance(first, Mapping) or first.get("bytes") is not None or not isinstance(first.get("path"), str):
            return None
        return [path if isinstance(path, str) else "" for path in self.table.part(self.image, "path")]

    def size(self, _name: str) -> None:
        """It is known only by reading."""
        return

    def labels(self) -> dict[str, GivenLabels]:
        """The columns of labels."""
        names = self.table.schema.names
        described = [name for name, feature in self.features.items() if feature.get("_type") == "ClassLabel"]
        chosen = [name for name in described if name in names]
        chosen = chosen or [name for name in _LABELS if name in map(str.lower, names)][:1]
        by_case = {name.lower(): name for name in names}
        found = {}
        for column in chosen:
            actual = column if column in names else by_case[column]
            classes = self.features.get(actual, {}).get("names")
            values = self.table.column(actual)
            if not all(value is None or isinstance(value, int | float | str) for value in values):
                continue
            texts = tuple(map(_text, values))
            is_named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
            found[actual] = GivenLabels(texts, tuple(classes) if is_named and isinstance(classes, list) else None)
        if not found:
            shown = ", ".join(map(repr, names[:_COLUMNS_SHOWN]))
            raise DatasetError(
                f"{self._file}: none of the columns {shown} is known to hold labels",
                "Call the column of labels `label`.",
            )
        return found

    def _image_column(self) -> str:
        import pyarrow

        schema = self.table.schema
        described = [name for name, feature in self.features.items() if feature.get("_type") == "Image"]
        kinds = {field.name: field.type for field in schema}

        def holds_bytes(kind: Any) -> bool:
            binary = pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)
            return bool(binary or (pyarrow.types.is_struct(kind) and "bytes" in [field.name for field in kind]))

        fitting = [name for name in kinds if holds_bytes(kinds[name])]
        for names in ([name for name in described if name in fitting], [n for n in _IMAGES if n in fitting], fitting):
            if len(names) == 1 or (names and names[0] in _IMAGES[:2]):
                return str(names[0])
        shown = ", ".join(map(repr, list(kinds)[:_COLUMNS_SHOWN]))
        what = "each of" if fitting else "none of"
        raise DatasetError(
            f"{self._file}: {what} the columns {', '.join(map(repr, fitting)) or shown} could hold the images"
            if fitting
            else f"{self._file}: none of the columns {shown} holds images",
            "Call the column of images `image`.",
        )


def open_table(file: Path) -> ImageTable:
    """Open a table with images; see `ImageTable`."""
    return ImageTable(file)


def table_lister(root: Path, files: Sequence[Path]) -> Callable[[], Listing]:
    """What lists the rows of tables, in their order.

    Args:
        root: The folder from which paths are written.
        files: The tables.
    """

    def listing() -> Listing:
        return joined([_listing(root, file) for file in files])

    return listing


def _listing(root: Path, file: Path) -> Listing:
    table = ImageTable(file)
    prefix = "" if file == root else f"{file.relative_to(root).as_posix()}/"
    files = table.files()
    if files is not None:
        # As `datasets` writes a folder of images that it has not read.
        beside = [os.path.relpath(os.path.join(file.parent, path), root) for path in files]  # noqa: PTH118
        remark = f"{file} holds the paths of its images and not the images: those are read"
        return Listing(tuple(beside), table.labels(), (remark,))
    return Listing(tuple(f"{prefix}{row:0{_DIGITS}}" for row in range(len(table.table))), table.labels())


def _text(value: float | str | None) -> str:
    if value is None:
        return "-1"
    return value if isinstance(value, str) else repr(value)


def _features(schema: Any) -> Mapping[str, Mapping[str, Any]]:
    """What `datasets` says of the columns, in the schema's metadata."""
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(text)["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
