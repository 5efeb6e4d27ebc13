"""Vanilla SGD with several learning rates on x² and in a narrow valley.

python scenarios/tutorial/step_size.py [--condition κ] [--out PATH]

Left: distance from the minimum of x², whose curvature is L = 2. A step multiplies the distance by |1 − 2η|, so vanilla SGD
converges for η < 2/L = 1. Right: ½(x² + κy²). Its largest curvature κ bounds the learning rate by 2/κ, and the distance along
the floor is multiplied by 1 − η, which is close to 1 if κ is large.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from fedsgd.optim import SGD

COLOURS = ("#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7")  # Okabe and Ito (2008)
STYLE = {"font.size": 9.5, "svg.hashsalt": "step-size", "axes.spines.top": False, "axes.spines.right": False}
START = (-10.0, 2.0)


def descend(lr: float, start: Sequence[float], curvature: Sequence[float], steps: int) -> np.ndarray:
    """Return the visited points, [steps + 1, d]. The loss is half the sum of curvature · w²."""
    sgd, w, h = SGD(lr=lr), torch.tensor(start, dtype=torch.float64), torch.tensor(curvature, dtype=torch.float64)
    points = [w.tolist()]
    for _ in range(steps):
        direction, alpha = sgd.step(w, h * w, {}, lr)
        w.add_(direction, alpha=alpha)
        points.append(w.tolist())
    return np.array(points)


def draw(condition: float) -> Figure:
    """Return the figure."""
    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=[1, 0.95])
    for lr, colour in zip((0.02, 0.2, 0.4, 0.9, 1.05), COLOURS, strict=True):
        distance = np.abs(descend(lr, [5.0], [2.0], 30))
        top.plot(
            distance, "o-", color=colour, ms=3, lw=1.4, clip_on=True, label=f"η = {lr:g}: |1 − 2η| = {abs(1 - 2 * lr):.2g}"
        )
    top.set(yscale="log", xlim=(0, 30), ylim=(1e-4, 1e2), xlabel="step", ylabel="distance |x| from the minimum")
    top.set_title("f(x) = x²: converges for η below 2/L = 1", loc="left", size=10.5, weight="bold")
    top.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

    x, y = np.meshgrid(np.linspace(-11.5, 1.5, 300), np.linspace(-2.6, 2.6, 200))
    bottom.contour(x, y, (x**2 + condition * y**2) / 2, 9, colors="#b9c4cc", linewidths=0.7)
    for factor, colour in ((0.5, COLOURS[0]), (0.95, COLOURS[3])):
        lr = factor * 2 / condition
        points = descend(lr, START, [1.0, condition], 40)
        label = f"η = {lr:.3g}:\n|1 − κη| = {abs(1 - condition * lr):.2g},\n1 − η = {1 - lr:.3g}"
        bottom.plot(*points.T, "o-", color=colour, ms=3, lw=1.4, label=label)
    bottom.plot(0, 0, "*", color="black", ms=13)
    bottom.annotate("minimum", (0, 0), (0, 9), textcoords="offset points", ha="center")
    bottom.plot(*START, "s", color="black", ms=6)
    bottom.annotate("start", START, (9, -3), textcoords="offset points")
    bottom.set(xlim=(-11.5, 1.5), ylim=(-2.6, 2.6), xlabel="x, along the floor", ylabel="y, across it")
    title = f"f(x, y) = ½(x² + κy²), κ = {condition:g}: 40 steps, η below 2/κ = {2 / condition:g}"
    bottom.set_title(title, loc="left", size=10.5, weight="bold")
    bottom.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), labelspacing=1)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(prog="step_size.py", description=__doc__.splitlines()[0])
    parser.add_argument("--condition", type=float, default=40.0, help="κ, curvature across the floor")
    parser.add_argument("--out", default="step-size.svg", help="picture, .svg or .png")
    args = parser.parse_args(argv)
    with rc_context(STYLE):
        draw(args.condition).savefig(args.out, dpi=100, metadata={"Date": None} if args.out.endswith(".svg") else None)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
