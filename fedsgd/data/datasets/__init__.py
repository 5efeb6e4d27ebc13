"""Datasets by name, and adapters of the data of other libraries.

To add a dataset, write its file and add a line here.
"""

from fedsgd.config.registry import Registry
from fedsgd.data.base import DatasetSource
from fedsgd.data.datasets.adapters import from_arrays, from_hugging_face, from_pandas, from_torch
from fedsgd.data.datasets.cifar10 import Cifar10
from fedsgd.data.datasets.digits import Digits
from fedsgd.data.datasets.hugging_face import HuggingFace
from fedsgd.data.datasets.mnist import Mnist
from fedsgd.data.datasets.npz import Npz
from fedsgd.data.datasets.shakespeare import Shakespeare
from fedsgd.data.datasets.synthetic import Synthetic
from fedsgd.data.datasets.text import Text

DATASETS: Registry[type[DatasetSource]] = Registry(
    "dataset",
    DatasetSource,
    {
        "digits": "fedsgd.data.datasets.digits:Digits",
        "mnist": "fedsgd.data.datasets.mnist:Mnist",
        "cifar10": "fedsgd.data.datasets.cifar10:Cifar10",
        "shakespeare": "fedsgd.data.datasets.shakespeare:Shakespeare",
        "text": "fedsgd.data.datasets.text:Text",
        "synthetic": "fedsgd.data.datasets.synthetic:Synthetic",
        "npz": "fedsgd.data.datasets.npz:Npz",
        "hugging-face": "fedsgd.data.datasets.hugging_face:HuggingFace",
    },
    hidden_members={"python-object": "fedsgd.data.datasets.python_object:PythonObjectDataset"},
)

register = DATASETS.register

__all__ = [
    "DATASETS",
    "Cifar10",
    "Digits",
    "HuggingFace",
    "Mnist",
    "Npz",
    "Shakespeare",
    "Synthetic",
    "Text",
    "from_arrays",
    "from_hugging_face",
    "from_pandas",
    "from_torch",
    "register",
]
