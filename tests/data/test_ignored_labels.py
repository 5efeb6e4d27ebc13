"""Ignored labels and text labels in partitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fedsgd.cli import main
from fedsgd.data import Dataset, Examples
from fedsgd.experiment.partition_summary import summarize_partition
from fedsgd.scenario.scenario import Scenario
from tests.data.samples import make_examples


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "shards", "pathological", "quantity", "skewed"])
def test_partition_ignored_labels_are_divided_like_a_class(partition: str) -> None:
    y = np.repeat([-100, 0, 1, 2], 10)
    dataset = Dataset(Examples(np.zeros((40, 2)), y), make_examples(), 3, ("a", "b", "c"))
    split = summarize_partition(
        Scenario(name="x").with_settings({"data.partition": {"name": partition, "clients": 4}}), dataset=dataset
    )
    assert split.class_names == ("a", "b", "c", "ignored (-100)")
    assert split.counts is not None
    assert split.counts.sum(axis=0).tolist() == [10, 10, 10, 10]
    assert split.counts.sum(axis=1).tolist() == split.sizes.tolist()
    assert split.compute_client_measures()["classes"].tolist() == (split.counts[:, :3] > 0).sum(axis=1).tolist()
    if partition == "pathological":
        assert ((split.counts > 0).sum(axis=1) == 2).all()


def test_partition_command_shows_number_of_each_text_label(tmp_path: Path) -> None:
    labels = ["owl", "cat", "Dog", "cat"] * 10
    np.savez(tmp_path / "own.npz", x_train=np.zeros((40, 2)), y_train=np.array(labels))
    (tmp_path / "s.toml").write_text('name = "x"\ndata = { name = "npz", path = "own.npz" }\n')
    for clients, texts in ((2, ["classes: 0 Dog, 1 cat, 2 owl"]), (30, ["0 Dog", "1 cat", "2 owl"])):
        arguments = ("--data", str(tmp_path), "--set", f"data.partition.clients={clients}", "--quiet")
        result = CliRunner().invoke(main, ["partition", str(tmp_path / "s.toml"), *arguments])
        assert result.exit_code == 0, result.output
        assert all(text in result.output for text in texts)


def test_partition_ignored_positions_of_sequences_are_counted_separately() -> None:
    y = np.array([[0, 1, -100], [1, -100, -100]])
    dataset = Dataset(Examples(np.zeros((2, 3), int), y), Examples(np.zeros((1, 3), int), y[:1]), 2)
    split = summarize_partition(Scenario(name="x").with_settings({"data.partition.clients": 2}), dataset=dataset)
    assert split.counts is not None
    assert sorted(split.counts.tolist()) == [[0, 1, 2], [1, 1, 1]]
