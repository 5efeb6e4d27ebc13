"""Downlink: policies that carry the model to the clients, and the catch-up of clients that missed rounds.

Server and clients share one public model: clients train from the public model, and the server evaluates the public model. The
policy determines how the public model follows the server's model w:

    "model"           public ← C(w), sent whole in each round; clients need no earlier model
    "difference"      public ← w; a message has the new values of the coordinates that changed since the last round
    "unbiased"        public ← public + C(step); w ← public; C is unbiased, and its error is not stored
    "error-feedback"  a = residual + step; public ← public + C(a); residual ← a − C(a); w ← public:
                      the downlink of STC (Sattler et al. 2019)
    "ef21-p"          public ← public + C(w − public); w itself is not rounded: EF21-P
                      (Gruntkowska, Tyurin and Richtárik 2023)

C is the operator of `[downlink] compressor`, and step is the step of the server's optimizer. Under "error-feedback", step
cannot be w − public: that difference contains the residual already, and a residual that is fed back twice diverges. Without
weight decay, w − public is the residual plus the step, because the optimizer does not read the model. Then "error-feedback" and
"ef21-p" send equal vectors up to rounding, and differ in the stored vector alone: the residual, or w.

A client that has stored the model of an earlier round is sent the smallest of three candidates: all differences since that
round, as they were sent; one MODEL frame that assigns the present values to every coordinate that changed since; the full
model. All three give the bits of a client that missed no round. Adding the sum of the differences would not, because
floating-point addition is not associative.
"""

from fedsgd.federation.downlink.catch_up import CatchUpPlanner
from fedsgd.federation.downlink.client import apply_model_frames
from fedsgd.federation.downlink.frames import ASSIGN_CODEC, POLICY_ALIASES, DownlinkPolicy, EncodedFrame, ModelBroadcast
from fedsgd.federation.downlink.public_model import PublicModel, initial_public_model, next_public_model

__all__ = [
    "ASSIGN_CODEC",
    "POLICY_ALIASES",
    "CatchUpPlanner",
    "DownlinkPolicy",
    "EncodedFrame",
    "ModelBroadcast",
    "PublicModel",
    "apply_model_frames",
    "initial_public_model",
    "next_public_model",
]
