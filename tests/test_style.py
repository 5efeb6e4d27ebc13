"""Language of the package: docstrings, and the words that users see."""

from __future__ import annotations

import pytest

from tests import structure

pytestmark = pytest.mark.slow


def test_docstring_does_not_begin_with_a_clause() -> None:
    assert structure.clause_docstrings() == []


def test_docstrings_and_messages_have_no_rejected_word() -> None:
    assert structure.metaphors() == []


def test_public_interface_describes_every_parameter_and_field() -> None:
    assert structure.undocumented_parameters() == []


def test_public_method_has_a_docstring_or_overrides_a_method() -> None:
    assert structure.undocumented_methods() == []


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Send.\n\nArgs:\n    x: [P] float32, values.\n    y, z: sizes.\n", {"x", "y", "z"}),
        ("Send.\n\nArgs:\n    x: the x.\n    rate: rate.\n", set()),
        ("Send.\n\nArgs:\n    *rows: rows to add.\n\nReturns:\n    size: bytes.\n", {"rows"}),
        ("Send x.", set()),
    ],
)
def test_described_names_are_those_with_a_meaning(docstring: str, expected: set[str]) -> None:
    assert structure.described_names(docstring, "Args") == expected
