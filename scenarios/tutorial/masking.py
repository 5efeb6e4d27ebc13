"""Momentum factor masking on a bowl whose coordinates take turns.

python scenarios/tutorial/masking.py [--momentum β] [--out PATH]

The loss is ½|w|² with T equal coordinates. One worker sends one coordinate in a round by fedsgd's DGC, so a coordinate waits T
rounds. Momentum lasts 1/(1 − β) rounds. Each panel has one wait T and one learning rate η.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from fedsgd.compression import CodecContext
from fedsgd.compression.compressors import DGC
from fedsgd.numerics.parameter_layout import ParameterLayout

CASES = ((2, 0.005, 200), (10, 0.03, 200), (100, 0.003, 600))  # T, η, rounds
STYLE = {"font.size": 9.5, "svg.hashsalt": "masking", "axes.spines.top": False, "axes.spines.right": False}
COLOURS = {True: "#0072B2", False: "#D55E00"}  # Okabe and Ito (2008)
LABELS = {True: "with masking", False: "without masking"}


def descend(wait: int, lr: float, rounds: int, momentum: float, masking: bool) -> np.ndarray:
    """Return the distance to the minimum after each round, divided by the initial distance."""
    scheme = DGC(density=1 / wait, momentum=momentum, masking=masking)
    layout = ParameterLayout.from_size(wait)
    w, state = np.linspace(1, 1.3, wait, dtype=np.float32), {}
    distances = [float(np.linalg.norm(w))]
    for round in range(1, rounds + 1):
        ctx = CodecContext(seed=0, round=round, client=0, layout=layout)
        sent = scheme.send(np.float32(-lr) * w, state, ctx)
        w, state = w + scheme.decode(sent.sections, ctx).to_dense(), sent.state
        distances.append(float(np.linalg.norm(w)))
    return np.array(distances) / distances[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure, and print the distance at the end of each case."""
    parser = argparse.ArgumentParser(prog="masking.py", description=__doc__.splitlines()[0])
    parser.add_argument("--momentum", type=float, default=0.9, help="momentum β")
    parser.add_argument("--out", default="masking.svg", help="picture, .svg or .png")
    args = parser.parse_args(argv)
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 2.9), layout="constrained")
        panels = figure.subplots(1, len(CASES), sharey=True)
        for ax, (wait, lr, rounds) in zip(panels, CASES, strict=True):
            ends = []
            for masking, colour in COLOURS.items():
                distances = descend(wait, lr, rounds, args.momentum, masking)
                ax.plot(distances, color=colour, lw=1.5, label=LABELS[masking])
                ends.append(f"{LABELS[masking]} {distances[-1]:.2g}")
            ax.set(yscale="log", xlim=(0, rounds), ylim=(1e-4, 10), xlabel="round")
            ax.set_title(f"T = {wait}, η = {lr}", loc="left", size=10.5, weight="bold")
            print(f"T = {wait}, η = {lr}, {rounds} rounds: {', '.join(ends)}")
        panels[0].set(ylabel="distance to the minimum")
        panels[2].legend(frameon=False, loc="lower left")
        figure.savefig(args.out, dpi=150, metadata={"Date": None} if args.out.endswith(".svg") else None)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
