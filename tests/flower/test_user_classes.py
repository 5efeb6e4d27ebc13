"""Identities of classes outside fedsgd: differences between server and node, and their encoding."""

from __future__ import annotations

import pytest

from fedsgd.config.user_classes import ClassIdentity
from fedsgd.errors import WireError
from fedsgd.flower.user_classes import decode_identities, encode_identities, find_mismatch


def test_mismatch_names_both_releases_and_sources() -> None:
    identity = ClassIdentity("numpy.random:Generator", "12", "numpy 2.0")
    assert find_mismatch([identity._replace(release="numpy 9.9")], [identity]) == (
        "numpy.random:Generator is not the server's: the node has numpy 2.0, source 12; the server has numpy 9.9, source 12"
    )


def test_mismatch_is_found_in_source_release_and_name() -> None:
    here = ClassIdentity("a:B", "12", "")
    installed = ClassIdentity("a:B", "12", "a 1.0")
    assert find_mismatch([here], [here]) is None
    assert find_mismatch([here], [installed]) is None, "a module that travels in the app is not installed"
    assert find_mismatch([], [here]) is None
    assert find_mismatch([here], []) == "a:B is not among the node's classes []"
    assert find_mismatch([installed], [installed._replace(release="a 2.0")]) is not None
    assert find_mismatch([here], [here._replace(sha256="13")]) == (
        "a:B is not the server's: the node has no installed release, source 13; the server has no installed release, source 12"
    )


def test_encoded_identities_are_restored_and_other_texts_refused() -> None:
    identities = [ClassIdentity("a:B", "12", "a 1.0"), ClassIdentity("c:D", "34", "")]
    assert decode_identities(encode_identities(identities)) == identities
    for text in ("", "{", "[1]", '[["a"]]', '[["a", 1, "b"]]', None, b"[]"):
        with pytest.raises(WireError, match="cannot be read"):
            decode_identities(text)
