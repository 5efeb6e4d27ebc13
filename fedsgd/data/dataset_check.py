"""Check that an argument is a `Dataset`, with a hint of the conversion for other types."""

from __future__ import annotations

from fedsgd.config.component import add_article
from fedsgd.data.base import Dataset
from fedsgd.errors import DataError

EXPECTED_DATASET = (
    "expected a fedsgd.Dataset(train, test, classes), with train and test a fedsgd.Examples(x, y) of numpy arrays each"
)
_PAIR_HINT = "fedsgd.datasets.from_arrays((x, y), (x_test, y_test)) converts two pairs of arrays"
_TORCH_HINT = "fedsgd.datasets.from_torch(train, test) converts two of them"
_TABLE_HINT = "fedsgd.datasets.from_hugging_face(train, test, features=..., target=...) converts tables"
_PATH_HINT = 'name a file in [data]: name = "npz" or "hugging-face", path = "..."'
_CONVERSION_HINTS = {
    "torch.DataLoader": "fedsgd.datasets.from_torch(train.dataset, test.dataset) converts the datasets of two loaders",
    "torch.Dataset": _TORCH_HINT,
    "datasets.Dataset": _TABLE_HINT,
    "datasets.DatasetDict": _TABLE_HINT,
    "datasets.IterableDataset": "collect its rows into arrays",
    "pandas.DataFrame": "fedsgd.datasets.from_pandas(train, test, target=...) converts two of them",
    "numpy.ndarray": _PAIR_HINT,
    "builtins.tuple": _PAIR_HINT,
    "builtins.list": _PAIR_HINT,
    "builtins.dict": _PAIR_HINT,
    "builtins.str": _PATH_HINT,
    "pathlib.Path": _PATH_HINT,
    "fedsgd.Examples": "test examples are required too",
    "fedsgd.DatasetSource": "its load(folder) returns one",
}
"""Conversion of a type to a `Dataset`, by the top-level package and the name of its class."""


def check_dataset(dataset: object, argument: str = "dataset", alternative: str = "") -> Dataset:
    """Return the dataset that a user passed in Python. DataError, with a hint of the conversion, for any other type.

    Args:
        dataset: value that a user passed.
        argument: name of the argument, for the message.
        alternative: other value that the argument accepts, for the message: "the path of a folder or ".
    """
    expected = EXPECTED_DATASET.replace("expected ", f"expected {alternative}")
    if isinstance(dataset, Dataset):
        return dataset
    if isinstance(dataset, type):
        raise DataError(f"{argument}: got the class {dataset.__name__}, {expected}")
    kinds = [f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(dataset).__mro__]
    conversion = next((f"; {_CONVERSION_HINTS[kind]}" for kind in kinds if kind in _CONVERSION_HINTS), "")
    raise DataError(f"{argument}: got {add_article(kinds[0].removeprefix('builtins.'))}, {expected}{conversion}")
