"""Facts of a compressor for its page: kind, state at the client and at the server, certificate, advice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fedsgd.aggregation import AggregationContext, WeightedUpdate, select_aggregator
from fedsgd.compression import COMPRESSORS, CodecContext, CompressionOperator, CompressionScheme
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.scenario.key_reference import ComponentReference
from tests.docs.markdown import sentence

CERTIFICATES = Path(__file__).resolve().parents[2] / "fedsgd/docs/results/certificates.json"
"""Output of `fedsgd certify --all`, with its command, commit, machine and date."""
LAYOUT = ParameterLayout(("weight", "bias"), ((20, 10), (10,)))


def read_certificates() -> dict[str, dict[str, Any]]:
    """Return the certificates by the name of the compressor."""
    stored = json.loads(CERTIFICATES.read_text(encoding="utf-8"))
    return {certificate["compressor"]["name"]: certificate for certificate in stored["certificates"]}


def find_kind(name: str) -> str:
    """Return "unbiased", "contractive", "neither" or "scheme", for the default settings.

    Args:
        name: name of the compressor.
    """
    compressor = COMPRESSORS[name]()
    return compressor.kind if isinstance(compressor, CompressionOperator) else "scheme"


def find_state(name: str) -> str:
    """Return the state of a compressor at the client and at the server, after one update of a small model.

    Args:
        name: name of the compressor.
    """
    compressor = COMPRESSORS[name]()
    if not isinstance(compressor, CompressionScheme):
        return "none"
    x = np.random.default_rng(0).standard_normal(LAYOUT.size).astype(np.float32)
    ctx = CodecContext(seed=0, round=1, client=0, layout=LAYOUT)
    sent = compressor.send(x, {}, ctx)
    aggregator = select_aggregator(None, compressor)
    context = AggregationContext(seed=0, round=1, layout=LAYOUT, n_clients=1, scheme=compressor)
    _, server_state = aggregator.aggregate(
        aggregator.init_state(LAYOUT), iter([WeightedUpdate(sent.sections, 1.0, ctx)]), context
    )
    places = {"client": sent.state, "server": server_state}
    texts = [f"{place}: {', '.join(f'`{entry}`' for entry in state)}" for place, state in places.items() if state]
    return "; ".join(texts) or "none"


def find_advice(member: ComponentReference, word: str) -> str:
    """Return the advice that a docstring gives in a paragraph "Use: ..." or "Avoid: ...", as a sentence.

    Args:
        member: description of the compressor.
        word: "Use" or "Avoid".
    """
    texts = [block.removeprefix(f"{word}: ") for block in member.description if block.startswith(f"{word}: ")]
    assert len(texts) == 1, f'{member.class_name}: expected one paragraph "{word}: ..." in the docstring'
    return sentence(texts[0])
