"""Functions of one round of federated learning, from values to values, without sockets, files or processes.

    broadcast(plan, server, cohort)          → a message for each client of the cohort, and the server's state
    client_update(plan, engine, client, ...) → the client's reply to a message, and the client's next state
    aggregate(plan, server, replies)         → the server's state of the next round, and the decoded replies

FedAvg (McMahan et al. 2017, algorithm 1) is a loop over these three functions: `fedsgd.federation.round_loop` runs one round.
FedSGD is FedAvg with one local step a round. A client that lost its model or its state replies with a RESYNC frame, and
`rebroadcast` encodes a second message for the client.

>>> import numpy as np
>>> from fedsgd.aggregation import WeightedMean
>>> from fedsgd.compression.schemes.plain import MemorylessScheme
>>> from fedsgd.compression.operators.dense import Dense
>>> from fedsgd.federation.downlink import ModelBroadcast
>>> from fedsgd.numerics.parameter_layout import ParameterLayout
>>> from fedsgd.optim import SGD
>>> from fedsgd.training import LocalTraining
>>> recipe = LocalTraining(SGD(), epochs=1, steps=None, batch_size=10)
>>> scheme, layout = MemorylessScheme(Dense()), ParameterLayout.from_size(3)
>>> plan = FederationPlan(
...     0, layout, recipe, scheme, ModelBroadcast(), SGD(), "uniform", n_clients=5, cohort_size=2, aggregator=WeightedMean()
... )
>>> server = initial_server_state(plan, np.zeros(3, dtype=np.float32))
>>> messages, server = broadcast(plan, server, [1, 4])
>>> {client: len(frames) for client, frames in messages.items()}  # a TASK and a MODEL frame
{1: 2, 4: 2}
"""

from fedsgd.federation.buffers import BufferPlan
from fedsgd.federation.client import ClientTask, ImmediateReply, client_update, decode_task, encode_update
from fedsgd.federation.downlink_cache import DecodedDownlink, DownlinkCache
from fedsgd.federation.plan import FederationPlan, Message, Reply
from fedsgd.federation.server import (
    AggregatedReply,
    ServerState,
    advance_with_external_model,
    aggregate,
    broadcast,
    initial_server_state,
    rebroadcast,
)

__all__ = [
    "AggregatedReply",
    "BufferPlan",
    "ClientTask",
    "DecodedDownlink",
    "DownlinkCache",
    "FederationPlan",
    "ImmediateReply",
    "Message",
    "Reply",
    "ServerState",
    "advance_with_external_model",
    "aggregate",
    "broadcast",
    "client_update",
    "decode_task",
    "encode_update",
    "initial_server_state",
    "rebroadcast",
]
