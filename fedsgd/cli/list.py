"""`fedsgd list`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from fedsgd.cli.app import main
from fedsgd.cli.options import plugin_option
from fedsgd.cli.streams import echo, echo_json
from fedsgd.errors import ScenarioError

if TYPE_CHECKING:
    from fedsgd.config.registry import Registry
    from fedsgd.network import Network

COMPONENT_FAMILIES = (
    *("aggregators", "compressors", "datasets", "durations", "models", "optimizers", "partitioners", "samplers", "schedules"),
)
PROFILE_FAMILIES = ("networks", "devices")
OTHER_FAMILIES = ("trackers",)


@main.command("list", short_help="List components, networks, devices and trackers.")
@click.argument("family", type=click.Choice((*COMPONENT_FAMILIES, *PROFILE_FAMILIES, *OTHER_FAMILIES)), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@plugin_option
def list_command(family: str | None, as_json: bool) -> None:
    """List components for scenarios, of all families or of one FAMILY, with their keys and defaults.

    The families networks and devices list profiles for `fedsgd price`, each with the source of its figures. The family trackers
    lists names for --track. Installed plugins are listed with their package.
    """
    if family in PROFILE_FAMILIES:
        _list_profiles(family, as_json)
        return
    if family == "trackers":
        _list_trackers(as_json)
        return
    from fedsgd.scenario.family_listing import describe_registry
    from fedsgd.scenario.parsing import REGISTRIES

    registries = {registry.plural: registry for registry in REGISTRIES.values()}
    listing = {name: describe_registry(registries[name]) for name in ([family] if family else COMPONENT_FAMILIES)}
    if as_json:
        echo_json(json.dumps(listing[family] if family else listing, indent=2))
        return
    for name, members in listing.items():
        if not family:
            echo(name, bold=True)
        for member in members:
            _print_member(member)
        for line in registries[name].list_conflicts():
            echo(f"  {line}", dim=True)


def _print_member(member: Mapping[str, Any]) -> None:
    origin = f" ({member['origin']})" if "origin" in member else ""
    aliases = f" (or {', '.join(member['also'])})" if member.get("also") else ""
    summary = f"cannot be used: {member['error']}" if "error" in member else member["summary"]
    echo(f"  {click.style(member['name'], fg='cyan')}{aliases}{origin}: {summary}")
    options = member.get("options", {})
    defaults = {key: _format_default(value, options.get(key, ())) for key, value in member.get("keys", {}).items()}
    if defaults:
        echo(f"      {', '.join(f'{key} = {value}' for key, value in defaults.items())}", dim=True)


def _list_trackers(as_json: bool) -> None:
    from fedsgd.trackers import TRACKERS

    members = [{"name": name, "origin": TRACKERS.describe_origin(name) or f"fedsgd[{name}]"} for name in TRACKERS.list_names()]
    if as_json:
        echo_json(json.dumps(members, indent=2))
        return
    for member in members:
        echo(f"  {click.style(member['name'], fg='cyan')}: {member['origin']}")


def _list_profiles(kind: str, as_json: bool) -> None:
    from fedsgd.network.profiles import NETWORKS, load_devices, load_networks

    profiles: Mapping[str, Any] = load_networks() if kind == "networks" else load_devices()
    if as_json:
        echo_json(json.dumps({name: asdict(profile) for name, profile in profiles.items()}, indent=2))
        return
    for name, profile in profiles.items():
        origin = NETWORKS.describe_origin(name) if kind == "networks" else ""
        title = f"{profile.title}: " if profile.title else ""
        echo(f"  {click.style(name, fg='cyan')}{f' ({origin})' if origin else ''}: {title}{profile}")
        echo(f"      {profile.source}", dim=True)
    if kind == "networks":
        _print_unusable_networks(NETWORKS)


def _print_unusable_networks(networks: Registry[Network]) -> None:
    """Print the networks of plugins that cannot be loaded, and the entry points that are ignored."""
    for name in networks.list_plugin_names():
        try:
            _ = networks[name]
        except ScenarioError as error:
            _print_member({"name": name, "origin": networks.describe_origin(name), "error": str(error)})
    for line in networks.list_conflicts():
        echo(f"  {line}", dim=True)


def _format_default(default: Any, options: Sequence[Any]) -> str:
    """Return a key's default, spelled nearly as in TOML, "(unset)" or "(required)", and then its other options."""
    alternatives = [json.dumps(value) for value in options if value != default]
    if default in (None, "required"):
        return " | ".join(["(unset)" if default is None else "(required)", *alternatives])
    return " | ".join([json.dumps(default), *alternatives])
