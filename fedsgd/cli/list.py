"""`fedsgd list`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from fedsgd.cli.app import main
from fedsgd.cli.completers import COMPONENT_FAMILIES, LISTED_NAMES, PROFILE_FAMILIES, complete_listed
from fedsgd.cli.key_text import echo_keys, echo_titled, format_default, wrap
from fedsgd.cli.options import plugin_option
from fedsgd.cli.streams import echo, echo_json
from fedsgd.errors import ScenarioError, suggest_name

if TYPE_CHECKING:
    from fedsgd.config.registry import Registry
    from fedsgd.network import Network

EXPLAINED_NAMES = """Names:

\b
    sections           all sections of a scenario
    participation      a section: type, default and meaning of each key
    compressors        a family: aggregators, compressors, datasets,
                       durations, models, optimizers, partitioners,
                       samplers, schedules
    networks, devices  profiles for `fedsgd price`, with their sources
    trackers           names for --track
"""


def _parse_name(_context: click.Context, _parameter: click.Parameter, name: str | None) -> str | None:
    """Return a family, "sections", or the name of a section without brackets."""
    if name is None or name in LISTED_NAMES:
        return name
    from fedsgd.scenario.key_reference import list_sections
    from fedsgd.scenario.key_search import find_section

    section = find_section(name)
    if section is None:
        raise ScenarioError(f'list: got "{name}"{suggest_name(name, [*LISTED_NAMES, *list_sections()])}')
    return section


@main.command("list", epilog=EXPLAINED_NAMES, short_help="List sections, components, networks and devices.")
@click.argument("name", required=False, callback=_parse_name, shell_complete=complete_listed)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there.")
@plugin_option
def list_command(name: str | None, as_json: bool) -> None:
    """List what a scenario can contain: its sections and the components for them, with keys and defaults.

    NAME restricts the list, see below. The section "scenario" has the keys above all tables. `fedsgd explain KEY` shows all
    about a key or a component. Installed plugins are listed with their package.
    """
    if name in PROFILE_FAMILIES:
        _list_profiles(name, as_json)
    elif name == "trackers":
        _list_trackers(as_json)
    elif name in COMPONENT_FAMILIES:
        _list_families([name], as_json)
    elif name in (None, "sections"):
        _list_all(as_json, with_families=name is None)
    else:
        _list_section(str(name), as_json)


def _list_section(name: str, as_json: bool) -> None:
    from fedsgd.cli.key_text import echo_section
    from fedsgd.scenario.key_reference import describe_section

    section = describe_section(name)
    if as_json:
        echo_json(json.dumps(section.to_json(), indent=2))
    else:
        echo_section(section)


def _list_all(as_json: bool, with_families: bool) -> None:
    """Print all sections, and with `with_families` all families of components."""
    from fedsgd.cli.key_text import echo_section_overview
    from fedsgd.scenario.key_reference import describe_section, list_sections

    sections = [describe_section(name) for name in list_sections()]
    if as_json:
        tables = [section.to_json() for section in sections]
        echo_json(json.dumps({**_describe_families(), "sections": tables} if with_families else tables, indent=2))
        return
    if with_families:
        echo("sections", bold=True)
    for section in sections:
        echo_section_overview(section)
    if with_families:
        _list_families(COMPONENT_FAMILIES, as_json=False)


def _describe_families(names: Sequence[str] = COMPONENT_FAMILIES) -> dict[str, list[dict[str, Any]]]:
    from fedsgd.scenario.family_listing import describe_registry

    registries = _get_registries()
    return {name: describe_registry(registries[name]) for name in names}


def _get_registries() -> dict[str, Registry[Any]]:
    from fedsgd.scenario.parsing import REGISTRIES

    return {registry.plural: registry for registry in REGISTRIES.values()}


def _list_families(names: Sequence[str], as_json: bool) -> None:
    listing = _describe_families(names)
    if as_json:
        echo_json(json.dumps(listing[names[0]], indent=2))
        return
    for name, members in listing.items():
        if len(listing) > 1:
            echo(name, bold=True)
        shared = _find_shared_keys([member for member in members if "origin" not in member])
        for member in members:
            _print_member(member, shared)
        echo_keys(shared, f"all {name}: ")
        for line in _get_registries()[name].list_conflicts():
            echo(wrap(line, 2), dim=True)


def _find_shared_keys(members: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the keys that all of several members have with equal defaults and options, with the default and the options."""
    keys = [_format_keys(member) for member in members]
    if len(keys) < 2:
        return {}
    return {key: default for key, default in keys[0].items() if all(other.get(key) == default for other in keys)}


def _format_keys(member: Mapping[str, Any]) -> dict[str, str]:
    options = member.get("options", {})
    return {
        key: format_default(value, options.get(key, ()), required=value == "required")
        for key, value in member.get("keys", {}).items()
    }


def _print_member(member: Mapping[str, Any], shared_keys: Mapping[str, str] = MappingProxyType({})) -> None:
    origin = f" ({member['origin']})" if "origin" in member else ""
    aliases = f" (or {', '.join(member['also'])})" if member.get("also") else ""
    summary = f"cannot be used: {member['error']}" if "error" in member else member["summary"]
    echo_titled(member["name"], f"{aliases}{origin}: {summary}", 2)
    echo_keys({key: default for key, default in _format_keys(member).items() if shared_keys.get(key) != default})


def _list_trackers(as_json: bool) -> None:
    from fedsgd.trackers import TRACKERS

    members = [{"name": name, "origin": TRACKERS.describe_origin(name) or f"extra {name}"} for name in TRACKERS.list_names()]
    if as_json:
        echo_json(json.dumps(members, indent=2))
        return
    for member in members:
        echo_titled(member["name"], f": {member['origin']}", 2)


def _list_profiles(kind: str, as_json: bool) -> None:
    from fedsgd.network.profiles import NETWORKS, load_devices, load_networks

    profiles: Mapping[str, Any] = load_networks() if kind == "networks" else load_devices()
    if as_json:
        echo_json(json.dumps({name: asdict(profile) for name, profile in profiles.items()}, indent=2))
        return
    for name, profile in profiles.items():
        origin = NETWORKS.describe_origin(name) if kind == "networks" else ""
        title = f"{profile.title}: " if profile.title else ""
        echo_titled(name, f"{f' ({origin})' if origin else ''}: {title}{profile}", 2)
        echo(wrap(profile.source, 6), dim=True)
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
        echo(wrap(line, 2), dim=True)
