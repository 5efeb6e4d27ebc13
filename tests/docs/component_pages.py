"""Pages of the component families, and of each compressor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from fedsgd.compression import COMPRESSORS, CompressionOperator
from fedsgd.config.component import add_article
from fedsgd.scenario.key_reference import ComponentReference, KeyReference, describe_component
from fedsgd.scenario.key_search import find_keys
from fedsgd.scenario.toml_text import format_tables
from fedsgd.trackers import TRACKERS
from tests.docs import compressor_facts
from tests.docs.key_pages import FAMILIES, find_family, format_components, format_default, format_meaning, list_section_keys
from tests.docs.markdown import (
    bullets,
    code,
    code_block,
    escape,
    key_link,
    link,
    make_page,
    paragraph,
    render_blocks,
    sentence,
    split_pages,
    table,
)

NAMESPACES = {"optimizers": "optim"}
"""Namespaces of `fedsgd` that are not named after their family."""
CERTIFICATE_NOTE = (
    "Measured on updates of a small federation by `fedsgd certify --all`. "
    "[Certificates](../../results/certificates.md) has the setting and the times."
)


def build_component_pages() -> dict[str, str]:
    """Return the pages components/FAMILY.md and compressors/NAME.md by path."""
    pages = {"compressors/index.md": _build_catalogue(), "components/trackers.md": _build_tracker_page()}
    for family in FAMILIES:
        pages |= _build_compressor_pages() if family == "compressors" else _build_family_pages(family)
    return pages


def find_page(family: str, name: str) -> str:
    """Return the path of the page that describes a component.

    Args:
        family: plural of the family.
        name: name of the component.
    """
    if family == "compressors":
        return f"compressors/{name}.md"
    return next(path for path, text in _build_family_pages(family).items() if f"\n## {name}\n" in text)


@cache
def _build_family_pages(family: str) -> dict[str, str]:
    registry = FAMILIES[family]
    members = [describe_component(registry, name) for name in registry]
    shared = _find_shared_keys(members)
    places = ", ".join(dict.fromkeys(key_link(place) for member in members for place in member.places))
    intro = [
        paragraph(f"{_count_members(family)}, for {places}. {_describe_own(family)}", is_markdown=True),
        table(("name", "summary"), [(link(m.name, f"#{m.name}"), escape(m.summary)) for m in members]),
    ]
    parts = [_format_component(member, family, shared) for member in members]
    own_shared = [key for key in shared if not _is_section_key(key)]
    if own_shared:
        parts.insert(0, f"## Keys of all {family}\n\n{_format_keys(own_shared)}")
    return split_pages(f"components/{family}.md", family.capitalize(), intro, parts)


def _describe_own(family: str) -> str:
    text = link("Own components", "../../guides/own-components.md")
    return (
        f"`fedsgd explain NAME` prints an entry of this page. {text} shows how to add {add_article(FAMILIES[family].family)}."
    )


def _count_members(family: str) -> str:
    registry = FAMILIES[family]
    return f"{len([*registry])} {family if len([*registry]) > 1 else registry.family}"


def _find_shared_keys(members: Sequence[ComponentReference]) -> list[KeyReference]:
    """Return the keys that all members describe alike."""
    if len(members) < 2:
        return []
    texts = [{_format_key(key) for key in member.keys} for member in members]
    return [key for key in members[0].keys if all(_format_key(key) in own for own in texts)]


def _is_section_key(key: KeyReference) -> bool:
    """Return True for a key that the page of its section describes, such as model.loss."""
    section = key.key.partition(".")[0]
    return any(key.key == other.key for other in list_section_keys(section))


def _format_component(member: ComponentReference, family: str, shared: Sequence[KeyReference] = ()) -> str:
    shared_texts = {_format_key(key) for key in shared}
    own_keys = [key for key in member.keys if _format_key(key) not in shared_texts]
    return "\n\n".join(
        filter(
            None,
            [
                f"## {member.name}",
                paragraph(member.summary),
                *render_blocks(member.description),
                paragraph("; ".join(_list_facts(member, family)) + ".", is_markdown=True),
                _format_keys(own_keys, member.places),
            ],
        )
    )


def _list_facts(member: ComponentReference, family: str) -> list[str]:
    namespace = NAMESPACES.get(family, family)
    facts = [f"In Python: {code(f'fedsgd.{namespace}.{member.class_name}')}"]
    if member.aliases:
        facts.append(f"other names: {', '.join(map(code, member.aliases))}")
    facts.append(f"example: {' '.join(code(f'--set {setting}') for setting in member.settings)}")
    return facts


def _format_keys(keys: Sequence[KeyReference], places: Sequence[str] = ()) -> str:
    return bullets(_format_key(key, places) for key in keys)


def _format_key(key: KeyReference, places: Sequence[str] = ()) -> str:
    """Return the entry of a component's key in a list, with the default at each of the places where they differ."""
    family = find_family(key)
    name = key.key.rpartition(".")[2]
    kind = format_components(key) if family else escape(key.type)
    return f"**{code(name)}** = {_format_defaults(key, places)}: {format_meaning(key)} Accepts {kind}."


def _format_defaults(key: KeyReference, places: Sequence[str]) -> str:
    name = key.key.rpartition(".")[2]
    defaults = {place: format_default(_find_key_at(place, key, name)) for place in places}
    if len({*defaults.values()}) < 2:
        return format_default(key)
    return ", ".join(f"{default} for {code(place)}" for place, default in defaults.items())


def _find_key_at(place: str, key: KeyReference, name: str) -> KeyReference:
    """Return the description of a component's key at another place of a scenario."""
    return next((other for other in _find_keys(f"{place}.{name}") if {*key.components} & {*other.components}), key)


@cache
def _find_keys(name: str) -> Sequence[KeyReference]:
    return find_keys(name)


def _build_tracker_page() -> str:
    rows = [(code(name), code(f"pip install '.[{name}]'"), code(f"--track {name}")) for name in TRACKERS]
    guide = link("Track a run", "../../guides/track.md")
    text = f"Trackers send the metrics of a run to a tool, while it runs. {guide} shows them. Install one from the checkout of fedsgd."
    own = (
        "A tracker of your own is a class with the methods of `fedsgd.Tracker`: `--track my_module:MyTracker`, or an entry "
        "point in `fedsgd.trackers`."
    )
    return make_page("# Trackers", paragraph(text, True), table(("name", "install", "option"), rows), paragraph(own, True))


# ------------------------------------------------------------------------------------------------------------- compressors


@cache
def _describe_compressor(name: str) -> ComponentReference:
    return describe_component(FAMILIES["compressors"], name)


def _build_catalogue() -> str:
    members = [_describe_compressor(name) for name in COMPRESSORS]
    certificates = compressor_facts.read_certificates()
    catalogue = [
        (
            link(m.name, f"{m.name}.md"),
            compressor_facts.find_kind(m.name),
            escape(m.summary),
            compressor_facts.find_state(m.name),
        )
        for m in members
    ]
    order = sorted(certificates.values(), key=lambda certificate: float(certificate["traffic"]["frame_bits_per_parameter"]))
    rows = [format_certificate_row(certificate, as_link=True)[:3] for certificate in order]
    intro = (
        "A compressor encodes the update of a client for the uplink. An operator has no memory: it is unbiased, contractive, or "
        "neither. A scheme has a memory at the client, at the server, or at both. Lossy contractive operators need error feedback "
        "(`uplink.error_feedback`), which adds a residual at the client. [Choose a compressor](../../guides/choose-compressor.md) "
        "has a decision for common situations. [Own compressor](../../guides/own-compressor.md) shows "
        "how to add one, and [Certify](../../guides/certify.md) how to test it."
    )
    return make_page(
        "# Compressors",
        paragraph(intro, is_markdown=True),
        table(("name", "kind", "what is sent", "state"), catalogue),
        "## Certificates",
        paragraph(
            f"Each compressor at its defaults, the fewest bits first. {link('Certificates', '../../results/certificates.md')} has "
            "errors, laws, times and the setting.",
            is_markdown=True,
        ),
        table(("name", "bits a parameter", "ratio up"), rows),
        paragraph(
            "Bits a parameter: whole frames. Ratio up: bytes of dense float32 updates over bytes of the frames, for the uplink alone."
        ),
    )


def format_certificate_row(certificate: Mapping[str, Any], as_link: bool = False) -> tuple[str, ...]:
    """Return the label of a compressor, bits a parameter, ratio up, error and laws.

    Args:
        certificate: certificate as plain data.
        as_link: True for a link to the compressor's page as the label.
    """
    name = certificate["compressor"]["name"]
    operator = certificate["compressor"].get("op") if certificate["kind"] == "scheme" else None
    label = f"{name}({operator['name'] if isinstance(operator, dict) else operator})" if operator else name
    traffic, errors = certificate["traffic"], certificate["errors"] or certificate["delivery"]
    held = sum(law["passed"] is True for law in certificate["laws"])
    return (
        link(label, f"{name}.md") if as_link else label,
        f"{traffic['frame_bits_per_parameter']:.4g}",
        f"{traffic['uplink_ratio']:.1f}×",
        f"{errors['error']:.3g}",
        f"{held} of {len(certificate['laws'])}",
    )


def _build_compressor_pages() -> dict[str, str]:
    certificates = compressor_facts.read_certificates()
    return {f"compressors/{name}.md": _build_compressor_page(name, certificates[name]) for name in COMPRESSORS}


def _build_compressor_page(name: str, certificate: Mapping[str, Any]) -> str:
    member = _describe_compressor(name)
    use, avoid = (compressor_facts.find_advice(member, word) for word in ("Use", "Avoid"))
    description = [block for block in member.description if not block.startswith(("Use: ", "Avoid: "))]
    _, *figures = format_certificate_row(certificate)
    facts = [
        f"Kind: {compressor_facts.find_kind(name)}",
        f"State: {compressor_facts.find_state(name)}",
        f"For: {', '.join(map(key_link, member.places))}",
        *map(sentence, _list_facts(member, "compressors")),
    ]
    return make_page(
        f"# {name}",
        paragraph(member.summary),
        bullets(facts),
        code_block(format_tables(_make_tables(member)), "toml"),
        "## Method",
        *render_blocks(description),
        "## When to use it",
        paragraph(use),
        "## When not to use it",
        paragraph(avoid),
        *(["## Keys", _format_keys(member.keys)] if member.keys else []),
        "## Certificate",
        table(("bits a parameter", "ratio up", "error", "laws"), [figures]),
        paragraph(CERTIFICATE_NOTE, is_markdown=True),
    )


def _make_tables(member: ComponentReference) -> dict[str, Any]:
    """Return tables of a scenario that use a compressor, with error feedback where its operator is contractive."""
    tables = json.loads(json.dumps(member.example))
    cls = COMPRESSORS[member.name]
    needs_feedback = issubclass(cls, CompressionOperator) and compressor_facts.find_kind(member.name) == "contractive"
    if getattr(cls, "corrects_gradients", False):  # needs plain SGD
        tables["client"] = {"optimizer": "sgd"}
    tables["uplink"] |= {"error_feedback": "persist" if needs_feedback and member.name != "dense" else "none"}
    return tables
