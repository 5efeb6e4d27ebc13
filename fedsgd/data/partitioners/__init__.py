"""Partitioners, one file each. To add one: write its file, add its line here."""

from fedsgd.component import Registry
from fedsgd.data.partitioners.base import Partition, Partitioner, partition

PARTITIONERS: Registry[Partitioner] = Registry(
    "partitioner",
    Partitioner,
    {
        "iid": "fedsgd.data.partitioners.iid:Iid",
        "dirichlet": "fedsgd.data.partitioners.dirichlet:Dirichlet",
        "shards": "fedsgd.data.partitioners.shards:Shards",
        "pathological": "fedsgd.data.partitioners.pathological:Pathological",
        "quantity": "fedsgd.data.partitioners.quantity:Quantity",
        "skewed": "fedsgd.data.partitioners.skewed:Skewed",
        "natural": "fedsgd.data.partitioners.natural:Natural",
        "flwr-datasets": "fedsgd.data.partitioners.flwr_datasets:FlwrDatasets",
    },
)

__all__ = ["PARTITIONERS", "Partition", "Partitioner", "partition"]
