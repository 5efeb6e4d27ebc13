"""Access to the strategy inside a CompressedStrategy: attributes, settings, and its methods while `start` runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flwr.serverapp.strategy import Strategy

from fedsgd.errors import ScenarioError

HOOKS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate", "summary")
"""Methods that Flower's `start` calls on its own object."""
HOOK_ARGUMENTS = {name: [*inspect.signature(getattr(Strategy, name)).parameters][1:] for name in HOOKS}
"""Parameter names of each method in `HOOKS` in Flower's interface."""
DEFAULT_TIMEOUT = 3600.0
"""Flower's default timeout of `start`, in seconds."""


class WrappingStrategy(Strategy):
    """Base of strategies that pass attributes on to an inner strategy.

    An attribute that neither this class nor the object has is read from, set on and deleted from the inner strategy, which
    cannot be replaced. Subclasses set their own attributes before they call `super().__init__`.
    """

    inner: Strategy

    def __init__(self, inner: Strategy) -> None:
        """Set the inner strategy. Later assignments to other names set attributes of the inner strategy."""
        vars(self)["inner"] = inner

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "inner" not in vars(self):  # `copy` and `pickle` read names of an incomplete object
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute of the inner strategy, unless this object or its class has an attribute of that name."""
        self._check_name(name)
        is_outer = "inner" not in vars(self) or name in vars(self) or hasattr(type(self), name)
        if is_outer:
            object.__setattr__(self, name, value)
        else:
            setattr(self.inner, name, value)

    def __delattr__(self, name: str) -> None:
        """Delete an attribute of the inner strategy, unless this object has an attribute of that name."""
        self._check_name(name)
        if name in vars(self):
            object.__delattr__(self, name)
        else:
            delattr(self.inner, name)

    def _check_name(self, name: str) -> None:
        if name == "inner" and name in vars(self):
            outer, inner = type(self).__name__, type(self.inner).__name__
            raise AttributeError(f"inner: the {inner} of a {outer} cannot be replaced; create a new {outer}")


@dataclass(frozen=True, eq=False)
class _ExtraArguments:
    """Arguments with which an inner strategy calls its own method, in addition to the arguments of Flower's interface.

    `args` and `kwargs` have None in place of Flower's arguments; `positions` has the position or keyword of each of these.
    """

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    positions: Sequence[int | str]

    def call(self, method: Callable[..., Any], values: Sequence[Any]) -> Any:
        """Call a method with these values of Flower's arguments and the additional arguments."""
        args, kwargs = [*self.args], dict(self.kwargs)
        for position, value in zip(self.positions, values, strict=True):
            if isinstance(position, int):
                args[position] = value
            else:
                kwargs[position] = value
        return method(*args, **kwargs)


@dataclass(eq=False)
class InnerMethods:
    """Methods of an inner strategy. While the inner `start` runs, the outer strategy's methods replace them.

    Attributes:
        strategy: inner strategy.
        original_methods: replaced methods, by name; empty while no method is replaced.
        called_names: names of the methods that the inner `start` has called.
        arguments: additional arguments of the inner `start`'s running calls, by name of the method.
        is_running_original: True while an original method runs, whose calls of other methods are not replaced.
    """

    strategy: Strategy
    original_methods: dict[str, Callable[..., Any]] = field(default_factory=dict)
    called_names: set[str] = field(default_factory=set)
    arguments: dict[str, _ExtraArguments] = field(default_factory=dict)
    is_running_original: bool = False

    def call(self, name: str, *values: Any) -> Any:
        """Call the original method with these values of Flower's arguments. Messages are returned as a list."""
        method, arguments = self._get_original(name), self.arguments.get(name)
        was_running, self.is_running_original = self.is_running_original, True
        try:
            result = method(*values) if arguments is None else arguments.call(method, values)
            return list(result) if name.startswith("configure") else result  # a generator must run before `finally`
        finally:
            self.is_running_original = was_running

    def redirect(self, outer: Strategy, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call the outer strategy's method instead of the original method, with Flower's arguments.

        When the outer method calls the original method, `call` adds the additional arguments.
        """
        values, arguments = _split_arguments(self._get_original(name), name, args, kwargs)
        outer_arguments = self.arguments.get(name)
        self.called_names.add(name)
        self.arguments[name] = arguments
        try:
            return getattr(outer, name)(*values)
        finally:
            del self.arguments[name]
            if outer_arguments is not None:
                self.arguments[name] = outer_arguments

    def _get_original(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] = self.original_methods.get(name) or getattr(self.strategy, name)
        return method

    @contextmanager
    def replace_methods(self, outer: Strategy) -> Iterator[None]:
        """Replace the methods by the outer strategy's methods, and restore them at the end."""
        if self.original_methods:  # `start` calls `start`
            yield
            return
        attributes = vars(self.strategy)
        instance_methods = {name: attributes[name] for name in HOOKS if name in attributes}
        self.original_methods = {name: getattr(self.strategy, name) for name in HOOKS}
        self.called_names.clear()
        attributes.update({name: _Hook(self, outer, name) for name in HOOKS})
        try:
            yield
        finally:
            for name in [name for name in HOOKS if isinstance(attributes.get(name), _Hook)]:
                del attributes[name]
                if name in instance_methods:
                    attributes[name] = instance_methods[name]
            self.original_methods = {}


@dataclass(frozen=True, eq=False)
class _Hook:
    """Instance attribute of an inner strategy that calls the outer strategy's method."""

    methods: InnerMethods
    outer: Strategy
    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the outer method; within an original method, call the original."""
        if self.methods.is_running_original:
            return self.methods.original_methods[self.name](*args, **kwargs)
        return self.methods.redirect(self.outer, self.name, args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy as the strategy's own method: a copy of the strategy has no hooks."""
        return getattr, (self.methods.strategy, self.name)


def _split_arguments(
    method: Callable[..., Any], name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Any], _ExtraArguments]:
    """Return the values of Flower's arguments in a call of a method, and the additional arguments.

    A method may have additional parameters, and other names for Flower's parameters, in Flower's order.
    """
    parameters: Mapping[str, inspect.Parameter]
    try:
        parameters = inspect.signature(method).parameters
    except (TypeError, ValueError):  # some callables have no signature
        parameters = {}
    names = [key for key, parameter in parameters.items() if parameter.kind <= parameter.POSITIONAL_OR_KEYWORD]
    positions: dict[str, int | str] = {key: index for index, key in zip(range(len(args)), names, strict=False)}
    positions |= {f"*{index}": index for index in range(len(names), len(args))}
    for key in HOOK_ARGUMENTS[name]:
        if key in parameters and key not in positions and parameters[key].default is not inspect.Parameter.empty:
            kwargs = {key: parameters[key].default, **kwargs}
    positions |= {key: key for key in [*parameters, *kwargs] if key in kwargs}
    other_positions = iter([position for key, position in positions.items() if key not in HOOK_ARGUMENTS[name]])
    matches = [positions[key] if key in positions else next(other_positions, None) for key in HOOK_ARGUMENTS[name]]
    flower_positions = [position for position in matches if position is not None]
    if len(flower_positions) < len(matches):
        got, expected = ", ".join(positions) or "no arguments", ", ".join(HOOK_ARGUMENTS[name])
        raise ScenarioError(f"{name}: got {got} from start(), expected {expected}, so that messages can be compressed")
    values = [args[position] if isinstance(position, int) else kwargs[position] for position in flower_positions]
    return values, _ExtraArguments(
        [None if index in flower_positions else value for index, value in enumerate(args)],
        {key: None if key in flower_positions else value for key, value in kwargs.items()},
        flower_positions,
    )


def iterate_strategies(strategy: Strategy) -> Iterator[Strategy]:
    """Yield a strategy and all strategies that its attributes contain, directly or not, each once, outermost first."""
    visited: dict[int, Strategy] = {}
    queue = [strategy]
    while queue:
        outer = queue.pop(0)
        if id(outer) not in visited:
            visited[id(outer)] = outer
            yield outer
            attributes = [*getattr(outer, "__dict__", {}).values()]
            queue += [value for attribute in attributes for value in _find_strategies(attribute)]


def _find_strategies(attribute: object) -> list[Strategy]:
    """Return the strategies in the value of an attribute: a strategy itself, or items of a list, a tuple or a dict."""
    values = [*attribute.values()] if isinstance(attribute, dict) else attribute
    return [value for value in (values if isinstance(values, list | tuple) else [values]) if isinstance(value, Strategy)]


def find_setting(strategy: Strategy, name: str, default: str) -> str:
    """Return a text attribute of a strategy or of an inner strategy; the default if no strategy has the attribute."""
    attributes = (getattr(part, name, None) for part in iterate_strategies(strategy))
    return next((value for value in attributes if isinstance(value, str)), default)


def find_timeout(start: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    """Return the timeout in a call of `start`, in seconds; None for no limit."""
    try:
        binding = inspect.signature(start).bind(*args, **kwargs)
    except (TypeError, ValueError):  # the call itself reports wrong arguments
        return DEFAULT_TIMEOUT
    binding.apply_defaults()
    timeout: float | None = {**kwargs, **binding.arguments}.get("timeout", DEFAULT_TIMEOUT)
    return timeout


def find_outer_strategies(strategy: Strategy) -> list[Strategy]:
    """Return the strategies around a strategy, innermost first.

    An outer strategy has a method on the call stack, and the strategy does not contain the outer strategy.
    """
    inner_ids = {id(part) for part in iterate_strategies(strategy)}
    outer_strategies: dict[int, Strategy] = {}
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Strategy) and id(caller) not in inner_ids:
            outer_strategies.setdefault(id(caller), caller)
        frame = frame.f_back
    return [*outer_strategies.values()]
