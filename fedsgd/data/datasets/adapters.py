"""Adapters: datasets of NumPy, PyTorch, pandas and Hugging Face as `Dataset`, for `fedsgd.run(..., data=...)`.

All adapters follow the rules of the dataset "npz". Inputs of uint8 are pixels and become float32 in [0, 1]; other integers
stay integers, and floats become float32. Targets of integers, booleans or texts are class labels; texts are numbered in sorted
order. Targets of floats are regression targets. The adapters import none of these libraries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedsgd.config.component import FieldError, add_article
from fedsgd.data.base import Dataset, Examples, scale_pixels_of_parts
from fedsgd.data.datasets.hugging_face import HuggingFace
from fedsgd.data.labels import count_classes, number_text_labels
from fedsgd.errors import DataError, suggest_name
from fedsgd.numerics.arrays import I64

Pair = tuple[ArrayLike, ArrayLike]
_PARTS = ("train", "test")


def from_arrays(
    train: Pair,
    test: Pair,
    *,
    classes: int | None = None,
    class_names: Sequence[str] | None = None,
    owners: ArrayLike | None = None,
) -> Dataset:
    """Return a dataset of arrays.

    >>> x, y = np.random.default_rng(0).random((6, 2)), ["cat", "dog", "cat", "owl", "dog", "owl"]
    >>> dataset = from_arrays((x[:4], y[:4]), (x[4:], y[4:]), owners=["ann", "bob", "ann", "bob"])
    >>> dataset.classes, dataset.class_names, dataset.train.writer.tolist()
    (3, ('cat', 'dog', 'owl'), [0, 1, 0, 1])

    Args:
        train: (inputs [n, ...], targets [n, ...]) of the training examples, as arrays, tensors on the CPU or nested lists.
            Inputs of uint8 are pixels and are divided by 255.
        test: the same for the test examples.
        classes: number of classes; None: the largest label + 1, the number of different texts, or no classes for floats.
        class_names: name of each class, which also numbers targets that are texts; None: texts name themselves.
        owners: [n] owner (writer, speaker or user) of each training example, numbers or texts, for the partitioner "natural";
            None: no owners.

    Raises:
        DataError: a part is missing, lengths or types differ, a value is no finite number, or a label is out of range.
    """
    parts = [_to_pair(part, name) for part, name in zip((train, test), _PARTS, strict=True)]
    return _build_dataset(parts, classes, class_names, owners)


def from_torch(
    train: Any,
    test: Any,
    *,
    classes: int | None = None,
    class_names: Sequence[str] | None = None,
    owners: ArrayLike | None = None,
) -> Dataset:
    """Return a dataset of two torch datasets, whose items are pairs (input, target).

    Each item is read once, so a random transform applies once and not in each epoch.

    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> items = TensorDataset(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
    >>> dataset = from_torch(items, items)
    >>> len(dataset.train), dataset.shape, dataset.classes
    (4, (2,), 2)

    Args:
        train: torch.utils.data.Dataset of the training examples, with or without a length.
        test: torch.utils.data.Dataset of the test examples.
        classes: number of classes; None: the largest label + 1, or no classes for floats.
        class_names: name of each class; None: the classes have no names.
        owners: [n] owner of each training example, as for `from_arrays`.

    Raises:
        DataError: a part is missing or empty, an item is no pair of arrays, or items differ in shape or type.
    """
    parts = [_stack_items(part, name) for part, name in zip((train, test), _PARTS, strict=True)]
    return _build_dataset(parts, classes, class_names, owners)


def from_pandas(
    train: Any,
    test: Any,
    *,
    target: str,
    features: Sequence[str] | None = None,
    owner: str | None = None,
    classes: int | None = None,
) -> Dataset:
    """Return a dataset of two pandas data frames, with a vector of float32 for each row.

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"height": [1.0, 2.0], "width": [3, 4], "kind": ["cat", "dog"]})
    >>> dataset = from_pandas(frame, frame, target="kind")
    >>> dataset.train.x.tolist(), dataset.class_names
    ([[1.0, 3.0], [2.0, 4.0]], ('cat', 'dog'))

    Args:
        train: data frame of the training examples.
        test: data frame of the test examples, with the same columns.
        target: column of the targets.
        features: columns of numbers, the entries of a row's vector; None: all columns of `train` but `target` and `owner`.
        owner: column of the owners in `train`, for the partitioner "natural"; None: no owners.
        classes: number of classes, as for `from_arrays`.

    Raises:
        DataError: a column is missing, or has missing values, texts or other objects.
    """
    for frame, name in zip((train, test), _PARTS, strict=True):
        if not hasattr(frame, "columns") or not hasattr(frame, "to_numpy"):
            raise DataError(f"{name}: got {_describe_type(frame)}, expected a pandas.DataFrame")
    targets = [_read_column(frame, target, name) for frame, name in zip((train, test), _PARTS, strict=True)]
    if isinstance(features, str):
        raise DataError(f'features: got the text "{features}", expected a list of columns: ["{features}"]')
    if features is None:
        features = [column for column in train.columns if column not in (target, owner)]
    elif target in features:
        raise DataError(f'features: got "{target}", which is the target: the model would be given its target')
    if not features:
        raise DataError("features: got no column, expected at least one")
    parts = []
    for frame, name, y in zip((train, test), _PARTS, targets, strict=True):
        columns = [_read_column(frame, column, name, allow_texts=False) for column in features]
        x: NDArray[np.float32] = np.stack(columns, axis=1).astype(np.float32)
        parts.append((x, y))
    return _build_dataset(parts, classes, None, None if owner is None else _read_column(train, owner, "train"))


def from_hugging_face(
    train: Any,
    test: Any = None,
    *,
    features: str | Sequence[str] = "image",
    target: str = "label",
    owner: str | None = None,
) -> Dataset:
    """Return a dataset of tables of the library `datasets`. Columns are read as by the dataset "hugging-face".

    Args:
        train: datasets.DatasetDict with the splits "train" and "test"; or the datasets.Dataset of the training examples.
        test: datasets.Dataset of the test examples; None if `train` is a DatasetDict.
        features: column of the examples; or a list of columns of numbers, or "*" for all columns but `target` and `owner`.
        target: column of the targets: ClassLabel, integers or texts are class labels, floats are regression targets.
        owner: column of the owners, for the partitioner "natural"; None: no owners.

    Raises:
        DataError: a split or column is missing, or a column has missing values or rows of different shapes.
    """
    if isinstance(train, dict) and test is None:
        missing_splits = [name for name in _PARTS if name not in train]
        if missing_splits:
            remedy = "dataset.train_test_split(test_size=0.2) returns both splits"
            splits = ", ".join(f'"{name}"' for name in train)
            raise DataError(f'train: got the splits {splits}, expected "train" and "test"; {remedy}')
        train, test = train["train"], train["test"]
    for table, name in zip((train, test), _PARTS, strict=True):
        if not hasattr(table, "column_names") or not hasattr(table, "__len__"):
            remedy = "; collect the rows: datasets.Dataset.from_list(list(rows))" if hasattr(table, "column_names") else ""
            raise DataError(f"{name}: got {_describe_type(table)}, expected a datasets.Dataset{remedy}")
    columns = features if isinstance(features, str) else tuple(features)
    try:
        source = HuggingFace(path="table", x=columns, y=target, owner=owner)
        return source.build_dataset([train, test], has_single_split=False)
    except FieldError as error:
        argument = {"x": "features", "y": "target"}.get(error.field, error.field)
        raise DataError(f"{argument}: {error.problem}") from None


def _build_dataset(
    parts: Sequence[tuple[NDArray[Any], NDArray[Any]]],
    classes: int | None,
    class_names: Sequence[str] | None,
    owners: ArrayLike | None,
) -> Dataset:
    """Return the dataset of (inputs, targets) of both parts, with numbers in place of texts and of owners."""
    x, y = ([part[i] for part in parts] for i in (0, 1))
    if class_names is not None and (isinstance(class_names, str) or not isinstance(class_names, Iterable)):
        raise DataError(f"class_names: got {_describe_type(class_names)}, expected a list of texts")
    names = None if class_names is None else tuple(class_names)
    if all(targets.dtype.kind in "UO" and targets.ndim == 1 and all(isinstance(t, str) for t in targets) for targets in y):
        numbers, names = number_text_labels(*(targets.tolist() for targets in y), class_names=names)
        y = [*numbers]
    if classes is None:
        classes = count_classes(*y) if names is None else len(names)
    writer = None if owners is None else _number_owners(owners, len(y[0]))
    x_train, x_test = scale_pixels_of_parts(*x)
    return Dataset(Examples(x_train, y[0], None, writer), Examples(x_test, y[1]), classes, names)


def _number_owners(owners: ArrayLike, n: int) -> I64:
    """Return the owner of each training example, [n] int64, as a number in the sorted order of the owners."""
    values = _to_array(owners, "owners")
    if values.shape != (n,):
        raise DataError(f"owners: got shape {list(values.shape)}, expected one owner for each of {n} training examples")
    if values.dtype.kind == "O" and all(isinstance(value, str) for value in values):
        values = values.astype(str)
    if values.dtype.kind not in "iuU":
        raise DataError(f"owners: got {values.dtype}, expected whole numbers or texts")
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _to_pair(part: Any, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the arrays (inputs, targets) of the argument `train` or `test`."""
    if not isinstance(part, tuple | list) or len(part) != 2:
        kind = f"{len(part)} values" if isinstance(part, tuple | list) else _describe_type(part)
        reason = ": fedsgd measures accuracy on test examples" if name == "test" and part is None else ""
        raise DataError(f"{name}: got {kind}, expected a pair (x, y) of arrays{reason}")
    return _to_array(part[0], f"{name}: x"), _to_array(part[1], f"{name}: y")


def _to_array(values: Any, subject: str) -> NDArray[Any]:
    """Return an array, a tensor on the CPU or nested lists as an array. DataError for masked values, which are missing."""
    n_masked = int(np.sum(values.mask)) if isinstance(values, np.ma.MaskedArray) else 0
    if n_masked:
        raise DataError(f"{subject}: has {n_masked} masked value{'s' * (n_masked > 1)}, expected none")
    try:
        return np.asarray(values.detach() if hasattr(values, "detach") else values)
    except Exception as error:  # lists of different lengths, tensors on another device, the user's __array__
        raise DataError(f"{subject}: cannot be converted to an array: {' '.join(str(error).split())}") from error


def _stack_items(dataset: Any, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the arrays (inputs, targets) of a torch dataset."""
    if hasattr(dataset, "batch_sampler"):
        raise DataError(f"{name}: got {_describe_type(dataset)}, expected a torch.utils.data.Dataset: pass loader.dataset")
    if isinstance(dataset, type) or not (hasattr(dataset, "__getitem__") or hasattr(dataset, "__iter__")):
        raise DataError(f"{name}: got {_describe_type(dataset)}, expected a torch.utils.data.Dataset")
    columns: tuple[list[NDArray[Any]], list[NDArray[Any]]] = ([], [])
    for i, item in enumerate(_iterate_items(dataset)):
        if not isinstance(item, tuple | list) or len(item) != 2:
            kind = f"{len(item)} values" if isinstance(item, tuple | list) else _describe_type(item)
            raise DataError(f"{name}: item {i} is {kind}, expected a pair (input, target)")
        for part, value, column in zip(("input", "target"), item, columns, strict=True):
            array = _to_array(value, f"{name}: {part} of item {i}")
            if array.dtype.kind == "O":
                hint = "; torchvision.transforms.ToTensor() converts images" if part == "input" else ""
                raise DataError(f"{name}: {part} of item {i} is {_describe_type(value)}, expected an array of numbers{hint}")
            if column and (array.shape, array.dtype) != (column[0].shape, column[0].dtype):
                got, expected = (f"{a.dtype} {list(a.shape)}" for a in (array, column[0]))
                raise DataError(f"{name}: {part} of item {i} is {got}, expected {expected} as in item 0")
            column.append(array)
    if not columns[0]:
        raise DataError(f"{name}: the dataset has no items")
    return np.stack(columns[0]), np.stack(columns[1])


def _iterate_items(dataset: Any) -> Iterator[Any]:
    """Yield the items of a dataset with a length, or of an iterable one."""
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        for i in range(len(dataset)):
            yield dataset[i]
    else:
        yield from dataset


def _read_column(frame: Any, column: str, name: str, allow_texts: bool = True) -> NDArray[Any]:
    """Return a column of a data frame, [n]. DataError for a column that is missing or has missing values or objects."""
    if column not in frame.columns:
        raise DataError(f'{name}: has no column "{column}"{suggest_name(str(column), [str(c) for c in frame.columns])}')
    series = frame[column]
    if series.ndim != 1:
        raise DataError(f'{name}: has several columns "{column}", expected one')
    n_missing = int(series.isna().sum())
    if n_missing:
        raise DataError(f'{name}: column "{column}" has {n_missing} missing values, expected none')
    values: NDArray[Any] = series.to_numpy()
    if values.dtype.kind in "fiub":
        return values
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) == len(values):
        if allow_texts:
            return np.array(texts)
        raise DataError(f'{name}: column "{column}" contains texts, expected numbers; pandas.get_dummies(frame) encodes texts')
    if values.dtype.kind == "O" and all(type(value) in (int, float, bool) for value in values):
        raise DataError(f'{name}: column "{column}" has the type object, expected numbers; frame.infer_objects() converts it')
    kinds = ", ".join(sorted({type(value).__name__ for value in values})[:3])
    raise DataError(f'{name}: column "{column}" contains {kinds}, expected numbers{" or texts" if allow_texts else ""}')


def _describe_type(value: Any) -> str:
    """Return the type of a value, for a message: "a torch.DataLoader", "None"."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    package, name = type(value).__module__.partition(".")[0], type(value).__name__
    return add_article(name if package == "builtins" else f"{package}.{name}")
