"""Fixtures for tests of a deployment's processes."""

from __future__ import annotations

import psutil
import pytest


@pytest.fixture
def hidden_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the environments of all processes unreadable, as a SuperExec's environment is for all users but root."""

    def deny(self: psutil.Process) -> dict[str, str]:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "environ", deny)
