"""The work of a run: training steps as they were counted, coding by the table of codec costs or by the clock."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedsgd.analysis.ledger_stats import DOWNLINK_KINDS, FrameTotals, LedgerStats
from fedsgd.analysis.runs import Run
from fedsgd.errors import ReportError
from fedsgd.network import ComputeProfile
from fedsgd.network.codec_costs import (
    ASSIGN_COMPRESSOR,
    LOSSLESS_DENSE_COMPRESSOR,
    CodecJob,
    look_up_cost,
    read_cost_table,
    select_uplink_job,
)
from fedsgd.network.round_times import FLOAT_BYTES
from fedsgd.numerics.arrays import F64

CLOCK_QUANTILES = (0.1, 0.5, 0.9)
"""Of the ledger's seconds, where a price is by the clock of the machine that made the run: low, middle, high."""


def describe_coding_source(measured_coding: bool) -> str:
    """Return a sentence that says where the cost of coding comes from."""
    if measured_coding:
        source = "the clock of the machine that made each run, in the median, as copies in memory there"
        return f"Encoding and decoding are by {source}; another run of equal digests has other figures"
    table = read_cost_table()
    source = f"a table of codec costs in copies in memory, measured on {table['date']} ({table['processor']})"
    return f"Encoding and decoding are by {source}, so that runs of equal digests have equal prices"


def build_profile_from_cost_table(run: Run, ledger_stats: LedgerStats) -> ComputeProfile:
    """Price a run's coding by the table of codec costs, where a compressor without a row counts as nothing.

    Args:
        run: the run; its resolved scenario says how it compressed.
        facts: what its ledger says.

    Raises:
        ReportError: the summary does not say what a training step computes.
    """
    parameters, (uplink, frames, exact) = int(run.summary["parameters"]), _resolve_codecs(run)

    def count_copied_bytes(job: CodecJob, compressor: Mapping[str, Any], frame_totals: FrameTotals) -> float:
        """Return the bytes copied for all these frames together."""
        return (
            frame_totals.n_frames
            * look_up_cost(job, compressor)[0].count_bytes(parameters, frame_totals.n_coordinates / frame_totals.n_frames)
            if frame_totals.n_frames
            else 0.0
        )

    # a compressed step of an earlier round is sent again as it was; values that changed are encoded for those who were away
    sent = {
        **ledger_stats.distinct_downlink_frames,
        "step": ledger_stats.distinct_downlink_frames["step" if exact else "latest"],
    }
    received = sum(count_copied_bytes("receive", frames[kind], ledger_stats.downlink_frames[kind]) for kind in DOWNLINK_KINDS)
    sending = sum(count_copied_bytes("send", frames[kind], sent[kind]) for kind in DOWNLINK_KINDS)
    updates = max(1, ledger_stats.update_frames.n_frames)
    n_bytes = (
        count_copied_bytes(select_uplink_job(uplink), uplink["compressor"], ledger_stats.update_frames) / updates,
        received / max(1.0, float(ledger_stats.down_messages.sum())),
        count_copied_bytes("add", uplink["compressor"], ledger_stats.update_frames) / updates,
        sending / max(1, int(np.count_nonzero(ledger_stats.down_messages))),
    )
    vector = FLOAT_BYTES * parameters
    return ComputeProfile(parameters, _read_work_figure(run, "flops_per_example"), *(each / vector for each in n_bytes))


def find_uncosted_codecs(run: Run) -> tuple[str, ...]:
    """Return the compressors that are not in the table of codec costs, so that they count as nothing: "uplink module:Class"."""
    uplink, frames, _ = _resolve_codecs(run)
    missing = [f"uplink {name}" for name in look_up_cost("encode", uplink["compressor"])[1]]
    return (*missing, *(f"downlink {name}" for name in look_up_cost("send", frames["step"])[1]))


def _resolve_codecs(run: Run) -> tuple[Mapping[str, Any], Mapping[str, Mapping[str, Any]], bool]:
    """Return [uplink], the compressor of each of DOWN, and whether the downlink sends exact differences."""
    scenario = tomllib.loads(run.scenario_text)
    uplink, downlink = ({"compressor": {"name": "dense"}, **scenario.get(name, {})} for name in ("uplink", "downlink"))
    policy = downlink.get("policy", "model")
    whole = downlink["compressor"] if policy == "model" else LOSSLESS_DENSE_COMPRESSOR
    step = ASSIGN_COMPRESSOR if policy == "difference" else downlink["compressor"]
    return uplink, {"whole": whole, "step": step, "reference": ASSIGN_COMPRESSOR}, policy == "difference"


def build_profiles_from_clock(run: Run, ledger_stats: LedgerStats) -> list[ComputeProfile]:
    """Price a run's coding by the clock of the machine that made it, as multiples of what a copy took there, to two figures.

    Returns:
        The work at each of CLOCK_QUANTILES of the seconds.

    Raises:
        ReportError: the summary does not say what a training step computes, or what a copy took.
    """
    assert ledger_stats.coding_seconds is not None
    flops, copy = _read_work_figure(run, "flops_per_example"), _read_work_figure(run, "copy_seconds")
    sending = (
        ledger_stats.coding_seconds.server_encode[2:] if run.n_rounds > 1 else ledger_stats.coding_seconds.server_encode[1:]
    )
    sending = sending[sending > 0]  # nothing is encoded in a round of nobody
    taken = (
        ledger_stats.coding_seconds.client_encode,
        ledger_stats.coding_seconds.client_decode,
        ledger_stats.coding_seconds.server_decode,
        [sending],
    )
    works = []
    for quantile in CLOCK_QUANTILES:
        copies = (float(f"{_compute_quantile(seconds, quantile) / copy:.1e}") for seconds in taken)
        works.append(ComputeProfile(int(run.summary["parameters"]), flops, *copies))
    return works


def _read_work_figure(run: Run, key: str) -> float:
    """Return a figure of the run's work; ReportError if the summary lacks it."""
    recorded: Any = run.summary.get("work")
    figure = recorded.get(key) if isinstance(recorded, dict) else None
    if not isinstance(figure, int | float) or isinstance(figure, bool) or not 0 < figure < math.inf:
        raise ReportError(f"{run.folder}/summary.json: does not say {key} under work; run it again with this version")
    return float(figure)


def _compute_quantile(parts: Sequence[F64], quantile: float) -> float:
    values = np.concatenate(parts) if parts else np.zeros(0)
    return float(np.quantile(values, quantile)) if len(values) else 0.0
