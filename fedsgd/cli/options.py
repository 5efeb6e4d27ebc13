"""Parameter types and options that several commands share."""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsgd.cli.streams import echo
from fedsgd.errors import DeploymentError, OutputError, RunError, ScenarioError, WireError
from fedsgd.system.user_files import expand_user_path

if TYPE_CHECKING:
    from fedsgd.analysis import Method
    from fedsgd.analysis.comparison import Comparison
    from fedsgd.analysis.methods import RunSpec
    from fedsgd.network import PricingModel
    from fedsgd.scenario.scenario import Scenario

LINK_OPTIONS = ("up", "down", "latency", "jitter", "spread", "trace", "server_up", "server_down", "broadcast")
PRICE_OPTIONS = ("price_per_gigabyte", "measured_coding")
OTHER_OPTIONS = ("overhead_up", "overhead_down", "device_name", "flops", "device_spread", "server_name", "deadline")


class UserPath(click.Path):
    """A path, in which a leading `~` is the home folder, also where the shell leaves it: --out=~/runs."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the expanded path."""
        return expand_user_path(Path(str(super().convert(value, param, ctx))))


class FiniteFloat(click.FloatRange):
    """A number that is one: neither NaN nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


@dataclass(frozen=True)
class ScenarioOptions:
    """What every command that reads a scenario is given."""

    scenario: Path
    settings: tuple[str, ...]
    data: Path | None
    seed: int | None
    as_json: bool
    quiet: bool

    def load(self) -> Scenario:
        """The scenario with its overrides."""
        from fedsgd.scenario.overrides import parse_setting
        from fedsgd.scenario.scenario import load

        overrides = dict(parse_setting(text) for text in self.settings)
        if self.seed is not None:
            overrides["seed"] = self.seed
        return load(self.scenario, overrides)


def scenario_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the parameters of `ScenarioOptions` in front of its own."""

    @functools.wraps(command)
    def wrapper(
        scenario: Path,
        settings: tuple[str, ...],
        data: Path | None,
        seed: int | None,
        as_json: bool,
        quiet: bool,
        **own: Any,
    ) -> None:
        if quiet:  # the datasets library has progress bars of its own
            os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        command(ScenarioOptions(scenario, settings, data, seed, as_json, quiet), **own)

    decorators = [
        click.argument("scenario", type=UserPath()),
        click.option(
            "--set",
            "settings",
            metavar="KEY=VALUE",
            multiple=True,
            help="Override a key of the scenario, e.g. uplink.compressor.density=0.1. Repeatable. Setting a `name` resets the "
            "other keys of that component to the new member's defaults.",
        ),
        click.option("--data", type=UserPath(), envvar="FEDSGD_DATA", show_envvar=True, help="Folder of data files."),
        click.option("--seed", type=int, help="Override the scenario's seed."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there."),
        click.option("--quiet", is_flag=True, help="Show no progress."),
    ]
    for decorate in reversed(decorators):
        wrapper = decorate(wrapper)
    return wrapper


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


def print_note(text: str) -> None:
    """What has to be known beside the results."""
    echo(f"fedsgd: {text}", err=True)


@contextmanager
def mention_partial_ledger(out: Path) -> Iterator[None]:
    """Where a run breaks off, say where its ledger is, if there is one."""
    try:
        yield
    except (RunError, WireError, DeploymentError, KeyboardInterrupt):
        ledger = out / "ledger.parquet"
        if ledger.is_file() or (ledger.is_dir() and any(ledger.iterdir())):
            echo(f"fedsgd: the ledger up to there is in {out / 'ledger.parquet'}", err=True)
        raise


@contextmanager
def claim_numbered_folder(name: str) -> Iterator[Path]:
    """runs/NAME-N with the lowest N that is free, claimed by making it; gone again if nothing was written to it."""
    runs = Path("runs")
    for n in itertools.count(1):
        folder = runs / f"{name}-{n}"
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise OutputError(f"{folder}: cannot be made ({error.strerror}); choose a folder with --out") from None
    try:
        yield folder
    finally:
        for made in (folder, runs):
            with suppress(OSError):
                made.rmdir()
