"""Shakespeare's plays by speaking role, for next-character prediction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from fedsgd.config.component import FractionAboveZero, PositiveInt
from fedsgd.data.base import Dataset, DatasetSource, Examples
from fedsgd.data.datasets.files import find_data_files
from fedsgd.errors import DataError
from fedsgd.numerics.arrays import I64
from fedsgd.system.user_files import read_text

DOWNLOAD_HINT = (
    "input.txt is in data/tinyshakespeare of the GitHub repository karpathy/char-rnn; put it into DIR or DIR/shakespeare and "
    "pass --data DIR or set FEDSGD_DATA"
)


@dataclass(frozen=True)
class Shakespeare(DatasetSource):
    """Shakespeare's plays by speaking role, for predicting the next character at each of `unroll` places.

    McMahan et al. 2017, section 3: a role is a client; the first 80 % of its lines (1 − `test_share`) train, the others test,
    at least one; roles with a single line are left out. A role's lines are joined and cut into windows of `unroll`
    characters, which do not overlap; what does not fill a window is dropped, and so are roles without a window to train on.
    Reads plain text in which a speech is `ROLE:` on a line, its lines, and an empty line. Roles of one name in different plays
    are one. x, y: int64 [n, unroll], y one character later; owner: the role, in the order in which roles first speak.
    """

    name: ClassVar[str] = "shakespeare"

    unroll: PositiveInt = 80
    test_share: FractionAboveZero = 0.2

    def load(self, folder: Path | None) -> Dataset:
        path = find_data_files(folder, "shakespeare", ["input.txt"], DOWNLOAD_HINT)[0]
        try:
            text = read_text(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as text ({error}): {DOWNLOAD_HINT}") from error
        lines = _group_lines_by_role(text)
        if not lines:
            raise DataError(f"{path}: no speeches: expected ROLE: on a line, its lines, an empty line: {DOWNLOAD_HINT}")
        alphabet = sorted({character for spoken in lines.values() for line in spoken for character in line} | {"\n"})
        train, test = self._build_windows(lines, alphabet)
        return Dataset(train, test, len(alphabet), tuple(alphabet))

    def _build_windows(self, lines: dict[str, list[str]], alphabet: list[str]) -> tuple[Examples, Examples]:
        number = {character: i for i, character in enumerate(alphabet)}
        roles = []
        for spoken in lines.values():
            n_test = max(1, round(self.test_share * len(spoken)))
            parts = [self._cut_windows([number[c] for c in "\n".join(part)]) for part in (spoken[:-n_test], spoken[-n_test:])]
            if len(parts[0]):
                roles.append(parts)
        if not any(len(test) for _, test in roles):
            raise DataError(f"shakespeare: no role speaks {self.unroll + 1} characters in both its training and its test lines")
        train, test = (_join_windows(windows) for windows in zip(*roles, strict=True))
        return train, test

    def _cut_windows(self, codes: list[int]) -> I64:
        """A text in windows that overlap by the one character that only the next window reads [w, unroll + 1]."""
        starts = np.arange(0, len(codes) - self.unroll, self.unroll)
        windows: I64 = np.array(codes, dtype=np.int64)[starts[:, None] + np.arange(self.unroll + 1)]
        return windows


def _join_windows(windows: Sequence[I64]) -> Examples:
    """windows: those of each role."""
    codes = np.concatenate(windows)
    return Examples(codes[:, :-1], codes[:, 1:], None, np.repeat(np.arange(len(windows)), [len(w) for w in windows]))


def _group_lines_by_role(text: str) -> dict[str, list[str]]:
    """Role → all its lines, roles in the order in which they first speak."""
    lines: dict[str, list[str]] = {}
    for role, line in _iterate_lines(text):
        lines.setdefault(role, []).append(line)
    return {role: spoken for role, spoken in lines.items() if len(spoken) > 1}


def _iterate_lines(text: str) -> Iterator[tuple[str, str]]:
    """(role, line) of each line that is spoken."""
    role: str | None = None
    begins = True
    for line in text.splitlines():
        if not line.strip():
            begins = True
        elif begins and line.endswith(":"):
            role, begins = line[:-1], False
        elif role is not None:
            yield role, line
            begins = False
