"""Python objects in a scenario: import paths, markers for objects that no file can hold, and fingerprints.

A marker stands in a resolved scenario for an object that was given in Python and that another process cannot import: a table
with `name = "python-object"`, or a string that starts with that word. It describes the object, and refuses to run without it.
"""

from __future__ import annotations

import dis
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

PYTHON_OBJECT_NAME = "python-object"
COMPONENT_DIGEST_PREFIX = "component "
"""Beginning of the fingerprint of a component whose class no other process can import."""
_MARKER_PREFIX = f"{PYTHON_OBJECT_NAME}: "
_DIGEST_SEPARATOR = ", sha256 "
_DIGEST_LENGTH = 16
_MAX_LINE_LENGTH = 160
_MAX_OBJECTS = 10**6
_IGNORED_CLASS_ATTRIBUTES = (
    "__dict__",
    "__weakref__",
    "__doc__",
    "__module__",
    "__annotations__",
    "__firstlineno__",
    "__static_attributes__",
)
_ARGUMENT_OF_KEY = {"data.name": "dataset=...", "model.name": "module=...", "model.loss": "loss=..."}
_METRIC_KEY_PREFIX = "model.metrics."


# ---------------------------------------------------------------------------------------------------------------- import paths


def find_import_path(value: Any) -> str | None:
    """Return the `package.module:name` from which another process imports this very object; None where it cannot."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or getattr(sys.modules.get(module), name, None) is not value:
        return None
    return f"{module}:{name}" if _is_importable(module.partition(".")[0]) else None


def _is_importable(module: str) -> bool:
    """Return whether a finder knows a top-level module; `__main__` and modules that were made in memory are known to none."""
    if module in ("__main__", "__mp_main__"):
        return False
    finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
    return any(find(module, None) is not None for find in finders if find is not None)


# --------------------------------------------------------------------------------------------------------------------- markers


def get_path_or_marker(value: Any) -> str:
    """Return the import path of a function or instance, or the marker string that stands for it."""
    return find_import_path(value) or f"{_MARKER_PREFIX}{describe_object(value)}{_DIGEST_SEPARATOR}{fingerprint(value)}"


def describe_object(value: Any) -> str:
    """Return a function's, class's or instance's name in one line."""
    named = value if isinstance(getattr(value, "__qualname__", None), str) else type(value)
    return format_one_line(f"{named.__qualname__} of {named.__module__}")


def format_one_line(text: str) -> str:
    """Return a text without line breaks, cut to a length that a message can hold."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_LINE_LENGTH else f"{line[:_MAX_LINE_LENGTH]}..."


def find_markers(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, description) of every marker in nested tables."""
    if isinstance(value, Mapping):
        if key and value.get("name") == PYTHON_OBJECT_NAME:  # at the root it is what the scenario is called
            yield f"{key}.name", str(value.get("description", ""))
        for name, part in value.items():
            yield from find_markers(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from find_markers(part, f"{key}[{i}]")
    elif is_marker(value):
        yield key, value.removeprefix(_MARKER_PREFIX)


def is_marker(value: object) -> bool:
    """Return whether a loss or a metric of a scenario is a marker."""
    return isinstance(value, str) and value.startswith(_MARKER_PREFIX)


def get_object_digest(sha256: str) -> str:
    """Return the fingerprint of the object that a marker stands for; "" where it is that of the component that makes one."""
    return "" if sha256.startswith(COMPONENT_DIGEST_PREFIX) else sha256


def describe_digest_mismatch(subject: str, digest: str, expected: str, remedy: str) -> str:
    """Return the sentence that refuses an object whose fingerprint is not that of a marker; way: how to go on with it."""
    return f"this is not the {subject} of that run: got sha256 {digest}, expected {expected}; give that one, or {remedy}"


def check_marker(marker: str, value: Any, label: str) -> None:
    """Compare a loss or a metric with the marker string that it replaces; a marker without a fingerprint takes any.

    Raises:
        ValueError: the fingerprints differ.
    """
    expected = marker.rpartition(_DIGEST_SEPARATOR)[2] if is_marker(marker) and _DIGEST_SEPARATOR in marker else ""
    if expected and fingerprint(value) != expected:
        way = f'to take another one, remove "{_DIGEST_SEPARATOR}{expected}" from this text'
        raise ValueError(describe_digest_mismatch(label, fingerprint(value), expected, way))


def find_missing_objects(
    markers: Iterable[tuple[str, str]], argument_names: Iterable[str], metric_names: Iterable[str]
) -> dict[str, str]:
    """Return the markers, dotted key to description, whose objects are missing.

    Args:
        markers: (dotted key, description), as `find_markers` yields them.
        given: names of the arguments of `fedsgd.run` that hold an object: dataset, module, loss.
        metrics: names of the metrics that were given.
    """
    arguments = {f"{name}=..." for name in argument_names}
    filled = {key for key, argument in _ARGUMENT_OF_KEY.items() if argument in arguments} | {
        f"{_METRIC_KEY_PREFIX}{name}" for name in metric_names
    }
    return {key: description for key, description in markers if key not in filled}


def describe_missing_objects(markers: Mapping[str, str]) -> str:
    """Return the sentence that says which Python objects a scenario needs, and how to give them."""
    held = "; ".join(f"{key.removesuffix('.name')}: {description}" for key, description in markers.items())
    metrics = [f'"{key.removeprefix(_METRIC_KEY_PREFIX)}": ...' for key in markers if key.startswith(_METRIC_KEY_PREFIX)]
    arguments = [_ARGUMENT_OF_KEY[key] for key in markers if key in _ARGUMENT_OF_KEY]
    arguments += [f"metrics={{{', '.join(metrics)}}}"] if metrics else []
    classes = [key for key in markers if key not in _ARGUMENT_OF_KEY and not key.startswith(_METRIC_KEY_PREFIX)]
    ways = [f"give them again, fedsgd.run(..., {', '.join(arguments)})"] if arguments else []
    if classes:
        ways.append(f'define the class in a module and set {", ".join(classes)} to "my_package.my_module:MyClass"')
    return f"this needs Python objects that no file can hold ({held}): {', and '.join(ways)}, or change these settings"


# ---------------------------------------------------------------------------------------------------------------- fingerprints


def fingerprint(value: Any, include_values: bool = True) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of an object's class, code, attributes and arrays.

    What can be imported counts by its import path. The state of a C object that pickle cannot write does not count, nor does
    anything after the first million objects.

    Args:
        value: any object.
        values: whether the numbers in arrays and tensors count, beside their types and shapes.
    """
    digest = hashlib.sha256()
    numbers: dict[int, int] = {}
    kept: list[Any] = []  # so that no id is used twice
    stack = [value]
    for _ in range(_MAX_OBJECTS):
        if not stack:
            break
        item = stack.pop()
        digest.update(f"<{type(item).__module__}.{type(item).__qualname__}".encode())
        if item is None or isinstance(item, bool | int | float | complex | str | bytes):
            digest.update(repr(item).encode(errors="backslashreplace"))
            continue
        if id(item) in numbers:
            digest.update(f"#{numbers[id(item)]}".encode())
            continue
        numbers[id(item)] = len(numbers)
        kept.append(item)
        array, parts = _decompose(item)
        digest.update(f"/{len(parts)}>".encode())
        if array is not None and include_values:
            digest.update(array)
        stack.extend(reversed(parts))
    return digest.hexdigest()[:_DIGEST_LENGTH]


def _view_as_bytes(item: Any) -> Any:
    """Return the bytes of a numpy array or a dense tensor, [n] uint8; None for anything else."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(item, torch.Tensor):
        try:
            return item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        except (RuntimeError, NotImplementedError, TypeError):  # sparse, quantised, lazy
            return None
    if isinstance(item, np.ndarray) and item.dtype != object:
        return np.ascontiguousarray(item).reshape(-1).view(np.uint8)
    return None


def _decompose(item: Any) -> tuple[Any, list[Any]]:
    """Return (the bytes of an array or tensor, None for other objects; the parts of the object)."""
    try:
        array = _view_as_bytes(item)
        if array is None:
            return None, _list_parts(item)
        return array, [str(item.dtype), *map(int, item.shape), bool(getattr(item, "requires_grad", False))]
    except Exception:  # the user's own objects may raise anything, and a run does not end for want of a fingerprint
        return None, []


def _list_parts(item: Any) -> list[Any]:
    """Return what an object consists of, in an order that does not depend on the process."""
    if isinstance(item, Mapping):
        return [part for key, value in item.items() for part in (key, _drop_hook_handles(key, value))]
    if isinstance(item, set | frozenset):
        return sorted(fingerprint(one) for one in item)
    if isinstance(item, list | tuple):
        return list(item)
    if isinstance(item, np.ndarray):
        return [list(item.shape), item.ravel().tolist()]
    if isinstance(item, CodeType):
        return [item.co_code, item.co_names, item.co_varnames, item.co_freevars, item.co_consts]
    if isinstance(item, type | FunctionType):
        path = find_import_path(item)
        if path is not None:
            return [path]
    if isinstance(item, FunctionType):
        cells = [cell.cell_contents for cell in item.__closure__ or () if _is_filled(cell)]
        used = {name: item.__globals__[name] for name in _list_global_names(item.__code__) if name in item.__globals__}
        return [item.__code__, item.__defaults__, item.__kwdefaults__, cells, used]
    if isinstance(item, type):
        own = {name: part for name, part in vars(item).items() if name not in _IGNORED_CLASS_ATTRIBUTES}
        return [item.__qualname__, list(item.__bases__), own]
    if isinstance(item, ModuleType):
        return [item.__name__]
    if isinstance(item, staticmethod | classmethod):
        return [item.__func__]
    if isinstance(item, property):
        return [item.fget, item.fset, item.fdel]
    return _reduce_object(item)


def _drop_hook_handles(key: object, value: Any) -> Any:
    """Return the hooks of a module without the numbers that torch gave them, which count all hooks of the process."""
    is_hooks = isinstance(key, str) and key.endswith("_hooks") and isinstance(value, Mapping)
    return list(value.values()) if is_hooks else value


def _list_global_names(code: CodeType) -> list[str]:
    """Return the names that a function's code looks up, those of the functions in it too; names of attributes are none."""
    inner = (name for part in code.co_consts if isinstance(part, CodeType) for name in _list_global_names(part))
    looked_up = (step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    return list(dict.fromkeys([*looked_up, *inner]))


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is cell.cell_contents
    except ValueError:
        return False


def _reduce_object(item: Any) -> list[Any]:
    """Return what pickle would write of an object; the class and the attributes where it cannot."""
    try:
        reduced = item.__reduce_ex__(4)
    except Exception:  # parametrised modules refuse, and the user's own objects may raise anything
        return [type(item), getattr(item, "__dict__", None)]
    if isinstance(reduced, str):
        return [reduced]
    return [list(part) if isinstance(part, Iterator) else part for part in reduced]
