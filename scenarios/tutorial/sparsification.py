"""Energy of the largest coordinates of an update, and training with and without error feedback.

python scenarios/tutorial/sparsification.py [--rounds R] [--out PATH]

Left: share of an update's energy Σ x_i² in its largest coordinates, for the dense update of one client of the quickstart.
Middle and right: coordinates of the server's model that have changed since round 1, and test accuracy, for top-k at 0.1 %.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import fedsgd

QUICKSTART = Path(__file__).parents[1] / "quickstart.toml"
DENSE = {"server.cohort": 1, "uplink.compressor": {"name": "dense"}, "uplink.error_feedback": "none"}
STYLE = {"font.size": 9.5, "svg.hashsalt": "sparsification", "axes.spines.top": False, "axes.spines.right": False}
COLOURS = {"none": "#D55E00", "persist": "#0072B2"}  # Okabe and Ito (2008)
LABELS = {"none": "without error feedback", "persist": "with error feedback"}


class Round(NamedTuple):
    """Server after a round.

    Attributes:
        weights: [P], parameters of the server.
        changed: share of the coordinates that some round has changed.
        accuracy: test accuracy.
    """

    weights: np.ndarray
    changed: float
    accuracy: float


def train(settings: Mapping[str, object], rounds: int) -> Iterator[Round]:
    """Yield the server before round 1 and after each round of the quickstart with other settings."""
    scenario = fedsgd.load(QUICKSTART, {"rounds": rounds, **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fedsgd.ScenarioWarning)  # of top-k without error feedback, which is compared on purpose
        federation = fedsgd.build(scenario)
    with federation:
        state = federation.initial_state()
        changed = np.zeros(len(state.weights), dtype=bool)
        yield Round(state.weights.copy(), 0.0, np.nan)
        for _ in range(rounds):
            before = state.weights.copy()
            state, record = federation.step(state)
            changed |= state.weights != before
            yield Round(state.weights.copy(), float(changed.mean()), record.accuracy)


def cumulative_energy(update: np.ndarray) -> np.ndarray:
    """Return for each k the share of the energy in the k largest coordinates."""
    energies = np.sort(np.square(update, dtype=np.float64))[::-1].cumsum()
    return energies / energies[-1]


def draw_energy(ax: Axes, updates: Mapping[int, np.ndarray]) -> None:
    """Draw the energy in the largest coordinates against the density, and print it at 1 % and 10 %."""
    for (round, update), style in zip(updates.items(), ("-", "--"), strict=False):
        energy, size = cumulative_energy(update), len(update)
        density = np.arange(1, size + 1) / size
        ax.plot(100 * density, 100 * energy, style, color="#0072B2", lw=1.6, label=f"round {round}")
        shares = [100 * energy[max(1, int(np.rint(share * size))) - 1] for share in (0.01, 0.1)]
        print(f"round {round}: the largest 1 % carry {shares[0]:.0f} % of the energy, the largest 10 % carry {shares[1]:.0f} %")
    ax.plot(100 * density, 100 * density, color="#5b6770", lw=1.2, ls=":", label="random")
    ax.axvline(1, color="#5b6770", lw=0.8)
    ax.set(xscale="log", xlim=(0.02, 100), ylim=(0, 100), xlabel="coordinates sent (%)", ylabel="energy sent (%)")
    ax.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    ax.set_title("one update", loc="left", size=10.5, weight="bold")
    ax.legend(loc="upper left", borderaxespad=0.1, handlelength=1.5, frameon=True, framealpha=1, edgecolor="none")


def draw_training(changed: Axes, accuracy: Axes, rounds: int) -> None:
    """Draw the share of changed coordinates and the accuracy against the round, and print them after the last round."""
    for feedback, colour in COLOURS.items():
        servers = list(train({"uplink.compressor.density": 0.001, "uplink.error_feedback": feedback}, rounds))[1:]
        steps = np.arange(1, rounds + 1)
        changed.plot(steps, [100 * server.changed for server in servers], color=colour, lw=1.6, label=LABELS[feedback])
        accuracy.plot(steps, [server.accuracy for server in servers], color=colour, lw=1.6)
        end = servers[-1]
        print(f"{LABELS[feedback]}: {100 * end.changed:.0f} % of the coordinates changed, accuracy {end.accuracy:.3f}")
    changed.set(xlabel="round", ylabel="coordinates changed (%)", xlim=(0, rounds))
    changed.set_ylim(0, 1.5 * changed.get_ylim()[1])
    changed.set_title("top-k 0.1 %: changed", loc="left", size=10.5, weight="bold")
    changed.legend(frameon=False, loc="upper left", borderaxespad=0.1, handlelength=1.5)
    accuracy.set(xlabel="round", ylabel="test accuracy", xlim=(0, rounds), ylim=(0, 1))
    accuracy.set_title("top-k 0.1 %: accuracy", loc="left", size=10.5, weight="bold")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure and print its figures."""
    parser = argparse.ArgumentParser(prog="sparsification.py", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", default="sparsification.svg", help="picture, .svg or .png")
    args = parser.parse_args(argv)
    if args.rounds < 2:
        parser.error(f"--rounds: expected at least 2, got {args.rounds}")
    weights = [server.weights for server in train(DENSE, min(args.rounds, 20))]
    updates = {round: weights[round] - weights[round - 1] for round in (1, len(weights) - 1)}
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.0), layout="constrained")
        energy, changed, accuracy = figure.subplots(1, 3)
        draw_energy(energy, updates)
        draw_training(changed, accuracy, args.rounds)
        figure.savefig(args.out, dpi=150, metadata={"Date": None} if args.out.endswith(".svg") else None)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
