"""Computation of a run: counted training steps, and coding by the table of codec costs or by measured times."""

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
"""Quantiles of the ledger's coding times for prices with measured coding: low, middle, high."""


def describe_coding_source(measured_coding: bool) -> str:
    """Return a sentence about the source of coding times."""
    if measured_coding:
        source = "medians that each run's machine measured, in units of a memory copy on the same machine"
        return f"Coding times are {source}; other runs of equal digests have other times"
    table = read_cost_table()
    source = f"a table of codec costs, in units of a memory copy, measured on {table['date']} ({table['processor']})"
    return f"Coding times are from {source}, so that runs of equal digests have equal prices"


def build_profile_from_cost_table(run: Run, ledger_stats: LedgerStats) -> ComputeProfile:
    """Build a run's compute profile from the table of codec costs. A compressor without a row in the table costs 0."""
    parameters, (uplink, compressors, is_exact) = int(run.summary["parameters"]), _resolve_codecs(run)

    def count_copied_bytes(job: CodecJob, compressor: Mapping[str, Any], frame_totals: FrameTotals) -> float:
        """Return the bytes whose copying takes as long as this job for these frames."""
        n = frame_totals.n_frames
        return n * look_up_cost(job, compressor)[0].count_bytes(parameters, frame_totals.n_coordinates / n) if n else 0.0

    # Frames of earlier compressed steps are sent again unchanged. Exact differences are encoded for each base round.
    encoded_frames = {
        **ledger_stats.distinct_downlink_frames,
        "step": ledger_stats.distinct_downlink_frames["step" if is_exact else "latest"],
    }
    decoding = sum(
        count_copied_bytes("receive", compressors[kind], ledger_stats.downlink_frames[kind]) for kind in DOWNLINK_KINDS
    )
    encoding = sum(count_copied_bytes("send", compressors[kind], encoded_frames[kind]) for kind in DOWNLINK_KINDS)
    n_updates = max(1, ledger_stats.update_frames.n_frames)
    n_bytes = (
        count_copied_bytes(select_uplink_job(uplink), uplink["compressor"], ledger_stats.update_frames) / n_updates,
        decoding / max(1.0, float(ledger_stats.down_messages.sum())),
        count_copied_bytes("add", uplink["compressor"], ledger_stats.update_frames) / n_updates,
        encoding / max(1, int(np.count_nonzero(ledger_stats.down_messages))),
    )
    vector_bytes = FLOAT_BYTES * parameters
    return ComputeProfile(parameters, _read_work_figure(run, "flops_per_example"), *(n / vector_bytes for n in n_bytes))


def find_uncosted_codecs(run: Run) -> tuple[str, ...]:
    """Return the compressors without a row in the table of codec costs, each as "uplink module:Class"."""
    uplink, compressors, _ = _resolve_codecs(run)
    uplink_names = [f"uplink {name}" for name in look_up_cost("encode", uplink["compressor"])[1]]
    return (*uplink_names, *(f"downlink {name}" for name in look_up_cost("send", compressors["step"])[1]))


def _resolve_codecs(run: Run) -> tuple[Mapping[str, Any], Mapping[str, Mapping[str, Any]], bool]:
    """Return [uplink], the compressor for each kind of downlink frame, and True if the downlink sends exact differences."""
    scenario = tomllib.loads(run.scenario_text)
    uplink, downlink = ({"compressor": {"name": "dense"}, **scenario.get(name, {})} for name in ("uplink", "downlink"))
    policy = downlink.get("policy", "model")
    whole = downlink["compressor"] if policy == "model" else LOSSLESS_DENSE_COMPRESSOR
    step = ASSIGN_COMPRESSOR if policy == "difference" else downlink["compressor"]
    return uplink, {"whole": whole, "step": step, "reference": ASSIGN_COMPRESSOR}, policy == "difference"


def build_profiles_from_clock(run: Run, ledger_stats: LedgerStats) -> list[ComputeProfile]:
    """Build a compute profile for each of CLOCK_QUANTILES, from the coding times that the run's machine measured.

    A time becomes a multiple of the time of a memory copy on the same machine, rounded to two significant digits.
    """
    seconds = ledger_stats.coding_seconds
    assert seconds is not None
    flops, copy_seconds = _read_work_figure(run, "flops_per_example"), _read_work_figure(run, "copy_seconds")
    server_encode = seconds.server_encode[2:] if run.n_rounds > 1 else seconds.server_encode[1:]
    server_encode = server_encode[server_encode > 0]  # rounds without clients encode nothing
    parts = (seconds.client_encode, seconds.client_decode, seconds.server_decode, [server_encode])
    profiles = []
    for quantile in CLOCK_QUANTILES:
        copies = (float(f"{_compute_quantile(part, quantile) / copy_seconds:.1e}") for part in parts)
        profiles.append(ComputeProfile(int(run.summary["parameters"]), flops, *copies))
    return profiles


def _read_work_figure(run: Run, key: str) -> float:
    """Return a figure of `work` in the run's summary; ReportError if the summary lacks it."""
    work: Any = run.summary.get("work")
    figure = work.get(key) if isinstance(work, dict) else None
    if not isinstance(figure, int | float) or isinstance(figure, bool) or not 0 < figure < math.inf:
        raise ReportError(f"{run.folder}/summary.json: has no work.{key}; run the scenario again with this version")
    return float(figure)


def _compute_quantile(parts: Sequence[F64], quantile: float) -> float:
    values = np.concatenate(parts) if parts else np.zeros(0)
    return float(np.quantile(values, quantile)) if len(values) else 0.0
