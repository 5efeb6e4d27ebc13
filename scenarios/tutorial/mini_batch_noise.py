"""Excess loss of SGD with mini-batches: a constant learning rate leaves a noise floor, a decreasing one removes it.

python scenarios/tutorial/mini_batch_noise.py [--steps N] [--runs N] [--out PATH]

The loss is f(x) = mean of ½(x − aᵢ)² over 1,000 numbers aᵢ with variance σ² = 1. The gradient of a batch is x − mean of the
batch. At a constant learning rate η, the mean of f(x) − min f tends to ησ² / (2B(2 − η)), with B examples in a batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from fedsgd.optim import SGD
from fedsgd.optim.schedules import ConstantSchedule, InverseSqrtSchedule, Schedule, StepSchedule

STYLE = {"font.size": 9.5, "svg.hashsalt": "mini-batch-noise", "axes.spines.top": False, "axes.spines.right": False}
START = 10.0
CASES: tuple[tuple[str, float, int | None, Schedule], ...] = (
    ("B = 1, η = 0.4", 0.4, 1, ConstantSchedule()),
    ("B = 1, η = 0.1", 0.1, 1, ConstantSchedule()),
    ("B = 10, η = 0.1", 0.1, 10, ConstantSchedule()),
    ("B = 1, η = 0.4/√t", 0.4, 1, InverseSqrtSchedule()),
    ("B = 1, η = 0.4, halved every 300 steps", 0.4, 1, StepSchedule(every=300, gamma=0.5)),
    ("all examples, η = 0.1", 0.1, None, ConstantSchedule()),
)
COLOURS = ("#D55E00", "#E69F00", "#CC79A7", "#0072B2", "#009E73", "#000000")  # Okabe and Ito (2008)


def make_examples() -> torch.Tensor:
    """Return 1,000 numbers with mean 0 and variance 1."""
    a = torch.from_numpy(np.random.default_rng(0).standard_normal(1000))
    return (a - a.mean()) / a.std(correction=0)


def excess_loss(lr: float, batch_size: int | None, schedule: Schedule, steps: int, runs: int) -> np.ndarray:
    """Return the mean of f(x) − min f over the runs at each step, [steps + 1]. batch_size None: all examples."""
    a, rng = make_examples(), np.random.default_rng(1)
    optimizer = SGD(lr=lr, schedule=schedule, schedule_over="local-steps")
    x = torch.full((runs,), START, dtype=torch.float64)  # the rule is elementwise: each entry is a run of its own
    losses = [x.square().mean() / 2]
    for step in range(1, steps + 1):
        batch_mean = a[rng.integers(0, len(a), (runs, batch_size))].mean(1) if batch_size else a.mean()
        direction, alpha = optimizer.step(x, x - batch_mean, {}, optimizer.learning_rate(round=1, step=step))
        x.add_(direction, alpha=alpha)
        losses.append(x.square().mean() / 2)
    return np.array(losses)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the mean excess loss over the last tenth of the steps, and draw the figure."""
    parser = argparse.ArgumentParser(prog="mini_batch_noise.py", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=200, help="independent runs that are averaged")
    parser.add_argument("--out", default="mini-batch-noise.svg", help="picture, .svg or .png")
    args = parser.parse_args(argv)
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        ax = figure.subplots()
        for (label, lr, batch_size, schedule), colour in zip(CASES, COLOURS, strict=True):
            losses = excess_loss(lr, batch_size, schedule, args.steps, args.runs)
            tail = losses[-max(1, args.steps // 10) :].mean()
            constant = batch_size and isinstance(schedule, ConstantSchedule)
            floor = f", formula {lr / (2 * batch_size * (2 - lr)):.2g}" if batch_size and constant else ""
            print(f"{label}: {tail:.2g}{floor}")
            ax.plot(losses, color=colour, lw=1.1, label=label)
            if batch_size and constant:
                ax.axhline(lr / (2 * batch_size * (2 - lr)), color="black", lw=1.3, ls=":", zorder=3)
        ax.set(yscale="log", xlim=(0, args.steps), ylim=(1e-4, 100), xlabel="step", ylabel="excess loss f(x) − min f")
        ax.set_title(f"mean of {args.runs} runs; dotted: ησ² / (2B(2 − η))", loc="left", size=10.5, weight="bold")
        ax.legend(frameon=False, ncols=2, loc="upper right", fontsize=9)
        figure.savefig(args.out, dpi=100, metadata={"Date": None} if args.out.endswith(".svg") else None)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
