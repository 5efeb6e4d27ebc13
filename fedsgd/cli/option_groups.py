"""Options in groups, with a heading for each group in help texts, and the options of tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import click

from fedsgd.config.text_columns import split_column_names
from fedsgd.system.forkserver import MAX_PROCESSES

UNGROUPED = "Other options"
"""Heading of the options without a group."""
OptionDecorator = Callable[..., Callable[[Callable[..., Any]], Callable[..., Any]]]


class GroupedOption(click.Option):
    """Option of a group.

    Args:
        *names: as for `click.Option`.
        group: heading of the group.
        **settings: as for `click.Option`.
    """

    def __init__(self, *names: Any, group: str, **settings: Any) -> None:
        super().__init__(*names, **settings)
        self.group = group


class GroupedCommand(click.Command):
    """Command whose help lists the options by group, in the order of the groups' first options, and ungrouped options last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each group under its heading."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if isinstance(parameter, click.Option) and record is not None:
                group = parameter.group if isinstance(parameter, GroupedOption) else UNGROUPED
                groups.setdefault(group, []).append(record)
        for heading, records in sorted(groups.items(), key=lambda item: item[0] == UNGROUPED):
            with formatter.section(heading):
                formatter.write_dl(records)


def option_group(heading: str) -> OptionDecorator:
    """Return `click.option` for options of a group."""
    return partial(click.option, cls=GroupedOption, group=heading)


run_option, network_option, device_option, cost_option, fleet_option, output_option = map(
    option_group, ("Runs", "Network", "Devices and time", "Cost", "Fleet", "Output")
)
checkpoint_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--checkpoint-every",
    metavar="ROUNDS|TIME",
    help="Write a checkpoint after so many rounds, such as 10, or after a time, such as 5min. A run that was stopped continues "
    "with `fedsgd resume`, a sweep with the same command.",
)
"""Option of a command that runs scenarios; its value is in `ScenarioOptions`."""
workers_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="K",
    help="Train and evaluate in K processes, each with one thread. Results do not depend on K.",
)
engine_device_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--device",
    "engine_device",
    metavar="cpu|cuda|cuda:N|auto",
    help="Device that trains and evaluates: the CPU, a GPU, or the first GPU if there is one.  [default: engine.device]",
)
"""Option of a command that runs scenarios; its value is in `ScenarioOptions`."""
jobs_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--jobs",
    type=click.IntRange(1, MAX_PROCESSES),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of cells that run at the same time, each in a process. Results do not depend on N.",
)
"""Option of a command that runs many cells."""
stop_after_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--stop-after",
    metavar="TIME",
    callback=lambda context, parameter, text: _parse_time(text),
    help="Begin no cell after this time, such as 6h. The same command runs the other cells later.",
)
"""Option of a command that runs many cells; its value is in seconds, None without the option."""
baseline_option = run_option(
    "--baseline",
    metavar="LABEL",
    help="Method that ratios refer to.  [default: the first uncompressed method, otherwise the first method]",
)
quiet_option = output_option("--quiet", is_flag=True, help="Show no progress.")
columns_option = output_option(
    "--columns",
    metavar="NAME,...",
    callback=lambda context, parameter, text: split_column_names(text),
    help="Columns of the table, in this order; a wrong name prints all names.  [default: all that fit]",
)


def _parse_time(text: str | None) -> float | None:
    from fedsgd.config.quantities import parse_seconds
    from fedsgd.errors import ScenarioError

    try:
        return None if text is None else parse_seconds(text)
    except ScenarioError as error:
        raise click.BadParameter(str(error)) from None


def table_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the parameters `statistic`, `columns` and `as_json` to a command that prints a table of methods."""
    decorators = (
        output_option(
            "--statistic",
            type=click.Choice(("median", "mean", "interval")),
            default="median",
            show_default=True,
            help="Over seeds: the median with minimum and maximum, the mean with the sample standard deviation (n - 1), or the "
            "Kaplan-Meier median with its confidence interval.",
        ),
        columns_option,
        output_option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there."),
    )
    return reduce(lambda wrapped, decorate: decorate(wrapped), reversed(decorators), command)


def refuse_options_without_network(has_network: bool, names: Sequence[str]) -> None:
    """Raise UsageError if the command line has one of these parameters and no network."""
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    name = next((name for name in names if context.get_parameter_source(name) is not default), None)
    if name is not None and not has_network:
        parameter = next(parameter for parameter in context.command.params if parameter.name == name)
        option = (parameter.secondary_opts if context.params[name] is False else parameter.opts)[0]
        raise click.UsageError(f"{option} needs a network: give --network, --up and --down, or --trace")
