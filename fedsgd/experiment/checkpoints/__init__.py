"""Checkpoints: the complete state of a run between two rounds, in files that survive a crash.

The folder `checkpoints` of a run directory has, for each checkpoint that is kept:

| file | content |
|---|---|
| checkpoint-R.json | manifest: round R, and name, length and checksum of the other files; written last |
| server-R.safetensors | model, states of aggregator and optimizer, frames of the next round |
| clients-R.safetensors | states of the clients that took part since the checkpoint before; later checkpoints need it, too |
| model-R.safetensors | a model that clients store, under a downlink policy whose clients keep it |
| nodes/node-I | folder with the states of the clients of node I, in place of these two, in a deployment |

The rows of ledger.parquet and rounds.parquet up to the round are part of the checkpoint as well.
"""

from fedsgd.experiment.checkpoints.checkpointer import Checkpointer, CheckpointInterval, restore
from fedsgd.experiment.checkpoints.client_files import ClientFiles, ClientStorage
from fedsgd.experiment.checkpoints.manifest import (
    Manifest,
    find_usable_manifests,
    list_manifests,
    read_manifest,
    remove_other_files,
)

__all__ = [
    "CheckpointInterval",
    "Checkpointer",
    "ClientFiles",
    "ClientStorage",
    "Manifest",
    "find_usable_manifests",
    "list_manifests",
    "read_manifest",
    "remove_other_files",
    "restore",
]
