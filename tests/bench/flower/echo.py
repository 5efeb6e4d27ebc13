"""A Flower app that sends payloads and has them sent back."""

from __future__ import annotations

import time
from pathlib import Path

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsgd.flower.records import message_bytes, put, take
from fedsgd.flower.server import Events
from fedsgd.rng import stream

client = ClientApp()
server = ServerApp()


@client.train()
def echo(message: Message, context: Context) -> Message:
    """The payload again, in other bytes: Flower sends equal ones once."""
    data = bytes(byte ^ 255 for byte in take(message.content)[:64]) + take(message.content)[64:]
    return Message(put(RecordDict(), data), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Each payload some times, one after the other."""
    config = context.run_config
    with Path(str(config["events"])).open("a", encoding="utf-8") as file:
        events = Events(file)
        while not (nodes := list(grid.get_node_ids())):
            time.sleep(0.1)
        for turn in range(int(config["turns"])):
            for size in map(int, str(config["sizes"]).split()):
                payload = stream(turn, "payload", size).bytes(size)
                begun = time.monotonic()
                message = Message(put(RecordDict(), payload), nodes[0], MessageType.TRAIN)
                down = message_bytes(message)
                (id,) = grid.push_messages([message])
                while not (replies := list(grid.pull_messages([id]))):
                    time.sleep(0.02)
                reply = replies[0]
                assert not reply.has_error(), reply.error
                assert len(take(reply.content)) == size
                up = message_bytes(reply)
                events.tell("echo", turn=turn, size=size, begun=begun, down=down, up=up)
        events.tell("done")
