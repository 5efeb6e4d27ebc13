"""Check that an argument is a `Dataset`, with a hint of the conversion for other types."""

from __future__ import annotations

from fedsgd.config.component import add_article
from fedsgd.data.base import Dataset
from fedsgd.errors import DataError

EXPECTED_DATASET = (
    "expected a fedsgd.Dataset(train, test, classes), with train and test a fedsgd.Examples(x, y) of numpy arrays each"
)
_PAIR_HINT = "fedsgd.Examples(x, y) takes one pair of arrays; pass one pair for training and one for testing"
_TABLE_HINT = 'write it with save_to_disk(folder) and set [data] name = "hugging-face", path = folder'
_PATH_HINT = 'name a file in [data]: name = "npz" or "hugging-face", path = "..."'
_CONVERSION_HINTS = {
    "torch.TensorDataset": "its arrays are x, y = (tensor.numpy() for tensor in dataset.tensors)",
    "torch.DataLoader": "batches = list(loader), and torch.cat(...).numpy() over the batches gives each array",
    "torch.Dataset": "x, y = map(numpy.stack, zip(*dataset)) stacks its items",
    "datasets.Dataset": _TABLE_HINT,
    "datasets.DatasetDict": _TABLE_HINT,
    "datasets.IterableDataset": "collect its rows into arrays",
    "pandas.DataFrame": "its arrays are frame[columns].to_numpy() and frame[label].to_numpy()",
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
