"""Parameter types and options that several commands share."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsgd.cli.completers import (
    complete_device,
    complete_key,
    complete_networks,
    complete_run,
    complete_scenario,
    complete_setting,
)
from fedsgd.cli.option_groups import baseline_option, cost_option, device_option, network_option, quiet_option, run_option
from fedsgd.cli.streams import print_note
from fedsgd.cli.targets import parse_target_option, print_direction_note
from fedsgd.config.registry import refuse_plugins
from fedsgd.errors import ScenarioError
from fedsgd.system.user_files import expand_user_path, search_scenario_folder

if TYPE_CHECKING:
    from fedsgd.analysis import Method
    from fedsgd.analysis.comparison import Comparison
    from fedsgd.analysis.methods import RunSpec
    from fedsgd.network import PricingModel
    from fedsgd.scenario.scenario import Scenario
    from fedsgd.scenario.target import Target

LINK_OPTIONS = ("up", "down", "latency", "jitter", "spread", "trace", "server_up", "server_down", "broadcast")
PRICE_OPTIONS = ("price_per_gigabyte", "measured_coding")
OTHER_OPTIONS = ("overhead_up", "overhead_down", "device_name", "flops", "device_spread", "server_name", "deadline", "training")
"""Parameters of commands that price runs: for the network, for the prices, and all others."""


class UserPath(click.Path):
    """Path whose leading `~` is the home folder, also where the shell does not expand `~`, as in --out=~/runs."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the expanded path."""
        return expand_user_path(Path(str(super().convert(value, param, ctx))))


class FiniteFloat(click.FloatRange):
    """Number in a range, neither NaN nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


@dataclass(frozen=True)
class ScenarioOptions:
    """Options of a command that reads a scenario; the help texts in `scenario_options` describe them."""

    scenario: Path
    settings: tuple[str, ...]
    data: Path | None
    seed: int | None
    as_json: bool
    quiet: bool
    checkpoint_every: str | None = None
    engine_device: str | None = None

    def load(self, target: Target | None = None) -> Scenario:
        """Return the scenario with its overrides. Modules in the folder of its file can be imported, after all others.

        `target` takes the place of the target in [report].
        """
        from fedsgd.scenario.overrides import parse_setting
        from fedsgd.scenario.scenario import load

        click.get_current_context().with_resource(search_scenario_folder(self.scenario))
        overrides = dict(parse_setting(text) for text in self.settings)
        every: str | int | None = self.checkpoint_every
        if isinstance(every, str) and every.isdecimal():
            every = int(every)
        options = {"seed": self.seed, "engine.device": self.engine_device, "checkpoint.every": every, "report.target": target}
        return load(self.scenario, overrides | {key: value for key, value in options.items() if value is not None})


def plugin_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option --no-plugins to a command that builds components."""

    def refuse(context: click.Context, _parameter: click.Parameter, is_set: bool) -> None:
        if is_set:
            context.with_resource(refuse_plugins())

    decorate: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
        "--no-plugins",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=refuse,
        help="Refuse code from outside fedsgd: my_package.my_module:MyClass, and classes of installed plugins.",
    )
    return decorate(command)


def scenario_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the parameters of `ScenarioOptions` to a command, before its own parameters."""

    @functools.wraps(command)
    def wrapper(**options: Any) -> None:
        if options["quiet"]:  # the Hugging Face library `datasets` also prints progress bars
            os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        shared_options = {f.name: options.pop(f.name) for f in fields(ScenarioOptions) if f.name in options}
        command(ScenarioOptions(**shared_options), **options)

    decorators: list[Callable[[Any], Any]] = [
        click.argument("scenario", type=UserPath(), shell_complete=complete_scenario),
        click.option(
            "--set",
            "settings",
            metavar="KEY=VALUE",
            multiple=True,
            shell_complete=complete_setting,
            help="Override a key of the scenario, e.g. uplink.compressor.density=0.1. Repeatable. A new `name` of a component "
            "resets its other keys to the defaults.",
        ),
        click.option("--data", type=UserPath(), envvar="FEDSGD_DATA", show_envvar=True, help="Folder of data files."),
        click.option("--seed", type=int, help="Override the scenario's seed."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there."),
        click.option("--quiet", is_flag=True, help="Show no progress; warnings about settings stand only in the results."),
        plugin_option,
    ]
    for decorate in reversed(decorators):
        wrapper = decorate(wrapper)
    return wrapper


def _parse_run_specs(_context: click.Context, _parameter: click.Parameter, texts: Sequence[str]) -> list[RunSpec]:
    """Return a path for each text, or (label, path) for LABEL=PATH unless the whole text is an existing path."""
    return [_parse_run_spec(text) for text in texts]


def _parse_run_spec(text: str) -> RunSpec:
    """Split LABEL=PATH at the last "=" that an existing path follows, or at the first "=" if there is no such path."""
    path = expand_user_path(text)
    if "=" not in text or path.exists():
        return path
    positions = [i for i, character in enumerate(text) if character == "="]
    split = next((i for i in reversed(positions) if _path_exists(text[i + 1 :])), positions[0])
    if not text[:split].strip():
        raise ScenarioError(f"{text}: the label is empty, expected LABEL=PATH, or a path alone")
    return text[:split], expand_user_path(text[split + 1 :])


def _path_exists(path: str) -> bool:
    return bool(path) and expand_user_path(path).exists()


@dataclass(frozen=True)
class AnalysisOptions:
    """Options of a command that reads finished runs; the help texts of the options describe them.

    `networks` are names, separated by commas. `pricing_options` has the parameters of `fedsgd.network.build_pricing_model`.
    """

    runs: list[RunSpec]
    target: Target | None
    tuned: tuple[str, ...]
    baseline: str | None
    quiet: bool
    networks: str | None
    price_per_gigabyte: float | None
    measured_coding: bool
    pricing_options: dict[str, Any]

    @property
    def has_link(self) -> bool:
        """True if the options name or describe a network."""
        return self.networks is not None or self.pricing_options["up"] is not None or self.pricing_options["trace"] is not None

    def build_pricing_models(self, network_names: str | None = None) -> dict[str, PricingModel]:
        """Return pricing models by heading: one for each named network, or one for the network that the options describe.

        `network_names`, separated by commas, replace `networks`.
        """
        from fedsgd.network import build_pricing_model, format_network_label

        names = network_names or self.networks
        if not names:
            return {"as given": build_pricing_model(None, **self.pricing_options)}
        unique_names = dict.fromkeys(map(str.strip, names.split(",")))
        models = {name: build_pricing_model(name, **self.pricing_options) for name in unique_names}
        return {format_network_label(name, model): model for name, model in models.items()}

    def load_methods(self) -> list[Method]:
        """Read the runs as methods, and print a line for each run that is ignored."""
        from fedsgd.analysis import load_methods
        from fedsgd.cli import terminal

        with terminal.spinner("reading runs", self.quiet):
            return load_methods(self.runs, self.target, self.tuned, print_note)

    def compare(self, methods: Sequence[Method], pricing_models: dict[str, PricingModel]) -> Comparison:
        """Compare the methods, with a spinner while the ledgers are replayed."""
        from fedsgd.analysis.comparison import compare as compare_methods
        from fedsgd.cli import terminal

        with terminal.spinner("replaying ledgers", self.quiet):
            options = self.price_per_gigabyte, self.measured_coding, self.baseline
            return compare_methods(methods, self.target, pricing_models, *options)


def analysis_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the parameters of `AnalysisOptions` to a command, before its own parameters."""

    @functools.wraps(command)
    def wrapper(**options: Any) -> None:
        pricing_options = {name: options.pop(name) for name in (*LINK_OPTIONS, *OTHER_OPTIONS)}
        run_options = {f.name: options.pop(f.name) for f in fields(AnalysisOptions) if f.name != "pricing_options"}
        print_direction_note(run_options["target"])
        command(AnalysisOptions(**run_options, pricing_options=pricing_options), **options)

    decorators: list[Callable[[Any], Any]] = [*_build_run_options(), *_build_network_options(), *_build_pricing_options()]
    for decorate in reversed([*decorators, quiet_option]):
        wrapper = decorate(wrapper)
    return wrapper


def _build_run_options() -> list[Callable[..., Any]]:
    return [
        click.argument(
            "runs", nargs=-1, required=True, metavar="RUN...", callback=_parse_run_specs, shell_complete=complete_run
        ),
        run_option(
            "--target",
            metavar="TARGET",
            callback=parse_target_option,
            help="Test accuracy, or a metric and its threshold in quotes, e.g. 'loss<0.3', by the rule of McMahan et al.",
        ),
        run_option(
            "--tune",
            "tuned",
            metavar="KEY",
            multiple=True,
            shell_complete=complete_key,
            help="Report each method at its best value of this setting, by validation examples if all of its runs have some. "
            "Repeatable. Sweeps record their tuned settings.",
        ),
        baseline_option,
    ]


def _build_network_options() -> list[Callable[..., Any]]:
    return [
        network_option(
            "--network",
            "networks",
            metavar="NAME,...",
            shell_complete=complete_networks,
            help="Networks by name, see `fedsgd list networks`.",
        ),
        network_option("--up", metavar="RATE", help="Uplink speed of the median client, e.g. 2Mbit/s."),
        network_option("--down", metavar="RATE", help="Downlink speed of the median client, e.g. 10Mbit/s."),
        network_option("--latency", metavar="TIME", help="One-way latency, half of a ping, e.g. 25ms."),
        network_option("--jitter", metavar="TIME", help="Mean of an exponential delay, added to each message."),
        network_option(
            "--spread",
            type=FiniteFloat(0),
            help="Spread of log-normal speeds: with 0.5, two of three clients are within a factor of 1.65.",
        ),
        network_option(
            "--trace",
            type=UserPath(),
            help="CSV file of measured links with the columns client, "
            "up_bits_per_second, down_bits_per_second, latency_seconds.",
        ),
        network_option(
            "--server-up",
            metavar="RATE",
            help="Speed at which the server receives from all clients; the network's by default.",
        ),
        network_option(
            "--server-down", metavar="RATE", help="Speed at which the server sends to all clients; the network's by default."
        ),
        network_option(
            "--broadcast/--no-broadcast", default=None, help="Send each distinct frame down once; the network's by default."
        ),
        network_option(
            "--overhead-up", metavar="SIZE", help="Bytes that the transport adds to an uplink message; about 12kB for Flower."
        ),
        network_option(
            "--overhead-down", metavar="SIZE", help="Bytes that the transport adds to a downlink message; about 3kB for Flower."
        ),
    ]


def _build_pricing_options() -> list[Callable[..., Any]]:
    return [
        device_option(
            "--device",
            "device_name",
            metavar="NAME",
            default="phone",
            show_default=True,
            shell_complete=complete_device,
            help="Device of the clients.",
        ),
        device_option("--flops", metavar="RATE", help="Sustained throughput of a client in training, e.g. 10GFLOP/s."),
        device_option(
            "--training",
            metavar="TIME",
            help="Time that a client of median speed trains in a round, e.g. 20min.  [default: by the operations of the run]",
        ),
        device_option(
            "--device-spread",
            type=FiniteFloat(0),
            default=0.0,
            help="Spread of log-normal device speeds.  [default: equal speeds]",
        ),
        device_option(
            "--server",
            "server_name",
            metavar="NAME",
            default="server",
            show_default=True,
            shell_complete=complete_device,
            help="Device of the server.",
        ),
        device_option("--deadline", metavar="TIME", help="Time for which the server waits for a lost reply."),
        cost_option("--price-per-gigabyte", type=FiniteFloat(0, min_open=True), help="Price of 1e9 bytes, in any currency."),
        device_option(
            "--measured-coding",
            is_flag=True,
            help="Take the coding times that each run measured: the median and, in [ ], the first and ninth decile.  "
            "[default: from the table of codec costs, so that equal runs have equal prices]",
        ),
    ]
