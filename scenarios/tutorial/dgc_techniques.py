"""Test accuracy against the round with each technique of Deep Gradient Compression, and without it.

python scenarios/tutorial/dgc_techniques.py ABLATION MASKING WARM_UP [--out PATH]

The three folders are sweeps of scenarios/dgc.toml, scenarios/dgc/masking.toml and scenarios/dgc/warm_up.toml; the page
results/dgc-techniques.md has the commands. Lines are means over seeds, bands the range from the lowest to the highest seed.
The panel of masking has a thin line for each seed instead of a band.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsgd.analysis import load_methods

STYLE = {"font.size": 9.5, "svg.hashsalt": "dgc-techniques", "axes.spines.top": False, "axes.spines.right": False}
COLOURS = ("#0072B2", "#D55E00", "#5b6770")  # blue and vermillion of Okabe and Ito (2008), grey


def read_accuracies(folder: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return for each method of a sweep the rounds and the accuracies, one row for each seed."""
    accuracies = {}
    for method in load_methods([folder]):
        runs = [list(zip(*run.get_measurements("accuracy"), strict=True)) for run in method.runs]
        accuracies[method.label] = (np.array(runs[0][0]), np.array([values for _, values in runs]))
    return accuracies


def find(accuracies: Mapping[str, tuple[np.ndarray, np.ndarray]], *parts: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rounds and accuracies of the one method whose label consists of these parts."""
    (label,) = (label for label in accuracies if label == ", ".join(parts))
    return accuracies[label]


def draw(ax: Axes, title: str, lines: Mapping[str, tuple[np.ndarray, np.ndarray]], shows_seeds: bool) -> None:
    """Draw the mean of each method, and its range or a thin line for each seed."""
    for (label, (rounds, values)), colour in zip(lines.items(), COLOURS, strict=False):
        ax.plot(rounds, values.mean(axis=0), color=colour, lw=1.5, label=label)
        if shows_seeds:
            ax.plot(rounds, values.T, color=colour, lw=0.6, alpha=0.7)
        else:
            ax.fill_between(rounds, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.18, lw=0)
    ax.set_title(title, loc="left", size=10.5, weight="bold")
    ax.legend(frameon=False, loc="lower right", borderaxespad=0.2)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(prog="dgc_techniques.py", description=__doc__.splitlines()[0])
    parser.add_argument("ablation", metavar="ABLATION", help="folder of the sweep of dgc.toml")
    parser.add_argument("masking", metavar="MASKING", help="folder of the sweep of masking.toml")
    parser.add_argument("warm_up", metavar="WARM_UP", help="folder of the sweep of warm_up.toml")
    parser.add_argument("--out", default="dgc-techniques.svg", help="picture, .svg or .png")
    args = parser.parse_args(argv)
    ablation, masking, warm_up = map(read_accuracies, (args.ablation, args.masking, args.warm_up))
    panels = {
        "momentum correction (0.2 %, η = 0.8)": {
            "DGC": find(ablation, "DGC", "lr 0.8"),
            "server momentum instead": find(ablation, "DGC without momentum correction", "lr 0.8"),
        },
        "clipping (0.2 %, η = 0.8)": {
            "DGC": find(ablation, "DGC", "lr 0.8"),
            "without": find(ablation, "DGC without clipping", "lr 0.8"),
        },
        "masking (10 %, η = 1.6, β = 0.97)": {
            "DGC": find(masking, "masking", "masking true", "lr 1.6"),
            "without": find(masking, "masking", "masking false", "lr 1.6"),
        },
        "warm-up (0.05 %, η = 0.2)": {
            "warm-up of 20 rounds": find(warm_up, "warm-up of 20 rounds"),
            "without": find(warm_up, "no warm-up"),
            "constant 0.215 %, fewer bytes both ways": find(warm_up, "constant density 0.215 %"),
        },
    }
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 5.2), layout="constrained")
        axes = figure.subplots(2, 2, sharex=True, sharey=True)
        for ax, (title, lines) in zip(axes.flat, panels.items(), strict=True):
            draw(ax, title, lines, shows_seeds=title.startswith("masking"))
            ax.set(xlim=(0, 200), ylim=(0, 1), xticks=range(0, 201, 50))
        for ax in axes[1]:
            ax.set(xlabel="round")
        for ax in axes[:, 0]:
            ax.set(ylabel="test accuracy, mean of seeds")
        figure.savefig(args.out, dpi=150, metadata={"Date": None} if args.out.endswith(".svg") else None)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
