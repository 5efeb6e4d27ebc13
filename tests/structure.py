"""Counts of the package's structure and of its documentation, for the tests that limit them.

python -m tests.structure                 counts of the whole package
python -m tests.structure --list PATH...  each finding in these files and folders of the package
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fedsgd"

FLOORS = (
    ("errors", "_version"),
    ("system",),
    ("numerics", "config"),
    ("storage", "data", "optim", "wire"),
    ("models", "network", "sampling", "compression"),
    ("training", "aggregation"),
    ("federation",),
    ("runtime", "scenario"),
    ("trackers",),
    ("experiment",),
    ("sweeps", "certification", "flower"),
    ("analysis", "testing"),
    ("__init__",),
    ("cli", "__main__"),
)
"""Packages and modules of the top level, lowest floor first. A module imports from its own package and from lower floors."""
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}

FIRST_WORDS = {"what", "who", "whose", "where", "whether", "how", "which", "when"}
"""Words that no docstring begins with: they begin a clause."""
METAPHORS = re.compile(
    r"\b(doors?|houses?|shelf|shelves|posts?|posted|ways? out|remember(s|ed|ing)?|forgets?|forgot|forgotten|told|asked|said"
    r"|held to|beside|bills?|fresh eyes)\b",
    re.IGNORECASE,
)
FIELD_TERMS = re.compile(
    r"^ +\w+: |\b\w+\.\w[\w.]*|forget gate|HTTP POST|POST request|`[^`]*`|\"[\w.-]+\"|'[\w.-]+'", re.IGNORECASE | re.MULTILINE
)
"""Texts in which a word of METAPHORS is a term of the field, a name or a key."""
PUBLIC_PACKAGES = ("federation", "wire")
PUBLIC_CLASSES = {
    *("AggregationContext", "CodecContext", "EncodedUpdate", "EntryPatch", "Update", "WeightedUpdate", "RunConfig"),
    *("ClientData", "Dataset", "Examples", "CohortSampler", "SampledCohort", "SamplingPool", "ScaledStep"),
    *("Channel", "Execution", "SupportsEvaluate", "Tracker", "TrainingEngine", "TrainingJob", "TrainingResult"),
}
"""Protocols, and what the members of a component family receive and return."""
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A module of the package.

    Attributes:
        path: its file.
        tree: its syntax tree.
    """

    path: Path
    tree: ast.Module

    @cached_property
    def name(self) -> str:
        """Dotted name, "fedsgd.wire.frame"."""
        return ".".join(self.path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")

    @property
    def entry(self) -> str:
        """Package or module of the top level that the module belongs to."""
        return self.path.relative_to(PACKAGE).parts[0].removesuffix(".py")

    @cached_property
    def imports(self) -> list[tuple[str, int, bool]]:
        """(dotted name, line, True inside a function) of each import of an own module."""
        inside = {id(node) for f in ast.walk(self.tree) if isinstance(f, Function) for node in ast.walk(f)}
        imports = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fedsgd":
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                imports += [(n if n in module_names() else str(node.module), node.lineno, id(node) in inside) for n in names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.split(".")[0] == "fedsgd"]
                imports += [(name, node.lineno, id(node) in inside) for name in names]
        return imports

    @cached_property
    def references(self) -> list[tuple[str, int]]:
        """(dotted name, line) of each text "fedsgd.module:name", which registries import when the name is used."""
        texts = [node for node in ast.walk(self.tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        matches = [(re.fullmatch(r"(fedsgd(?:\.\w+)+):\w+", str(text.value)), text.lineno) for text in texts]
        return [(match[1], line) for match, line in matches if match]


@cache
def modules() -> tuple[Module, ...]:
    """Return all modules of the package."""
    return tuple(Module(path, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(PACKAGE.rglob("*.py")))


@cache
def module_names() -> frozenset[str]:
    """Return the dotted names of all modules of the package."""
    return frozenset(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in PACKAGE.rglob("*.py")
    )


def top_entries() -> list[str]:
    """Return the entries at the top of the package: files and folders."""
    return sorted(path.name for path in PACKAGE.iterdir() if path.name != "__pycache__")


def upward_imports() -> list[str]:
    """Return the imports from the same floor's other packages and from higher floors, each as "file:line: text"."""
    findings = []
    for module in modules():
        for name, line in [*((name, line) for name, line, _ in module.imports), *module.references]:
            entry = [*name.split("."), "__init__"][1]
            if entry != module.entry and FLOOR[entry] >= FLOOR[module.entry] and module.entry != "__main__":
                findings.append(f"{module.path}:{line}: {module.entry} imports {entry}, which is not on a lower floor")
    return findings


def inner_imports() -> list[str]:
    """Return the imports of own modules inside functions, outside `cli/`."""
    return [
        f"{module.path}:{line}: imports {name} inside a function"
        for module in modules()
        for name, line, inside in module.imports
        if inside and module.entry != "cli"
    ]


def cycles() -> list[list[str]]:
    """Return the groups of modules that import one another, directly or indirectly; imports for types count."""
    graph = {module.name: {name for name, _, _ in module.imports} - {module.name} for module in modules()}
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in graph[name]:
            if other not in order:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for name in graph:
        if name not in order:
            visit(name)
    return groups


def duplicate_classes() -> dict[str, list[str]]:
    """Return the class names that more than one module defines, with the files."""
    places: dict[str, list[str]] = defaultdict(list)
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(module.path))
    return {name: paths for name, paths in places.items() if len(paths) > 1}


def docstrings(module: Module) -> Iterator[tuple[str, int, str]]:
    """Yield name, line and text of each docstring in a module, those of attributes and constants included."""
    for node in ast.walk(module.tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for before, statement in zip([None, *body], body, strict=False):
            constant = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                owner = before if isinstance(before, ast.Assign | ast.AnnAssign) else node
                yield _name_of(owner), statement.lineno, constant.value


def _name_of(node: ast.AST) -> str:
    if isinstance(node, Definition):
        return node.name
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
    return "module"


def clause_docstrings() -> list[str]:
    """Return the docstrings whose first word begins a clause."""
    findings = []
    for module in modules():
        for name, line, text in docstrings(module):
            word = re.match(r"\W*(\w+)", text)
            if word and word[1].lower() in FIRST_WORDS:
                findings.append(f"{module.path}:{line}: the docstring of {name} begins with {word[1]!r}")
    return findings


def metaphors() -> list[str]:
    """Return the rejected words in docstrings and in strings that users may see."""
    findings = []
    for module in modules():
        texts = [(line, text) for _, line, text in docstrings(module)]
        texts += [(node.lineno, node.value) for node in visible_strings(module.tree)]
        for line, text in texts:
            for match in METAPHORS.finditer(FIELD_TERMS.sub("", text)):
                findings.append(f"{module.path}:{line}: {match[0]!r} is a metaphor or dialect")
    return sorted(set(findings))


def visible_strings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yield the string constants that have more than one word and are not docstrings."""
    documented = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        is_string = isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented
        if is_string and " " in node.value.strip():
            yield node


def undocumented_parameters() -> list[str]:
    """Return the public functions, methods and classes that do not describe every parameter and field."""
    bases = _class_bases()
    findings = []
    for module in modules():
        for node in _public_definitions(module, bases):
            if isinstance(node, ast.ClassDef):
                findings += _check_fields(module, node)
                inherited = {name for base in bases.ancestors(node.name) for name in bases.members.get(base, ())}
                for member in node.body:
                    if isinstance(member, Function) and not member.name.startswith("_") and member.name not in inherited:
                        findings += _check_parameters(module, member, f"{node.name}.{member.name}")
            else:
                findings += _check_parameters(module, node, node.name)
    return findings


def undocumented_methods() -> list[str]:
    """Return the public methods without a docstring that override no method of another class of the package.

    Classes that extend a class of a library are left out, because their methods override the library's.
    """
    bases = _class_bases()
    findings = []
    for module in modules():
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue
            ancestors = bases.ancestors(node.name)
            if ancestors - {*bases.members, "ABC", "Protocol", "Generic", "NamedTuple"}:
                continue
            inherited = {name for ancestor in ancestors for name in bases.members.get(ancestor, ())}
            for member in node.body:
                is_public = isinstance(member, Function) and not member.name.startswith("_")
                if is_public and not ast.get_docstring(member) and member.name not in inherited:
                    findings.append(f"{module.path}:{member.lineno}: {node.name}.{member.name} has no docstring")
    return findings


@cache
def exported_names() -> frozenset[str]:
    """Return the names that `fedsgd` and `fedsgd.flower` export."""
    exported: set[str] = set()
    for module in modules():
        if module.name in ("fedsgd", "fedsgd.flower"):
            for node in module.tree.body:
                if isinstance(node, ast.Assign) and _name_of(node) == "__all__":
                    exported |= set(ast.literal_eval(node.value))
    return frozenset(exported)


@dataclass(frozen=True)
class _Classes:
    """Classes of the package.

    Attributes:
        parents: names of each class's bases.
        members: names that each class defines.
    """

    parents: Mapping[str, tuple[str, ...]]
    members: Mapping[str, frozenset[str]]

    def ancestors(self, name: str) -> set[str]:
        """Return the names of all base classes."""
        ancestors: set[str] = set()
        pending = [name]
        while pending:
            for parent in self.parents.get(pending.pop(), ()):
                if parent not in ancestors:
                    ancestors.add(parent)
                    pending.append(parent)
        return ancestors


@cache
def _class_bases() -> _Classes:
    parents, members = {}, {}
    for module in modules():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                names = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
                parents[node.name] = tuple(ast.unparse(name).split(".")[-1] for name in names)
                members[node.name] = frozenset(_name_of(member) for member in node.body)
    return _Classes(parents, members)


def _public_definitions(module: Module, bases: _Classes) -> Iterator[Definition]:
    for node in module.tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            is_component = isinstance(node, ast.ClassDef) and "Component" in {node.name, *bases.ancestors(node.name)}
            is_public = node.name in exported_names() or node.name in PUBLIC_CLASSES
            if module.entry in PUBLIC_PACKAGES or is_public or is_component:
                yield node


def _check_parameters(module: Module, node: Function, name: str) -> list[str]:
    decorators = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
    if decorators & {"property", "cached_property", "overload", "setter"}:
        return []
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    arguments += [extra for extra in (node.args.vararg, node.args.kwarg) if extra]
    names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
    described = described_names(ast.get_docstring(node) or "", "Args")
    return [f"{module.path}:{node.lineno}: {name} does not describe {n}" for n in names if n not in described]


def _check_fields(module: Module, node: ast.ClassDef) -> list[str]:
    decorators = {ast.unparse(decorator).split("(")[0] for decorator in node.decorator_list}
    if "dataclass" not in decorators and "NamedTuple" not in [ast.unparse(base) for base in node.bases]:
        return []
    fields = [
        member.target.id
        for member in node.body
        if isinstance(member, ast.AnnAssign)
        and isinstance(member.target, ast.Name)
        and "ClassVar" not in ast.unparse(member.annotation)
    ]
    text = ast.get_docstring(node) or ""
    described = described_names(text, "Attributes") | described_names(text, "Args")
    return [
        f"{module.path}:{node.lineno}: {node.name} does not describe {field}"
        for field in fields
        if not field.startswith("_") and field not in described
    ]


def described_names(docstring: str, section: str) -> set[str]:
    """Return the names that a section of a docstring describes. A description that only repeats the name does not count."""
    names: set[str] = set()
    match = re.search(rf"^{section}:\n((?:[ \t]+.*\n?|\n)*)", docstring, re.MULTILINE)
    for line in (match[1] if match else "").splitlines():
        item = re.match(r" {2,8}([*\w, ]+?)(?: \([^)]*\))?: *(.*)", line)
        if item:
            for name in item[1].split(","):
                plain = name.strip().lstrip("*")
                if item[2].lower().strip(" .") not in (plain, f"the {plain}", f"a {plain}", plain.replace("_", " ")):
                    names.add(plain)
    return names


FINDINGS = {
    "upward imports": upward_imports,
    "imports of own modules inside functions, outside cli/": inner_imports,
    "docstrings with a rejected first word": clause_docstrings,
    "rejected words in docstrings and visible strings": metaphors,
    "undescribed parameters and fields of the public interface": undocumented_parameters,
    "public methods without a docstring": undocumented_methods,
}


def counts() -> dict[str, int]:
    """Return the counts by name."""
    return {
        "modules": len(modules()),
        "lines": sum(len(module.path.read_text(encoding="utf-8").splitlines()) for module in modules()),
        "entries at the top": len(top_entries()),
        "import floors": len(FLOORS),
        "import cycles": len(cycles()),
        "duplicate class names": len(duplicate_classes()),
        **{name: len(find()) for name, find in FINDINGS.items()},
    }


def main(arguments: Sequence[str]) -> int:
    """Run the command and return the exit status, 1 if --list printed a finding."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.structure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", nargs="+", type=Path, metavar="PATH", help="print each finding in these files and folders")
    paths = parser.parse_args(arguments).list
    if paths is None:
        for name, count in counts().items():
            print(f"{count:7,}  {name}")
        return 0
    places = tuple(str(path.resolve()) for path in paths)
    findings = [finding for find in FINDINGS.values() for finding in find() if finding.startswith(places)]
    print("\n".join([*findings, f"{len(findings)} findings"]))
    return bool(findings)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
