"""Datasets and their partition over clients."""

from fedsgd.data.base import ClientData, Dataset, DatasetSource, Examples
from fedsgd.data.dataset_check import check_dataset
from fedsgd.data.datasets import DATASETS
from fedsgd.data.generated import ClientGenerator, generate_clients
from fedsgd.data.labels import IGNORED_LABEL
from fedsgd.data.partitioned import PartitionedData, partition_dataset
from fedsgd.data.partitioners import PARTITIONERS, Partition, Partitioner, partition_examples
from fedsgd.data.validation import hold_out_validation

__all__ = [
    "DATASETS",
    "IGNORED_LABEL",
    "PARTITIONERS",
    "ClientData",
    "ClientGenerator",
    "Dataset",
    "DatasetSource",
    "Examples",
    "Partition",
    "PartitionedData",
    "Partitioner",
    "check_dataset",
    "generate_clients",
    "hold_out_validation",
    "partition_dataset",
    "partition_examples",
]
