"""Examples, encoded images and a comparison that several tests of data use."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fedsgd.data import Examples


def make_examples(n: int = 3, dtype: str = "int64", writer: object = None) -> Examples:
    """Return n examples of zeros in two dimensions."""
    return Examples(np.zeros((n, 2)), np.zeros(n, dtype), None, writer)


def encode_image(colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> dict[str, object]:
    """Return an image of one colour as a cell of a Parquet table."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write_cifar(folder: Path, part: str, images: list[dict[str, object]], labels: list[int], column: str = "img") -> Path:
    """Write a Parquet file of images and labels; return its path."""
    path = folder / f"{part}-00000-of-00001.parquet"
    pq.write_table(pa.table({column: images, "label": labels}), path)
    return path


def have_equal_arrays(a: Examples, b: Examples) -> bool:
    """Return True if both examples have arrays of equal bytes and types."""
    return all(p.tobytes() == q.tobytes() and p.dtype == q.dtype for p, q in zip(a.arrays(), b.arrays(), strict=True))
