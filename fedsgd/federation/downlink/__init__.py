"""How the model gets to the clients, and how a client that was away catches up.

Server and clients share one public model: what clients decode, train from and are evaluated with. A policy says how it follows
the server's own:

    model           the model itself, each round, as the compressor sends it; who was away has missed nothing
    difference      the coordinates that changed since the last round, with their new values: exact
    plain           public ← public + C(step); the server goes on from there, and what C dropped is forgotten
    error-feedback  a = residual + step; public ← public + C(a); residual ← a − C(a): the downlink of STC (Sattler et al. 2019).
                    The server goes on from the public model
    shift           public ← public + C(w − public), w being the server's own model, which is never rounded: EF21-P
                    (Gruntkowska, Tyurin and Richtárik 2023)

step is what the server's optimiser did, not w − public: that holds the residual already, and feeding it back twice diverges.
Where the optimiser does not look at the model (no weight decay), the last two send the same but for rounding, because w −
public is then the residual plus the step; "shift" keeps the model, "error-feedback" what is left of it.

A client that holds the model of an earlier round is sent the cheapest of: all differences since then, as they were sent; one
MODEL that assigns the present values to every coordinate that changed since then; the whole model. Assigning, and adding the
very differences one after the other, ends at the bits of a client that was never away. Adding their sum would not:
floating-point addition is not associative.
"""

from fedsgd.federation.downlink.catch_up import CatchUpPlanner
from fedsgd.federation.downlink.client import apply_model_frames
from fedsgd.federation.downlink.frames import ASSIGN_CODEC, DownlinkPolicy, EncodedFrame, ModelBroadcast
from fedsgd.federation.downlink.public_model import PublicModel, initial_public_model, next_public_model

__all__ = [
    "ASSIGN_CODEC",
    "CatchUpPlanner",
    "DownlinkPolicy",
    "EncodedFrame",
    "ModelBroadcast",
    "PublicModel",
    "apply_model_frames",
    "initial_public_model",
    "next_public_model",
]
