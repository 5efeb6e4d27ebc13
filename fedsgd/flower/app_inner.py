"""Strategy in a CompressedStrategy: its methods while its own `start` runs, its settings, and the strategies around it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flwr.serverapp.strategy import Strategy

HOOKS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate", "summary")
"""Methods that `start` calls on its own object."""
TIMEOUT = 3600.0
"""Flower's default of `start`, in seconds."""


class WrappingStrategy(Strategy):
    """Strategy with the attributes of an inner one.

    A name that neither this class nor the object has is a name of the inner strategy. Subclasses set their own attributes
    before they call `__init__`.

    Attributes:
        inner: the inner strategy.
    """

    def __init__(self, inner: Strategy) -> None:
        """Set the inner strategy, to which other names lead from then on."""
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the inner strategy."""
        if name.startswith("__") or "inner" not in vars(self):  # of a copy that is not complete yet
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute of the inner strategy, unless this object or its class has one of that name."""
        own = "inner" not in vars(self) or name in vars(self) or hasattr(type(self), name)
        if own:
            object.__setattr__(self, name, value)
        else:
            setattr(self.inner, name, value)

    def __delattr__(self, name: str) -> None:
        """Delete an attribute of the inner strategy, unless this object has one of that name."""
        if name in vars(self):
            object.__delattr__(self, name)
        else:
            delattr(self.inner, name)


@dataclass(eq=False)
class InnerMethods:
    """Methods of an inner strategy, in the place of which an outer one's are called while the inner `start` runs.

    Attributes:
        strategy: the inner strategy.
        originals: the replaced methods by name; empty where nothing is replaced.
        called: names of the methods that the inner `start` has called.
        is_inside: True while an original method runs. Methods that it calls on its own object are the originals, too.
    """

    strategy: Strategy
    originals: dict[str, Callable[..., Any]] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)
    is_inside: bool = False

    def call(self, name: str, *args: Any) -> Any:
        """Call the original method; of messages, return a list."""
        method = self.originals.get(name) or getattr(self.strategy, name)
        before, self.is_inside = self.is_inside, True
        try:
            result = method(*args)
            return list(result) if name.startswith("configure") else result  # a generator runs here, not later
        finally:
            self.is_inside = before

    @contextmanager
    def replaced_by(self, outer: Strategy) -> Iterator[None]:
        """Replace the methods by the outer strategy's, and restore them at the end."""
        if self.originals:  # a start() within a start()
            yield
            return
        attributes = vars(self.strategy)
        own = {name: attributes[name] for name in HOOKS if name in attributes}
        self.originals = {name: getattr(self.strategy, name) for name in HOOKS}
        self.called.clear()
        attributes.update({name: _Hook(self, outer, name) for name in HOOKS})
        try:
            yield
        finally:
            for name in [name for name in HOOKS if isinstance(attributes.get(name), _Hook)]:
                del attributes[name]
                if name in own:
                    attributes[name] = own[name]
            self.originals = {}


@dataclass(frozen=True, eq=False)
class _Hook:
    """Instance attribute of an inner strategy that calls the outer strategy's method."""

    methods: InnerMethods
    outer: Strategy
    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the outer method, or the original one from within an original one."""
        if self.methods.is_inside:
            return self.methods.originals[self.name](*args, **kwargs)
        self.methods.called.add(self.name)
        return getattr(self.outer, self.name)(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy as the method of the strategy, which is not replaced in the copy."""
        return getattr, (self.methods.strategy, self.name)


def chain(strategy: object) -> Iterator[object]:
    """Yield a strategy and the strategies that it wraps in an attribute `strategy`, as Flower's wrappers do."""
    seen: set[int] = set()
    while strategy is not None and id(strategy) not in seen:
        seen.add(id(strategy))
        yield strategy
        strategy = getattr(strategy, "strategy", None)


def find_setting(strategy: Strategy, name: str, default: str) -> str:
    """Return a text setting of a strategy, or of a strategy that it wraps."""
    return next((found for part in chain(strategy) if isinstance(found := getattr(part, name, None), str)), default)


def find_timeout(start: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    """Return the timeout that a call of `start` sets, in seconds; None for no limit."""
    try:
        bound = inspect.signature(start).bind(*args, **kwargs)
    except (TypeError, ValueError):  # the call itself reports wrong arguments
        return TIMEOUT
    bound.apply_defaults()
    timeout: float | None = {**kwargs, **bound.arguments}.get("timeout", TIMEOUT)
    return timeout


def find_outer(strategy: Strategy, inner: Strategy) -> Strategy | None:
    """Return the strategy whose method has called a method of `strategy`; None for its own `start` and for other callers."""
    frame = inspect.currentframe()
    frame = frame.f_back if frame is not None else None
    while frame is not None and frame.f_locals.get("self") is strategy:
        frame = frame.f_back
    caller = None if frame is None else frame.f_locals.get("self")
    return caller if isinstance(caller, Strategy) and caller is not inner else None
