"""Hugging Face datasets: folders, files, the cache, and messages for invalid columns."""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsgd.config.component import FieldError
from fedsgd.data.datasets.columns import read_labels
from fedsgd.data.datasets.hugging_face import HuggingFace
from fedsgd.errors import DataError, ModelError, ScenarioError
from fedsgd.experiment.builder import build_experiment
from fedsgd.scenario.scenario import Scenario, parse_scenario
from tests.data.samples import encode_image, write_cifar


def write_table(folder: Path, **columns: object) -> HuggingFace:
    """Write a dataset as two Parquet files with a schema of features; return its source."""
    import datasets

    (folder / "mine").mkdir(exist_ok=True)
    table = datasets.Dataset.from_dict(columns)
    if "label" in columns:
        table = table.cast_column("label", datasets.ClassLabel(names=["cat", "dog", "owl"]))
    for part in ("train", "test"):
        table.to_parquet(folder / "mine" / f"{part}.parquet")
    return HuggingFace(path="mine", x="features")


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_hugging_face_folder_has_labels_and_owners(tmp_path: Path) -> None:
    source = write_table(tmp_path, features=[[0.5, 1.0], [2.0, 3.0], [4.0, 5.0]], label=[2, 0, 1], who=["zoe", "ann", "zoe"])
    data = dataclasses.replace(source, owner="who").load(tmp_path)
    assert (data.train.x.tolist(), data.train.y.tolist()) == ([[0.5, 1], [2, 3], [4, 5]], [2, 0, 1])
    assert (data.classes, data.class_names) == (3, ("cat", "dog", "owl"))
    assert data.train.writer is not None
    assert data.train.writer.tolist() == [1, 0, 1]


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_hugging_face_images_without_features_load(tmp_path: Path) -> None:
    write_cifar(tmp_path, "train", [encode_image((255, 0, 51)), encode_image((0, 0, 0))], [1, 0])
    write_cifar(tmp_path, "test", [encode_image((0, 0, 0))], [1])
    data = HuggingFace(path=str(tmp_path), x="img").load(None)
    assert (data.shape, data.classes) == ((3, 32, 32), 2)
    assert data.train.x[0, :, 0, 0].tolist() == pytest.approx([1, 0, 0.2])


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("mode", "shape"), [("RGB", (3, 4, 6)), ("L", (4, 6)), ("1", (4, 6)), ("RGBA", (3, 4, 6)), ("P", (3, 4, 6))]
)
def test_hugging_face_images_of_usual_modes_load(tmp_path: Path, mode: str, shape: tuple[int, ...]) -> None:
    """A white image, 6 wide and 4 high, has one black pixel in the second row and third column."""
    image = Image.new("RGB", (6, 4), (255, 255, 255))
    image.putpixel((2, 1), (0, 0, 0))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "PNG")
    for part in ("train", "test"):
        write_cifar(tmp_path, part, [{"bytes": buffer.getvalue(), "path": None}], [0])
    data = HuggingFace(path=str(tmp_path), x="img").load(None)
    assert data.shape == shape
    assert (data.train.x[0, ..., 1, 2] == 0).all()
    assert data.train.x.sum() == np.prod(shape) - np.prod(shape[:-2])


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_hugging_face_invalid_rows_raise_error_with_column(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_cifar(tmp_path, part, [{"bytes": b"not an image", "path": None}], [0])
    with pytest.raises(DataError, match="column img: UnidentifiedImageError"):
        HuggingFace(path=str(tmp_path), x="img").load(None)
    source = write_table(tmp_path, features=[[0.5], [1.0]], label=[0, 1], who=["ann", None])
    with pytest.raises(FieldError, match='column "who" has missing values'):
        dataclasses.replace(source, owner="who").load(tmp_path)
    for owners in ([["a"], ["b", "c"]], [{"a": 1}, {"a": 2}], [[1], [2]]):
        source = write_table(tmp_path, features=[[0.5], [1.0]], label=[0, 1], who=owners)
        with pytest.raises(FieldError, match="no names or numbers"):
            dataclasses.replace(source, owner="who").load(tmp_path)
    for features in ([[0.5], None], [[0.5], [None]], [{"a": 1}, {"a": 2}]):
        with pytest.raises(DataError, match="column features has missing values, or values that are no numbers"):
            write_table(tmp_path, features=features, label=[0, 1]).load(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_hugging_face_unknown_columns_and_splits_raise_error_with_key(tmp_path: Path) -> None:
    source = write_table(tmp_path, features=[[0.5], [1.0, 2.0]], label=[0, 1])
    with pytest.raises(DataError, match=r"rows of column features differ in shape or type: \[1\] float64, \[2\] float64"):
        source.load(tmp_path)
    for settings, message in (
        ({"x": "featurs"}, 'x: got "featurs", did you mean "features"'),
        ({"owner": "user"}, 'owner: got "user"'),
    ):
        with pytest.raises(FieldError, match=message):
            dataclasses.replace(source, **settings).load(tmp_path)
    for part in ("train", "test"):
        with pytest.raises(FieldError, match=f'{part}: got "trian", did you mean "train"'):
            dataclasses.replace(source, **{part: "trian"}).load(tmp_path)


@pytest.mark.usefixtures("offline")
def test_hugging_face_split_accepts_part_of_a_split(tmp_path: Path) -> None:
    source = write_table(tmp_path, features=[[float(i)] for i in range(10)], label=[0, 1] * 5)
    data = dataclasses.replace(source, train="train[:80%]", test="train[80%:]").load(tmp_path)
    assert (data.train.x.ravel().tolist(), data.test.x.ravel().tolist()) == ([*range(8)], [8, 9])


CACHED_LOAD = """
from fedsgd.data import DATASETS

data = DATASETS["hugging-face"](path="somebody/theirs", x="features").load(None)
print(data.train.x.tolist(), data.classes)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_hugging_face_cached_dataset_loads_offline(tmp_path: Path) -> None:
    """The cache of a dataset of the hub is a renamed cache of a folder, because the two differ only in names."""
    import datasets

    write_table(tmp_path, features=[[0.5], [1.0]], label=[0, 1])
    datasets.load_dataset(str(tmp_path / "mine"), cache_dir=str(tmp_path / "home" / "datasets"))
    (tmp_path / "home" / "datasets" / "mine").rename(tmp_path / "home" / "datasets" / "somebody___theirs")
    for path in (tmp_path / "home").rglob("mine-*.arrow"):
        path.rename(path.with_name(path.name.replace("mine", "theirs")))
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    process = subprocess.run([sys.executable, "-c", CACHED_LOAD], env=environment, capture_output=True, text=True)
    assert process.stdout == "[[0.5], [1.0]] 3\n", process.stderr


@pytest.mark.usefixtures("offline")
def test_hugging_face_uncached_dataset_raises_error_offline(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="hugging-face: nobody/nothing cannot be loaded"):
        HuggingFace(path="nobody/nothing").load(tmp_path)


def make_table(n: int) -> Any:
    """Return a table of n rows with the columns a, b and label."""
    import datasets

    return datasets.Dataset.from_dict({"a": [float(i) for i in range(n)], "b": [*range(n)], "label": [i % 2 for i in range(n)]})


@pytest.mark.usefixtures("offline")
def test_hugging_face_folder_of_single_dataset_draws_test_share(tmp_path: Path) -> None:
    make_table(10).save_to_disk(tmp_path / "one")
    source = HuggingFace(path="one", x="a", test_share=0.3)
    data = source.load(tmp_path)
    assert (len(data.train), len(data.test)) == (7, 3)
    assert sorted([*data.train.x.tolist(), *data.test.x.tolist()]) == [*range(10)], "no test example is trained on"
    assert (data.test.y == data.test.x % 2).all()
    assert source.load(tmp_path).test.x.tolist() == data.test.x.tolist()
    parts = dataclasses.replace(source, train="train[:80%]", test="train[80%:]").load(tmp_path)
    assert (parts.train.x.tolist(), parts.test.x.tolist()) == ([*range(8)], [8, 9])
    with_owners = dataclasses.replace(source, owner="b").load(tmp_path)
    assert with_owners.test.writer is not None
    assert with_owners.test.writer.tolist() == with_owners.test.x.tolist()
    with pytest.raises(FieldError, match='test: got "tset", expected one of: "train"'):
        dataclasses.replace(source, test="tset").load(tmp_path)


@pytest.mark.usefixtures("offline")
def test_hugging_face_folder_of_dataset_dict_loads_its_splits(tmp_path: Path) -> None:
    import datasets

    datasets.DatasetDict(train=make_table(4), validation=make_table(2)).save_to_disk(tmp_path / "two")
    source = HuggingFace(path="two", x="a", test="validation")
    assert [len(part) for part in (source.load(tmp_path).train, source.load(tmp_path).test)] == [4, 2]
    with pytest.raises(FieldError, match='test: got "test", expected one of: "train", "validation"'):
        HuggingFace(path="two", x="a").load(tmp_path)
    tables = [
        make_table(2).cast_column("label", datasets.ClassLabel(names=names)) for names in (["cat", "dog"], ["dog", "cat"])
    ]
    datasets.DatasetDict(train=tables[0], test=tables[1]).save_to_disk(tmp_path / "three")
    with pytest.raises(DataError, match="column label: training and test part name their classes differently"):
        HuggingFace(path="three", x="a").load(tmp_path)


@pytest.mark.usefixtures("offline")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of the library's CSV reader
def test_hugging_face_csv_with_feature_columns_and_text_labels_loads(tmp_path: Path) -> None:
    lines = ["width,height,kind,who", "1,0.5,owl,ann", "2,1.5,cat,zoe", "3,2.5,owl,ann", "4,3.5,Dog,zoe"]
    (tmp_path / "own.csv").write_text("\n".join(lines))
    data = HuggingFace(path="own.csv", x=("width", "height"), y="kind", train="train", test="train[:2]").load(tmp_path)
    assert data.train.x.dtype == np.float32
    assert data.train.x.tolist() == [[1, 0.5], [2, 1.5], [3, 2.5], [4, 3.5]]
    assert (data.train.y.tolist(), data.class_names, data.classes) == ([2, 1, 2, 0], ("Dog", "cat", "owl"), 3)
    assert data.test.y.tolist() == [2, 1]
    all_columns = HuggingFace(path="own.csv", x="*", y="kind", owner="who", test="train[:2]").load(tmp_path)
    assert all_columns.train.x.tolist() == data.train.x.tolist()
    assert HuggingFace(path="own.csv", x=("height",), y="kind").load(tmp_path).shape == (1,)
    for columns, message in (
        ("*", r"column who contains texts, expected one number in each row; set data.x to columns of numbers"),
        ((), "x: got no column, expected at least one of: width, height, kind, who"),
        ("widht", 'x: got "widht", did you mean "width".*give a list of columns of numbers, or "[*]"'),
        (("width", "hight"), 'x: got "hight", did you mean "height"'),
    ):
        with pytest.raises((DataError, FieldError), match=message):
            HuggingFace(path="own.csv", x=columns, y="kind").load(tmp_path)
    (tmp_path / "own.csv").write_text("\n".join([*lines, ",1,cat,ann"]))
    with pytest.raises(DataError, match="column width has missing values"):
        HuggingFace(path="own.csv", x=("width", "height"), y="kind").load(tmp_path)
    (tmp_path / "own.csv").write_text("\n".join([*lines, "1,1,,ann"]))
    with pytest.raises(DataError, match="column kind has missing values"):
        HuggingFace(path="own.csv", x=("width", "height"), y="kind").load(tmp_path)


@pytest.mark.usefixtures("offline")
def test_hugging_face_missing_file_is_not_requested_from_the_hub(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"hugging-face: none.csv not found \(looked for .*/none.csv, none.csv\)"):
        HuggingFace(path="none.csv").load(tmp_path)


def test_hugging_face_feature_columns_round_trip_through_toml() -> None:
    source = {"name": "hugging-face", "path": "p", "x": ["a", "b"]}
    scenario = Scenario(name="x").with_settings({"data": source})
    assert scenario.data.source == HuggingFace(path="p", x=("a", "b"))
    assert parse_scenario(tomllib.loads(scenario.to_toml())) == scenario
    with pytest.raises(ScenarioError, match=r"data.x: expected a text in quotes or a list, each entry a text in quotes, got 3"):
        Scenario(name="x").with_settings({"data": {**source, "x": 3}})


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("grey_test", [False, True])
def test_hugging_face_grey_images_among_colour_images_get_three_channels(tmp_path: Path, grey_test: bool) -> None:
    buffers = []
    for image in (Image.new("RGB", (32, 32), (255, 0, 51)), Image.new("L", (32, 32), 102)):
        buffers.append(io.BytesIO())
        image.save(buffers[-1], "PNG")
    colour, grey = ({"bytes": buffer.getvalue(), "path": None} for buffer in buffers)
    write_cifar(tmp_path, "train", [colour] if grey_test else [colour, grey], [0] if grey_test else [0, 1])
    write_cifar(tmp_path, "test", [grey], [1])
    data = HuggingFace(path=str(tmp_path), x="img").load(None)
    assert data.shape == (3, 32, 32)
    assert data.train.x[0, :, 0, 0].tolist() == pytest.approx([1, 0, 0.2])
    for x in (data.test.x[0], data.train.x[-1])[: 1 if grey_test else 2]:
        assert x[:, 5, 7].tolist() == pytest.approx([0.4] * 3)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "own.csv cannot be loaded: the file is empty, expected a header and rows"),
        (["a,y"], "own.csv cannot be loaded: there are no rows"),
        (
            ["a,y", "1,0.0", "2,1.0", "3,2.0"],
            r"class labels \(own.csv: column y\); write them as whole numbers, 0 in place of 0.0",
        ),
        (["a,y", *["1,-100"] * 5], "own.csv: all training labels are -100"),
        (["a,y", "1,0", "inf,1", "2,0"], "own.csv: the training examples are not all finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of the library's CSV reader
def test_hugging_face_unusable_csv_file_raises_error_with_its_name(
    tmp_path: Path, scenario: Callable[..., Scenario], lines: list[str], message: str
) -> None:
    (tmp_path / "own.csv").write_text("".join(f"{line}\n" for line in lines))
    source = {"data.name": "hugging-face", "data.path": "own.csv", "data.x": ["a"], "data.y": "y"}
    with pytest.raises((DataError, ModelError), match=message):
        build_experiment(
            scenario({**source, "data.partition.name": "iid", "data.partition.clients": 1, "server.cohort": 1}), tmp_path
        )


def test_hugging_face_parts_with_different_class_names_raise_error_with_both() -> None:
    datasets = pytest.importorskip("datasets")
    tables = [
        datasets.Dataset.from_dict({"y": [0]}, features=datasets.Features({"y": datasets.ClassLabel(names=names)}))
        for names in (["a", "b"], ["b", "a"])
    ]
    with pytest.raises(DataError, match=r"name their classes differently: \[a, b\] and \[b, a\]"):
        read_labels(tables, "y", "own")
