"""Source files of the user's modules: a module, and the modules that it imports from the same folder.

Imports are read from the source, so the files are the same in every process, and no further module is imported.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import site
import sys
from collections.abc import Iterator
from pathlib import Path

_PACKAGE_FOLDERS = ("site-packages", "dist-packages")


def find_root(module: str) -> Path | None:
    """Return the folder that has the top-level file or package of a module; None for a module without a file.

    Args:
        module: dotted name of a module.
    """
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).absolute().parent
    return Path(spec.origin).absolute().parent if spec.has_location and spec.origin else None


def is_own_module(module: str) -> bool:
    """Return True for a module of fedsgd or of Python's standard library.

    Args:
        module: dotted name of a module.
    """
    top = module.partition(".")[0]
    return top == "fedsgd" or top in sys.stdlib_module_names


def is_installed(root: Path) -> bool:
    """Return True for a folder of installed packages.

    Args:
        root: folder that has a top-level module.
    """
    return root.name in _PACKAGE_FOLDERS


def is_on_every_path(root: Path) -> bool:
    """Return True for a folder from which every new process of this Python imports: installed, or in PYTHONPATH.

    Args:
        root: folder that has a top-level module.
    """
    if is_installed(root):
        return True
    folders = [Path(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    for packages in (*site.getsitepackages(), site.getusersitepackages()):  # editable installs
        for file in sorted(Path(packages).glob("*.pth")):
            folders += [Path(line) for line in file.read_text(errors="replace").splitlines() if line[:1] not in ("", "#")]
    on_search_path = {Path(entry).resolve() for entry in sys.path}
    return root.resolve() in {folder.resolve() for folder in folders} or root.resolve() not in on_search_path


def list_source_files(module: str, root: Path) -> dict[str, Path]:
    """Return the source files of a module and of the modules that it imports from its package or from its folder.

    In a folder of installed packages, modules outside the module's own package do not count.

    Args:
        module: dotted name of a module.
        root: folder that has the top-level module.

    Returns:
        Path of each file, by its path relative to the folder, sorted.
    """
    files: dict[str, Path] = {}
    queue, has_siblings = [module], not is_installed(root)
    while queue:
        parts = queue.pop().split(".")
        if is_own_module(parts[0]) or not (has_siblings or parts[0] == module.partition(".")[0]):
            continue
        for depth in range(1, len(parts) + 1):  # the packages of a module are imported before the module
            name = ".".join(parts[:depth])
            path = _locate_source(root, name)
            if path is None or path in files.values():
                continue
            files[path.relative_to(root).as_posix()] = path
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            queue += _list_imports(path, package)
    return dict(sorted(files.items()))


def _locate_source(root: Path, name: str) -> Path | None:
    base = root.joinpath(*name.split("."))
    candidates = (base / "__init__.py", base.parent / f"{base.name}.py")
    return next((path for path in candidates if path.is_file()), None)


def _list_imports(path: Path, package: str) -> Iterator[str]:
    """Yield the dotted names that a source file imports; `package` is the package of its relative imports."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # the file is not imported, or its import reports the error
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join(filter(None, [*parents, node.module or ""]))
            yield from (name for alias in node.names for name in (base, f"{base}.{alias.name}") if base and alias.name != "*")
            if base and any(alias.name == "*" for alias in node.names):
                yield base
