"""MNIST from a folder of IDX files."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsgd.data.base import Dataset, DatasetSource, Examples, scale_pixels
from fedsgd.data.datasets.files import find_data_files
from fedsgd.errors import DataError

DOWNLOAD_HINT = (
    "the four original files (train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, "
    "t10k-labels-idx1-ubyte, each plain or .gz) are at https://yann.lecun.com/exdb/mnist and, as a mirror, at "
    "https://ossci-datasets.s3.amazonaws.com/mnist; put them into DIR or DIR/mnist and pass --data DIR or set FEDSGD_DATA"
)


@dataclass(frozen=True)
class Mnist(DatasetSource):
    """MNIST from IDX files: 60,000 + 10,000 grey images of 28×28, ten classes.

    Source: LeCun, Cortes and Burges. Inputs x are [n, 28, 28] float32 in [0, 1]. The files are in DIR or DIR/mnist, plain or
    gzipped, where `--data` or FEDSGD_DATA names DIR.

    Trap: a standardised pixel at the edge, which few images use, is up to 264 in these images.

    Attributes:
        standardise: True to standardise each pixel p from 0 to 255, (p − mean) / (standard deviation + 0.001), over all 70,000
            images, as in the code of Li et al. 2020 ("FedProx").
    """

    name: ClassVar[str] = "mnist"
    may_have_owners: ClassVar[bool] = False

    standardise: bool = False

    def load(self, folder: Path | None) -> Dataset:
        parts: list[tuple[NDArray[np.uint8], NDArray[np.int64]]] = []
        for stem in ("train", "t10k"):
            images, labels = (
                find_data_files(folder, "mnist", [f"{stem}-{kind}", f"{stem}-{kind}.gz"], DOWNLOAD_HINT)[0]
                for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
            )
            pixels = _read_images(images)
            parts.append((pixels, _read_labels(labels, len(pixels))))
        inputs = [images for images, _ in parts]
        scaled = _standardise(inputs) if self.standardise else [scale_pixels(images) for images in inputs]
        train, test = (Examples(x, labels) for x, (_, labels) in zip(scaled, parts, strict=True))
        return Dataset(train, test, classes=10)


def _standardise(parts: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
    """Return the images [n, 28, 28] of each part with each pixel standardised over all parts; integer sums are exact."""
    n = sum(len(images) for images in parts)
    sums = sum(images.sum(axis=0, dtype=np.int64) for images in parts)
    squares = sum(np.einsum("nij,nij->ij", images, images, dtype=np.int64, casting="unsafe") for images in parts)
    mean = sums / n
    deviation = np.sqrt(np.maximum(squares / n - mean**2, 0.0))
    offset, scale = mean.astype(np.float32), (1 / (deviation + 0.001)).astype(np.float32)
    return [(images - offset) * scale for images in parts]


def _read_images(path: Path) -> NDArray[np.uint8]:
    images = read_idx(path, dimensions=3)
    if images.shape[1:] != (28, 28):
        raise DataError(f"{path}: has images of {images.shape[1]}×{images.shape[2]}, expected 28×28")
    return images


def _read_labels(path: Path, n_images: int) -> NDArray[np.int64]:
    labels = read_idx(path, dimensions=1)
    if len(labels) != n_images:
        raise DataError(f"{path}: has {len(labels)} labels for {n_images} images")
    if len(labels) and labels.max() > 9:
        raise DataError(f"{path}: has the label {labels.max()}, expected 0 to 9")
    return labels.astype(np.int64)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, plain or gzipped. DataError for other contents or another number of dimensions."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        problem = f"{path}: cannot be read ({error}); expected an IDX file, plain or gzipped: {DOWNLOAD_HINT}"
        raise DataError(problem) from error
    header_size = 4 + 4 * dimensions
    if len(data) < header_size or data[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(
            f"{path}: starts with {data[:4].hex(' ') or 'nothing'}, expected 00 00 08 {dimensions:02x} (IDX, unsigned bytes, "
            f"{dimensions} dimensions): {DOWNLOAD_HINT}"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:header_size])
    if len(data) - header_size != int(np.prod(shape, dtype=object)):
        raise DataError(f"{path}: has {len(data) - header_size} bytes of data, expected {' × '.join(map(str, shape))}")
    return np.frombuffer(data, dtype=np.uint8, offset=header_size).reshape(shape)
