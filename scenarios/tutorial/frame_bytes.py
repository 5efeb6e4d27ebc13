"""Bits of one encoded update by part of the frame: header, positions, values, side information.

python scenarios/tutorial/frame_bytes.py [--out PATH]

Each bar is a frame that fedsgd encodes: top-k 1 % of a vector of standard normal numbers, in four formats of the values. The
lower panel compares the positions with log₂C(P, k)/k, the least bits that a position needs if all sets of k are equally likely.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsgd.compression import CodecContext
from fedsgd.compression.operators.topk import TopK
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.wire import ByteBreakdown, Frame, FrameKind, Header, ValueFormat, encode_frame, frame_breakdown

STYLE = {"font.size": 9.5, "svg.hashsalt": "frame-bytes", "axes.spines.top": False, "axes.spines.right": False}
PARTS = {"header": "#7F8C94", "index": "#0072B2", "value": "#E69F00", "side": "#009E73"}  # Okabe and Ito (2008), and grey
LABELS = {"header": "header", "index": "index: positions", "value": "value", "side": "side: scale"}
FORMATS: tuple[ValueFormat, ...] = ("float32", "bfloat16", "int8", "ternary")
MODELS = {4810: "P = 4,810 (the quickstart)", 199_210: "P = 199,210 (2NN)"}


def encode(size: int, density: float, values: ValueFormat) -> tuple[int, ByteBreakdown]:
    """Return k, and the bytes of an UPDATE frame by part."""
    x = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
    top_k = TopK(density=density, values=values)
    sections, update = top_k.encode(x, CodecContext(0, 1, 0, ParameterLayout.from_size(size)))
    frame = Frame(Header(FrameKind.UPDATE, 1, top_k.codec, base=1, client=0, examples=60), sections)
    return int(np.count_nonzero(update.to_dense())), frame_breakdown(encode_frame(frame))


def bound(size: int, k: int) -> float:
    """Return log₂C(P, k)/k."""
    return (math.lgamma(size + 1) - math.lgamma(k + 1) - math.lgamma(size - k + 1)) / math.log(2) / k


def draw_formats(ax: Axes, size: int) -> None:
    """Draw a stacked bar for each format, and print its bytes."""
    for row, values in enumerate(FORMATS):
        k, parts = encode(size, 0.01, values)
        left, n_bytes = 0.0, sum(vars(parts).values())
        for part, colour in PARTS.items():
            width = 8 * getattr(parts, part) / k
            ax.barh(row, width, left=left, color=colour, height=0.66, label=LABELS[part] if row == 0 else None)
            if width > 3:
                ax.text(left + width / 2, row, f"{width:.1f}", ha="center", va="center", color="white", size=9)
            elif width > 0.6:  # above the bar; the two numbers are aligned at the border between value and side
                x, align = (left - 0.1, "left") if part == "side" else (left + width + 0.1, "right")
                ax.text(x, row - 0.35, f" {width:.1f} ", ha=align, va="bottom", size=8)
            left += width
        ax.text(left + 0.4, row, f"{n_bytes:,} B, {4 * size / n_bytes:.0f}×", va="center", size=9)
        print(
            f"P = {size:,}, {values}: {n_bytes:,} bytes, {left:.1f} bits per coordinate sent, ratio up {4 * size / n_bytes:.0f}"
        )
    ax.set(yticks=range(len(FORMATS)), yticklabels=FORMATS, xlim=(0, 50), xlabel="bits per coordinate sent")
    ax.invert_yaxis()
    ax.set_title(f"{MODELS[size]}, density 1 %: bits, bytes, ratio up", loc="left", size=10.5, weight="bold")


def draw_positions(ax: Axes) -> None:
    """Draw the bits of a position against the density, beside the bound and a plain 32-bit index."""
    size, densities = 199_210, np.geomspace(0.0002, 0.3, 16)
    frames = [encode(size, float(density), "ternary") for density in densities]
    ax.plot(densities, [8 * parts.index / k for k, parts in frames], "o", color=PARTS["index"], label="INDEX section")
    ax.plot(densities, [bound(size, k) for k, _ in frames], color="black", lw=1, label="log₂C(P, k)/k")
    ax.axhline(32, color="#5b6770", lw=0.9, ls="--", label="plain 32-bit index")
    ax.set(xscale="log", ylim=(0, 35), xlabel="density k/P", ylabel="bits per position")
    ax.set_xticks([0.001, 0.01, 0.1], ["0.1 %", "1 %", "10 %"])
    ax.set_title("positions of random coordinates, P = 199,210", loc="left", size=10.5, weight="bold")
    ax.legend(frameon=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the bytes and draw the figure."""
    parser = argparse.ArgumentParser(prog="frame_bytes.py", description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="frame-bytes.svg", help="picture, .svg or .png")
    args = parser.parse_args(argv)
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 8.0), layout="constrained")
        small, large, positions = figure.subplots(3, 1)
        draw_formats(small, 4810)
        draw_formats(large, 199_210)
        large.legend(frameon=False, loc="lower right")
        draw_positions(positions)
        figure.savefig(args.out, dpi=100, metadata={"Date": None} if args.out.endswith(".svg") else None)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
