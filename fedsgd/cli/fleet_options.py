"""Options of a fleet: clients, rounds and prices a month."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from fedsgd.cli.option_groups import fleet_option
from fedsgd.cli.options import AnalysisOptions, FiniteFloat
from fedsgd.errors import ScenarioError

if TYPE_CHECKING:
    from fedsgd.analysis.fleet import FleetConfig

FLEET_OPTIONS = ("rounds_per_month", "clients", "cohort", "cap", "share")


def fleet_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a fleet to a command, which receives them as `fleet_settings`."""

    @functools.wraps(command)
    def wrapper(*arguments: Any, **options: Any) -> None:
        command(*arguments, fleet_settings={name: options.pop(name) for name in FLEET_OPTIONS}, **options)

    decorators: list[Callable[[Any], Any]] = [
        fleet_option("--clients", type=click.IntRange(1), help="Registered clients of the fleet."),
        fleet_option("--rounds-per-month", type=click.IntRange(1), help="Rounds of the whole fleet in a month of 30 days."),
        fleet_option(
            "--cohort",
            type=click.IntRange(1),
            help="Clients that a round of the fleet samples.  [default: the same share as in the run]",
        ),
        fleet_option("--cap", metavar="SIZE/month", help="Limit of a client's bytes up and down, e.g. 200MB/month or 1GB/day."),
        fleet_option(
            "--share",
            type=FiniteFloat(0, 1, min_open=True),
            default=0.95,
            show_default=True,
            help="Share of the clients that must stay within --cap.",
        ),
    ]
    for decorate in reversed(decorators):
        wrapper = decorate(wrapper)
    return wrapper


def build_fleet(options: AnalysisOptions, settings: dict[str, Any]) -> FleetConfig | None:
    """Return the fleet of the options, None if they describe none. ScenarioError, which names the option, for wrong values."""
    from fedsgd.analysis.fleet import FleetConfig
    from fedsgd.config.component import FieldError

    share_source = click.get_current_context().get_parameter_source("share")
    if settings["cap"] is None and share_source is not click.core.ParameterSource.DEFAULT:
        raise ScenarioError("--share: expected a cap too, for example --cap 200MB/month")
    if settings["rounds_per_month"] is None:
        option = next((name for name in ("clients", "cohort", "cap") if settings[name] is not None), None)
        if option is not None:
            raise ScenarioError(f"--{option}: expected the rounds of a month too, for example --rounds-per-month 30")
        return None
    if settings["cohort"] is not None and settings["clients"] is None:
        example = f"--clients {max(1000, settings['cohort'])}"
        raise ScenarioError(f"--cohort: expected the number of clients too, for example {example}")
    if options.pricing_options["broadcast"]:
        raise ScenarioError("--broadcast: a fleet counts the bytes that each client receives; leave out --broadcast")
    given = {name: value for name, value in {**settings, **_find_overheads(options)}.items() if value is not None}
    try:
        return FleetConfig(**given, price_per_gigabyte=options.price_per_gigabyte)
    except FieldError as error:
        raise ScenarioError(f"--{error.field.replace('_', '-')}: {error.problem}") from None


def _find_overheads(options: AnalysisOptions) -> dict[str, str | None]:
    """Return the overhead of a message in each direction: of the options or else of the networks, which must agree."""
    overheads: dict[str, str | None] = {name: options.pricing_options[name] for name in ("overhead_up", "overhead_down")}
    models = options.build_pricing_models().values() if options.networks is not None else ()
    if any(model.network.downlink == "broadcast" for model in models):
        problem = "got one with broadcast, but a fleet counts the bytes that each client receives; add --no-broadcast"
        raise ScenarioError(f"--network: {problem}")
    fields = {"overhead_up": "up_overhead_bytes", "overhead_down": "down_overhead_bytes"}
    for name in (name for name, given in overheads.items() if given is None):
        n_bytes = {getattr(model.network, fields[name]) for model in models}
        if len(n_bytes) > 1:
            expected = f"expected one network, or --{name.replace('_', '-')}"
            raise ScenarioError(f"--network: got networks with different overheads, {expected}")
        overheads[name] = next((f"{n:.17g} B" for n in n_bytes), None)
    return overheads
