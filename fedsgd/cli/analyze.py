"""`fedsgd price` and `fedsgd compare`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsgd.cli.app import FiniteFloat, UserPath, main
from fedsgd.cli.terminal.streams import echo, echo_json
from fedsgd.errors import ScenarioError
from fedsgd.system.user_files import expand_user_path

if TYPE_CHECKING:
    from fedsgd.analysis import Method
    from fedsgd.analysis.comparison import Comparison
    from fedsgd.analysis.methods import RunSpec
    from fedsgd.network import PricingModel

LINK_OPTIONS = ("up", "down", "latency", "jitter", "spread", "trace", "server_up", "server_down", "broadcast")
PRICE_OPTIONS = ("price_per_gigabyte", "measured_coding")
OTHER_OPTIONS = ("overhead_up", "overhead_down", "device_name", "flops", "device_spread", "server_name", "deadline")


def _parse_run_specs(_context: click.Context, _parameter: click.Parameter, texts: Sequence[str]) -> list[RunSpec]:
    """Return a path each, or (label, path) of LABEL=PATH where there is no path of the whole text."""
    return [_parse_run_spec(text) for text in texts]


def _parse_run_spec(text: str) -> RunSpec:
    """Split LABEL=PATH at the last "=" behind which a path exists, at the first "=" where none does."""
    whole = expand_user_path(text)
    if "=" not in text or whole.exists():
        return whole
    places = [at for at, character in enumerate(text) if character == "="]
    at = next((at for at in reversed(places) if _path_exists(text[at + 1 :])), places[0])
    if not text[:at].strip():
        raise ScenarioError(f"{text}: the label is empty, expected LABEL=PATH, or a path alone")
    return text[:at], expand_user_path(text[at + 1 :])


def _path_exists(path: str) -> bool:
    return bool(path) and expand_user_path(path).exists()


@dataclass(frozen=True)
class AnalysisOptions:
    """What every command that reads finished runs is given: the runs, the target, what was tuned; and what a price is for:
    networks' names, the price of bytes, whether coding is by the clock, and all other options, as `fedsgd.network.ask` has
    them."""

    runs: list[RunSpec]
    target: float | None
    tuned: tuple[str, ...]
    quiet: bool
    networks: str | None
    price_per_gigabyte: float | None
    measured_coding: bool
    pricing_options: dict[str, Any]

    @property
    def has_link(self) -> bool:
        """Whether it is said what network to price on."""
        return self.networks is not None or self.pricing_options["up"] is not None or self.pricing_options["trace"] is not None

    def build_pricing_models(self, network_names: str | None = None) -> dict[str, PricingModel]:
        """Return the terms by heading, for each network asked for, or for the network that the options describe.

        Args:
            networks: names to use in place of those that were given.
        """
        from fedsgd.network import build_pricing_model, format_network_label

        asked = network_names or self.networks
        if not asked:
            return {"as given": build_pricing_model(None, **self.pricing_options)}
        terms = {
            name: build_pricing_model(name, **self.pricing_options) for name in dict.fromkeys(map(str.strip, asked.split(",")))
        }
        return {format_network_label(name, each): each for name, each in terms.items()}

    def load_methods(self) -> list[Method]:
        """What the runs are; what is left out is said."""
        from fedsgd.analysis import load_methods
        from fedsgd.cli import terminal

        with terminal.spinner("reading runs", self.quiet):
            return load_methods(self.runs, self.target, self.tuned, print_note)

    def compare(self, methods: Sequence[Method], pricing_models: dict[str, PricingModel]) -> Comparison:
        """The methods side by side."""
        from fedsgd.analysis.comparison import compare as compare_methods
        from fedsgd.cli import terminal

        with terminal.spinner("replaying ledgers", self.quiet):
            return compare_methods(methods, self.target, pricing_models, self.price_per_gigabyte, self.measured_coding)


def analysis_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the parameters of `AnalysisOptions` in front of its own."""

    @functools.wraps(command)
    def wrapper(**options: Any) -> None:
        priced = {name: options.pop(name) for name in (*LINK_OPTIONS, *OTHER_OPTIONS)}
        asked = {f.name: options.pop(f.name) for f in fields(AnalysisOptions) if f.name != "pricing_options"}
        command(AnalysisOptions(**asked, pricing_options=priced), **options)

    for decorate in reversed((*_build_run_options(), *_build_pricing_options())):
        wrapper = decorate(wrapper)
    return wrapper


def _build_run_options() -> list[Callable[..., Any]]:
    return [
        click.argument("runs", nargs=-1, required=True, metavar="RUN...", callback=_parse_run_specs),
        click.option("--target", type=FiniteFloat(0, 1, min_open=True), help="Accuracy to be reached, by McMahan's rule."),
        click.option(
            "--tune",
            "tuned",
            metavar="KEY",
            multiple=True,
            help="Show each method at its best value of this setting. Repeatable; a sweep says by itself what was tuned.",
        ),
        click.option("--quiet", is_flag=True, help="Show no progress."),
    ]


def _build_pricing_options() -> list[Callable[..., Any]]:
    return [
        click.option("--network", "networks", metavar="NAME,...", help="Networks by name; `fedsgd list networks` has them."),
        click.option("--up", metavar="RATE", help="Uplink of the client in the middle, e.g. 2Mbit/s."),
        click.option("--down", metavar="RATE", help="Its downlink, e.g. 10Mbit/s."),
        click.option("--latency", metavar="TIME", help="One way, half of a ping, e.g. 25ms."),
        click.option("--jitter", metavar="TIME", help="Mean of an exponential delay that each message has beside."),
        click.option(
            "--spread", type=FiniteFloat(0), help="Log-normal rates: 0.5 puts two clients in three within a factor 1.65."
        ),
        click.option(
            "--trace",
            type=UserPath(),
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
            "--device-spread", type=FiniteFloat(0), default=0.0, help="Log-normal speeds of clients.  [default: all alike]"
        ),
        click.option("--server", "server_name", metavar="NAME", default="server", show_default=True, help="What aggregates."),
        click.option("--deadline", metavar="TIME", help="How long the server waits for a reply that never comes."),
        click.option("--price-per-gigabyte", type=FiniteFloat(0, min_open=True), help="What 1e9 bytes cost, in your currency."),
        click.option(
            "--measured-coding",
            is_flag=True,
            help="Time encoding and decoding by the clock of the machine that made each run, in the median and, in [ ], with "
            "the first and the ninth decile.  [default: by the table of codec costs, so that equal runs have equal prices]",
        ),
    ]


def _is_explicit(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is not click.core.ParameterSource.DEFAULT


def print_note(text: str) -> None:
    """What has to be known beside the results."""
    echo(f"fedsgd: {text}", err=True)


@main.command()
@analysis_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there.")
def price(options: AnalysisOptions, as_json: bool) -> None:
    """How long finished runs would take on other networks, and what they would cost. Nothing is trained again.

    RUN is a run folder, a folder of them, or a sweep; or LABEL=RUN, where LABEL may hold "=": it is the longest with a
    RUN that exists. Runs that differ by their seed alone are one method. A round lasts until its slowest client is
    done with download, computing, encoding and upload, and the server with decoding. Coding is counted by a table of codec
    costs, so that runs of equal digests have equal prices.
    Break-even: the uplink speed below which one method is sooner at the target than the other, the ratio of down to up and the
    latency kept.

    A run whose participation depended on time (a deadline, over-selection) is refused: on another network it would have been
    another run.
    """
    from fedsgd.analysis import tables
    from fedsgd.analysis.pricing import require_time_independent
    from fedsgd.cli import terminal

    terms = options.build_pricing_models()
    methods = options.load_methods()
    for method in methods:
        for run in method.runs:
            require_time_independent(run)
    comparison = options.compare(methods, terms)
    if as_json:
        echo_json(tables.to_json(comparison))
    else:
        terminal.print_price(comparison)


@main.command()
@analysis_options
@click.option(
    "--out",
    "outs",
    multiple=True,
    metavar="FILE",
    type=UserPath(),
    help="Also write the table: a file that ends in .csv, .json, .md or .tex. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there.")
def compare(options: AnalysisOptions, outs: tuple[Path, ...], as_json: bool) -> None:
    """Methods side by side: rounds and bytes to a target, and time and money on networks where --network (or --up and --down)
    asks for them.

    RUN is a run folder, a folder of them, or a sweep; or LABEL=RUN, where LABEL may hold "=": it is the longest with a
    RUN that exists. Runs that differ by their seed alone are one method, shown by its median.
    Without --target figures are those of whole runs. A setting that was tuned (in a sweep, or by --tune) is shown at the value
    that gets to the target in the fewest rounds, or without one to the best accuracy.
    """
    from fedsgd.analysis import tables
    from fedsgd.cli import terminal

    for out in outs:
        tables.check_table_path(out)
    priced = options.has_link
    given = [name for name in (*LINK_OPTIONS, *OTHER_OPTIONS, *PRICE_OPTIONS) if _is_explicit(name)]
    if not priced and given:
        option = f"--{given[0].removesuffix('_name').replace('_', '-')}"
        raise click.UsageError(f"{option} needs a network: give --network, --up and --down, or --trace")
    terms = options.build_pricing_models() if priced else {}
    comparison = options.compare(options.load_methods(), terms)
    for out in outs:
        tables.save_table(comparison, out)
    if as_json:
        echo_json(tables.to_json(comparison))
    else:
        terminal.print_comparison(comparison)
    for out in outs:
        echo(f"written to {out}", err=True)
