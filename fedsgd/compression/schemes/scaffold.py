"""SCAFFOLD: control variates correct each client's steps by the difference of its gradients from the mean gradient."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedsgd.compression.base import CodecContext, CompressionOperator, EncodedUpdate
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.run_config import RunConfig
from fedsgd.compression.schemes.server_reference import ServerReferenceScheme
from fedsgd.compression.updates import EntryPatch, StateArrays, Update
from fedsgd.errors import WireError
from fedsgd.numerics.arrays import F32, F64
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import Section, SectionKind, Sections, decode_values, encode_values, max_value_bytes


@dataclass(frozen=True)
class Scaffold(ServerReferenceScheme):
    """SCAFFOLD: local steps corrected by control variates.

    Karimireddy et al. 2020 (algorithm 1, option II). Local step: w ← w − η(g − c_i + c). After K steps with local update x:
    c_i⁺ = c_i − c − x / (Kη); the client sends x and c_i⁺ − c_i. Server: the mean of x is the update; c ← c + (1/N) Σ (c_i⁺ −
    c_i) over the cohort, with N clients in total. c is sent with the model in a REFERENCE frame. So a message in either
    direction has about twice the bytes of a dense message.

    Kη is the sum of the learning rates. Clients must train with plain SGD, otherwise x / (Kη) is not a mean gradient. If Kη is
    0 (no examples, or a schedule that ends at 0), c_i stays unchanged. If a reply is lost, c_i is restored. All clients have
    equal weights. The server and each client store one vector. A round without replies changes nothing: both sums are empty.

    Use: for several local steps of plain SGD on data that differ between clients, where rounds cost more than bytes.

    Avoid: where bytes limit the run: messages double in both directions. Clients that return rarely have old control variates,
    and other optimizers than SGD are wrong here.

    Attributes:
        op: operator that encodes x; should be unbiased, because SCAFFOLD has no error feedback.
        values: format of the control variates.
    """

    name: ClassVar[str] = "scaffold"
    codec: ClassVar[int] = 26
    aggregator: ClassVar[str] = "scaffold"
    server_mirrors_clients: ClassVar[bool] = True
    corrects_gradients: ClassVar[bool] = True

    op: CompressionOperator = Dense()
    values: Literal["float32", "bfloat16"] = "float32"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        control = state.get("control")
        learning_rate_sum = np.float32(ctx.learning_rate_sum)
        if learning_rate_sum:
            change = -x / learning_rate_sum
            change = change if ctx.reference is None else change - ctx.reference
        else:  # without a local step there is no gradient estimate
            change = np.zeros_like(x)
        (control_section,), decoded_change = encode_values(change, self.values, entropy=False)
        sections, _ = self.op.encode(x, ctx)
        next_control: F64 = decoded_change.astype(np.float64) if control is None else control + decoded_change
        rollback = None if control is None else EntryPatch(None, control)
        return EncodedUpdate(
            (Section(SectionKind.CONTROL, control_section.data), *sections), {"control": next_control}, {"control": rollback}
        )

    def gradient_correction(self, state: StateArrays, ctx: CodecContext) -> F32 | None:
        """Return c − c_i [P]; None if both are 0."""
        if "control" not in state:
            return ctx.reference
        control: F32 = state["control"].astype(np.float32)
        return -control if ctx.reference is None else ctx.reference - control

    def undelivered_update(self, state: StateArrays, layout: ParameterLayout) -> F32 | None:
        return None

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        self.decode_control_change(sections, ctx.layout)
        return self.op.decode(sections[1:], ctx)

    def max_bytes(self, layout: ParameterLayout) -> int:
        return max_value_bytes(layout.size, self.values) + self.op.max_bytes(layout)

    def n_coordinates(self, sections: Sections, ctx: CodecContext) -> int:
        return self.op.n_coordinates(sections[1:], ctx)

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        """Warn of a lossy operator: SCAFFOLD has no error feedback."""
        yield from super().find_warnings(run)
        if self.op.is_lossy(run.layout):
            yield (
                f"{run.key}.op: {self.op.name} is biased, and the part of an update that it drops is lost, as SCAFFOLD has "
                f'no error feedback; set {run.key}.op = "qsgd", or another unbiased operator'
            )

    def decode_control_change(self, sections: Sections, layout: ParameterLayout) -> F64:
        """Decode c_i⁺ − c_i [P] float64.

        Args:
            sections: sections of the client's update; they may be malformed.
            layout: tensors of the vector, P numbers.
        """
        if not sections or sections[0].kind != SectionKind.CONTROL:
            raise WireError(sections[0].offset if sections else 0, "the first section is not the control variate")
        control_section = Section(SectionKind.VALUE, sections[0].data, sections[0].offset)
        return decode_values((control_section,), layout.size, self.values, entropy=False).astype(np.float64)
