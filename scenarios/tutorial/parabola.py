"""SGD and momentum on L = x², step by step, with the closed form of each step.

python scenarios/tutorial/parabola.py [--lr η] [--momentum β] [--start x0] [--steps N] [--out PATH]

The gradient is 2x. Vanilla SGD, x ← x − 2ηx, gives x0 (1 − 2η)^t. Momentum, v ← βv − 2ηx and x ← x + v with v = 0 at first,
gives x_(t+1) = (1 + β − 2η) x_t − β x_(t−1). The closed form follows from the roots of λ² − (1 + β − 2η)λ + β = 0.

--out draws both paths, and the factor per step against β. The path stays between ±c β^(t/2) if the roots are complex.
On one parabola, a good learning rate needs no momentum. scenarios/tutorial/valley.py shows a loss for which momentum helps.
"""

from __future__ import annotations

import argparse
import cmath
import math
from collections.abc import Sequence

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from fedsgd.config.component import FieldError
from fedsgd.optim import SGD, Momentum

STYLE = {"font.size": 9.5, "svg.hashsalt": "parabola", "axes.spines.top": False, "axes.spines.right": False}
BLUE, ORANGE = "#0072B2", "#D55E00"  # Okabe and Ito (2008)
DOUBLE = 1e-13  # roots with a smaller discriminant are treated as one: as two they would lose more digits to cancellation


def iterates(rule: SGD | Momentum, start: float, steps: int) -> list[float]:
    """Return x_0 ... x_steps as fedsgd's optimizer computes them."""
    x = torch.tensor([start], dtype=torch.float64)
    buffers, values = rule.init(x), [start]
    for _ in range(steps):
        direction, alpha = rule.step(x, 2 * x, buffers, rule.lr)
        x.add_(direction, alpha=alpha)
        values.append(x.item())
    return values


def roots(lr: float, momentum: float) -> tuple[complex, complex]:
    """Return the roots λ of λ² − (1 + β − 2η)λ + β, the larger modulus first."""
    middle = (1 + momentum - 2 * lr) / 2
    discriminant = middle**2 - momentum
    half = 0 if abs(discriminant) < DOUBLE else cmath.sqrt(discriminant)
    first, second = sorted((middle + half, middle - half), key=abs, reverse=True)
    return first, second


def closed_form(lr: float, momentum: float, start: float, steps: int) -> list[float]:
    """Return x_0 ... x_steps of momentum from the roots: x_t = aλ₁^t + bλ₂^t, or (a + bt)λ^t for a double root."""
    first, second = roots(lr, momentum)
    x1 = start - 2 * lr * start  # the velocity was zero: the first step equals that of vanilla SGD
    if first == second:
        return [start] + [(x1 * t * first ** (t - 1) - start * (t - 1) * first**t).real for t in range(1, steps + 1)]
    a = (x1 - second * start) / (first - second)
    return [(a * first**t + (start - a) * second**t).real for t in range(steps + 1)]


def describe_roots(lr: float, momentum: float) -> str:
    """Return two sentences on the long run of both rules."""
    first, second = roots(lr, momentum)
    if first.imag:
        shape = f"complex roots of modulus √β = {math.sqrt(momentum):.6g}: the oscillation decays as β^(t/2)"
    elif first == second:
        shape = f"a double root {first.real:.6g}, between real and complex roots: x behaves as t λ^t"
    else:
        shape = f"real roots {first.real:.6g} and {second.real:.6g}: in the long run a step multiplies x by the first"
    endings = [" and diverges" if abs(factor) > 1 else "" for factor in (1 - 2 * lr, first)]
    return f"Vanilla SGD multiplies x by 1 − 2η = {1 - 2 * lr:.6g} in each step{endings[0]}.\nMomentum has {shape}{endings[1]}."


def cell(x: float) -> str:
    """Return x in 17 columns, in powers of ten if it is very large or very small."""
    return f"{x:17.9f}" if x == 0 or 1e-4 <= abs(x) < 1e5 else f"{x:17.8e}"


def draw(lr: float, momentum: float, start: float, steps: int) -> Figure:
    """Draw the paths of both rules, and the larger modulus of the roots against β."""
    figure = Figure(figsize=(7.2, 6.0), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=[1.15, 1])
    first, second = roots(lr, momentum)
    if first.imag:
        amplitude = 2 * abs((start - 2 * lr * start - second * start) / (first - second))
        envelope = [amplitude * momentum ** (t / 2) for t in range(steps + 1)]
        top.fill_between(range(steps + 1), envelope, [-x for x in envelope], color=ORANGE, alpha=0.1, lw=0)
        top.plot([], color=ORANGE, alpha=0.2, lw=8, label="± c β^(t/2)")
    top.axhline(0, color="#5b6770", lw=0.8)
    top.plot(iterates(SGD(lr=lr), start, steps), "o-", color=BLUE, ms=4, label="vanilla SGD")
    top.plot(
        iterates(Momentum(lr=lr, momentum=momentum), start, steps),
        "o-",
        color=ORANGE,
        ms=4,
        label=f"momentum, β = {momentum:g}",
    )
    top.set(xlabel="step t", ylabel="x", xlim=(0, steps))
    top.set_title(f"f(x) = x² from x = {start:g}, learning rate η = {lr:g}", loc="left", size=10.5, weight="bold")
    top.legend(frameon=False)

    betas = [i / 1000 for i in range(1000)]
    bottom.plot(betas, [abs(roots(lr, beta)[0]) for beta in betas], color=ORANGE)
    best = (1 - math.sqrt(2 * lr)) ** 2  # below it the roots are real, above it they are complex
    bottom.axvspan(best, 1, color="#5b6770", alpha=0.1, lw=0)
    bottom.plot(best, math.sqrt(best), "o", color=ORANGE)
    bottom.annotate(
        f"fastest: β = {best:.3g},\nfactor {math.sqrt(best):.3g}",
        (best, math.sqrt(best)),
        (10, -14),
        textcoords="offset points",
    )
    bottom.plot(0, abs(1 - 2 * lr), "s", color=BLUE)
    bottom.annotate("vanilla SGD", (0, abs(1 - 2 * lr)), (9, 2), textcoords="offset points", color=BLUE)
    bottom.annotate("shaded: complex roots, x oscillates", (0.98, 0.06), xycoords="axes fraction", ha="right")
    bottom.set(xlabel="momentum β", ylabel="factor of |x| per step,\nin the long run", xlim=(-0.01, 1), ylim=(0.45, 1.02))
    bottom.set_title("larger root in absolute value", loc="left", size=10.5, weight="bold")
    return figure


def parse(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="parabola.py", description=__doc__.splitlines()[0])
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate η")
    parser.add_argument("--momentum", type=float, default=0.9, help="momentum β")
    parser.add_argument("--start", type=float, default=5.0, help="x0")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", help="picture, .svg or .png")
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error(f"--steps: expected at least 1, got {args.steps}")
    if not math.isfinite(args.start):
        parser.error(f"--start: expected a finite number, got {args.start}")
    return parser, args


def main(argv: Sequence[str] | None = None) -> None:
    parser, args = parse(argv)
    try:
        sgd, momentum = SGD(lr=args.lr), Momentum(lr=args.lr, momentum=args.momentum)
        vanilla = [args.start * (1 - 2 * args.lr) ** t for t in range(args.steps + 1)]
        momentum_form = closed_form(args.lr, args.momentum, args.start, args.steps)
        if not all(map(math.isfinite, [*vanilla, *momentum_form])):
            raise OverflowError
    except FieldError as error:
        parser.error(f"argument --{error.field}: {error.problem}")
    except OverflowError:
        parser.error("the iterates exceed a float64: use fewer steps or a smaller --lr")
    heads = ("vanilla", "x0 (1 − 2η)^t", "momentum", "from the roots")
    print("step" + "".join(f"{head:>17}" + ("  difference" if i % 2 else "") for i, head in enumerate(heads)))
    paths = [iterates(rule, args.start, args.steps) for rule in (sgd, momentum)]
    for t, (a, b, c, d) in enumerate(zip(paths[0], vanilla, paths[1], momentum_form, strict=True)):
        print(f"{t:4}{cell(a)}{cell(b)}{a - b:12.1e}{cell(c)}{cell(d)}{c - d:12.1e}")
    print(describe_roots(args.lr, args.momentum))
    if args.out:
        with rc_context(STYLE):
            figure = draw(args.lr, args.momentum, args.start, args.steps)
            figure.savefig(args.out, dpi=100, metadata={"Date": None} if args.out.endswith(".svg") else None)


if __name__ == "__main__":
    main()
