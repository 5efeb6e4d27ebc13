"""Python objects in a scenario: import paths, markers for objects that no file can hold, and fingerprints.

A marker takes the place of a Python object in a resolved scenario if another process cannot import the object. It is a table
with `name = "python-object"`, or a string that begins with this word. It describes the object, without which the scenario does
not run.
"""

from __future__ import annotations

import dis
import hashlib
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

PYTHON_OBJECT_NAME = "python-object"
COMPONENT_DIGEST_PREFIX = "component "
"""Prefix of the fingerprint of a component whose class other processes cannot import."""
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
_OBJECT_OF_KEY = {"data.name": "dataset", "model.name": "module", "model.loss": "loss"}
"""Name of the Python object that takes the place of a marker, by the marker's key."""
_METRIC_KEY_PREFIX = "model.metrics."


# ---------------------------------------------------------------------------------------------------------------- import paths


def find_import_path(value: Any) -> str | None:
    """Return the `package.module:name` from which another process imports the object, None if it cannot be imported."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or getattr(sys.modules.get(module), name, None) is not value:
        return None
    return f"{module}:{name}" if _is_importable(module.partition(".")[0]) else None


def _is_importable(module: str) -> bool:
    """Return True if another process can import a top-level module, unlike `__main__` and modules created in memory."""
    if module in ("__main__", "__mp_main__"):
        return False
    finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
    return any(find(module, None) is not None for find in finders if find is not None)


# --------------------------------------------------------------------------------------------------------------------- markers


def get_path_or_marker(value: Any) -> str:
    """Return the import path of a function or instance, or its marker."""
    return find_import_path(value) or f"{_MARKER_PREFIX}{describe_object(value)}{_DIGEST_SEPARATOR}{fingerprint(value)}"


def describe_object(value: Any) -> str:
    """Return the name and module of a function or class, or of an instance's class, in one line."""
    owner = value if isinstance(getattr(value, "__qualname__", None), str) else type(value)
    return format_one_line(f"{owner.__qualname__} of {owner.__module__}")


def format_one_line(text: str) -> str:
    """Return a text in one line, cut after 160 characters."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_LINE_LENGTH else f"{line[:_MAX_LINE_LENGTH]}..."


def find_markers(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, description) of every marker in nested tables."""
    if isinstance(value, Mapping):
        if key and value.get("name") == PYTHON_OBJECT_NAME:  # at the root, "name" is the name of the scenario
            yield f"{key}.name", str(value.get("description", ""))
        for name, part in value.items():
            yield from find_markers(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from find_markers(part, f"{key}[{i}]")
    elif is_marker(value):
        yield key, value.removeprefix(_MARKER_PREFIX)


def is_marker(value: object) -> bool:
    """Return True if a loss or a metric of a scenario is a marker."""
    return isinstance(value, str) and value.startswith(_MARKER_PREFIX)


def get_object_digest(sha256: str) -> str:
    """Return the fingerprint of a marker's object, "" where the fingerprint is that of a component."""
    return "" if sha256.startswith(COMPONENT_DIGEST_PREFIX) else sha256


def describe_digest_mismatch(subject: str, digest: str, expected: str, remedy: str) -> str:
    """Return the message for an object whose fingerprint differs from its marker's."""
    return (
        f"the {subject} differs from that of the run: got sha256 {digest}, expected {expected}; pass the original, or {remedy}"
    )


def check_marker(marker: str, value: Any, label: str) -> None:
    """Raise a ValueError if a loss or metric differs from its marker; a marker without a fingerprint accepts any object."""
    expected = marker.rpartition(_DIGEST_SEPARATOR)[2] if is_marker(marker) and _DIGEST_SEPARATOR in marker else ""
    if expected and fingerprint(value) != expected:
        remedy = f'to use another one, remove "{_DIGEST_SEPARATOR}{expected}" from this text'
        raise ValueError(describe_digest_mismatch(label, fingerprint(value), expected, remedy))


def find_missing_objects(
    markers: Iterable[tuple[str, str]], names: Collection[str], metric_names: Iterable[str]
) -> dict[str, str]:
    """Return the markers without an object, as description by dotted key; `names` are among dataset, module, loss."""
    keys_with_object = {key for key, name in _OBJECT_OF_KEY.items() if name in names} | {
        f"{_METRIC_KEY_PREFIX}{name}" for name in metric_names
    }
    return {key: description for key, description in markers if key not in keys_with_object}


def describe_missing_objects(markers: Mapping[str, str]) -> str:
    """Return the message for a scenario whose Python objects are missing, with the arguments that take them."""
    descriptions = "; ".join(f"{key.removesuffix('.name')}: {description}" for key, description in markers.items())
    arguments = _format_arguments(markers)
    classes = [key for key in markers if key not in _OBJECT_OF_KEY and not key.startswith(_METRIC_KEY_PREFIX)]
    remedies = [f"pass them again, fedsgd.run(..., {', '.join(arguments)})"] if arguments else []
    if classes:
        remedies.append(f'define the class in a module and set {", ".join(classes)} to "my_package.my_module:MyClass"')
    return (
        f"needs Python objects that a file cannot store ({descriptions}): {', and '.join(remedies)}, or change these settings"
    )


def _format_arguments(keys: Iterable[str]) -> list[str]:
    """Return the arguments of `fedsgd.run` that take the objects of some keys, as "data=..."."""
    keys = [*keys]
    names = [_OBJECT_OF_KEY[key] for key in keys if key in _OBJECT_OF_KEY]
    metrics = [f'"{key.removeprefix(_METRIC_KEY_PREFIX)}": ...' for key in keys if key.startswith(_METRIC_KEY_PREFIX)]
    parts = [f"{name}=..." for name in names if name != "dataset"]
    parts += [f"metrics={{{', '.join(metrics)}}}"] if metrics else []
    arguments = ["data=..."] if "dataset" in names else []
    if parts:
        arguments.append("model=..." if parts == ["module=..."] else f"model=fedsgd.CustomModel({', '.join(parts)})")
    return arguments


# ---------------------------------------------------------------------------------------------------------------- fingerprints


def fingerprint(value: Any, include_values: bool = True) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of an object's class, code, attributes and arrays.

    An importable function or class counts by its import path. The state of a C object that pickle cannot write does not count,
    and only the first million objects count. Without `include_values`, arrays and tensors count by type and shape alone.
    """
    digest = hashlib.sha256()
    numbers: dict[int, int] = {}
    visited_objects: list[Any] = []  # keeps objects alive, so that no two objects have the same id
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
        visited_objects.append(item)
        array, parts = _decompose(item)
        digest.update(f"/{len(parts)}>".encode())
        if array is not None and include_values:
            digest.update(array)
        stack.extend(reversed(parts))
    return digest.hexdigest()[:_DIGEST_LENGTH]


def _view_as_bytes(item: Any) -> Any:
    """Return the bytes of a numpy array or a dense tensor, [n] uint8; None for other objects."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(item, torch.Tensor):
        try:
            return item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        except (RuntimeError, NotImplementedError, TypeError):  # sparse, quantized, lazy
            return None
    if isinstance(item, np.ndarray) and item.dtype != object:
        return np.ascontiguousarray(item).reshape(-1).view(np.uint8)
    return None


def _decompose(item: Any) -> tuple[Any, list[Any]]:
    """Return (bytes of an array or tensor, or None; parts of the object)."""
    try:
        array = _view_as_bytes(item)
        if array is None:
            return None, _list_parts(item)
        return array, [str(item.dtype), *map(int, item.shape), bool(getattr(item, "requires_grad", False))]
    except Exception:  # the user's object may raise anything; a missing fingerprint must not end a run
        return None, []


def _list_parts(item: Any) -> list[Any]:
    """Return the parts of an object, in an order that does not depend on the process."""
    if isinstance(item, Mapping):
        return [part for key, value in item.items() for part in (key, _drop_hook_handles(key, value))]
    if isinstance(item, set | frozenset):
        return sorted(fingerprint(element) for element in item)
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
        global_values = {name: item.__globals__[name] for name in _list_global_names(item.__code__) if name in item.__globals__}
        return [item.__code__, item.__defaults__, item.__kwdefaults__, cells, global_values]
    if isinstance(item, type):
        attributes = {name: part for name, part in vars(item).items() if name not in _IGNORED_CLASS_ATTRIBUTES}
        return [item.__qualname__, list(item.__bases__), attributes]
    if isinstance(item, ModuleType):
        return [item.__name__]
    if isinstance(item, staticmethod | classmethod):
        return [item.__func__]
    if isinstance(item, property):
        return [item.fget, item.fset, item.fdel]
    return _reduce_object(item)


def _drop_hook_handles(key: object, value: Any) -> Any:
    """Return the hooks of a module without the numbers that torch assigns, which count all hooks of the process."""
    is_hooks = isinstance(key, str) and key.endswith("_hooks") and isinstance(value, Mapping)
    return list(value.values()) if is_hooks else value


def _list_global_names(code: CodeType) -> list[str]:
    """Return the global names that a function's code and its inner functions load; names of attributes are not included."""
    inner_names = (name for part in code.co_consts if isinstance(part, CodeType) for name in _list_global_names(part))
    loaded_names = (step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    return list(dict.fromkeys([*loaded_names, *inner_names]))


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is cell.cell_contents
    except ValueError:
        return False


def _reduce_object(item: Any) -> list[Any]:
    """Return the parts that pickle writes of an object, or its class and attributes where pickle fails."""
    try:
        result = item.__reduce_ex__(4)
    except Exception:  # parametrized modules cannot be pickled, and the user's object may raise anything
        return [type(item), getattr(item, "__dict__", None)]
    if isinstance(result, str):
        return [result]
    return [list(part) if isinstance(part, Iterator) else part for part in result]
