"""Datasets and how they are split over clients."""

from fedsgd.data.base import ClientData, Dataset, Examples, Source
from fedsgd.data.clients import Dealt, deal
from fedsgd.data.datasets import DATASETS
from fedsgd.data.given import check_dataset
from fedsgd.data.labels import IGNORED
from fedsgd.data.partitioners import PARTITIONERS, Partition, Partitioner, partition
from fedsgd.data.population import Population, populated

__all__ = [
    "DATASETS",
    "IGNORED",
    "PARTITIONERS",
    "ClientData",
    "Dataset",
    "Dealt",
    "Examples",
    "Partition",
    "Partitioner",
    "Population",
    "Source",
    "check_dataset",
    "deal",
    "partition",
    "populated",
]
