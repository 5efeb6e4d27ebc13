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
    },
)

__all__ = ["PARTITIONERS", "Partition", "Partitioner", "partition"]
