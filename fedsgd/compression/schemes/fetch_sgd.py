"""FetchSGD: clients send sketches; the server applies momentum and error feedback to the sketch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsgd.compression.base import CodecContext, CompressionScheme, EncodedUpdate
from fedsgd.compression.operators.count_sketch import Rows, n_columns, sketch, unsketch
from fedsgd.compression.operators.sparsifier import top_k_size
from fedsgd.compression.run_config import RunConfig
from fedsgd.compression.updates import DenseUpdate, StateArrays, Update
from fedsgd.config.component import FractionAboveZero, FractionBelowOne
from fedsgd.errors import NonFiniteError
from fedsgd.numerics.arrays import F32, F64
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.numerics.reductions import all_finite
from fedsgd.numerics.rng import shared_key
from fedsgd.wire import FloatFormat, Sections, decode_values, encode_values, max_value_bytes

MIN_COLUMNS, MIN_COLUMNS_PER_COORDINATE = 1000, 10
"""Minimum columns of a table, in all and for each coordinate that a round changes.

FetchSGD without momentum instead of top-k in the quickstart, perceptrons of 4,810, 19,210 and 76,810 parameters. With up to 5
columns a coordinate six of seven runs diverge; with 8 they end at 0.65 and 0.914. With 19 or more columns a coordinate,
tables of 96 and 481 columns end at 0.215 and 0.906, tables of 1,921 and 3,842 columns at 0.956 or more. With ρ > 0 and the
quickstart's momentum of local training, the quickstart ends at 0.43, and at 0.97 with ρ = 0.
"""


@dataclass(frozen=True)
class FetchSGD(CompressionScheme):
    """Count sketch of the update on the uplink; momentum, error feedback and top-k at the server, in the sketch.

    FetchSGD (Rothchild et al. 2020, algorithm 1), with S the weighted mean of the clients' tables:

        S_u ← ρ S_u + S;  S_e ← S_e + S_u;  Δ = the kept_share · P largest of unsketch(S_e);  S_e ← S_e − sketch(Δ);
        the update is Δ

    Sketches are linear, so this equals the same steps on vectors. Clients have no state, so nothing becomes stale however
    rarely they take part. 32 · density bits a parameter.

    Traps:

    * All clients and rounds share one hash, because tables of different hashes cannot be added. So collisions do not average
      out over clients, and `has_independent_errors` is False.
    * The table has to be large enough to read the coordinates that stand out. With fewer than a thousand columns, or fewer than
      ten for each coordinate that a round changes, collisions dominate in small models, and fedsgd warns.
    * With ρ > 0 and a momentum of local training or of the server's optimizer, fedsgd warns too: the step is multiplied
      twice, and accuracy collapses.

    Deviations:

    * The paper multiplies S_u by the learning rate before adding S_u to S_e. Here each table includes its client's learning
      rate, which is equivalent if the learning rate is constant.
    * The authors' code does not subtract sketch(Δ) from S_e, because their runs diverged. It clears the cells of Δ in S_e as in
      S_u. Here S_e follows algorithm 1.
    * The paper has clients in every round. A round without replies changes neither the model nor S_u and S_e.

    Use: for large models with many clients that take part once or twice: clients need no state.

    Avoid: for small models, whose tables have too few columns, and together with any other momentum.

    Attributes:
        density: cells of the table as a share of the parameters.
        rows: rows of the table.
        kept_share: share of the coordinates that a round changes.
        momentum: ρ, decay of S_u.
        masking: clear S_u in the cells of Δ, as DGC clears its momentum.
        values: format of the cells.
    """

    name: ClassVar[str] = "fetch-sgd"
    codec: ClassVar[int] = 25
    aggregator: ClassVar[str] = "fetch-sgd"
    has_independent_errors: ClassVar[bool] = False

    density: FractionAboveZero = 0.1
    rows: Rows = 5
    kept_share: FractionAboveZero = 0.001
    momentum: FractionBelowOne = 0.9
    masking: bool = True
    values: FloatFormat = "float32"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        table = sketch(x, self.rows, self.n_columns(len(x)), self.derive_hash_key(ctx.seed)).astype(np.float32).reshape(-1)
        if not all_finite(table):
            raise NonFiniteError(ctx.round, ctx.client, "a sum in the sketch leaves float32's range")
        return EncodedUpdate(encode_values(table, self.values)[0], {}, {})

    def undelivered_update(self, state: StateArrays, layout: ParameterLayout) -> F32 | None:
        return None

    def decode(self, sections: Sections, ctx: CodecContext) -> Update:
        table = self.decode_table(sections, ctx.layout)
        return DenseUpdate(unsketch(table, ctx.layout.size, self.derive_hash_key(ctx.seed)).astype(np.float32))

    def max_bytes(self, layout: ParameterLayout) -> int:
        return max_value_bytes(self.rows * self.n_columns(layout.size), self.values)

    def n_coordinates(self, sections: Sections, ctx: CodecContext) -> int:
        return ctx.layout.size

    def find_warnings(self, run: RunConfig) -> Iterable[str]:
        """Warn of a table in which coordinates collide, and of a second momentum."""
        yield from super().find_warnings(run)
        if self.momentum:
            rule = "FetchSGD's server has a momentum in its sketch (Rothchild et al. 2020)"
            yield from run.find_momentum_warnings(self.momentum, rule, run.find_second_momenta())
        columns, k = self.n_columns(run.layout.size), top_k_size(self.kept_share, run.layout.size)
        if columns < max(MIN_COLUMNS, MIN_COLUMNS_PER_COORDINATE * k):
            yield (
                f"{run.key}.density = {self.density:g}: {columns:,} columns are too few for {k:,} coordinates a round, "
                f"expected {MIN_COLUMNS:,} and {MIN_COLUMNS_PER_COORDINATE} for each coordinate; "
                "set a larger density, or a smaller kept_share"
            )

    def n_columns(self, size: int) -> int:
        """Return the number of columns of a table.

        Args:
            size: P.
        """
        return n_columns(size, self.density, self.rows)

    def decode_table(self, sections: Sections, layout: ParameterLayout) -> F64:
        """Decode the table [rows, columns] of one client.

        Args:
            sections: sections of the client's update; they may be malformed.
            layout: tensors of the vector, P numbers.
        """
        cells = decode_values(sections, self.rows * self.n_columns(layout.size), self.values)
        return cells.astype(np.float64).reshape(self.rows, -1)

    @staticmethod
    def derive_hash_key(seed: int) -> int:
        """Return the key of the hash that all tables of a run share.

        Args:
            seed: seed of the run.
        """
        return shared_key(seed, "fetch-sgd")
