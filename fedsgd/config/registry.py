"""Registries of the component families, and the four ways by which a plugin enters a family.

A plugin is a class from outside the package. A scenario refers to a plugin by an instance in Python, by
`name = "my_package.my_module:MyClass"`, by a name that `Registry.register` gave, or by the name of an entry point of an
installed package, in the group `fedsgd.compressors`, `fedsgd.aggregators` and so on. In all four cases the class has to pass
`Registry.check_plugin`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from fedsgd.config.component import describe_value
from fedsgd.config.source_files import check_scenario_modules
from fedsgd.errors import ScenarioError, suggest_name
from fedsgd.system.user_files import list_searched_folders

M = TypeVar("M")
PACKAGE = "fedsgd"
_PLUGINS_REFUSED: ContextVar[bool] = ContextVar("plugins_refused", default=False)


@contextmanager
def refuse_plugins() -> Iterator[None]:
    """Refuse all code from outside the package, by a ScenarioError, in the body: `--no-plugins`."""
    token = _PLUGINS_REFUSED.set(True)
    try:
        yield
    finally:
        _PLUGINS_REFUSED.reset(token)


def are_plugins_refused() -> bool:
    """Return True within `refuse_plugins`."""
    return _PLUGINS_REFUSED.get()


def check_plugins_allowed(name: str) -> None:
    """Raise a ScenarioError for a plugin, or for a user's function, within `refuse_plugins`."""
    if _PLUGINS_REFUSED.get():
        raise ScenarioError(f'got "{name}", which is not part of fedsgd, expected a built-in name: --no-plugins is set')


def check_path_allowed(path: str) -> None:
    """Raise a ScenarioError for a "module:name" outside the package, within `refuse_plugins`."""
    if not _is_in_package(path.partition(":")[0]):
        check_plugins_allowed(path)


def is_builtin(cls: type) -> bool:
    """Return True for a class of this package."""
    return _is_in_package(cls.__module__)


def _is_in_package(module: str) -> bool:
    return module.partition(".")[0] == PACKAGE


def import_by_path(path: str) -> Any:
    """Import the object that `my_package.my_module:name` names, or raise a ScenarioError if it cannot be imported."""
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise ScenarioError(f'got "{path}", expected "my_package.my_module:name"')
    check_path_allowed(path)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's module may raise any error, or exit, while it is imported
        # the hint is wrong if the user's module exists, and a module that the user's module imports is missing
        is_missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        places = dict.fromkeys([f"{folder}, " for folder in list_searched_folders() if folder != str(Path.cwd())])
        searched_places = f"searched {''.join(places)}the current folder {Path.cwd()} and Python's path"
        hint = f" ({searched_places}; run from its folder, or add the folder to PYTHONPATH)" if is_missing else ""
        raise ScenarioError(f'cannot import "{module_name}": {type(error).__name__}: {error}{hint}') from error
    if not _is_in_package(module_name) and module_name not in ("__main__", "__mp_main__"):
        check_scenario_modules(module_name)
    try:
        return getattr(module, attribute)
    except AttributeError:
        names = [name for name in dir(module) if not name.startswith("_") and callable(getattr(module, name, None))]
        raise ScenarioError(f'"{module_name}" has no "{attribute}"{suggest_name(attribute, names)}') from None


def check_component_class(cls: object, base: type, description: str) -> None:
    """Raise a ScenarioError unless a value is a class that can be a component of a family.

    Args:
        cls: value to check.
        base: base class of the family.
        description: subject of the message.
    """
    expected = f"expected a frozen dataclass with a `name` that subclasses {base.__module__}.{base.__qualname__}"
    if not isinstance(cls, type):
        raise ScenarioError(f"{description} is {cls!r}, {expected}")
    if not issubclass(cls, base):
        bases = ", ".join(f"{parent.__module__}.{parent.__qualname__}" for parent in cls.__bases__)
        raise ScenarioError(f"{description} is a class of {bases}, {expected}")
    if inspect.isabstract(cls):
        missing_names = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        raise ScenarioError(f"{description} does not define {missing_names}, {expected}")
    if not is_dataclass(cls) or "__dataclass_params__" not in vars(cls):
        raise ScenarioError(f"{description} is not decorated with @dataclass(frozen=True), {expected}")
    if "name" in {f.name for f in fields(cls)}:
        raise ScenarioError(f'{description} has a field `name`, {expected}: name: ClassVar[str] = "..."')
    if not isinstance(getattr(cls, "name", None), str):
        raise ScenarioError(f'{description} has no name, {expected}: name: ClassVar[str] = "..."')


class Registry(Generic[M]):
    """Mapping of a family's names to members, which are imported when they are first used.

    To add a built-in member, write its file and add its line where the registry is created. To add a plugin, see the module.

    Args:
        family: noun for a member, in messages and listings.
        base: base class of the members.
        members: name → "module:Class".
        implied_names: key → name of a table that has this key and no `name`.
        aliases: other name → name of the member.
        plural: plural of `family`, for listings and the entry-point group; None to append "s".
        hidden_members: members that only resolved scenarios name, absent from listings and suggestions.
        check_member: raises a ScenarioError for a plugin that cannot be a member; arguments as for `check_component_class`.
        load_builtin: function from a value of `members` to the member.
    """

    def __init__(
        self,
        family: str,
        base: type,
        members: Mapping[str, str],
        implied_names: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
        plural: str | None = None,
        hidden_members: Mapping[str, str] | None = None,
        check_member: Callable[[Any, type, str], None] = check_component_class,
        load_builtin: Callable[[str], Any] = import_by_path,
    ) -> None:
        self.family = family
        self.plural = f"{family}s" if plural is None else plural
        self.base: Any = base
        self.implied_names = dict(implied_names or {})
        self.aliases = dict(aliases or {})
        self.group = f"{PACKAGE}.{self.plural}"
        self._members = dict(members)
        self._hidden_members = dict(hidden_members or {})
        self._registered_plugins: dict[str, M] = {}
        self._check_member, self._load_builtin = check_member, load_builtin

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the built-in members that listings show."""
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, name: str) -> M:
        """Return the member of a name, an alias, or an import path.

        Raises:
            ScenarioError: the name is unknown, or the plugin cannot be imported or is not a member of the family.
        """
        if not isinstance(name, str):
            raise ScenarioError(f"got {describe_value(name)}{suggest_name('', self.list_names())}")
        name = self.aliases.get(name, name)
        if ":" in name:
            return self._check_plugin(f'"{name}"', import_by_path(name))
        if name in self._builtin_paths:
            member: M = self._load_builtin(self._builtin_paths[name])
            return member
        if name in self._registered_plugins:
            check_plugins_allowed(name)
            return self._registered_plugins[name]
        points = self._find_entry_points().get(name, ())
        if not points:
            raise ScenarioError(f'got "{name}"{suggest_name(name, [*self.list_names(), *self.aliases])}')
        return self._load_entry_point(points)

    def list_names(self) -> list[str]:
        """Return the names of the built-in members and of the plugins, which are not imported."""
        return list(dict.fromkeys([*self._members, *self.list_plugin_names()]))

    def list_plugin_names(self) -> list[str]:
        """Return the names of registered plugins and of entry points; none within `refuse_plugins`."""
        return [] if _PLUGINS_REFUSED.get() else sorted({*self._registered_plugins, *self._find_entry_points()})

    def describe_origin(self, name: str) -> str:
        """Return the origin of a plugin, "my-package 1.0" or "my_module:MyClass"; "" for a built-in member."""
        if name in self._registered_plugins:
            member: Any = self._registered_plugins[name]
            return f"{member.__module__}:{member.__qualname__}" if isinstance(member, type) else "registered"
        return " and ".join(_describe_distribution(point) for point in self._find_entry_points().get(name, ()))

    def find_plugin_path(self, name: str) -> str | None:
        """Return the "module:Class" of a plugin's name, without an import; None for any other name, and an ambiguous one."""
        if name in self._builtin_paths or name in self.aliases:
            return None
        if name in self._registered_plugins:
            return self.describe_origin(name)
        points = self._find_entry_points().get(name, ())
        return points[0].value if len(points) == 1 else None

    def is_valid_name(self, name: object) -> bool:
        """Return True for a name that `__getitem__` looks up: of a member, an alias, a plugin, or an import path."""
        if not isinstance(name, str):
            return False
        is_builtin_name = name in self._builtin_paths or name in self.aliases
        return ":" in name or is_builtin_name or name in self._registered_plugins or name in self._find_entry_points()

    def is_installed(self, member: M) -> bool:
        """Return True for a member that every process finds by its `name`: built in, or an entry point of a package."""
        name = getattr(member, "name", None)
        if name in self._builtin_paths:
            return self[str(name)] is member
        module = str(getattr(member, "__module__", ""))
        points = self._find_entry_points().get(str(name), ())
        return [point.value for point in points] == [f"{module}:{getattr(member, '__qualname__', '')}"]

    def register(self, member: M, name: str | None = None) -> M:
        """Give a plugin its name in this process, for TOML, `--set` and `fedsgd list`; usable as a decorator of a class.

        Run directories have the class's import path, since other processes do not know the registration.

        Args:
            member: class of the family.
            name: name of the member, None for its own `name`.

        Returns:
            The member, unchanged.

        Raises:
            ScenarioError: the member is not of the family, or its name is taken.
        """
        label = f"register: {getattr(member, '__qualname__', None) or describe_value(member)}"
        self._check_plugin(label, member)
        plugin_name = getattr(member, "name", None) if name is None else name
        if not isinstance(plugin_name, str):
            raise ScenarioError(
                f'{label}: got the name {plugin_name!r}, expected a text: register(..., name="my-{self.family}")'
            )
        self._check_free(plugin_name, label)
        known_member = self._registered_plugins.setdefault(plugin_name, member)
        if known_member != member and not _is_redefinition(member, known_member):
            raise ScenarioError(f'{label}: the name "{plugin_name}" is registered already, for {known_member!r}')
        self._registered_plugins[plugin_name] = member
        return member

    def check_plugin(self, member: M) -> None:
        """Raise a ScenarioError for a class from outside the package that cannot be a member.

        Its `name` may not be that of a built-in member, whose costs and results it would be taken for.
        """
        if not (isinstance(member, type) and is_builtin(member)):
            module, name = getattr(member, "__module__", "?"), getattr(member, "__qualname__", repr(member))
            self._check_plugin(f'"{module}:{name}"', member)

    def _check_plugin(self, label: str, member: Any) -> M:
        self._check_member(member, self.base, label)
        if not (isinstance(member, type) and is_builtin(member)):
            self._check_free(getattr(member, "name", None), label)
        checked_member: M = member
        return checked_member

    def _check_free(self, name: object, label: str) -> None:
        if name in self._builtin_paths or name in self.aliases:
            raise ScenarioError(f'{label} has the name "{name}", which a built-in {self.family} has; give it another name')
        if isinstance(name, str) and (not name.isprintable() or not name.strip() or ":" in name):
            raise ScenarioError(f"{label} has the name {name!r}, expected a printable text without a colon")

    def _load_entry_point(self, points: tuple[EntryPoint, ...]) -> M:
        name = points[0].name
        check_plugins_allowed(name)
        if len(points) > 1:
            raise ScenarioError(
                f'got "{name}", which {self.describe_origin(name)} provide; uninstall one, or use "module:Class"'
            )
        label = f'"{name}" of {_describe_distribution(points[0])}'
        try:
            member = self._check_plugin(f'"{points[0].value}"', import_by_path(points[0].value))
        except ScenarioError as error:
            raise ScenarioError(f"{label}: {error}") from error
        if getattr(member, "name", name) != name:
            raise ScenarioError(f'{label}: its class has the name "{getattr(member, "name", None)}", expected "{name}"')
        return member

    def list_conflicts(self) -> list[str]:
        """Return a line for each entry point that is ignored, because it has the name of a built-in member."""
        points = _read_entry_points(self.group)
        return [
            f'"{name}" of {_describe_distribution(point)} is ignored: a built-in {self.family} has this name'
            for name in sorted(points)
            if name in self._builtin_paths or name in self.aliases
            for point in points[name]
        ]

    def _find_entry_points(self) -> Mapping[str, tuple[EntryPoint, ...]]:
        """Return the entry points of the family by name; those that have the name of a built-in member are left out."""
        points = _read_entry_points(self.group)
        return {name: group for name, group in points.items() if name not in self._builtin_paths and name not in self.aliases}

    @property
    def _builtin_paths(self) -> Mapping[str, str]:
        return {**self._members, **self._hidden_members}


@cache
def _read_entry_points(group: str) -> Mapping[str, tuple[EntryPoint, ...]]:
    """Return the entry points of installed packages by name; a package that is found twice counts once."""
    points: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for point in entry_points(group=group):
        points.setdefault(point.name, {})[_describe_distribution(point), point.value] = point
    return {name: tuple(by_origin.values()) for name, by_origin in points.items()}


def _describe_distribution(point: EntryPoint) -> str:
    return point.value if point.dist is None else f"{point.dist.name} {point.dist.version}"


def _is_redefinition(member: object, known_member: object) -> bool:
    """Return True for a class that was defined again, as by running a notebook's cell twice."""
    path = (getattr(member, "__module__", ""), getattr(member, "__qualname__", ""))
    return path == (getattr(known_member, "__module__", None), getattr(known_member, "__qualname__", None))
