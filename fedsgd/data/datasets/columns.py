"""Columns of Hugging Face tables as arrays. The rows of a column have one shape in all tables, training and test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsgd.data.base import scale_pixels
from fedsgd.data.datasets.files import require_extra
from fedsgd.data.labels import number_text_labels
from fedsgd.errors import DataError

_TEXT_TYPES = ("string", "large_string")


def read_features(
    tables: Sequence[Any], columns: Sequence[str], is_single_column: bool, source_name: str
) -> list[NDArray[Any]]:
    """Return each table's examples: the rows of a single column, [n, ...], or vectors of all columns, [n, features] float32.

    DataError, with `source_name`, for missing values, rows of different shapes or types, and texts in one of several columns.
    """
    if is_single_column:
        return _read_rows(tables, columns[0], source_name)
    by_column = [[_read_numbers(table, column, source_name) for column in columns] for table in tables]
    return [np.stack(features, axis=1).astype(np.float32) for features in by_column]


def read_labels(tables: Sequence[Any], column: str, source_name: str) -> tuple[list[NDArray[Any]], tuple[str, ...] | None]:
    """Return (each table's targets, [n, ...]; class names or None). Texts are numbered in sorted order over all tables."""
    if any(getattr(table.features[column], "dtype", None) in _TEXT_TYPES for table in tables):
        texts = [list(table[column]) for table in tables]
        if not all(isinstance(label, str) for part in texts for label in part):
            raise DataError(f"{source_name}: column {column} has missing values, or both texts and numbers")
        numbers, names = number_text_labels(*texts)
        return [*numbers], names
    class_names = [tuple(getattr(table.features[column], "names", None) or ()) for table in tables]
    if len(set(class_names)) > 1:
        difference = " and ".join(map(_format_class_names, class_names))
        raise DataError(f"{source_name}: column {column}: training and test part name their classes differently: {difference}")
    return _read_rows(tables, column, source_name), class_names[0] or None


def _format_class_names(names: Sequence[str]) -> str:
    """Return at most five class names, for a message."""
    more = f", ... ({len(names)} in all)" if len(names) > 5 else ""
    return f"[{', '.join(names[:5])}{more}]" if names else "none"


def _read_numbers(table: Any, column: str, source_name: str) -> NDArray[Any]:
    """Return a column of numbers, [n]."""
    values = np.asarray(list(table[column]))
    if values.dtype.kind in "fiub" and values.ndim == 1:
        return values
    if values.dtype.kind == "O" and any(value is None for value in values):
        raise DataError(f"{source_name}: column {column} has missing values")
    feature = table.features[column]
    dtype = getattr(feature, "dtype", None) or type(feature).__name__
    kind = "texts" if dtype in _TEXT_TYPES else dtype
    raise DataError(
        f"{source_name}: column {column} contains {kind}, expected one number in each row; set data.x to columns of numbers"
    )


def _read_rows(tables: Sequence[Any], column: str, source_name: str) -> list[NDArray[Any]]:
    """Return for each table the rows of a column, [n, ...]; the row of an image is its pixels."""
    parts = [_read_table_rows(table, column, source_name) for table in tables]
    rows = [row for part in parts for row in part]
    if any(row.dtype.kind == "O" for row in rows):
        raise DataError(f"{source_name}: column {column} has missing values, or values that are no numbers")
    if _is_image(tables[0].features[column]) and len({row.ndim for row in rows}) > 1:  # both grey and colour images
        parts = [[row if row.ndim == 3 else np.repeat(row[None], 3, axis=0) for row in part] for part in parts]
        rows = [row for part in parts for row in part]
    if len({(row.shape, row.dtype.kind) for row in rows}) > 1:
        forms = ", ".join(sorted({f"{list(row.shape)} {row.dtype}" for row in rows})[:3])
        raise DataError(f"{source_name}: rows of column {column} differ in shape or type: {forms}")
    return [np.stack(part) if part else np.empty((0, *rows[0].shape) if rows else 0) for part in parts]


def _read_table_rows(table: Any, column: str, source_name: str) -> list[NDArray[Any]]:
    feature = table.features[column]
    if isinstance(feature, dict) and set(feature) == {"bytes", "path"}:  # images in a Parquet file without a schema of features
        table = table.cast_column(column, require_extra("datasets", "huggingface").Image())
    images = _is_image(feature)
    try:
        return [_convert_image(row) if images and row is not None else np.asarray(row) for row in table[column]]
    except Exception as error:  # reading a row decodes it, which may fail in any way
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{source_name}: column {column}: {problem}") from error


def _is_image(feature: Any) -> bool:
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return type(feature).__name__ == "Image"


def _convert_image(image: Any) -> NDArray[np.float32]:
    """Return a PIL image as [channels, height, width] or, if grey, [height, width], in [0, 1]."""
    if image.mode in ("1", "L", "LA"):
        return scale_pixels(np.asarray(image.convert("L")))
    if image.mode not in ("RGB", "RGBA", "P", "CMYK", "YCbCr"):
        raise ValueError(f"the image has mode {image.mode}, expected 1, L, LA, RGB, RGBA, P, CMYK or YCbCr")
    return scale_pixels(np.asarray(image.convert("RGB"))).transpose(2, 0, 1)
