"""The page of a report: one file that works from disk, with everything it needs in it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

ASSETS = files("fedsgd.analysis.page") / "assets"
LICENCES = {"vendor/d3.min.js": "vendor/LICENSE.d3", "vendor/plot.umd.min.js": "vendor/LICENSE.plot"}
PAGE_SCRIPTS = ("pricing", "data", "draw", "curves", "totals", "export", "words", "foundations", "page")
SCRIPTS = (*LICENCES, *(f"{name}.js" for name in PAGE_SCRIPTS))


def render(payload: Mapping[str, Any]) -> str:
    """The page's HTML. payload: of `report.build_payload`.

    The browser is told to run these very scripts, by their hashes, and to fetch nothing: what a run's name says can do neither.
    """
    scripts = [_read_script(name) for name in SCRIPTS]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_read_asset("page.html")).render(
        title=payload["title"],
        made_by=payload["made_by"],
        policy=_build_content_security_policy(scripts),
        css=_read_asset("page.css"),
        scripts=scripts,
        payload=_encode_payload(payload),
    )


def _read_asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _read_script(name: str) -> str:
    """With its licence, which wants to be in every copy, if it is somebody else's."""
    licence = LICENCES.get(name)
    return _read_asset(name) if licence is None else f"/*\n{_read_asset(licence)}*/\n{_read_asset(name)}"


def _encode_payload(payload: Mapping[str, Any]) -> str:
    """JSON, gzipped, base64; the same payload gives the same text."""
    plain = json.dumps(payload, allow_nan=False, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(plain, mtime=0)).decode()


def _build_content_security_policy(scripts: list[str]) -> str:
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    rest = "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {allowed}; {rest}"
