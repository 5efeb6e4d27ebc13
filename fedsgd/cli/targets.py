"""Option --target of commands that run a scenario or read finished runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from fedsgd.cli.streams import print_note
from fedsgd.errors import ScenarioError

if TYPE_CHECKING:
    from fedsgd.scenario.target import Target


def parse_target_option(_context: click.Context, _parameter: click.Parameter, text: str | None) -> Target | None:
    """Return the target of a text; the error for a bare word explains that a shell interprets < and >."""
    from fedsgd.scenario.target import parse_target

    if text is None:
        return None
    try:
        return parse_target(text)
    except ScenarioError as error:
        is_word = not any(character in "<>.0123456789" for character in text)
        hint = "; quote the text, because a shell interprets < and >" if is_word else ""
        raise ScenarioError(f"--target: {error}{hint}") from None


def print_direction_note(target: Target | None) -> None:
    """Print a line for a target of finished runs that worse models reach; the commands that run a scenario warn of it."""
    from fedsgd.experiment.scenario_warnings import find_direction_problem

    problem = None if target is None else find_direction_problem(target)
    if problem is not None:
        print_note(f"--target {target}: {problem}")


def report_target_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the parameter `target` to a command that runs a scenario."""
    decorate: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
        "--target",
        metavar="TARGET",
        callback=parse_target_option,
        help="Accuracy, or a metric and its threshold in quotes, e.g. 'loss<0.3', whose cost is reported: a short form of "
        "--set report.target=TARGET.",
    )
    return decorate(command)
