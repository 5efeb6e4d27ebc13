"""matplotlib without the user's settings. A module that draws imports this one first."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from fedsgd.errors import OutputError


def _import_matplotlib() -> None:
    """Import matplotlib, whatever MPLBACKEND names: Jupyter exports one that another environment may lack.

    The user's setting is applied afterwards, as if they had imported matplotlib, where matplotlib knows that backend.

    Raises:
        OutputError: matplotlib cannot be imported, for example because it finds no folder for its cache.
    """
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    except Exception as error:
        raise OutputError(f"nothing can be drawn: matplotlib cannot be imported ({' '.join(str(error).split())})") from error
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


_import_matplotlib()


@contextmanager
def use_figure_settings(settings: Mapping[str, Any]) -> Iterator[None]:
    """Make and save figures with matplotlib's defaults and these settings; the user's are the same afterwards."""
    from matplotlib import style

    with style.context(["default", dict(settings)]):
        yield
