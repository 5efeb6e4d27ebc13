"""Registry of datasets, one file for each. To add a dataset, write its file and add a line here."""

from fedsgd.config.registry import Registry
from fedsgd.data.base import DatasetSource

DATASETS: Registry[type[DatasetSource]] = Registry(
    "dataset",
    DatasetSource,
    {
        "digits": "fedsgd.data.datasets.digits:Digits",
        "mnist": "fedsgd.data.datasets.mnist:Mnist",
        "cifar10": "fedsgd.data.datasets.cifar10:Cifar10",
        "shakespeare": "fedsgd.data.datasets.shakespeare:Shakespeare",
        "synthetic": "fedsgd.data.datasets.synthetic:Synthetic",
        "npz": "fedsgd.data.datasets.npz:Npz",
        "hugging-face": "fedsgd.data.datasets.hugging_face:HuggingFace",
    },
    hidden_members={"python-object": "fedsgd.data.datasets.python_object:PythonObjectDataset"},
)
