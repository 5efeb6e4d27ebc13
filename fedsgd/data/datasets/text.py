"""Characters of a text, for next-character prediction."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from fedsgd.config.component import FieldError, FractionAboveZero, PositiveInt
from fedsgd.data.base import Dataset, DatasetSource, Examples
from fedsgd.data.datasets.files import find_data_files, search_paths
from fedsgd.data.datasets.shakespeare import DOWNLOAD_HINT
from fedsgd.errors import DataError
from fedsgd.numerics.arrays import I64
from fedsgd.system.user_files import read_text


@dataclass(frozen=True)
class Text(DatasetSource):
    """Characters of a text file, for predicting the next character at each position.

    The first characters train and the last ones test. Both parts are cut into windows of `context` characters that do not
    overlap; the rest of a part is dropped. Inputs x and targets y are [n, context] int64; y is x shifted by one character.
    With the defaults, Shakespeare's plays have 15,685 training and 1,742 test windows, split as in Karpathy's nanoGPT.

    Windows are views of the numbered text, so that x and y together take 8 bytes a character. They are in the text's order:
    the partitioner "contiguous" gives each client a part of the text, and "iid" gives random windows of the whole text.

    Attributes:
        path: UTF-8 file; a relative path is searched in the data folder (`--data DIR` or FEDSGD_DATA), then in the current
            folder. None: the plays of the dataset "shakespeare".
        context: characters in a window.
        test_share: share of the text, at its end, that tests.
    """

    name: ClassVar[str] = "text"

    path: str | None = field(default=None, metadata={"example": '"my_text.txt"'})
    context: PositiveInt = 64
    test_share: FractionAboveZero = 0.1

    @property
    def may_have_owners(self) -> bool:
        return False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_share == 1:
            raise FieldError(self.name, "test_share", "got 1, expected a share below 1: no character would train")
        if self.path == "":
            raise FieldError(self.name, "path", 'got "", expected a file, or no path for the plays of Shakespeare')

    def load(self, folder: Path | None) -> Dataset:
        path = self._find_file(folder)
        try:
            text = read_text(path)
        except (OSError, ValueError) as error:
            raise DataError(f"text: {path}: cannot be read as text ({error})") from error
        alphabet, codes = np.unique(np.frombuffer(text.encode("utf-32-le"), dtype="<u4"), return_inverse=True)
        codes = codes.astype(np.int64, copy=False)
        n_train = int(len(codes) * (1 - self.test_share))
        parts = codes[:n_train], codes[n_train:]
        shortest = min(map(len, parts))
        if shortest <= self.context:
            lengths = f"the training part has {len(parts[0]):,} characters and the test part {len(parts[1]):,}"
            expected = f"expected fewer than {shortest:,}" if shortest > 1 else "expected a longer text"
            raise FieldError(self.name, "context", f"got {self.context:,}, {expected}: {lengths} ({path})")
        train, test = map(self._cut_windows, parts)
        return Dataset(train, test, len(alphabet), tuple(map(chr, alphabet.tolist())))

    def _find_file(self, folder: Path | None) -> Path:
        if self.path is None:
            return find_data_files(folder, "shakespeare", ["input.txt"], DOWNLOAD_HINT)[0]
        paths = search_paths(folder, self.path)
        for path in paths:
            if path.is_file():
                return path
        raise DataError(f"text: {self.path} not found (looked for {', '.join(map(str, paths))})")

    def _cut_windows(self, codes: I64) -> Examples:
        """Cut characters [n] into windows, as views. The last target of a window is the first input of the next."""
        n_characters = (len(codes) - 1) // self.context * self.context
        x, y = codes[:n_characters], codes[1 : n_characters + 1]
        return Examples(x.reshape(-1, self.context), y.reshape(-1, self.context))
