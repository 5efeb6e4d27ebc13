"""Partitioners: rules that assign the examples to clients.

To add a partitioner, write its file and add a line here.
"""

from fedsgd.config.registry import Registry
from fedsgd.data.partitioners.base import Partition, Partitioner, partition_examples
from fedsgd.data.partitioners.contiguous import Contiguous
from fedsgd.data.partitioners.dirichlet import Dirichlet
from fedsgd.data.partitioners.flwr_datasets import FlwrDatasets
from fedsgd.data.partitioners.iid import Iid
from fedsgd.data.partitioners.natural import NaturalPartition
from fedsgd.data.partitioners.pathological import Pathological
from fedsgd.data.partitioners.quantity import QuantitySkew
from fedsgd.data.partitioners.shards import Shards
from fedsgd.data.partitioners.skewed import LabelAndQuantitySkew

PARTITIONERS: Registry[type[Partitioner]] = Registry(
    "partitioner",
    Partitioner,
    {
        "iid": "fedsgd.data.partitioners.iid:Iid",
        "contiguous": "fedsgd.data.partitioners.contiguous:Contiguous",
        "dirichlet": "fedsgd.data.partitioners.dirichlet:Dirichlet",
        "shards": "fedsgd.data.partitioners.shards:Shards",
        "pathological": "fedsgd.data.partitioners.pathological:Pathological",
        "quantity": "fedsgd.data.partitioners.quantity:QuantitySkew",
        "skewed": "fedsgd.data.partitioners.skewed:LabelAndQuantitySkew",
        "natural": "fedsgd.data.partitioners.natural:NaturalPartition",
        "flwr-datasets": "fedsgd.data.partitioners.flwr_datasets:FlwrDatasets",
    },
)

register = PARTITIONERS.register

__all__ = [
    "PARTITIONERS",
    "Contiguous",
    "Dirichlet",
    "FlwrDatasets",
    "Iid",
    "LabelAndQuantitySkew",
    "NaturalPartition",
    "Partition",
    "Partitioner",
    "Pathological",
    "QuantitySkew",
    "Shards",
    "partition_examples",
    "register",
]
