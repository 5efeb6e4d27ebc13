"""Rounds that a coordinate waits between two sendings, and share of the updates that DGC clips.

python scenarios/dgc/waits.py SCENARIO [--rounds R] [--lr η]

Runs a scenario with Deep Gradient Compression and inspects each client's update before it is encoded. The wait of a sent
coordinate counts from the round in which the same client sent it before, or from round 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

import numpy as np

import fedsgd
from fedsgd.compression import CodecContext, EncodedUpdate
from fedsgd.compression.compressors import DGC
from fedsgd.compression.updates import StateArrays
from fedsgd.numerics.arrays import F32


@dataclass
class Statistics:
    """Waits and norms of all updates of a run.

    Attributes:
        last: [N, P], round in which a client last sent a coordinate; empty before the first update.
        waits: mean wait of the coordinates that an update sends.
        exceeding: for each update, whether its norm exceeds the threshold of clipping.
    """

    last: dict[int, np.ndarray] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)
    exceeding: list[bool] = field(default_factory=list)


STATISTICS = Statistics()


@dataclass(frozen=True)
class InspectedDGC(DGC):
    """DGC that adds each update to STATISTICS."""

    name: ClassVar[str] = "inspected-dgc"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        """Encode an update as `DGC` does."""
        encoded = super().send(x, state, ctx)
        positions = self.decode(encoded.sections, ctx).to_dense().nonzero()[0]
        last = STATISTICS.last.setdefault(ctx.client, np.zeros(len(x), dtype=np.int64))
        STATISTICS.waits.append(float((ctx.round - last[positions]).mean()))
        STATISTICS.exceeding.append(bool(self.clip) and float(np.linalg.norm(x)) > self.clip * ctx.cohort**0.5)
        last[positions] = ctx.round
        return encoded


def main(argv: Sequence[str] | None = None) -> None:
    """Run the scenario and print the statistics."""
    parser = argparse.ArgumentParser(prog="waits.py", description=__doc__.splitlines()[0])
    parser.add_argument("scenario", help="TOML file of a scenario with DGC")
    parser.add_argument("--rounds", type=int, help="number of rounds in place of the scenario's")
    parser.add_argument("--lr", type=float, help="learning rate in place of the scenario's")
    args = parser.parse_args(argv)
    settings = {"rounds": args.rounds, "client.optimizer.lr": args.lr}
    scenario = fedsgd.load(args.scenario, {key: value for key, value in settings.items() if value is not None})
    compressor = scenario.uplink.compressor
    if not isinstance(compressor, DGC):
        parser.error(f"{args.scenario}: expected the compressor dgc, got {compressor.name}")
    values = {key.name: getattr(compressor, key.name) for key in fields(compressor)}
    fedsgd.run(replace(scenario, uplink=replace(scenario.uplink, compressor=InspectedDGC(**values))))
    waits, memory = STATISTICS.waits[len(STATISTICS.waits) // 2 :], 1 / (1 - compressor.momentum)
    print(f"a sent coordinate waits {np.mean(waits):.0f} rounds, in the second half of the run; momentum lasts {memory:.0f}")
    print(f"{100 * np.mean(STATISTICS.exceeding):.0f} % of the updates are clipped")


if __name__ == "__main__":
    try:
        main()
    except fedsgd.FedsgdError as error:
        sys.exit(f"waits.py: {error}")
