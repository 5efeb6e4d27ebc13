"""Paths and losses of vanilla SGD and momentum in a narrow valley.

python scenarios/tutorial/valley.py [--lr η] [--momentum β] [--steps N] [--condition κ] [--start X Y]
                                    [--out PATH]... [--animate GIF]

The valley is f(x, y) = ½(x² + κy²). Its curvature across the floor is κ times that along it, and bounds the learning rate:
vanilla SGD diverges above 2/κ, momentum above 2(1 + β)/κ (Polyak 1964). Just below the bound, vanilla SGD oscillates between
the walls and moves slowly along the floor. Momentum sums the gradients: those along the floor add up, those across it cancel.

Try --lr 0.055 (vanilla SGD diverges), --momentum 0.95 (momentum overshoots) and --condition 1 --lr 0.5 (a round bowl, where
momentum has no advantage).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fedsgd.config.component import FieldError
from fedsgd.optim import SGD, Momentum

TARGET = 1e-3  # a descent reaches the target when its loss is below this share of the initial loss
CUTOFF = 1e6  # a descent ends when its loss is above this multiple of the initial loss, because no picture shows more
COLOURS = ("#0072B2", "#D55E00")  # blue and vermillion of Okabe and Ito (2008), which colour-blind readers can distinguish
WIDTHS = (2.4, 1.8)  # the second path is drawn over the first, whose edges stay visible where both agree
HALO = {"facecolor": "white", "alpha": 0.6, "edgecolor": "none", "pad": 1}  # behind labels that a path may cross
FOG = LinearSegmentedColormap.from_list("fog", ["#ffffff", "#d3dce4"])
MAX_MARKERS = 250  # markers at more points would hide the path
FRAMES, LAST_FRAMES = 100, 15  # frames of an animation at most, and repetitions of its last frame
STYLE = {"font.size": 10, "svg.hashsalt": "valley"}  # without a salt the ids in an SVG are random


class Descent(NamedTuple):
    """Path of one optimizer.

    Attributes:
        name: label of the optimizer.
        lr: learning rate.
        momentum: momentum, 0 for vanilla SGD.
        bound: largest stable learning rate.
        points: [steps + 1, 2], visited points.
        loss: [steps + 1], loss at each point.
    """

    name: str
    lr: float
    momentum: float
    bound: float
    points: np.ndarray
    loss: np.ndarray

    @property
    def arrival(self) -> int | None:
        """First step with a loss below TARGET times the initial loss; None if there is none."""
        return next(iter(np.flatnonzero(self.loss < TARGET * self.loss[0]).tolist()), None)

    @property
    def diverges(self) -> bool:
        """Whether the learning rate is above its bound."""
        return self.lr > self.bound

    @property
    def time(self) -> str:
        """Steps to arrival, as text."""
        return str(self.arrival or ("never" if self.diverges else f"over {len(self.loss) - 1}"))

    @property
    def label(self) -> str:
        """Entry of the legend."""
        end = "diverges" if self.diverges else f"ends {np.hypot(*self.points[-1]):.2g} from the minimum"
        return f"{self.name}: learning rate η = {self.lr:g}, momentum β = {self.momentum:g}, {end}"


def descend(name: str, rule: SGD | Momentum, start: Sequence[float], condition: float, steps: int) -> Descent:
    """Take `steps` steps of fedsgd's optimizer; end early above CUTOFF."""
    curvature = torch.tensor([1.0, condition], dtype=torch.float64)
    w = torch.tensor(start, dtype=torch.float64)
    buffers, points, losses = rule.init(w), [w.tolist()], [float(curvature @ w**2) / 2]
    while len(points) <= steps and losses[-1] <= CUTOFF * losses[0]:
        direction, alpha = rule.step(w, curvature * w, buffers, rule.lr)
        w.add_(direction, alpha=alpha)
        points.append(w.tolist())
        losses.append(float(curvature @ w**2) / 2)
    momentum = rule.momentum if isinstance(rule, Momentum) else 0.0
    steepest = condition if start[1] else 1.0  # from a start on the floor, y stays 0 and κ has no effect
    return Descent(name, rule.lr, momentum, 2 * (1 + momentum) / steepest, np.array(points), np.array(losses))


def frame(ax: Axes, descents: Sequence[Descent]) -> None:
    """Set limits around the paths, x and y at one scale, so that a step of SGD crosses its level line at a right angle."""
    limit = 1.1 * np.abs(descents[0].points[0])  # a divergent path leaves the picture instead of shrinking it
    points = np.clip(np.vstack([[0, 0], *(d.points for d in descents)]), -limit, limit)
    size = np.array([ax.bbox.width, ax.bbox.height])
    half = 0.6 * size * (np.ptp(points, axis=0) / size).max()
    (left, bottom), (right, top) = (points.min(axis=0) + points.max(axis=0)) / 2 + np.outer([-1, 1], half)
    ax.set(xlim=(left, right), ylim=(bottom, top), xlabel="x, along the floor", ylabel="y, across it")


def draw_valley(ax: Axes, descents: Sequence[Descent], condition: float) -> list[Line2D]:
    """Draw the paths over the valley's level lines."""
    frame(ax, descents)
    x, y = np.meshgrid(np.linspace(*ax.get_xlim(), 200), np.linspace(*ax.get_ylim(), 200))
    loss = (x**2 + condition * y**2) / 2
    levels = loss.max() * np.geomspace(1e-4, 1, 13)
    ax.contourf(x, y, loss, [0, *levels], colors=FOG(np.linspace(0, 1, len(levels))))
    ax.contour(x, y, loss, levels, colors="#9fadb9", linewidths=0.7)
    lines = [
        ax.plot(
            *d.points.T,
            "o-" if len(d.points) <= MAX_MARKERS else "-",
            color=colour,
            lw=width,
            ms=5,
            mec="white",
            mew=0.6,
            label=d.label,
        )[0]
        for d, colour, width in zip(descents, COLOURS, WIDTHS, strict=True)
    ]
    for name, point, marker, size in (("start", descents[0].points[0], "s", 8), ("minimum", (0, 0), "*", 15)):
        ax.plot(*point, marker, color="black", mec="white", ms=size)
        ax.annotate(name, point, (0, 9), textcoords="offset points", ha="center", weight="bold", bbox=HALO)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, borderaxespad=0.1)
    return lines


def draw_loss(ax: Axes, descents: Sequence[Descent]) -> list[Line2D]:
    """Draw the loss against the step, and mark the step at which it is below TARGET times the initial loss."""
    start = descents[0].loss[0]
    losses = np.concatenate([[TARGET * start], *(d.loss for d in descents)]).clip(1e-12 * start, 1e3 * start)
    ax.set(yscale="log", ylim=(losses.min() / 3, losses.max() * 3), xlim=(0, max(len(d.loss) for d in descents) - 1))
    ax.set(xlabel="step", ylabel="loss f")
    ax.set_title("loss at each step; dashed: a thousandth of the initial loss", loc="left", size="medium")
    ax.axhline(TARGET * start, color="#5b6770", lw=1, ls="--")
    lines = []
    for d, colour, width, side in zip(descents, COLOURS, WIDTHS, (1, -1), strict=True):
        lines += ax.plot(d.loss, color=colour, lw=width)
        if d.arrival is not None:
            point, align = (d.arrival, d.loss[d.arrival]), {"ha": "left" if side > 0 else "right", "va": "center"}
            ax.plot(*point, "o", color=colour)
            ax.annotate(f"{d.arrival}", point, (5 * side, 9 * side), textcoords="offset points", color=colour, **align)
    ax.xaxis.get_major_locator().set_params(integer=True)
    return lines


def draw(descents: Sequence[Descent], condition: float) -> tuple[Figure, list[Line2D]]:
    """Return the figure and its curves: the paths, then the losses."""
    figure = Figure(figsize=(8, 6.8))
    valley, loss = figure.add_axes((0.1, 0.4, 0.87, 0.43)), figure.add_axes((0.1, 0.08, 0.87, 0.2))
    lines = [*draw_valley(valley, descents, condition), *draw_loss(loss, descents)]
    title = "Steps to a thousandth of the loss: " + ", ".join(f"{d.name} {d.time}" for d in descents)
    figure.suptitle(title, x=0.1, y=0.975, ha="left", weight="bold", size=14)
    figure.text(0.1, 0.915, f"f(x, y) = ½(x² + κy²), condition number κ = {condition:g}")
    return figure, lines


def animate(path: Path, figure: Figure, lines: Sequence[Line2D]) -> None:
    """Write a GIF that draws the curves step by step."""
    curves = [line.get_xydata() for line in lines]
    last = max(map(len, curves)) - 1
    writer = PillowWriter(fps=10)
    with writer.saving(figure, str(path), dpi=80):
        for step in [*range(0, last, -(-last // FRAMES)), *[last] * LAST_FRAMES]:
            for line, curve in zip(lines, curves, strict=True):
                line.set_data(*curve[: step + 1].T)
            writer.grab_frame()


def file(text: str, suffixes: Sequence[str]) -> Path:
    """Return the path of an option's text. The path must end in one of `suffixes` and be in a folder that exists."""
    path = Path(text)
    if path.suffix not in suffixes:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r}")
    return path


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[Descent]]:
    """Return the options and the two descents. An invalid option ends the program with a one-line message."""
    parser = argparse.ArgumentParser(prog="valley.py", description=__doc__.splitlines()[0])
    parser.add_argument("--lr", type=float, default=0.0475, help="learning rate η")
    parser.add_argument("--momentum", type=float, default=0.6, help="momentum β")
    parser.add_argument("--steps", type=int, default=70)
    parser.add_argument(
        "--condition", type=float, default=40.0, help="κ, curvature across the floor divided by curvature along it"
    )
    parser.add_argument("--start", type=float, nargs=2, default=[-10.0, 2.0], metavar=("X", "Y"))
    parser.add_argument("--out", type=partial(file, suffixes=(".png", ".svg")), action="append", metavar="PATH")
    parser.add_argument("--animate", type=partial(file, suffixes=(".gif",)), metavar="GIF")
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error(f"--steps: expected at least 1, got {args.steps}")
    if not 1 <= args.condition <= 1e9:
        parser.error(f"--condition: expected a number from 1 to 1e9, got {args.condition:g}")
    if not 1e-9 <= np.hypot(*args.start) <= 1e9:
        parser.error(f"--start: expected a point from 1e-9 to 1e9 away from the minimum, got {args.start}")
    try:
        rules = {"vanilla SGD": SGD(lr=args.lr), "momentum": Momentum(lr=args.lr, momentum=args.momentum)}
    except FieldError as error:
        parser.error(f"argument --{error.field}: {error.problem}")
    return args, [descend(name, rule, args.start, args.condition, args.steps) for name, rule in rules.items()]


def main(argv: Sequence[str] | None = None) -> None:
    args, descents = parse(argv)
    for d in descents:
        print(f"{d.name}: steps until the loss was below a thousandth of its initial value: {d.arrival or 'not reached'}")
        if d.diverges:
            print(f"{d.name} diverges: its learning rate {d.lr:g} is above the stability bound, {d.bound:.4g}", file=sys.stderr)
    with rc_context(STYLE):
        figure, lines = draw(descents, args.condition)
        for path in args.out or [Path("valley.png")]:
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
        if args.animate:
            animate(args.animate, figure, lines)


if __name__ == "__main__":
    main()
