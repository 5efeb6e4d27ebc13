"""Datasets and how they are split over clients."""

from fedsgd.data.base import Dataset, Examples, Source
from fedsgd.data.clients import ClientData, deal
from fedsgd.data.datasets import DATASETS
from fedsgd.data.partitioners import PARTITIONERS, Partition, Partitioner, partition

__all__ = [
    "DATASETS",
    "PARTITIONERS",
    "ClientData",
    "Dataset",
    "Examples",
    "Partition",
    "Partitioner",
    "Source",
    "deal",
    "partition",
]
