"""Partitions as tables, as pictures and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from fedsgd.analysis.figures.partition import _bin_columns, draw_partition
from fedsgd.cli import main
from fedsgd.cli.terminal import print_partition
from fedsgd.data import Dataset, Examples
from fedsgd.errors import OutputError
from fedsgd.experiment.partition_summary import PartitionSummary, summarize_partition
from fedsgd.scenario.scenario import Scenario
from tests.effort import nightly_unless

LABELS = np.array([0, 0, 0, 1, 1, 2] * 20)


def dataset(y: np.ndarray, classes: int | None, names: tuple[str, ...] | None = None) -> Dataset:
    part = Examples(np.zeros((len(y), 2), np.float32), y, None, np.arange(len(y)) // 2)
    return Dataset(part, part, classes, names)


def split(
    y: np.ndarray = LABELS, classes: int | None = 3, names: tuple[str, ...] | None = None, **settings: Any
) -> PartitionSummary:
    keys = {f"data.{key.replace('__', '.')}": value for key, value in settings.items()}
    return summarize_partition(
        Scenario(name="mine").with_settings({"data.partition.clients": 4, **keys}), dataset=dataset(y, classes, names)
    )


def test_client_measures_match_hand_computation() -> None:
    two = PartitionSummary("s", "p", ("a", "b"), np.array([[3, 1], [0, 4]]), np.array([4, 4]), None, 0)
    measures = two.compute_client_measures()
    assert measures["classes"].tolist() == [2, 1]
    assert measures["largest class"].tolist() == [0.75, 1]
    assert measures["distance"].tolist() == [0.375, 0.375], "all have 3/8 of a: |6/8 − 3/8| and |0 − 3/8|"


def test_counts_add_up_to_the_dataset() -> None:
    whole = split(partition__name="dirichlet", partition__clients=5)
    assert whole.counts is not None
    assert whole.counts.sum(axis=0).tolist() == [60, 40, 20]
    assert whole.counts.sum(axis=1).tolist() == whole.sizes.tolist()
    assert whole.n_unassigned == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The sum of partition sizes:UserWarning")
def test_held_out_and_unassigned_examples_are_counted_separately() -> None:
    with_held_out = split(held_out=0.25)
    assert with_held_out.held_out_sizes is not None
    assert (with_held_out.sizes + with_held_out.held_out_sizes).sum() == 120
    assert with_held_out.n_unassigned == 0
    sharded = split(
        held_out=0.5,
        partition__name="flwr-datasets",
        partition__partitioner="SizePartitioner",
        partition__arguments={"partition_sizes": [10, 20]},
        partition__clients=2,
    )
    assert (sharded.n_unassigned, sharded.sizes.tolist()) == (90, [5, 10])


def test_sequence_targets_are_counted_at_every_position() -> None:
    sequences = split(np.array([[0, 1, 2], [2, 2, 2]] * 4), partition__name="natural", partition__clients=None)
    assert sequences.counts is not None
    assert sequences.counts.tolist() == [[1, 1, 4]] * 4
    assert sequences.sizes.tolist() == [2] * 4
    assert sequences.held_out_sizes is not None, "test examples of the same clients"
    assert sequences.n_unassigned == 0


def test_regression_targets_have_sizes_only() -> None:
    regression = split(np.linspace(0, 1, 40), None)
    assert (regression.counts, regression.sizes.tolist()) == (None, [10] * 4)
    assert list(regression.compute_client_measures()) == ["examples"]


# -------------------------------------------------------------------------------------------------------------------- tables


def table_text(partition: PartitionSummary, capsys: pytest.CaptureFixture[str]) -> str:
    print_partition(partition)
    return capsys.readouterr().out


def test_table_of_few_clients_has_a_row_each(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("[red]", "\n", " ")
    table = table_text(
        PartitionSummary("s", "p", names, np.array([[3, 1, 0], [0, 3, 1]]), np.array([4, 4]), np.array([1, 0]), 7), capsys
    )
    assert re.search(r"client +examples +held out +distance +\[re +\\n +' '", table)
    assert re.search(r"^ +0 +4 +1 +0\.\d\d +75 +25 +· *$", table, re.MULTILINE)
    assert "7 training examples belong to no client" in table


@pytest.mark.parametrize("names", [("class_0", "class_1", "class_2"), ("client", "cli", "examples"), ("a", "b", "distance")])
def test_table_shows_every_class_of_any_name(names: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    counts = np.array([[10, 30, 60], [10, 30, 60]])
    assert re.search(
        r"^ +0 +100 +0\.00 +10 +30 +60 *$",
        table_text(PartitionSummary("s", "p", names, counts, counts.sum(axis=1), None, 0), capsys),
        re.M,
    )


@pytest.mark.parametrize("clients", [10, 20, 1000])
def test_table_fits_a_terminal(clients: int, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9000, (clients, 10))
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    table = table_text(PartitionSummary("s", "p", names, counts, counts.sum(axis=1), counts[:, 0], 0), capsys)
    assert max(map(len, table.splitlines())) <= 80
    assert "…" not in table
    assert len(table.splitlines()) < 32


def test_numbered_class_headings_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    counts = np.ones((2, 2), dtype=int)
    table = table_text(PartitionSummary("s", "p", ("class_a", "class_b"), counts, counts.sum(axis=1), None, 0), capsys)
    assert "classes: 0 class_a, 1 class_b" in table
    assert "classes:" not in table_text(PartitionSummary("s", "p", ("0", "1"), counts, counts.sum(axis=1), None, 0), capsys)


def test_table_of_many_clients_shows_quantiles(capsys: pytest.CaptureFixture[str]) -> None:
    counts = np.zeros((101, 2), dtype=int)
    counts[:, 0] = np.arange(1, 102)
    counts[:50, 1] = [5] * 40 + [1] * 10
    table = table_text(PartitionSummary("s", "p", ("a", "b"), counts, counts.sum(axis=1), None, 0), capsys)
    assert re.search(r"examples +6 +16 +51 +91 +101", table)
    assert re.search(r"classes +1 +1 +1 +2 +2", table)
    assert re.search(r"b +210 +50 +5", table)


def test_many_classes_are_listed_by_frequency(capsys: pytest.CaptureFixture[str]) -> None:
    counts = np.tile(np.arange(30), (3, 1))
    few = table_text(PartitionSummary("s", "p", tuple(map(str, range(30))), counts, counts.sum(axis=1), None, 0), capsys)
    assert "29 7%, 28 6%, 27 6%, 26 6%, 25 6%" in few
    many = np.tile(np.arange(30), (30, 1))
    assert re.search(
        r"18 others +4,590", table_text(PartitionSummary("s", "p", tuple("x" * 30), many, many.sum(axis=1), None, 0), capsys)
    )


# ------------------------------------------------------------------------------------------------------------------ pictures


def random_split(clients: int, classes: int) -> PartitionSummary:
    counts = np.random.default_rng(0).integers(0, 50, (clients, classes)) + 1
    names = tuple(f"${c}_$" for c in range(classes))
    return PartitionSummary("s", "p", names, counts, counts.sum(axis=1), None, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("clients", "classes"),
    nightly_unless(lambda size: size in ((1, 1), (1000, 65)), [(1, 1), (10, 10), (40, 62), (41, 10), (1000, 65), (5000, 3)]),
)
def test_pictures_of_any_size_are_valid_and_reproducible(clients: int, classes: int, tmp_path: Path) -> None:
    partition = random_split(clients, classes)
    for suffix in (".png", ".svg"):
        paths = [tmp_path / f"{i}{suffix}" for i in range(2)]
        for path in paths:
            draw_partition(partition, path)
        assert paths[0].read_bytes() == paths[1].read_bytes()
    with Image.open(tmp_path / "0.png") as image:
        assert image.width == 1350
    assert ElementTree.parse(tmp_path / "0.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "0.svg").stat().st_size < 600_000


@pytest.mark.slow
def test_pictures_of_regression_targets_are_drawn(tmp_path: Path) -> None:
    for clients in (4, 60):
        sizes = np.arange(1, clients + 1)
        draw_partition(PartitionSummary("s", "p", (), None, sizes, None, 0), tmp_path / f"{clients}.png")
        assert (tmp_path / f"{clients}.png").stat().st_size > 5000


def test_bar_lengths_are_the_client_sizes() -> None:
    from fedsgd.analysis.figures.partition import _draw_bars

    partition = random_split(12, 4)
    assert partition.counts is not None
    (ax,) = _draw_bars(partition).axes
    widths = np.array([[bar.get_width() for bar in container] for container in ax.containers])
    lefts = np.array([[bar.get_x() for bar in container] for container in ax.containers])
    assert widths.T.tolist() == partition.counts.tolist()
    assert lefts.T.tolist() == (partition.counts.cumsum(axis=1) - partition.counts).tolist(), "stacked without gaps"


@pytest.mark.slow
def test_map_sorts_clients_by_their_largest_class() -> None:
    from fedsgd.analysis.figures.partition import _draw_map

    partition = random_split(200, 5)
    top, bottom, _ = _draw_map(partition).axes
    columns = np.asarray(bottom.images[0].get_array())
    assert (np.diff(columns.argmax(axis=0)) >= 0).all()
    assert columns.sum(axis=0) == pytest.approx(np.ones(200))
    heights = top.collections[0].get_paths()[0].vertices[1:400:2, 1]
    assert sorted(heights.tolist()) == sorted(partition.sizes.tolist())
    shares = partition.compute_class_distributions()
    assert shares is not None
    for column, size in zip(columns.T, heights, strict=True):
        assert any(
            np.allclose(share, column) and size == client_size
            for share, client_size in zip(shares, partition.sizes, strict=True)
        )


def test_classes_beyond_the_palette_are_summed() -> None:
    from fedsgd.analysis.figures.partition import _collect_class_counts

    counts = np.arange(1, 25).reshape(2, 12)
    stacks = _collect_class_counts(PartitionSummary("s", "p", tuple("abcdefghijkl"), counts, counts.sum(axis=1), None, 0))
    assert [label for label, _, _ in stacks] == [*"defghijkl", "3 others"]
    assert stacks[-1][2].tolist() == [1 + 2 + 3, 13 + 14 + 15]


def test_class_names_with_matplotlib_syntax_are_shown(tmp_path: Path) -> None:
    from fedsgd.analysis.figures.partition import _draw_bars

    counts = np.ones((2, 3), dtype=int)
    names = ("_hidden", "$x_1$", "n" * 300)
    figure = _draw_bars(PartitionSummary("a$b$_{c", "p", names, counts, counts.sum(axis=1), None, 0))
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [" _hidden", r"\$x_1\$", "n" * 15 + "…"]
    draw_partition(PartitionSummary("a$b$_{c", "p", names, counts, counts.sum(axis=1), None, 0), tmp_path / "s.png")


def test_size_axes_have_integer_ticks() -> None:
    from fedsgd.analysis.figures.partition import _draw_bars, _draw_map

    (ax,) = _draw_map(PartitionSummary("s", "p", (), None, np.ones(100, dtype=int), None, 0)).axes
    assert all(float(tick).is_integer() for tick in ax.get_yticks())
    (bars,) = _draw_bars(PartitionSummary("s", "p", (), None, np.ones(3, dtype=int), None, 0)).axes
    assert all(float(tick).is_integer() for tick in bars.get_xticks())
    assert ax.get_xlabel() == "clients, by size"


def test_columns_beyond_a_thousand_are_averaged_with_neighbours() -> None:
    assert _bin_columns(np.arange(2000)).tolist() == (np.arange(0, 2000, 2) + 0.5).tolist()
    assert _bin_columns(np.arange(5)).tolist() == [0, 1, 2, 3, 4]
    uneven = _bin_columns(np.ones((2, 2345)))
    assert uneven.shape == (2, 1000)
    assert (uneven == 1).all()


@pytest.mark.parametrize(
    ("name", "message"), [("s.jpg", r'got a picture ".jpg"'), ("none/s.png", "there is no folder"), ("s", 'got a picture ""')]
)
def test_picture_path_that_cannot_be_written_is_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=message):
        draw_partition(random_split(3, 2), tmp_path / name)


# --------------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def fedsgd(root: Path) -> Callable[..., Result]:
    def call(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["partition", str(root / "scenarios" / "quickstart.toml"), *arguments])

    return call


@pytest.mark.slow
def test_partition_command_prints_a_table_and_draws_a_picture(fedsgd: Callable[..., Result], tmp_path: Path) -> None:
    result = fedsgd("--picture", str(tmp_path / "split.png"), "--set", "data.held_out=0.2")
    assert result.exit_code == 0, result.output
    assert "quickstart: dirichlet, 20 clients, 1,149 training examples" in result.stdout
    assert (tmp_path / "split.png").exists()


def test_partition_command_prints_json(fedsgd: Callable[..., Result]) -> None:
    partition = json.loads(fedsgd("--json", "--seed", "3").stdout)
    assert (partition["clients"], sum(partition["sizes"]), partition["left_out"]) == (20, 1437, 0)
    assert np.array(partition["counts"]).shape == (20, 10)
    assert partition["sizes"] != json.loads(fedsgd("--json").stdout)["sizes"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--picture", "x.gif"), 2, 'x.gif: got a picture ".gif"'),
        (("--set", "data.partition.clients=2000"), 1, "2000 clients cannot share 1437 examples"),
        (("--set", "data.partition.name=natural"), 1, "the dataset has no owners"),
        (("--set", "data.partition.alpha=-1"), 2, "quickstart.toml: data.partition.alpha: "),
    ],
)
def test_partition_command_with_invalid_options_fails_with_a_message(
    fedsgd: Callable[..., Result], arguments: tuple[str, ...], status: int, message: str
) -> None:
    result = fedsgd(*arguments)
    assert result.exit_code == status
    assert message in result.stderr
    assert not result.stdout
