"""HTML pages of a report and of a study: one file each, without external resources."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

ASSETS = files("fedsgd.analysis.page") / "assets"
LICENCES = {"vendor/d3.min.js": "vendor/LICENSE.d3", "vendor/plot.umd.min.js": "vendor/LICENSE.plot"}
PAGE_SCRIPTS = (
    *("pricing", "data", "draw", "curves", "totals", "export", "words", "foundations", "utilization", "fleet", "tables"),
    "page",
)
SCRIPTS = (*LICENCES, *(f"{name}.js" for name in PAGE_SCRIPTS))


def render(payload: Mapping[str, Any]) -> str:
    """Return the HTML of a payload, as from `build_payload`.

    A content security policy admits only SCRIPTS, by their hashes, and no requests. So a run's name cannot inject a script.
    """
    scripts = [_read_script(name) for name in SCRIPTS]
    name, is_rising = payload["metric"]["name"], payload["metric"]["direction"] == "above"
    metric_words = {"title": name[0].upper() + name[1:], "better": "higher" if is_rising else "lower"}
    return render_template(
        "page.html",
        title=payload["title"],
        made_by=payload["made_by"],
        metric={**payload["metric"], **metric_words},
        levels=_join_levels(payload["utilization_levels"]),
        policy=_build_content_security_policy(scripts),
        css=read_asset("page.css"),
        scripts=scripts,
        payload=_encode_payload(payload),
    )


def render_template(name: str, **values: Any) -> str:
    """Return the HTML of a template among the assets. Characters of HTML in `values` are escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(read_asset(name)).render(**values)


def _join_levels(levels: Sequence[float]) -> str:
    """Return shares in percent, "50, 80 and 95 %"."""
    *first, last = (f"{100 * level:g}" for level in levels)
    return f"{', '.join(first)} and {last} %"


def read_asset(name: str) -> str:
    """Return the text of an asset, such as a style sheet."""
    return (ASSETS / name).read_text(encoding="utf-8")


def _read_script(name: str) -> str:
    """Return a script; vendored scripts with their licence, which every copy must contain."""
    licence = LICENCES.get(name)
    return read_asset(name) if licence is None else f"/*\n{read_asset(licence)}*/\n{read_asset(name)}"


def _encode_payload(payload: Mapping[str, Any]) -> str:
    """Return the payload as JSON, compressed by gzip, in base64; equal payloads give equal text."""
    data = json.dumps(payload, allow_nan=False, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


def _build_content_security_policy(scripts: list[str]) -> str:
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    script_sources = " ".join(f"'sha256-{digest}'" for digest in hashes)
    other_sources = "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {script_sources}; {other_sources}"
