"""Registry of partitioners, one file for each. To add a partitioner, write its file and add a line here."""

from fedsgd.config.registry import Registry
from fedsgd.data.partitioners.base import Partition, Partitioner, partition_examples

PARTITIONERS: Registry[type[Partitioner]] = Registry(
    "partitioner",
    Partitioner,
    {
        "iid": "fedsgd.data.partitioners.iid:Iid",
        "dirichlet": "fedsgd.data.partitioners.dirichlet:Dirichlet",
        "shards": "fedsgd.data.partitioners.shards:Shards",
        "pathological": "fedsgd.data.partitioners.pathological:Pathological",
        "quantity": "fedsgd.data.partitioners.quantity:QuantitySkew",
        "skewed": "fedsgd.data.partitioners.skewed:LabelAndQuantitySkew",
        "natural": "fedsgd.data.partitioners.natural:NaturalPartition",
        "flwr-datasets": "fedsgd.data.partitioners.flwr_datasets:FlwrDatasets",
    },
)

__all__ = ["PARTITIONERS", "Partition", "Partitioner", "partition_examples"]
