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
from importlib.machinery import PathFinder
from pathlib import Path

from fedsgd.errors import ScenarioError
from fedsgd.system.user_files import list_searched_folders

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


def check_scenario_modules(module_name: str) -> None:
    """Raise a ScenarioError if a scenario's folder has the module, and another file is imported for it or for its imports.

    Without this check, the second of two scenarios in different folders would have the classes of the first one. Equal files
    are accepted: a package that is installed from its folder, and copies of one module.

    Args:
        module_name: dotted name of a module that was imported.
    """
    top = module_name.partition(".")[0]
    for folder in reversed(list_searched_folders()):
        found = PathFinder.find_spec(top, [folder])
        if found is None:
            continue
        files = {top: found.origin} if found.origin is not None and found.has_location else {}
        for name, path in list_source_files(module_name, Path(folder)).items():
            files[name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")] = str(path)
        for name, file in files.items():
            loaded = _find_module_file(name)
            if loaded is not None and _is_same_module(Path(loaded), Path(file)):
                continue
            is_package_installed = loaded is not None and any(map(is_installed, Path(loaded).parents))
            remedy = "or install the package again" if is_package_installed else "or use a process for each"
            problem = f"{file} has the name of {loaded or 'a module'}, which is imported in its place"
            raise ScenarioError(f'cannot import "{module_name}": {problem}; rename one of them, {remedy}')
        return


def _find_module_file(name: str) -> str | None:
    """Return the file of a module, or the file that an import of it would read; None for a module without a file."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None)
    parent = name.rpartition(".")[0]
    spec = PathFinder.find_spec(name, None if not parent else getattr(sys.modules.get(parent), "__path__", []))
    return spec.origin if spec is not None and spec.has_location else None


def _is_same_module(loaded: Path, file: Path) -> bool:
    """Return True for one file, for a source file and its compiled form next to it, and for files with equal contents."""
    try:
        is_compiled = loaded.suffix != ".py" and loaded.name.partition(".")[0] == file.name.partition(".")[0]
        if loaded.samefile(file) or (is_compiled and loaded.parent.samefile(file.parent)):
            return True
        return loaded.read_bytes() == file.read_bytes()
    except OSError:  # one of them was removed
        return False


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
