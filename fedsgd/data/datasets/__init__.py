"""Datasets, one file each. To add one: write its file, add its line here."""

from fedsgd.component import Registry
from fedsgd.data.base import Source

DATASETS: Registry[Source] = Registry(
    "dataset",
    Source,
    {
        "digits": "fedsgd.data.datasets.digits:Digits",
        "mnist": "fedsgd.data.datasets.mnist:Mnist",
    },
)
