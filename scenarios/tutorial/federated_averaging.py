"""Accuracy of FedSGD and FedAvg against the round, on IID clients and on clients with two shards of the sorted examples.

python scenarios/tutorial/federated_averaging.py IID_SWEEP SHARDS_SWEEP [--out PATH]

The two folders are sweeps of scenarios/local_epochs/local_epochs.toml, whose comment has the commands.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from fedsgd.analysis import load_methods

STYLE = {"font.size": 9.5, "svg.hashsalt": "federated-averaging", "axes.spines.top": False, "axes.spines.right": False}
COLOURS = ("#000000", "#0072B2", "#E69F00", "#D55E00")  # Okabe and Ito (2008)
TARGET = 0.9


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(prog="federated_averaging.py", description=__doc__.splitlines()[0])
    parser.add_argument("iid", metavar="IID_SWEEP", help="folder of the sweep on IID clients")
    parser.add_argument("shards", metavar="SHARDS_SWEEP", help="folder of the sweep on clients with two shards each")
    parser.add_argument("--out", default="federated-averaging.svg", help="picture, .svg or .png")
    args = parser.parse_args(argv)
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.7), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for ax, folder, title in zip(panels, (args.iid, args.shards), ("IID clients", "two classes a client"), strict=True):
            for method, colour in zip(load_methods([folder]), COLOURS, strict=True):
                rounds, accuracies = zip(*method.runs[0].get_measurements("accuracy"), strict=True)
                ax.plot(rounds, accuracies, color=colour, lw=1.4, label=method.label)
            ax.axhline(TARGET, color="#5b6770", lw=0.9, ls="--")
            ax.set_title(title, loc="left", size=10.5, weight="bold")
            ax.set(xlabel="round", ylim=(0.4, 1.0))
        panels[0].set(ylabel="test accuracy")
        panels[1].legend(frameon=False, loc="lower right")
        figure.savefig(args.out, dpi=100, metadata={"Date": None} if args.out.endswith(".svg") else None)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
