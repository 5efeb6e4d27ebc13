"""Datasets and how they are split over clients."""

from fedsgd.data.base import Dataset, Examples, Source
from fedsgd.data.datasets import DATASETS
from fedsgd.data.partitioners import PARTITIONERS, Partition, Partitioner, partition

__all__ = ["DATASETS", "PARTITIONERS", "Dataset", "Examples", "Partition", "Partitioner", "Source", "partition"]
