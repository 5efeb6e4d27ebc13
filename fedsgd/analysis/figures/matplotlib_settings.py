"""matplotlib without the user's settings. Drawing modules import this module before matplotlib."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from fedsgd.errors import OutputError


def _import_matplotlib() -> None:
    """Import matplotlib under any value of MPLBACKEND: Jupyter exports a backend that another environment may lack.

    The backend is set afterwards if matplotlib has it. The import fails without a folder for matplotlib's cache, for example.
    """
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    except Exception as error:
        raise OutputError(f"figures need matplotlib, which cannot be imported ({' '.join(str(error).split())})") from error
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


_import_matplotlib()


@contextmanager
def use_figure_settings(settings: Mapping[str, Any]) -> Iterator[None]:
    """Use matplotlib's defaults with these settings, and restore the user's settings afterwards."""
    from matplotlib import style

    with style.context(["default", dict(settings)]):
        yield
