"""Faults that only whole rounds show: in the inputs of decoding, and in the server's aggregation.

REJECTED names the law that must reject each of them. ACCEPTED are schemes of the same form without a fault.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import getstate, sample, seed, setstate
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy import random as numpy_random

from fedsgd.aggregation import AggregationContext, Aggregator, WeightedUpdate, weighted_sum
from fedsgd.aggregation.base import AcceptedWeights
from fedsgd.compression import (
    CodecContext,
    CompressionOperator,
    CompressionScheme,
    DenseUpdate,
    EncodedUpdate,
    ErrorFeedback,
    MemorylessScheme,
    OperatorScheme,
    SparseUpdate,
    StateArrays,
    Update,
)
from fedsgd.compression.base import OperatorKind
from fedsgd.compression.operators.randk import RandK
from fedsgd.compression.operators.sparsifier import top_k_size
from fedsgd.compression.operators.topk import TopK
from fedsgd.config.component import Component, field_types
from fedsgd.numerics.arrays import F32, I64
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Section, SectionKind, Sections, decode_values, encode_values
from fedsgd.wire.levels import require_sections

# --------------------------------------------------------------------------------------------------------- inputs of decoding


@cache
def _cached(key: str) -> list[F32]:
    """Return the list of a key, empty on the first call."""
    return []


_GLOBAL: dict[str, F32] = {}


@dataclass(frozen=True)
class HiddenChannel(CompressionOperator):
    """Four bytes without information; decode reads the vector from another place in the process or on the machine."""

    name: ClassVar[str] = "hidden-channel"
    stored: ClassVar[dict[str, F32]] = {}

    channel: Literal["global", "class", "instance", "cache", "environment", "file", "temporary-file"] = "global"

    @property
    def kind(self) -> OperatorKind:
        return "contractive"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        key = f"{ctx.round}-{ctx.client}-{len(x)}"
        if self.channel == "cache":
            _cached(key)[:] = [x.copy()]
        elif self.channel == "environment":
            os.environ[f"HIDDEN_{key}"] = x.tobytes().hex()
        elif self.channel in ("file", "temporary-file"):
            self._path(key).write_bytes(x.tobytes())
        else:
            self._dictionary()[key] = x.copy()
        return (Section(SectionKind.VALUE, np.uint32(ctx.round).tobytes()),), DenseUpdate(x.copy())

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        require_sections(sections, (SectionKind.VALUE,))
        key = f"{ctx.round}-{ctx.client}-{ctx.layout.size}"
        if self.channel == "cache":
            return DenseUpdate(_cached(key)[0])
        if self.channel == "environment":
            return DenseUpdate(np.frombuffer(bytes.fromhex(os.environ[f"HIDDEN_{key}"]), np.float32))
        if self.channel in ("file", "temporary-file"):
            return DenseUpdate(np.frombuffer(self._path(key).read_bytes(), np.float32))
        return DenseUpdate(self._dictionary()[key])

    def _path(self, key: str) -> Path:
        return Path(tempfile.gettempdir() if self.channel == "temporary-file" else "", f"hidden-{key}")

    def _dictionary(self) -> dict[str, F32]:
        if self.channel == "instance" and not hasattr(self, "vectors"):
            object.__setattr__(self, "vectors", {})
        vectors: dict[str, dict[str, F32]] = {
            "global": _GLOBAL,
            "class": self.stored,
            "instance": getattr(self, "vectors", {}),
        }
        return vectors[self.channel]

    def n_coordinates(self, sections: Sections, ctx: CodecContext) -> int:
        return ctx.layout.size

    def max_bytes(self, layout: ParameterLayout) -> int:
        return 4

    def contraction(self, layout: ParameterLayout) -> float:
        return 1.0


CHANNELS: list[HiddenChannel] = [HiddenChannel(channel) for channel in get_args(field_types(HiddenChannel)["channel"])]


@dataclass(frozen=True)
class DyingDecoder(HiddenChannel):
    """The decoder ends the process if the vector is not found."""

    name: ClassVar[str] = "dying-decoder"

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        if f"{ctx.round}-{ctx.client}-{ctx.layout.size}" not in self._dictionary():
            os._exit(7)
        return super().decode(sections, ctx)


@dataclass(frozen=True)
class WaitingDecoder(HiddenChannel):
    """The decoder waits until encode has stored the vector."""

    name: ClassVar[str] = "waiting-decoder"

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        while f"{ctx.round}-{ctx.client}-{ctx.layout.size}" not in self._dictionary():
            time.sleep(0.01)
        return super().decode(sections, ctx)


@dataclass(frozen=True)
class OrderedDecoder(TopK):
    """The decoder assumes the order of the frames: it multiplies values by a count that encode and decode share."""

    name: ClassVar[str] = "ordered-decoder"
    counts: ClassVar[dict[str, int]] = {"encoded": 0, "decoded": 0}

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        sections, update = super().encode(x, ctx)
        self.counts["encoded"] = self.counts["decoded"] = ctx.round % 2
        return sections, update

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        update = super().decode(sections, ctx)
        assert isinstance(update, SparseUpdate)
        return SparseUpdate(
            update.indices, update.values * np.float32(1 + (self.counts["decoded"] - ctx.round) % 2), update.size
        )


class _GlobalSupport(RandK):
    """Rand-k on a support from a global generator. It states few properties, so that few laws use the slow generators."""

    position_invariant: ClassVar[bool] = False

    @property
    def kind(self) -> OperatorKind:
        return "neither"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        support = self._support(ctx)
        sections, values = encode_values(x[support] * np.float32(len(x) / len(support)), "float32")
        return sections, SparseUpdate(support, values, len(x))

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        support = self._support(ctx)
        return SparseUpdate(support, decode_values(sections, len(support), "float32"), ctx.layout.size)

    def _support(self, ctx: CodecContext) -> I64:
        raise NotImplementedError


@dataclass(frozen=True)
class SeededByEncode(_GlobalSupport):
    """encode seeds numpy's global generator, decode draws from it: correct only if decode directly follows encode."""

    name: ClassVar[str] = "seeded-by-encode"

    def encode(self, x: F32, ctx: CodecContext) -> tuple[Sections, Update]:
        numpy_random.seed(ctx.derive_key("support") % 2**32)
        encoded = super().encode(x, ctx)
        numpy_random.seed(ctx.derive_key("support") % 2**32)
        return encoded

    def _support(self, ctx: CodecContext) -> I64:
        k = top_k_size(self.density, ctx.layout.size)
        return np.sort(numpy_random.choice(ctx.layout.size, k, replace=False)).astype(np.int64)


@dataclass(frozen=True)
class RestoredNumpy(_GlobalSupport):
    """A support from numpy's global generator, seeded by the context; the generator's state is restored afterwards."""

    name: ClassVar[str] = "restored-numpy"

    def _support(self, ctx: CodecContext) -> I64:
        state: Any = numpy_random.get_state()
        numpy_random.seed(ctx.derive_key("support") % 2**32)
        support = np.sort(numpy_random.permutation(ctx.layout.size)[: top_k_size(self.density, ctx.layout.size)])
        numpy_random.set_state(state)
        return support.astype(np.int64)


@dataclass(frozen=True)
class RestoredPython(_GlobalSupport):
    """Same as `RestoredNumpy`, but with functions of `random` that were imported by name."""

    name: ClassVar[str] = "restored-python"

    def _support(self, ctx: CodecContext) -> I64:
        state = getstate()
        seed(ctx.derive_key("support"))
        support = sorted(sample(range(ctx.layout.size), top_k_size(self.density, ctx.layout.size)))
        setstate(state)
        return np.array(support, dtype=np.int64)


@dataclass(frozen=True)
class RestoredTorch(_GlobalSupport):
    """Same as `RestoredNumpy`, but with torch's generator."""

    name: ClassVar[str] = "restored-torch"

    def _support(self, ctx: CodecContext) -> I64:
        state = torch.get_rng_state()
        torch.manual_seed(ctx.derive_key("support") >> 1)
        support = torch.randperm(ctx.layout.size)[: top_k_size(self.density, ctx.layout.size)]
        torch.set_rng_state(state)
        positions: I64 = np.sort(support.numpy())
        return positions


@dataclass(frozen=True)
class PeekingDecoder(TopK):
    """The decoder reads the state of Python's global generator, but draws nothing and restores nothing."""

    name: ClassVar[str] = "peeking-decoder"

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        random.getstate()
        return super().decode(sections, ctx)


# ---------------------------------------------------------------------------------------------------------------- aggregation


@dataclass(frozen=True)
class ServerMomentumAggregator(Aggregator):
    """Aggregator of `ServerMomentum`."""

    name: ClassVar[str] = "server-momentum"

    def aggregate(
        self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext
    ) -> tuple[F32, StateArrays]:
        mean = self._mean([*updates], ctx)
        momentum = mean if "momentum" not in state else np.float32(0.9) * state["momentum"] + mean
        return momentum, {"momentum": momentum}

    def _mean(self, updates: list[WeightedUpdate], ctx: AggregationContext) -> F32:
        return _weighted_mean(updates, ctx)


@dataclass(frozen=True)
class ServerMomentum(MemorylessScheme):
    """m ← ρ m + Σ weight · update; the aggregate is m. Without a fault."""

    name: ClassVar[str] = "server-momentum"
    aggregator: ClassVar[type[Component]] = ServerMomentumAggregator


@dataclass(frozen=True)
class SummedMomentumAggregator(ServerMomentumAggregator):
    """Aggregator of `SummedMomentum`."""

    name: ClassVar[str] = "summed-momentum"

    def _mean(self, updates: list[WeightedUpdate], ctx: AggregationContext) -> F32:
        return super()._mean([replace(update, weight=1.0) for update in updates], ctx)


@dataclass(frozen=True)
class SummedMomentum(ServerMomentum):
    """A sum instead of the mean."""

    name: ClassVar[str] = "summed-momentum"
    aggregator: ClassVar[type[Component]] = SummedMomentumAggregator


@dataclass(frozen=True)
class UnweightedMomentumAggregator(ServerMomentumAggregator):
    """Aggregator of `UnweightedMomentum`."""

    name: ClassVar[str] = "unweighted-momentum"

    def _mean(self, updates: list[WeightedUpdate], ctx: AggregationContext) -> F32:
        return super()._mean([replace(update, weight=1 / len(updates)) for update in updates], ctx)


@dataclass(frozen=True)
class UnweightedMomentum(ServerMomentum):
    """A mean without weights."""

    name: ClassVar[str] = "unweighted-momentum"
    aggregator: ClassVar[type[Component]] = UnweightedMomentumAggregator


@dataclass(frozen=True)
class MomentumInPlaceAggregator(Aggregator):
    """Aggregator of `MomentumInPlace`."""

    name: ClassVar[str] = "momentum-in-place"

    def aggregate(
        self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext
    ) -> tuple[F32, StateArrays]:
        momentum = state.get("momentum", np.zeros(ctx.layout.size, dtype=np.float32))
        momentum *= np.float32(0.9)
        momentum += _weighted_mean(updates, ctx)
        return momentum.copy(), {"momentum": momentum}


@dataclass(frozen=True)
class MomentumInPlace(ServerMomentum):
    """The server's state is multiplied in place."""

    name: ClassVar[str] = "momentum-in-place"
    aggregator: ClassVar[type[Component]] = MomentumInPlaceAggregator


@dataclass(frozen=True)
class MomentumInTheInstanceAggregator(ServerMomentumAggregator):
    """Aggregator of `MomentumInTheInstance`."""

    name: ClassVar[str] = "momentum-in-the-instance"

    def aggregate(
        self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext
    ) -> tuple[F32, StateArrays]:
        owner = self._owner(ctx)
        momentum, _ = super().aggregate(getattr(owner, "server", {}), updates, ctx)
        object.__setattr__(owner, "server", {"momentum": momentum})
        return momentum, state

    def _owner(self, ctx: AggregationContext) -> Component:
        return ctx.scheme


@dataclass(frozen=True)
class MomentumInTheInstance(ServerMomentum):
    """The server's state is stored in the scheme itself."""

    name: ClassVar[str] = "momentum-in-the-instance"
    aggregator: ClassVar[type[Component]] = MomentumInTheInstanceAggregator


@dataclass(frozen=True)
class MomentumInTheAggregatorAggregator(MomentumInTheInstanceAggregator):
    """Aggregator of `MomentumInTheAggregator`."""

    name: ClassVar[str] = "momentum-in-the-aggregator"

    def _owner(self, ctx: AggregationContext) -> Component:
        return self


@dataclass(frozen=True)
class MomentumInTheAggregator(ServerMomentum):
    """The server's state is stored in the aggregator itself."""

    name: ClassVar[str] = "momentum-in-the-aggregator"
    aggregator: ClassVar[type[Component]] = MomentumInTheAggregatorAggregator


@dataclass(frozen=True)
class TableOfClientsAggregator(Aggregator):
    """Aggregator of `TableOfClients`."""

    name: ClassVar[str] = "table-of-clients"
    accepted_weights: ClassVar[AcceptedWeights] = "equal"

    def aggregate(
        self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext
    ) -> tuple[F32, StateArrays]:
        shape = ctx.n_clients, ctx.layout.size
        table = state["table"].copy() if "table" in state else np.zeros(shape, dtype=np.float32)
        for update in updates:
            table[update.ctx.client] = ctx.decode(update).to_dense()
        return table.mean(axis=0), {"table": table}


@dataclass(frozen=True)
class TableOfClients(OperatorScheme):
    """y_i ← update of client i; the aggregate is the mean of all y_i. One row a client at the server. Without a fault."""

    name: ClassVar[str] = "table-of-clients"
    aggregator: ClassVar[type[Component]] = TableOfClientsAggregator

    op: CompressionOperator = TopK(0.1)

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        return EncodedUpdate(self.op.encode(x, ctx)[0], {}, {})

    def undelivered_update(self, state: StateArrays, layout: ParameterLayout) -> F32 | None:
        return None


@dataclass(frozen=True)
class SummedFeedbackAggregator(Aggregator):
    """Aggregator of `SummedFeedback`."""

    name: ClassVar[str] = "summed-feedback"

    def aggregate(
        self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext
    ) -> tuple[F32, StateArrays]:
        return _weighted_mean((replace(update, weight=1.0) for update in updates), ctx), state


@dataclass(frozen=True)
class SummedFeedback(ErrorFeedback):
    """Error feedback with a sum instead of the mean."""

    name: ClassVar[str] = "summed-feedback"
    aggregator: ClassVar[type[Component]] = SummedFeedbackAggregator


@dataclass(frozen=True)
class NormalisedFeedbackAggregator(Aggregator):
    """Aggregator of `NormalisedFeedback`."""

    name: ClassVar[str] = "normalised-feedback"

    def aggregate(
        self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext
    ) -> tuple[F32, StateArrays]:
        all_updates = [*updates]
        total = sum(update.weight for update in all_updates) or 1.0
        shares = (replace(update, weight=update.weight / total) for update in all_updates)
        return _weighted_mean(shares, ctx), state


@dataclass(frozen=True)
class NormalisedFeedback(ErrorFeedback):
    """Weights are divided by their sum, which is not 1 if they are corrected for inclusion probabilities."""

    name: ClassVar[str] = "normalised-feedback"
    aggregator: ClassVar[type[Component]] = NormalisedFeedbackAggregator


@dataclass(frozen=True)
class ConvexFeedbackAggregator(NormalisedFeedbackAggregator):
    """Aggregator of `ConvexFeedback`."""

    name: ClassVar[str] = "convex-feedback"
    accepted_weights: ClassVar[AcceptedWeights] = "normalized"


@dataclass(frozen=True)
class ConvexFeedback(NormalisedFeedback):
    """Same as `NormalisedFeedback`, but the aggregator states that weights must add up to 1. Without a fault."""

    name: ClassVar[str] = "convex-feedback"
    aggregator: ClassVar[type[Component]] = ConvexFeedbackAggregator


@dataclass(frozen=True)
class TwoPassFeedbackAggregator(Aggregator):
    """Aggregator of `TwoPassFeedback`."""

    name: ClassVar[str] = "two-pass-feedback"

    def aggregate(
        self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext
    ) -> tuple[F32, StateArrays]:
        if not sum(1 for _ in updates):
            return np.zeros(ctx.layout.size, dtype=np.float32), state
        return _weighted_mean(updates, ctx), state


@dataclass(frozen=True)
class TwoPassFeedback(ErrorFeedback):
    """Replies are counted before they are added: a run passes an iterator, which is empty then."""

    name: ClassVar[str] = "two-pass-feedback"
    aggregator: ClassVar[type[Component]] = TwoPassFeedbackAggregator


@dataclass(frozen=True)
class DividingFeedbackAggregator(Aggregator):
    """Aggregator of `DividingFeedback`."""

    name: ClassVar[str] = "dividing-feedback"

    def aggregate(
        self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext
    ) -> tuple[F32, StateArrays]:
        all_updates = [*updates]
        with np.errstate(invalid="ignore"):
            return _weighted_mean(all_updates, ctx) / np.float32(bool(all_updates)), state


@dataclass(frozen=True)
class DividingFeedback(ErrorFeedback):
    """The mean of no reply is 0 / 0."""

    name: ClassVar[str] = "dividing-feedback"
    aggregator: ClassVar[type[Component]] = DividingFeedbackAggregator


def _weighted_mean(updates: Iterable[WeightedUpdate], ctx: AggregationContext) -> F32:
    """Return Σ weight · decoded update, [P] float32."""
    return weighted_sum(updates, ctx).astype(np.float32)


REJECTED: list[tuple[CompressionOperator | CompressionScheme, str]] = [
    (HiddenChannel("instance"), "decodes_in_any_order"),
    (OrderedDecoder(density=0.05), "decodes_in_any_order"),
    (SeededByEncode(density=0.1), "global_generators"),
    (RestoredNumpy(density=0.1), "global_generators"),
    (RestoredPython(density=0.1), "global_generators"),
    (RestoredTorch(density=0.1), "global_generators"),
    (PeekingDecoder(density=0.1), "global_generators"),
    (SummedMomentum(TopK(0.1)), "aggregation"),
    (UnweightedMomentum(TopK(0.1)), "aggregation"),
    (MomentumInPlace(TopK(0.1)), "aggregation"),
    (MomentumInTheInstance(TopK(0.1)), "aggregation"),
    (MomentumInTheAggregator(TopK(0.1)), "aggregation"),
    (SummedFeedback(TopK(0.1)), "aggregation"),
    (NormalisedFeedback(TopK(0.1)), "aggregation"),
    (TwoPassFeedback(TopK(0.1)), "aggregation"),
    (DividingFeedback(TopK(0.1)), "aggregation"),
]
ACCEPTED: list[CompressionScheme] = [
    ServerMomentum(TopK(0.1)),
    ServerMomentum(RandK(0.1)),
    TableOfClients(),
    ConvexFeedback(TopK(0.1)),
]
