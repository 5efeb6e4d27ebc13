"""Ranks of torch.distributed: processes on one machine or several, of which rank 0 is the server and trains, too.

The lowest rank of a machine, its leader, gives clients to the machine's other ranks over sockets and shared memory, as to
workers, and all use one store of client states. Leaders and the server exchange messages over gloo, so a frame that clients
share crosses once to a machine. Each client belongs to one machine.
"""
