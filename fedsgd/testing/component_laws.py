"""Laws of components of every family: frozen values with settings that a scenario file can hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, fields
from functools import partial

from fedsgd.certification.law import Law, make_law
from fedsgd.certification.operator_laws import require
from fedsgd.certification.round_laws import run_under_two_states
from fedsgd.certification.simulate_rounds import rebuild
from fedsgd.config.component import Component
from fedsgd.config.python_objects import find_markers
from fedsgd.config.user_errors import find_user_class
from fedsgd.errors import LawError
from fedsgd.scenario.parsing import REGISTRIES, dump_table, parse_table


def immutable_value(component: Component) -> None:
    """The component is a frozen dataclass with a name, and a copy that is built from its fields is equal to it."""
    law, cls = "immutable_value", type(component)
    is_dataclass = "__dataclass_params__" in vars(cls)
    require(is_dataclass, law, component, f"{cls.__qualname__} is not decorated with @dataclass(frozen=True)")
    has_name = isinstance(getattr(cls, "name", None), str)
    require(has_name, law, component, f'{cls.__qualname__} has no name, expected name: ClassVar[str] = "..."')
    try:
        setattr(component, next((f.name for f in fields(component)), "field"), None)
    except FrozenInstanceError:
        pass
    else:
        raise LawError(f"{law}: {component}: a field can be set, expected @dataclass(frozen=True)")
    copy = rebuild(component)
    require(copy == component, law, component, f"a copy from the fields is {copy}, which is not equal")


def settings_round_trip(component: Component) -> None:
    """The settings of the component, written as a table of a scenario, are read as an equal component.

    A class that no other process can import, such as one of a notebook, has no such table.
    """
    table = dump_table(component)
    if next(find_markers({"component": table}), None) is None:
        settings = {key: value for key, value in table.items() if key != "name"}
        copy = parse_table(type(component), settings)
        require(copy == component, "settings_round_trip", component, f"settings {settings} are read as {copy}")


def global_generators(component: Component, run: Callable[[], object]) -> None:
    """The component does not use the global generators of `random`, numpy and torch: neither draws nor reads or sets states."""
    run_under_two_states(component, run)


def list_component_laws(component: Component) -> list[Law]:
    """Return the laws of every component."""
    laws = [make_law(immutable_value, component)]
    if _has_settings(component):
        laws.append(make_law(settings_round_trip, component))
    return laws


def _has_settings(component: Component) -> bool:
    """Return True for a user's class and for a registered class; a scenario names no other class."""
    is_registered = any(registry.is_installed(type(component)) for registry in REGISTRIES.values())
    return is_registered or find_user_class(component) is not None


def arrange_laws(component: Component, laws: Sequence[Law], run: Callable[[], object]) -> list[Law]:
    """Return all laws of a component in the order in which they are checked, so that the first broken law is the cause.

    Args:
        component: component that has to obey the laws.
        laws: laws of the family; the first says that results are valid.
        run: function that runs a copy of the component, for the law of global generators.
    """
    generator_law = make_law(global_generators, component, partial(global_generators, component, run))
    return [*list_component_laws(component), laws[0], generator_law, *laws[1:]]
