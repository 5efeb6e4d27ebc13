"""`fedsgd price` and `fedsgd compare`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsgd.cli.base import main

if TYPE_CHECKING:
    from fedsgd.network import Terms
    from fedsgd.report import Method
    from fedsgd.report.compare import Comparison
    from fedsgd.report.methods import Given

LINK_OPTIONS = ("up", "down", "latency", "jitter", "spread", "trace", "server_up", "server_down", "broadcast")
OTHER_OPTIONS = ("overhead_up", "overhead_down", "device_name", "flops", "device_spread", "server_name", "deadline")


def _given(_context: click.Context, _parameter: click.Parameter, texts: Sequence[str]) -> list[Given]:
    """A path each, or LABEL=PATH where there is no such path."""
    given: list[Given] = []
    for text in texts:
        label, equals, path = text.partition("=")
        given.append((label, Path(path)) if equals and not Path(text).exists() else Path(text))
    return given


class Finite(click.FloatRange):
    """A number that is one: neither NaN nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


def of_runs(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the runs that it is about, and the target."""
    decorators = [
        click.argument("runs", nargs=-1, required=True, metavar="RUN...", callback=_given),
        click.option("--target", type=Finite(0, 1, min_open=True), help="Accuracy to be reached, by McMahan's rule."),
        click.option(
            "--tune",
            "tuned",
            metavar="KEY",
            multiple=True,
            help="Show each method at its best value of this setting. Repeatable; a sweep says by itself what was tuned.",
        ),
        click.option("--quiet", is_flag=True, help="Show no progress."),
    ]
    return _with(decorators, command)


def of_terms(command: Callable[..., None]) -> Callable[..., None]:
    """The command with what a price is asked for: the networks' names, the price of bytes, and `asked`, the other options."""
    decorators = [
        click.option("--network", "networks", metavar="NAME,...", help="Networks by name; `fedsgd list networks` has them."),
        click.option("--up", metavar="RATE", help="Uplink of the client in the middle, e.g. 2Mbit/s."),
        click.option("--down", metavar="RATE", help="Its downlink, e.g. 10Mbit/s."),
        click.option("--latency", metavar="TIME", help="One way, half of a ping, e.g. 25ms."),
        click.option("--jitter", metavar="TIME", help="Mean of an exponential delay that each message has beside."),
        click.option("--spread", type=Finite(0), help="Log-normal rates: 0.5 puts two clients in three within a factor 1.65."),
        click.option(
            "--trace",
            type=click.Path(path_type=Path),
            help="Links as measured: a CSV file with the columns client, "
            "up_bits_per_second, down_bits_per_second, latency_seconds.",
        ),
        click.option(
            "--server-up", metavar="RATE", help="What the server's link takes in from all clients. [default: no limit]"
        ),
        click.option("--server-down", metavar="RATE", help="What it gives out to all clients. [default: no limit]"),
        click.option("--broadcast", is_flag=True, help="All clients hear one channel: each distinct frame goes down once."),
        click.option("--overhead-up", metavar="SIZE", help="What the transport adds to a message; Flower about 12kB."),
        click.option("--overhead-down", metavar="SIZE", help="The same for the downlink; Flower about 3kB."),
        click.option(
            "--device", "device_name", metavar="NAME", default="phone", show_default=True, help="What clients compute on."
        ),
        click.option("--flops", metavar="RATE", help="Their sustained throughput in training, e.g. 10GFLOP/s."),
        click.option(
            "--device-spread", type=Finite(0), default=0.0, help="Log-normal speeds of clients.  [default: all alike]"
        ),
        click.option("--server", "server_name", metavar="NAME", default="server", show_default=True, help="What aggregates."),
        click.option("--deadline", metavar="TIME", help="How long the server waits for a reply that never comes."),
        click.option("--price-per-gigabyte", type=Finite(0, min_open=True), help="What 10⁹ bytes cost, in your currency."),
    ]

    @functools.wraps(command)
    def called(**options: Any) -> None:
        asked = {name: options.pop(name) for name in (*LINK_OPTIONS, *OTHER_OPTIONS)}
        command(asked=asked, **options)

    return _with(decorators, called)


def _was_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is not click.core.ParameterSource.DEFAULT


def _with(decorators: Sequence[Callable[..., Any]], command: Callable[..., None]) -> Callable[..., None]:
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def terms_of(networks: str | None, asked: dict[str, Any]) -> dict[str, Terms]:
    """By name: of each network that is asked for, or of the one that the options describe."""
    from fedsgd.network import ask

    names = [name.strip() for name in networks.split(",")] if networks else []
    if not names:
        return {"as given": ask(None, **asked)}
    return {name: ask(name, **asked) for name in dict.fromkeys(names)}


def names_a_link(networks: str | None, asked: dict[str, Any]) -> bool:
    """Whether the options say what network to price on."""
    return networks is not None or asked["up"] is not None or asked["trace"] is not None


def note(text: str) -> None:
    """What has to be known beside the results."""
    click.echo(f"fedsgd: {text}", err=True)


def _gathered(runs: Sequence[Given], target: float | None, tuned: Sequence[str], quiet: bool) -> list[Method]:
    from fedsgd import console
    from fedsgd.report import gather

    with console.waiting("reading runs", quiet):
        return gather(runs, target, tuned, note)


def _compared(
    methods: Sequence[Method], target: float | None, terms: dict[str, Terms], cost: float | None, quiet: bool
) -> Comparison:
    from fedsgd import console
    from fedsgd.report.compare import compare as compare_methods

    with console.waiting("replaying ledgers", quiet):
        return compare_methods(methods, target, terms, cost)


@main.command()
@of_runs
@of_terms
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there.")
def price(
    runs: list[Given],
    target: float | None,
    tuned: tuple[str, ...],
    quiet: bool,
    networks: str | None,
    asked: dict[str, Any],
    price_per_gigabyte: float | None,
    as_json: bool,
) -> None:
    """How long finished runs would take on other networks, and what they would cost. Nothing is trained again.

    RUN is a run folder, a folder of them, or a sweep; or LABEL=RUN. Runs that differ by their seed alone are one method. A
    round lasts until its slowest client is done with download, computing, encoding and upload, and the server with decoding.
    Break-even: the uplink speed below which one method is sooner at the target than the other, the ratio of down to up and the
    latency kept.

    A run whose participation depended on time (a deadline, over-selection) is refused: on another network it would have been
    another run.
    """
    from fedsgd import console
    from fedsgd.report import tables
    from fedsgd.report.price import check_time

    terms = terms_of(networks, asked)
    methods = _gathered(runs, target, tuned, quiet)
    for method in methods:
        for run in method.runs:
            check_time(run)
    comparison = _compared(methods, target, terms, price_per_gigabyte, quiet)
    if as_json:
        click.echo(tables.to_json(comparison), nl=False)
    else:
        console.show_price(comparison)


@main.command()
@of_runs
@of_terms
@click.option(
    "--out",
    "outs",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also write the table: a file that ends in .csv, .json, .md or .tex. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there.")
def compare(
    runs: list[Given],
    target: float | None,
    tuned: tuple[str, ...],
    quiet: bool,
    networks: str | None,
    asked: dict[str, Any],
    price_per_gigabyte: float | None,
    outs: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Methods side by side: rounds and bytes to a target, and time and money on networks where --network (or --up and --down)
    asks for them.

    RUN is a run folder, a folder of them, or a sweep; or LABEL=RUN. Runs that differ by their seed alone are one method, shown
    by its median.
    Without --target figures are those of whole runs. A setting that was tuned (in a sweep, or by --tune) is shown at the value
    that gets to the target in the fewest rounds, or without one to the best accuracy.
    """
    from fedsgd import console
    from fedsgd.report import tables

    for out in outs:
        tables.check(out)
    priced = names_a_link(networks, asked)
    given = [name for name in (*LINK_OPTIONS, *OTHER_OPTIONS) if _was_given(name)]
    if not priced and (given or price_per_gigabyte is not None):
        option = f"--{(given or ['price_per_gigabyte'])[0].removesuffix('_name').replace('_', '-')}"
        raise click.UsageError(f"{option} needs a network: give --network, --up and --down, or --trace")
    terms = terms_of(networks, asked) if priced else {}
    comparison = _compared(_gathered(runs, target, tuned, quiet), target, terms, price_per_gigabyte, quiet)
    for out in outs:
        tables.save(comparison, out)
    if as_json:
        click.echo(tables.to_json(comparison), nl=False)
    else:
        console.show_comparison_of_runs(comparison)
    for out in outs:
        click.echo(f"written to {out}", err=True)
