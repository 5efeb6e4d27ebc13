"""Flower app whose server sends payloads that the client returns."""

from __future__ import annotations

import time
from pathlib import Path

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsgd.flower.records import count_message_bytes, read_payload, write_payload
from fedsgd.flower.runtime.server_app import EventLog
from fedsgd.numerics.rng import derive_generator

client = ClientApp()
server = ServerApp()


@client.train()
def echo(message: Message, context: Context) -> Message:
    """Return a payload of the same size with other bytes, since Flower sends equal objects only once."""
    received = read_payload(message.content)
    data = bytes(byte ^ 255 for byte in received[:64]) + received[64:]
    return Message(write_payload(RecordDict(), data), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Send payloads of every size in turn, one at a time."""
    config = context.run_config
    with Path(str(config["events"])).open("a", encoding="utf-8") as file:
        events = EventLog(file)
        while not (nodes := list(grid.get_node_ids())):
            time.sleep(0.1)
        for turn in range(int(config["turns"])):
            for size in map(int, str(config["sizes"]).split()):
                payload = derive_generator(turn, "payload", size).bytes(size)
                start = time.monotonic()
                message = Message(write_payload(RecordDict(), payload), nodes[0], MessageType.TRAIN)
                down = count_message_bytes(message)
                (id,) = grid.push_messages([message])
                while not (replies := list(grid.pull_messages([id]))):
                    time.sleep(0.02)
                reply = replies[0]
                assert not reply.has_error(), reply.error
                assert len(read_payload(reply.content)) == size
                up = count_message_bytes(reply)
                events.write("echo", turn=turn, size=size, start=start, down=down, up=up)
        events.write("done")
