"""Counting rules: the bytes that papers and public systems state for sparse updates.

A rule is a formula over counts. No rule encodes a message, so a rule can state fewer bytes than any code needs. The page
results/counting-rules.md compares the rules with frames of fedsgd.

    P   parameters of the model             M   messages
    k   coordinates of all M messages       p   density, k/(M · P)

>>> counts = MessageCounts(n_parameters=199_210, n_coordinates=1992)
>>> get_counting_rule("values-only").count_bytes(counts)
7968.0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedsgd.errors import ReportError, ScenarioError, suggest_name
from fedsgd.wire import ValueFormat

GOLDEN_RATIO = (1 + math.sqrt(5)) / 2


@dataclass(frozen=True)
class MessageCounts:
    """Counts of sparse messages in one direction, from which each rule computes its bytes.

    Attributes:
        n_parameters: P, parameters of the model.
        n_coordinates: k, coordinates that all messages send, without those of tensors that are sent whole.
        n_messages: M, number of messages.
        n_vector_coordinates: coordinates of tensors with one dimension, as part of `n_coordinates`.
        n_whole_parameters: parameters of the tensors that each message sends whole, as DGC sends tensors of one dimension.
        n_cells: rows · columns of the count sketch in each message; 0 without one.
    """

    n_parameters: int
    n_coordinates: int
    n_messages: int = 1
    n_vector_coordinates: int = 0
    n_whole_parameters: int = 0
    n_cells: int = 0

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[int, float]] = {
            "n_parameters": (1, math.inf),
            "n_messages": (0, math.inf),
            "n_coordinates": (0, self.n_parameters * self.n_messages),
            "n_vector_coordinates": (0, self.n_coordinates),
            "n_whole_parameters": (0, self.n_parameters),
            "n_cells": (0, math.inf),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                expected = f"at least {low}" if math.isinf(high) else f"{low} to {high}"
                raise ReportError(f"{name}: got {value}, expected {expected}")

    @property
    def density(self) -> float:
        """p, mean share of the parameters that a message sends; 0 without a message."""
        return self.n_coordinates / (self.n_parameters * self.n_messages) if self.n_messages else 0.0


@dataclass(frozen=True)
class CountingRule:
    """Formula for the bytes of sparse messages.

    Attributes:
        name: name in kebab-case.
        title: description in a few words.
        systems: papers and public systems that count so.
        sources: repository, commit and file of each formula; several for one rule where several systems use it.
        formula: bytes, with the letters of this module.
        values: format of the values that the formula assumes.
        omissions: parts of the traffic that the formula leaves out.
        count: function of the formula.
        is_checked: False if the source was not readable and the formula is inferred from published figures.
    """

    name: str
    title: str
    systems: tuple[str, ...]
    sources: tuple[str, ...]
    formula: str
    values: ValueFormat
    omissions: str
    count: Callable[[MessageCounts], float]
    is_checked: bool = True

    def count_bytes(self, counts: MessageCounts) -> float:
        """Return the bytes that the rule states, without rounding.

        Args:
            counts: counts of the messages.

        Raises:
            ReportError: the rule needs a count that is 0.
        """
        return self.count(counts)

    def count_ratio(self, counts: MessageCounts) -> float:
        """Return the ratio of dense float32 messages to the bytes that the rule states; infinite for 0 bytes.

        Args:
            counts: counts of the messages.
        """
        n_bytes = self.count_bytes(counts)
        return count_dense_bytes(counts) / n_bytes if n_bytes else math.inf


def count_dense_bytes(counts: MessageCounts) -> float:
    """Return the bytes of dense float32 messages, 4 · P · M."""
    return 4.0 * counts.n_parameters * counts.n_messages


def golomb_position_bits(density: float) -> float:
    """Return STC's mean bits of a position, b + 1/(1 − (1 − p)^(2^b)) with b = 1 + ⌊log₂(ln(φ − 1)/ln(1 − p))⌋, at least 0.

    This is the mean length of a Golomb code of gaps between uniform positions. φ is the golden ratio.

    >>> round(golomb_position_bits(1 / 100) + 1, 2)
    9.11
    """
    if not 0 < density <= 1:
        raise ReportError(f"density: got {density}, expected a number above 0, at most 1")
    if density == 1:
        return 1.0
    b = max(0, 1 + math.floor(math.log2(math.log(GOLDEN_RATIO - 1) / math.log1p(-density))))
    return b + 1 / -math.expm1(2**b * math.log1p(-density))


def get_counting_rule(name: str) -> CountingRule:
    """Return a counting rule by name. ScenarioError, with the nearest name, for an unknown name.

    >>> get_counting_rule("dgc-runs").formula
    '6k + 4M · (parameters of vectors)'
    """
    if name not in COUNTING_RULES:
        raise ScenarioError(f'counting rule: got "{name}"{suggest_name(name, COUNTING_RULES)}')
    return COUNTING_RULES[name]


def _per_coordinate(bits: float) -> Callable[[MessageCounts], float]:
    """Return a rule that counts the same number of bits for each coordinate."""
    return lambda counts: counts.n_coordinates * bits / 8


def _count_bitmask(counts: MessageCounts) -> float:
    return 4.0 * counts.n_coordinates + counts.n_parameters * counts.n_messages / 8


def _count_coo(counts: MessageCounts) -> float:
    return 20.0 * counts.n_coordinates - 8.0 * counts.n_vector_coordinates


def _count_dgc_runs(counts: MessageCounts) -> float:
    return 6.0 * counts.n_coordinates + 4.0 * counts.n_whole_parameters * counts.n_messages


def _count_golomb(counts: MessageCounts) -> float:
    return counts.n_coordinates * (golomb_position_bits(counts.density) + 1) / 8 if counts.n_coordinates else 0.0


def _count_sketch(counts: MessageCounts) -> float:
    if not counts.n_cells:
        raise ReportError("n_cells: got 0, expected the rows · columns of the count sketch, at least 1")
    return 4.0 * counts.n_cells * counts.n_messages


_FRAMING = "names and shapes of tensors, headers, checksums"

_RULES = (
    CountingRule(
        "dense-float32",
        "all parameters as float32",
        ("FLSim (identity channel)", "CommEfficient (true_topk, fedavg)"),
        (
            "facebookresearch/FLSim@085aa75 flsim/channels/base_channel.py",
            "kiddyboots216/CommEfficient@0184fe7 CommEfficient/fed_aggregator.py",
        ),
        "4P · M",
        "float32",
        f"{_FRAMING}; every gain of a sparse update",
        count_dense_bytes,
    ),
    CountingRule(
        "coo-int64",
        "float32 value, an int64 for each dimension",
        ("FLSim (sparse mask, coo)",),
        ("facebookresearch/FLSim@085aa75 flsim/channels/sparse_mask_channel.py",),
        "20k for matrices, 12k for vectors",
        "float32",
        f"{_FRAMING}; that positions can be coded",
        _count_coo,
    ),
    CountingRule(
        "bitmask",
        "float32 value, a bit for each parameter",
        ("FLSim (sparse mask, default)",),
        ("facebookresearch/FLSim@085aa75 flsim/channels/sparse_mask_channel.py",),
        "4k + P/8 · M",
        "float32",
        f"{_FRAMING}; that the mask can be coded",
        _count_bitmask,
    ),
    CountingRule(
        "float32-int64",
        "float32 value, int64 position",
        ("DeMo", "buffers of FedLab, FedML, GRACE, DGC's release"),
        (
            "bloc97/DeMo@cab4606 demo.py",
            "SMILELab-FL/FedLab@6bb1bcf fedlab/contrib/compressor/topk.py",
            "FedML-AI/FedML@9d12023 python/fedml/core/compression/MLcompression.py",
            "sands-lab/grace@106e3de grace_dl/dist/compressor/topk.py",
            "synxlin/deep-gradient-compression@b929ca7 dgc/compression.py",
        ),
        "12k",
        "float32",
        f"{_FRAMING}; that positions can be coded",
        _per_coordinate(96),
    ),
    CountingRule(
        "float32-int32",
        "float32 value, int32 position",
        ("DGC's release (int32_indices)", "Horváth et al., top-k (not checked)"),
        ("synxlin/deep-gradient-compression@b929ca7 dgc/compression.py, configs/dgc/int32.py",),
        "8k",
        "float32",
        f"{_FRAMING}; that positions can be coded",
        _per_coordinate(64),
    ),
    CountingRule(
        "dgc-runs",
        "float32 value, 16-bit run of zeros, vectors whole",
        ("DGC (paper)", "STC's repository, for DGC"),
        (
            "Lin et al. 2018, arXiv 1712.01887, section 3.1",
            "felisat/federated-learning@513e8fc compression_utils.py",
        ),
        "6k + 4M · (parameters of vectors)",
        "float32",
        f"{_FRAMING}; runs of more than 65,535 zeros",
        _count_dgc_runs,
    ),
    CountingRule(
        "float16-int32",
        "float16 value, int32 position",
        ("DGC's release (fp16_values, int32_indices)",),
        ("synxlin/deep-gradient-compression@b929ca7 dgc/compression.py, configs/dgc/fp16.py, configs/dgc/int32.py",),
        "6k",
        "float16",
        f"{_FRAMING}; tensors of one dimension, which are sent whole",
        _per_coordinate(48),
    ),
    CountingRule(
        "natural-int32",
        "8-bit natural value, int32 position",
        ("Horváth et al., top-k with natural compression",),
        ("inferred from published percentages of dense bits; source not readable",),
        "5k",
        "natural",
        f"{_FRAMING}; one of the 9 bits of a natural value",
        _per_coordinate(40),
        is_checked=False,
    ),
    CountingRule(
        "values-only",
        "float32 value, no position",
        ("CommEfficient (local_topk)", "FL_PyTorch (scalars, 4 bytes each)"),
        (
            "kiddyboots216/CommEfficient@0184fe7 CommEfficient/fed_aggregator.py",
            "burlachenkok/flpytorch@01f0531 fl_pytorch/utils/compressors.py",
        ),
        "4k",
        "float32",
        f"positions; {_FRAMING}",
        _per_coordinate(32),
    ),
    CountingRule(
        "int12-8bit",
        "8-bit value, 12-bit position in a chunk of 4096",
        ("Templar, earlier codec",),
        (
            "tplr-ai/templar@95b2637 src/tplr/compress/pack12.py",
            "tplr-ai/templar@27327c8 src/tplr/compress/topk.py",
        ),
        "2.5k",
        "int8",
        f"{_FRAMING}; shift, scale and 256 float32 means of each tensor",
        _per_coordinate(20),
    ),
    CountingRule(
        "int12-2bit",
        "2-bit value, 12-bit position in a chunk of 4096",
        ("SparseLoCo", "Covenant-72B"),
        (
            "positions: tplr-ai/templar@95b2637 src/tplr/compress/pack12.py",
            "values: the announcement of Covenant-72B (2 bits, 1.56 % of the coordinates, over 146× up)",
        ),
        "1.75k",
        "2bit",
        f"{_FRAMING}; means of the bins",
        _per_coordinate(14),
    ),
    CountingRule(
        "stc-golomb",
        "sign, Golomb code of the gap",
        ("STC",),
        ("felisat/federated-learning@513e8fc compression_utils.py, without the bit that it adds to a Golomb code",),
        "k · (b + 1/(1 − (1 − p)^(2^b)) + 1)/8",
        "ternary",
        f"{_FRAMING}; the magnitude μ; that real positions are not uniform",
        _count_golomb,
    ),
    CountingRule(
        "count-sketch",
        "float32 cell",
        ("CommEfficient (sketch)", "FLSim (sketch)"),
        (
            "kiddyboots216/CommEfficient@0184fe7 CommEfficient/fed_aggregator.py",
            "facebookresearch/FLSim@26da9fd flsim/channels/sketch_channel.py",
        ),
        "4M · rows · columns",
        "float32",
        f"{_FRAMING}; the positions that the server extracts and sends down",
        _count_sketch,
    ),
)

COUNTING_RULES: Mapping[str, CountingRule] = {rule.name: rule for rule in _RULES}
"""Counting rules by name, the most bytes for top-k 1 % first; the count sketch, which does not depend on k, last."""
