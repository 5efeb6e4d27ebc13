"""One round of federated learning as functions over values: no socket, no file, no process.

    broadcast(plan, server, cohort)          -> a message of frames for each client of the cohort
    receive · engine.train · send            =  client_update: message in, reply out, on the client's side
    aggregate(plan, server, replies)         -> the next server

FedAvg is these three in a loop (`fedsgd.federation.round_loop`); FedSGD is FedAvg with one step a round. A client that cannot
follow its
message, because it lost the model that it builds on or what it remembered, answers with a RESYNC and is sent another by
`rebroadcast`.
"""

from fedsgd.federation.buffers import BufferPlan
from fedsgd.federation.client import (
    ClientTask,
    DecodedDownlink,
    DownlinkCache,
    ImmediateReply,
    client_update,
    decode_task,
    encode_update,
)
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
