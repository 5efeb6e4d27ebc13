"""One round of federated learning as functions over values: no socket, no file, no process.

    broadcast(plan, server, cohort)          -> a message of frames for each client of the cohort
    receive · engine.train · send            =  client_update: message in, reply out, on the client's side
    aggregate(plan, server, replies)         -> the next server

FedAvg is these three in a loop (`fedsgd.loop`); FedSGD is FedAvg with one step a round. A client that cannot follow its
message, because it lost the model that it builds on or what it remembered, answers with a RESYNC and is sent another by
`again`.
"""

from fedsgd.rounds.client import Answer, Opened, Shelf, Task, client_update, receive, send
from fedsgd.rounds.plan import Message, Plan, Reply
from fedsgd.rounds.server import Folded, Server, again, aggregate, broadcast, moved_to, start
from fedsgd.rounds.statistics import CarriedBuffers

__all__ = [
    "Answer",
    "CarriedBuffers",
    "Folded",
    "Message",
    "Opened",
    "Plan",
    "Reply",
    "Server",
    "Shelf",
    "Task",
    "again",
    "aggregate",
    "broadcast",
    "client_update",
    "moved_to",
    "receive",
    "send",
    "start",
]
