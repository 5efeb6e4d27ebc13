"""Permissions of other users in the folders above a file that this user runs or unpickles.

Symbolic links are resolved, with a RuntimeError for a loop of links. A system without user ids has no other users.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


def has_protected_entries(folder: Path) -> bool:
    """Return True if no other user can replace an entry of an existing folder or of a folder above it.

    In a sticky folder, such as /tmp, only root and the owner of an entry can replace the entry.
    """
    if not hasattr(os, "geteuid"):
        return True
    folder = folder.resolve(strict=True)
    return all(_is_safe(parent.stat()) for parent in (folder, *folder.parents))


def is_private(folder: Path) -> bool:
    """Return True if only this user can access a folder and no other user can replace it, so its files may be unpickled."""
    if not hasattr(os, "geteuid"):
        return True
    folder = folder.resolve(strict=True)
    status = folder.stat()
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return is_own and has_protected_entries(folder.parent)


def _is_safe(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.geteuid()) and not (status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX)
