"""Pages of the Python API: functions, classes, and the namespaces of components."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import fedsgd
from fedsgd.config.component import Component
from fedsgd.config.registry import Registry
from fedsgd.scenario.key_reference import list_sections
from fedsgd.scenario.scenario import Scenario
from tests import structure
from tests.docs.api_groups import BASE_CLASSES, GROUPS, NAMESPACE_FAMILIES
from tests.docs.docstring import Docstring, parse_docstring
from tests.docs.key_pages import FAMILIES, component_link
from tests.docs.markdown import (
    bullets,
    code,
    code_block,
    escape,
    link,
    make_page,
    paragraph,
    render_blocks,
    sentence,
    split_pages,
    table,
)

MAX_SIGNATURE = 100


def build_python_pages() -> dict[str, str]:
    """Return the pages python/*.md by path."""
    pages = {}
    for group in GROUPS:
        parts = [part for name in group.names for part in _describe(name)]
        pages |= split_pages(f"python/{group.page}.md", group.title, [paragraph(group.intro, is_markdown=True)], parts)
    for namespace in sorted(fedsgd._NAMESPACES):
        pages |= _build_namespace_pages(namespace)
    pages |= _build_base_class_pages()
    return {"python/index.md": _build_index(), **pages}


def resolve(name: str) -> Any:
    """Return the object of a dotted name, such as "fedsgd.flower.compression_mod".

    Args:
        name: dotted name of a module's attribute.
    """
    value: Any = fedsgd
    for part in name.split(".")[1:]:
        is_package = inspect.ismodule(value) and not hasattr(value, part)
        value = importlib.import_module(f"{value.__name__}.{part}") if is_package else getattr(value, part)
    return value


def _build_index() -> str:
    rows = [
        (link(group.title, f"{group.page}.md"), ", ".join(code(name.removeprefix("fedsgd.")) for name in group.names))
        for group in GROUPS
    ]
    namespaces = [
        (link(f"fedsgd.{name}", f"{name}.md"), escape(_first_sentence(parse_docstring(getattr(fedsgd, name).__doc__))))
        for name in sorted(fedsgd._NAMESPACES)
    ]
    return make_page(
        "# Python API",
        paragraph(
            "`import fedsgd as fs` has all names of this page; each is imported when it is first used. "
            "[Base classes](base-classes.md) are for components of your own.",
            is_markdown=True,
        ),
        table(("page", "names"), rows),
        "## Namespaces of components",
        table(("namespace", "content"), namespaces),
    )


def _build_namespace_pages(namespace: str) -> dict[str, str]:
    module = getattr(fedsgd, namespace)
    family = NAMESPACE_FAMILIES.get(namespace, namespace)
    registry = FAMILIES.get(family)
    members = {registry[name].__name__: name for name in registry} if registry is not None else {}
    text = parse_docstring(module.__doc__)
    blocks = [block for block in text.blocks if not block.startswith("To add ")]
    intro = [paragraph(_first_sentence(text)), *render_blocks(blocks)]
    if text.example:
        intro.append(code_block(text.example))
    if members:
        rows = [(code(f"fedsgd.{namespace}.{cls}"), component_link(family, name)) for cls, name in members.items()]
        intro.append(table(("class", "component"), rows))
    others = [name for name in module.__all__ if name not in members and not name.isupper()]
    parts = [part for name in others for part in _describe(f"fedsgd.{namespace}.{name}")]
    return split_pages(f"python/{namespace}.md", f"fedsgd.{namespace}", intro, parts)


def _first_sentence(text: Docstring) -> str:
    return text.summary.split(". ")[0].rstrip(".") + "."


def _build_base_class_pages() -> dict[str, str]:
    text = (
        "Base classes of component families, and what their methods receive and return. "
        "[Own components](../../guides/own-components.md) shows how to write a subclass."
    )
    parts = [part for name in BASE_CLASSES for part in _describe(name)]
    return split_pages("python/base-classes.md", "Base classes of components", [paragraph(text, is_markdown=True)], parts)


def _describe(name: str) -> Iterator[str]:
    """Yield the section of a name, and one for each of its methods where they are long."""
    value = resolve(name)
    blocks = [f"## {name}"]
    if isinstance(value, type):
        yield "\n\n".join([*blocks, *_describe_class(name, value)])
        return
    if callable(value) and hasattr(value, "__doc__") and (inspect.isroutine(value) or inspect.isfunction(value)):
        label = name.rpartition(".")[2]
        yield "\n\n".join([*blocks, *_describe_function(label, value)])
        return
    yield "\n\n".join([*blocks, paragraph(_find_constant_docstring(name))])


def _find_constant_docstring(name: str) -> str:
    """Return the text that follows an assignment in the package of a namespace."""
    folder = Path(inspect.getfile(resolve(name.rpartition(".")[0]))).parent
    for path in sorted(folder.glob("*.py")):
        for owner, _, text in structure.docstrings(structure.Module(path, ast.parse(path.read_text(encoding="utf-8")))):
            if owner == name.rpartition(".")[2]:
                return " ".join(text.split())
    raise LookupError(f"{name} has no docstring")


def _describe_function(label: str, function: Any) -> Iterator[str]:
    text = parse_docstring(function.__doc__)
    yield code_block(format_signature(label, function))
    yield from _describe_text(text)
    yield from _format_sections(text)


def _describe_text(text: Docstring) -> Iterator[str]:
    yield paragraph(text.summary)
    yield from render_blocks(text.blocks)
    if text.example:
        yield code_block(text.example)


def _format_sections(text: Docstring) -> Iterator[str]:
    for title, heading in (("Args", "Parameters"), ("Returns", "Returns"), ("Raises", "Raises"), ("Warns", "Warns")):
        entries = text.sections.get(title, [])
        if entries:
            yield f"{heading}:"
            yield bullets(_format_entry(names, meaning) for names, meaning in entries)


def _format_entry(names: str, meaning: str) -> str:
    spans = ", ".join(code(name.strip()) for name in names.split(",") if name.strip())
    return f"{spans}: {escape(meaning)}" if spans else escape(meaning)


def _describe_class(name: str, cls: type) -> Iterator[str]:
    text = parse_docstring(vars(cls).get("__doc__"))
    has_signature = not issubclass(cls, Exception) and not inspect.isabstract(cls) and not getattr(cls, "_is_protocol", False)
    if has_signature:
        yield code_block(format_signature(name.rpartition(".")[2], cls))
    yield from _describe_text(text)
    yield from _format_sections(text)
    section = _find_section(cls)
    if section:
        yield paragraph(f"Its attributes are the keys of {link(f'`[{section}]`', f'../keys/{section}.md')}.", is_markdown=True)
    elif is_dataclass(cls):
        yield from _describe_fields(cls, text)
    else:
        entries = text.sections.get("Attributes", [])
        yield from ["Attributes:", bullets(_format_entry(*entry) for entry in entries)] if entries else []
    members = list(_list_members(cls))
    if members:
        yield "Methods and properties:"
        yield bullets(members)


def _find_section(cls: type) -> str:
    """Return the section of a scenario that a class describes, "" for any other class."""
    if cls is Scenario:
        return ""
    by_class = {type(getattr(Scenario(name="x", rounds=1), name)): name for name in list_sections() if hasattr(Scenario, name)}
    return by_class.get(cls, "")


def _describe_fields(cls: type, text: Docstring) -> Iterator[str]:
    """Yield a list of the attributes; those of an abstract class with their types, as it has no signature."""
    types = {f.name: f": {code(f.type)}" for f in fields(cls)} if inspect.isabstract(cls) else {}  # type: ignore[arg-type]
    entries = [
        f"{', '.join(f'{code(n)}{types.get(n, str())}' for n in names.split(', '))}: {escape(meaning)}"
        for names, meaning in text.sections.get("Attributes", [])
    ]
    if entries:
        yield "Attributes:"
        yield bullets(entries)


def _list_members(cls: type) -> Iterator[str]:
    """Yield an entry for each public property and method that a class defines."""
    for name, value in vars(cls).items():
        if name.startswith("_"):
            continue
        if isinstance(value, property) and value.fget is not None and value.fget.__doc__:
            yield f"{code(name)}: {escape(parse_docstring(value.fget.__doc__).summary)}"
        elif inspect.isfunction(value) and value.__doc__:
            text = parse_docstring(value.__doc__)
            arguments = "; ".join(_format_entry(*entry).rstrip(".") for entry in text.sections.get("Args", []))
            signature = " ".join(format_signature(name, value, with_types=False).split())
            prose = " ".join([text.summary, *_read_prose(text)])
            yield f"{code(signature)}: {escape(prose)} {sentence(arguments) if arguments else ''}".strip()


def _read_prose(text: Docstring) -> Sequence[str]:
    """Return the paragraphs of a docstring without formulas, and without paragraphs that introduce one."""
    is_formula = [block.startswith("    ") for block in [*text.blocks, ""]]
    return [block.removeprefix("* ") for i, block in enumerate(text.blocks) if not is_formula[i] and not is_formula[i + 1]]


def format_signature(label: str, function: Any, with_types: bool = True) -> str:
    """Return a signature, in several lines if it is long.

    Args:
        label: name of the function or class.
        function: the function or class.
        with_types: False to leave annotations out.
    """
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    texts = [_format_parameter(p, with_types) for p in parameters]
    kinds = [p.kind for p in parameters]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        texts.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    result = signature.return_annotation
    is_class = isinstance(function, type)
    arrow = f" -> {_format_type(result)}" if with_types and not is_class and result is not inspect.Signature.empty else ""
    line = f"{label}({', '.join(texts)}){arrow}"
    if len(line) <= MAX_SIGNATURE:
        return line
    return "\n".join([f"{label}(", *(f"    {text}," for text in texts), f"){arrow}"])


def _format_parameter(p: inspect.Parameter, with_types: bool) -> str:
    star = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(p.kind, "")
    has_type = with_types and p.annotation is not inspect.Parameter.empty
    kind = f": {_format_type(p.annotation)}" if has_type else ""
    if p.default is inspect.Parameter.empty:
        return f"{star}{p.name}{kind}"
    text = _format_default(p.default)
    return f"{star}{p.name}{kind} = {text}" if kind else f"{star}{p.name}={text}"


def _format_default(default: Any) -> str:
    if isinstance(default, Component) or is_dataclass(default):
        return f"{type(default).__name__}()"
    text = repr(default)
    return text if len(text) < 60 and "0x" not in text else "..."


def _format_type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def list_registry_constants(namespace: str) -> list[str]:
    """Return the registries that a namespace exports, which need no entry of their own.

    Args:
        namespace: name of the namespace.
    """
    module = getattr(fedsgd, namespace)
    return [name for name in module.__all__ if isinstance(getattr(module, name), Registry)]
