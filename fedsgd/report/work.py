"""The work of a run: training steps as they were counted, coding by the table of codec costs or by the clock."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedsgd.arrays import F64
from fedsgd.errors import ReportError
from fedsgd.network import Work
from fedsgd.network.coding import CHANGES, WHOLE, Job, cost_of, read_table, uplink_job
from fedsgd.network.timeline import FLOAT_BYTES
from fedsgd.report.facts import DOWN, Facts, Frames
from fedsgd.report.runs import Run

CLOCK_QUANTILES = (0.1, 0.5, 0.9)
"""Of the ledger's seconds, where a price is by the clock of the machine that made the run: low, middle, high."""


def coding_text(measured_coding: bool) -> str:
    """Return a sentence that says where the cost of coding comes from."""
    if measured_coding:
        source = "the clock of the machine that made each run, in the median, as copies in memory there"
        return f"Encoding and decoding are by {source}; another run of equal digests has other figures"
    table = read_table()
    source = f"a table of codec costs in copies in memory, measured on {table['date']} ({table['processor']})"
    return f"Encoding and decoding are by {source}, so that runs of equal digests have equal prices"


def coding_work(run: Run, facts: Facts) -> Work:
    """Price a run's coding by the table of codec costs, where a compressor without a row counts as nothing.

    Args:
        run: the run; its resolved scenario says how it compressed.
        facts: what its ledger says.

    Raises:
        ReportError: the summary does not say what a training step computes.
    """
    parameters, (uplink, frames, exact) = int(run.summary["parameters"]), _codecs(run)

    def total(job: Job, compressor: Mapping[str, Any], these: Frames) -> float:
        """Return the bytes copied for all these frames together."""
        return these.n * cost_of(job, compressor)[0].bytes_of(parameters, these.kept / these.n) if these.n else 0.0

    # a compressed step of an earlier round is sent again as it was; values that changed are encoded for those who were away
    sent = {**facts.encoded, "step": facts.encoded["step" if exact else "latest"]}
    received = sum(total("receive", frames[kind], facts.received[kind]) for kind in DOWN)
    sending = sum(total("send", frames[kind], sent[kind]) for kind in DOWN)
    updates = max(1, facts.updates.n)
    n_bytes = (
        total(uplink_job(uplink), uplink["compressor"], facts.updates) / updates,
        received / max(1.0, float(facts.down_messages.sum())),
        total("add", uplink["compressor"], facts.updates) / updates,
        sending / max(1, int(np.count_nonzero(facts.down_messages))),
    )
    vector = FLOAT_BYTES * parameters
    return Work(parameters, _recorded(run, "flops_per_example"), *(each / vector for each in n_bytes))


def uncounted_codecs(run: Run) -> tuple[str, ...]:
    """Return the compressors that are not in the table of codec costs, so that they count as nothing: "uplink module:Class"."""
    uplink, frames, _ = _codecs(run)
    missing = [f"uplink {name}" for name in cost_of("encode", uplink["compressor"])[1]]
    return (*missing, *(f"downlink {name}" for name in cost_of("send", frames["step"])[1]))


def _codecs(run: Run) -> tuple[Mapping[str, Any], Mapping[str, Mapping[str, Any]], bool]:
    """Return [uplink], the compressor of each of DOWN, and whether the downlink sends exact differences."""
    scenario = tomllib.loads(run.text)
    uplink, downlink = ({"compressor": {"name": "dense"}, **scenario.get(name, {})} for name in ("uplink", "downlink"))
    policy = downlink.get("policy", "model")
    whole = downlink["compressor"] if policy == "model" else WHOLE
    step = CHANGES if policy == "difference" else downlink["compressor"]
    return uplink, {"whole": whole, "step": step, "reference": CHANGES}, policy == "difference"


def clock_work(run: Run, facts: Facts) -> list[Work]:
    """Price a run's coding by the clock of the machine that made it, as multiples of what a copy took there, to two figures.

    Returns:
        The work at each of CLOCK_QUANTILES of the seconds.

    Raises:
        ReportError: the summary does not say what a training step computes, or what a copy took.
    """
    assert facts.clock is not None
    flops, copy = _recorded(run, "flops_per_example"), _recorded(run, "copy_seconds")
    sending = facts.clock.send[2:] if run.n_rounds > 1 else facts.clock.send[1:]
    sending = sending[sending > 0]  # nothing is encoded in a round of nobody
    taken = (facts.clock.encode, facts.clock.decode, facts.clock.add, [sending])
    works = []
    for quantile in CLOCK_QUANTILES:
        copies = (float(f"{_quantile(seconds, quantile) / copy:.1e}") for seconds in taken)
        works.append(Work(int(run.summary["parameters"]), flops, *copies))
    return works


def _recorded(run: Run, key: str) -> float:
    """Return a figure of the run's work; ReportError if the summary lacks it."""
    recorded: Any = run.summary.get("work")
    figure = recorded.get(key) if isinstance(recorded, dict) else None
    if not isinstance(figure, int | float) or isinstance(figure, bool) or not 0 < figure < math.inf:
        raise ReportError(f"{run.folder}/summary.json: does not say {key} under work; run it again with this version")
    return float(figure)


def _quantile(parts: Sequence[F64], quantile: float) -> float:
    values = np.concatenate(parts) if parts else np.zeros(0)
    return float(np.quantile(values, quantile)) if len(values) else 0.0
