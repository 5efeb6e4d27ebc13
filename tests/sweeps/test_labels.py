"""Tests of labels and folder names."""

from __future__ import annotations

from fedsgd.sweeps.labels import assign_unique_slugs, format_value, shorten_keys, slugify


def test_values_are_formatted_for_labels() -> None:
    values = (0.001, 1e30, 1e-5, 0.1 + 0.2, True, "x", [64, 32], [], {"name": "top-k", "density": 0.5}, {"a": 1})
    assert [format_value(value) for value in values] == [
        "0.001",
        "1e30",
        "1e-05",
        "0.30000000000000004",
        "true",
        "x",
        "64 32",
        "none",
        "top-k density 0.5",
        "a 1",
    ]


def test_short_name_of_an_ambiguous_key_is_the_whole_key() -> None:
    keys = ["uplink.compressor.density", "downlink.compressor.density", "client.optimizer.lr", "x.seed"]
    assert shorten_keys(keys) == {
        "uplink.compressor.density": "uplink.compressor.density",
        "downlink.compressor.density": "downlink.compressor.density",
        "client.optimizer.lr": "lr",
        "x.seed": "x.seed",
    }


def test_slugs_are_plain_short_and_unique() -> None:
    assert slugify("Top-K 1 %, density 0.001") == "top-k-1-density-0.001"
    assert slugify("Ünïcode/..\\x") == "unicode-..-x"
    assert slugify("..") == slugify("β") == "cell"
    assert len(slugify("x" * 300)) < 100
    assert assign_unique_slugs(["A", "a", "a 2", "sweep.json"], ["sweep.json"]) == {
        "A": "a",
        "a": "a-2",
        "a 2": "a-2-2",
        "sweep.json": "sweep.json-2",
    }
