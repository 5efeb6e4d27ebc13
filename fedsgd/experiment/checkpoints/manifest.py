"""Manifests: one file of JSON for each checkpoint, which names the checkpoint's other files and is written last."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedsgd.errors import OutputError
from fedsgd.experiment.checkpoints.tensor_file import FileEntry, find_damage
from fedsgd.storage.durable import replace_file, sync_path, write_fully
from fedsgd.storage.run_directory import is_checkpoint_file

FORMAT_VERSION = 1
_NAME = re.compile(r"checkpoint-(\d{6,})\.json")


@dataclass(frozen=True)
class Manifest:
    """Content of a manifest.

    Attributes:
        round: last round that is part of the checkpoint.
        server_file: arrays of the server's state.
        server: numbers of the server's state.
        client_files: files of client states, in the order in which they were written.
        model_files: (round, file) of each model that a client stores.
        tables: number of rows of each table of the run directory, by file name.
        run: all other values of the run, as JSON has them.
    """

    round: int
    server_file: FileEntry
    server: Mapping[str, Any]
    client_files: tuple[FileEntry, ...]
    model_files: tuple[tuple[int, FileEntry], ...]
    tables: Mapping[str, int]
    run: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the manifest's file."""
        return f"checkpoint-{self.round:06d}.json"

    @property
    def files(self) -> list[FileEntry]:
        """All other files of the checkpoint."""
        return [self.server_file, *self.client_files, *(entry for _, entry in self.model_files)]

    def write(self, folder: Path) -> None:
        """Write the manifest durably, after the files that it names. OutputError if it cannot be written."""
        sync_path(folder)  # the names of the other files
        content = json.dumps(asdict(self))
        text = json.dumps({"format": FORMAT_VERSION, "sha256": _hash(content), "checkpoint": json.loads(content)}, indent=1)
        replace_file(folder / self.name, lambda file: write_fully(file, text.encode() + b"\n"))
        sync_path(folder)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Args:
        path: file of the manifest.

    Raises:
        OutputError: the file cannot be read, was changed, or has another format.
    """
    try:
        table = json.loads(path.read_bytes())
        version, content = table["format"], table["checkpoint"]
        if version != FORMAT_VERSION:
            raise OutputError(f"{path}: got format {version!r}, expected {FORMAT_VERSION}; use the release that wrote it")
        if _hash(json.dumps(content)) != table["sha256"]:
            raise OutputError(f"{path}: the checksum is wrong")
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, LookupError, TypeError):
        raise OutputError(f"{path}: is not a complete manifest of a checkpoint") from None
    return Manifest(
        **{
            **content,
            "server_file": FileEntry(*content["server_file"]),
            "client_files": tuple(FileEntry(*entry) for entry in content["client_files"]),
            "model_files": tuple((round, FileEntry(*entry)) for round, entry in content["model_files"]),
        }
    )


def list_manifests(folder: Path) -> list[Path]:
    """Return the files of all manifests in a folder, the latest round first; nothing if there is no such folder."""
    with suppress(OSError):
        paths = {int(match[1]): path for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}
        return [paths[round] for round in sorted(paths, reverse=True)]
    return []


def find_usable_manifests(folder: Path) -> Iterator[tuple[Path, Manifest | str]]:
    """Yield each manifest, the latest first, or the reason why its checkpoint cannot be used.

    Args:
        folder: folder of the checkpoints.
    """
    damages: dict[FileEntry, str | None] = {}  # several checkpoints share files
    for path in list_manifests(folder):
        try:
            manifest = read_manifest(path)
        except OutputError as error:
            yield path, str(error)
            continue
        damages |= {entry: find_damage(folder, entry) for entry in manifest.files if entry not in damages}
        damage = next((damages[entry] for entry in manifest.files if damages[entry]), None)
        yield path, manifest if damage is None else f"{path}: {damage}"


def remove_other_files(folder: Path, kept: list[Manifest]) -> None:
    """Remove the files of all checkpoints but some. Files that cannot be removed stay.

    Args:
        folder: folder of the checkpoints.
        kept: checkpoints whose files stay.
    """
    kept_names = {manifest.name for manifest in kept} | {entry.name for manifest in kept for entry in manifest.files}
    with suppress(OSError):
        paths = [path for path in folder.iterdir() if is_checkpoint_file(path.name) and path.name not in kept_names]
        for path in sorted(paths, key=lambda path: not _NAME.fullmatch(path.name)):  # a manifest goes before its files
            with suppress(OSError):
                path.unlink()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
