"""Line of progress in a Jupyter notebook, which is replaced in place."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

QUIET_SECONDS = 2.0
"""Seconds of a call for which nothing is shown."""
REFRESH_SECONDS = 0.5
"""Minimum number of seconds between two texts."""


def find_publisher() -> Callable[..., None] | None:
    """Return the function that shows an output of the current cell; None outside a kernel, as in a script or in IPython."""
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell: Any = None if get_shell is None else get_shell()
    return None if getattr(shell, "kernel", None) is None else shell.display_pub.publish


class NotebookLine:
    """Output of a cell that has one line of text. Outside a notebook, nothing is shown.

    Nothing is shown in the first QUIET_SECONDS.
    """

    def __init__(self) -> None:
        self._publish = find_publisher()
        self._display_id = uuid.uuid4().hex
        self._is_shown = False
        self._start = time.monotonic()
        self._next_refresh = self._start + QUIET_SECONDS

    def show(self, text: str) -> None:
        """Replace the line, unless the last text is recent."""
        if self._publish is not None and time.monotonic() >= self._next_refresh:
            self._replace(self._publish, text)

    def finish(self, text: str) -> None:
        """Replace the line by its last text, if a text is shown."""
        if self._publish is not None and self._is_shown:
            self._replace(self._publish, text)

    @property
    def seconds(self) -> float:
        """Seconds since the line was created."""
        return time.monotonic() - self._start

    def _replace(self, publish: Callable[..., None], text: str) -> None:
        publish({"text/plain": text}, transient={"display_id": self._display_id}, update=self._is_shown)
        self._is_shown = True
        self._next_refresh = time.monotonic() + REFRESH_SECONDS
