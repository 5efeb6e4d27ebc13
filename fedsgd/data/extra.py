"""Libraries that not everyone needs."""

from __future__ import annotations

import importlib
from types import ModuleType

from fedsgd.errors import DataError


def need(module: str, extra: str) -> ModuleType:
    """An optional dependency's module; DataError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        raise DataError(f'{library} is not installed: python -m pip install "fedsgd[{extra}]" ({error})') from error
