"""Strategy in a CompressedStrategy: its methods while its own `start` runs, its settings, and the strategies around it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flwr.serverapp.strategy import Strategy

from fedsgd.errors import ScenarioError

HOOKS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate", "summary")
"""Methods that `start` calls on its own object."""
HOOK_ARGUMENTS = {name: [*inspect.signature(getattr(Strategy, name)).parameters][1:] for name in HOOKS}
"""Flower's arguments of these methods."""
DEFAULT_TIMEOUT = 3600.0
"""Flower's default of `start`, in seconds."""


class WrappingStrategy(Strategy):
    """Strategy with the attributes of an inner one.

    A name that neither this class nor the object has is a name of the inner strategy. Subclasses set their own attributes
    before they call `__init__`.

    Attributes:
        inner: the inner strategy, which cannot be replaced.
    """

    inner: Strategy

    def __init__(self, inner: Strategy) -> None:
        """Set the inner strategy, to which other names lead from then on."""
        vars(self)["inner"] = inner

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the inner strategy."""
        if name.startswith("__") or "inner" not in vars(self):  # of a copy that is not complete yet
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute of the inner strategy, unless this object or its class has one of that name."""
        self._check_name(name)
        own = "inner" not in vars(self) or name in vars(self) or hasattr(type(self), name)
        if own:
            object.__setattr__(self, name, value)
        else:
            setattr(self.inner, name, value)

    def __delattr__(self, name: str) -> None:
        """Delete an attribute of the inner strategy, unless this object has one of that name."""
        self._check_name(name)
        if name in vars(self):
            object.__delattr__(self, name)
        else:
            delattr(self.inner, name)

    def _check_name(self, name: str) -> None:
        if name == "inner" and name in vars(self):
            own = type(self).__name__
            raise AttributeError(f"inner: {own} keeps its {type(self.inner).__name__}; for another strategy, make a new {own}")


@dataclass(frozen=True, eq=False)
class _ExtraArguments:
    """Arguments of a call of an inner strategy's method that Flower's interface does not have.

    Attributes:
        args: positional arguments, with None in the places of Flower's.
        kwargs: keyword arguments, with None in the places of Flower's.
        places: position or keyword of each of Flower's arguments.
    """

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    positions: Sequence[int | str]

    def call(self, method: Callable[..., Any], values: Sequence[Any]) -> Any:
        """Call a method with values of Flower's arguments, and the other arguments."""
        args, kwargs = [*self.args], dict(self.kwargs)
        for place, value in zip(self.positions, values, strict=True):
            if isinstance(place, int):
                args[place] = value
            else:
                kwargs[place] = value
        return method(*args, **kwargs)


@dataclass(eq=False)
class InnerMethods:
    """Methods of an inner strategy, in the place of which an outer one's are called while the inner `start` runs.

    Attributes:
        strategy: the inner strategy.
        originals: the replaced methods by name; empty where nothing is replaced.
        called: names of the methods that the inner `start` has called.
        arguments: arguments of the running calls by the inner `start`, by name of the method.
        is_inside: True while an original method runs. Methods that it calls on its own object are the originals, too.
    """

    strategy: Strategy
    original_methods: dict[str, Callable[..., Any]] = field(default_factory=dict)
    called_names: set[str] = field(default_factory=set)
    arguments: dict[str, _ExtraArguments] = field(default_factory=dict)
    is_running_original: bool = False

    def call(self, name: str, *values: Any) -> Any:
        """Call the original method with values of Flower's arguments; of messages, return a list."""
        method, arguments = self._get_original(name), self.arguments.get(name)
        before, self.is_running_original = self.is_running_original, True
        try:
            result = method(*values) if arguments is None else arguments.call(method, values)
            return list(result) if name.startswith("configure") else result  # a generator runs here, not later
        finally:
            self.is_running_original = before

    def redirect(self, outer: Strategy, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call the outer strategy's method in the place of the original one, with Flower's arguments.

        The original method gets the other arguments, too, when the outer one calls it.
        """
        values, arguments = _split_arguments(self._get_original(name), name, args, kwargs)
        before = self.arguments.get(name)
        self.called_names.add(name)
        self.arguments[name] = arguments
        try:
            return getattr(outer, name)(*values)
        finally:
            del self.arguments[name]
            if before is not None:
                self.arguments[name] = before

    def _get_original(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] = self.original_methods.get(name) or getattr(self.strategy, name)
        return method

    @contextmanager
    def replace_methods(self, outer: Strategy) -> Iterator[None]:
        """Replace the methods by the outer strategy's, and restore them at the end."""
        if self.original_methods:  # a start() within a start()
            yield
            return
        attributes = vars(self.strategy)
        own = {name: attributes[name] for name in HOOKS if name in attributes}
        self.original_methods = {name: getattr(self.strategy, name) for name in HOOKS}
        self.called_names.clear()
        attributes.update({name: _Hook(self, outer, name) for name in HOOKS})
        try:
            yield
        finally:
            for name in [name for name in HOOKS if isinstance(attributes.get(name), _Hook)]:
                del attributes[name]
                if name in own:
                    attributes[name] = own[name]
            self.original_methods = {}


@dataclass(frozen=True, eq=False)
class _Hook:
    """Instance attribute of an inner strategy that calls the outer strategy's method."""

    methods: InnerMethods
    outer: Strategy
    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the outer method, or the original one from within an original one."""
        if self.methods.is_running_original:
            return self.methods.original_methods[self.name](*args, **kwargs)
        return self.methods.redirect(self.outer, self.name, args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy as the method of the strategy, which is not replaced in the copy."""
        return getattr, (self.methods.strategy, self.name)


def _split_arguments(
    method: Callable[..., Any], name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Any], _ExtraArguments]:
    """Return the values of Flower's arguments in a call of a method, and the other arguments.

    A method may have more parameters than Flower's, and others in the order of Flower's, under different names.
    """
    parameters: Mapping[str, inspect.Parameter]
    try:
        parameters = inspect.signature(method).parameters
    except (TypeError, ValueError):  # of a callable without a signature
        parameters = {}
    named = [key for key, parameter in parameters.items() if parameter.kind <= parameter.POSITIONAL_OR_KEYWORD]
    places: dict[str, int | str] = {key: index for index, key in zip(range(len(args)), named, strict=False)}
    places |= {f"*{index}": index for index in range(len(named), len(args))}
    for key in HOOK_ARGUMENTS[name]:
        if key in parameters and key not in places and parameters[key].default is not inspect.Parameter.empty:
            kwargs = {key: parameters[key].default, **kwargs}
    places |= {key: key for key in [*parameters, *kwargs] if key in kwargs}
    others = iter([place for key, place in places.items() if key not in HOOK_ARGUMENTS[name]])
    found = [places[key] if key in places else next(others, None) for key in HOOK_ARGUMENTS[name]]
    flower = [place for place in found if place is not None]
    if len(flower) < len(found):
        got, expected = ", ".join(places) or "no arguments", ", ".join(HOOK_ARGUMENTS[name])
        raise ScenarioError(f"{name}: start() calls it with {got}, expected {expected}, without which nothing is compressed")
    values = [args[place] if isinstance(place, int) else kwargs[place] for place in flower]
    return values, _ExtraArguments(
        [None if index in flower else value for index, value in enumerate(args)],
        {key: None if key in flower else value for key, value in kwargs.items()},
        flower,
    )


def iterate_strategies(strategy: Strategy) -> Iterator[Strategy]:
    """Yield a strategy and the strategies that its attributes lead to, each once, from the outermost on."""
    seen: dict[int, Strategy] = {}
    queue = [strategy]
    while queue:
        part = queue.pop(0)
        if id(part) not in seen:
            seen[id(part)] = part
            yield part
            queue += [value for attribute in [*getattr(part, "__dict__", {}).values()] for value in _find_strategies(attribute)]


def _find_strategies(attribute: object) -> list[Strategy]:
    """Return an attribute that is a strategy, or the strategies in a list, a tuple or a dict."""
    values = [*attribute.values()] if isinstance(attribute, dict) else attribute
    return [value for value in (values if isinstance(values, list | tuple) else [values]) if isinstance(value, Strategy)]


def find_setting(strategy: Strategy, name: str, default: str) -> str:
    """Return a text setting of a strategy, or of a strategy that it wraps."""
    return next(
        (found for part in iterate_strategies(strategy) if isinstance(found := getattr(part, name, None), str)), default
    )


def find_timeout(start: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    """Return the timeout that a call of `start` sets, in seconds; None for no limit."""
    try:
        bound = inspect.signature(start).bind(*args, **kwargs)
    except (TypeError, ValueError):  # the call itself reports wrong arguments
        return DEFAULT_TIMEOUT
    bound.apply_defaults()
    timeout: float | None = {**kwargs, **bound.arguments}.get("timeout", DEFAULT_TIMEOUT)
    return timeout


def find_outer_strategies(strategy: Strategy) -> list[Strategy]:
    """Return the strategies with a running method that are neither this one nor inside it, from the innermost on."""
    inside = {id(part) for part in iterate_strategies(strategy)}
    outer: dict[int, Strategy] = {}
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Strategy) and id(caller) not in inside:
            outer.setdefault(id(caller), caller)
        frame = frame.f_back
    return [*outer.values()]
