"""Functions that complete arguments in a shell. They import neither torch nor plugins, and print nothing."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

COMPONENT_FAMILIES = (
    *("aggregators", "compressors", "datasets", "durations", "models", "optimizers", "partitioners", "samplers", "schedules"),
)
PROFILE_FAMILIES = ("networks", "devices")
LISTED_NAMES = (*COMPONENT_FAMILIES, *PROFILE_FAMILIES, "trackers", "sections")
"""Names that `fedsgd list` accepts in addition to those of sections."""
NO_SPACE = "nospace"
"""Type of a completion after which the shell inserts no space, because more characters follow."""
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
RUN_FILES, SWEEP_FILE = {"summary.json", "scenario.toml"}, "sweep.json"
"""Files of a finished run, and of a sweep."""


def _completer(find: Callable[[click.Context, str], Iterable[CompletionItem]]) -> Completer:
    """Return a completer of click that has no completions where `find` fails, for example in a folder that cannot be read."""

    @functools.wraps(find)
    def complete(context: click.Context, _parameter: click.Parameter, start: str) -> list[CompletionItem]:
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                return list(find(context, start))
        except Exception:  # a message would be printed into the command line that the user is writing
            return []

    return complete


def _select(names: Iterable[str], start: str) -> Iterator[CompletionItem]:
    """Yield the names that begin with `start`."""
    yield from (CompletionItem(name) for name in names if name.startswith(start))


@_completer
def complete_listed(_context: click.Context, start: str) -> Iterator[CompletionItem]:
    """Complete the argument of `fedsgd list`: a family or a section."""
    from fedsgd.scenario.key_reference import list_sections

    bracket = "[" if start.startswith("[") else ""
    names = [*list_sections(), *LISTED_NAMES] if not bracket else [f"[{name}]" for name in list_sections()]
    yield from _select(names, start)


@_completer
def complete_explained(_context: click.Context, start: str) -> Iterator[CompletionItem]:
    """Complete the argument of `fedsgd explain`: a dotted key, a section or a component."""
    from fedsgd.scenario.parsing import REGISTRIES

    yield from _find_keys(start, "")
    if start and "." not in start:
        components = (name for registry in dict.fromkeys(REGISTRIES.values()) for name in [*registry, *registry.aliases])
        yield from _select(dict.fromkeys(components), start)


@_completer
def complete_page(_context: click.Context, start: str) -> Iterator[CompletionItem]:
    """Complete the argument of `fedsgd docs`: the name of a page, or its last part."""
    from fedsgd.cli.doc_pages import list_pages

    names = [page.name for page in list_pages()]
    yield from _select(names if "/" in start else dict.fromkeys(name.rpartition("/")[2] for name in names), start)


@_completer
def complete_study(_context: click.Context, start: str) -> Iterator[CompletionItem]:
    """Complete the name of a study."""
    from fedsgd.analysis.replication.study import list_studies

    yield from _select(list_studies(), start)


@_completer
def complete_key(_context: click.Context, start: str) -> Iterator[CompletionItem]:
    """Complete a dotted key."""
    return _find_keys(start, "")


@_completer
def complete_setting(_context: click.Context, start: str) -> Iterator[CompletionItem]:
    """Complete KEY=VALUE, and KEY=V1,V2,... as in the grid of a sweep."""
    key, equals, values = start.partition("=")
    return _find_values(key, values) if equals else _find_keys(start, "=")


@_completer
def complete_field(_context: click.Context, start: str) -> Iterator[CompletionItem]:
    """Complete KEY=VALUE for the fields of any compressor."""
    prefix = "uplink.compressor."
    key, equals, values = start.partition("=")
    items = _find_values(f"{prefix}{key}", values) if equals else _find_keys(f"{prefix}{key}", "=")
    return (CompletionItem(item.value.removeprefix(prefix), item.type, item.help) for item in items)


def _find_keys(start: str, end: str) -> Iterator[CompletionItem]:
    """Yield the next keys after `start`. A key that can have keys of its own is also followed by a dot.

    `end` is appended to a key that takes a value, and no space follows.
    """
    from fedsgd.scenario.key_reference import list_sections
    from fedsgd.scenario.key_search import list_next_keys

    for description, has_keys in list_next_keys(start):
        if not (end and description.key in list_sections()):
            yield CompletionItem(f"{description.key}{end}", type=NO_SPACE if end else "plain", help=description.summary)
        if has_keys:
            yield CompletionItem(f"{description.key}.", type=NO_SPACE, help=description.summary)


def _find_values(key: str, values: str) -> Iterator[CompletionItem]:
    """Yield the values of a key, after the values that a list has already."""
    from fedsgd.scenario.key_search import find_keys

    first_values, comma, start = values.rpartition(",")
    options = [option for description in find_keys(key) for option in _list_values(description.type, description.options)]
    for option in dict.fromkeys(options):
        if option.startswith(start):
            yield CompletionItem(f"{key}={first_values}{comma}{option}")


def _list_values(type_words: str, options: Iterable[Any]) -> list[str]:
    return ["true", "false"] if type_words == "true or false" else [str(option) for option in options]


@_completer
def complete_networks(_context: click.Context, start: str) -> Iterator[CompletionItem]:
    """Complete the last of several networks, separated by commas."""
    from fedsgd.network.profiles import NETWORKS

    first_names, comma, last = start.rpartition(",")
    for name in NETWORKS.list_names():
        if name.startswith(last) and name not in first_names.split(","):
            yield CompletionItem(f"{first_names}{comma}{name}")


@_completer
def complete_device(_context: click.Context, start: str) -> Iterator[CompletionItem]:
    """Complete a device."""
    from fedsgd.network.profiles import load_devices

    return _select(load_devices(), start)


@_completer
def complete_tracker(_context: click.Context, start: str) -> Iterator[CompletionItem]:
    """Complete a tracker."""
    from fedsgd.trackers import TRACKERS

    return _select(TRACKERS.list_names(), start)


def complete_member(family: str) -> Completer:
    """Return a completer of the members of a family, which is named by its plural."""

    @_completer
    def complete(_context: click.Context, start: str) -> Iterator[CompletionItem]:
        from fedsgd.scenario.parsing import REGISTRIES

        registry = next(registry for registry in REGISTRIES.values() if registry.plural == family)
        return _select([*registry.list_names(), *registry.aliases], start)

    return complete


@_completer
def complete_scenario(_context: click.Context, start: str) -> Iterator[CompletionItem]:
    """Complete the path of a TOML file."""
    return _find_paths(start, lambda path: path.suffix == ".toml" and path.is_file())


@_completer
def complete_run(_context: click.Context, start: str) -> Iterator[CompletionItem]:
    """Complete RUN or LABEL=RUN: the folder of a run or of a sweep. Without a start, the folders in `runs` are offered too."""
    label, equals, path = start.rpartition("=")
    if not path:
        yield from _find_paths("runs/", _is_run, f"{label}{equals}")
    yield from _find_paths(path, _is_run, f"{label}{equals}")


def _is_run(path: Path) -> bool:
    return path.is_dir() and ((path / SWEEP_FILE).is_file() or all((path / name).is_file() for name in RUN_FILES))


def _find_paths(start: str, is_result: Callable[[Path], bool], prefix: str = "") -> Iterator[CompletionItem]:
    """Yield the paths that begin with `start` and are results, and folders, which may contain results."""
    folder, slash, name = start.rpartition("/")
    location = Path(f"{folder}{slash}" or ".").expanduser()
    for path in sorted(location.iterdir()) if location.is_dir() else ():
        if path.name.startswith(name) and path.name.startswith(".") <= name.startswith("."):
            text = f"{prefix}{folder}{slash}{path.name}"
            if is_result(path):
                yield CompletionItem(text)
            elif path.is_dir():
                yield CompletionItem(f"{text}/", type=NO_SPACE)
