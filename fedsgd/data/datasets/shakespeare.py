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
    """Shakespeare's plays by speaking role, for predicting the next character at each position.

    Source: McMahan et al. 2017, section 3, where a role is a client. The first lines of a role train and the last lines test.
    Roles with one line are left out. The lines of a role are joined and cut into windows that do not overlap. An incomplete
    window is dropped, and so is a role without a training window. Roles of equal name in several plays count as one role.

    The file is plain text. A speech is a line `ROLE:`, its lines, and an empty line. Inputs x and targets y are
    [n, unroll] int64; y is x shifted by one character. The owner of an example is its role, in the order of first speeches.

    Attributes:
        unroll: characters in a window.
        test_share: share of a role's lines that test; at least one line.
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
            raise DataError(f"{path}: has no speeches: expected ROLE: on a line, lines, an empty line: {DOWNLOAD_HINT}")
        alphabet = sorted({character for role_lines in lines.values() for line in role_lines for character in line} | {"\n"})
        train, test = self._build_windows(lines, alphabet)
        return Dataset(train, test, len(alphabet), tuple(alphabet))

    def _build_windows(self, lines: dict[str, list[str]], alphabet: list[str]) -> tuple[Examples, Examples]:
        number = {character: i for i, character in enumerate(alphabet)}
        roles = []
        for role_lines in lines.values():
            n_test = max(1, round(self.test_share * len(role_lines)))
            parts = role_lines[:-n_test], role_lines[-n_test:]
            windows = [self._cut_windows([number[c] for c in "\n".join(part)]) for part in parts]
            if len(windows[0]):
                roles.append(windows)
        if not any(len(test) for _, test in roles):
            raise DataError(f"shakespeare: no role speaks {self.unroll + 1} characters in both its training and its test lines")
        train, test = (_join_windows(windows) for windows in zip(*roles, strict=True))
        return train, test

    def _cut_windows(self, codes: list[int]) -> I64:
        """Cut a text into windows [w, unroll + 1]. The last character of a window, only a target, starts the next window."""
        starts = np.arange(0, len(codes) - self.unroll, self.unroll)
        windows: I64 = np.array(codes, dtype=np.int64)[starts[:, None] + np.arange(self.unroll + 1)]
        return windows


def _join_windows(windows: Sequence[I64]) -> Examples:
    """Return the examples of all roles from the windows [w, unroll + 1] of each role."""
    codes = np.concatenate(windows)
    return Examples(codes[:, :-1], codes[:, 1:], None, np.repeat(np.arange(len(windows)), [len(w) for w in windows]))


def _group_lines_by_role(text: str) -> dict[str, list[str]]:
    """Return the lines of each role that has at least two, roles in the order of their first speeches."""
    lines: dict[str, list[str]] = {}
    for role, line in _iterate_lines(text):
        lines.setdefault(role, []).append(line)
    return {role: role_lines for role, role_lines in lines.items() if len(role_lines) > 1}


def _iterate_lines(text: str) -> Iterator[tuple[str, str]]:
    """Yield (role, line) for each line of a speech."""
    role: str | None = None
    is_first = True
    for line in text.splitlines():
        if not line.strip():
            is_first = True
        elif is_first and line.endswith(":"):
            role, is_first = line[:-1], False
        elif role is not None:
            yield role, line
            is_first = False
