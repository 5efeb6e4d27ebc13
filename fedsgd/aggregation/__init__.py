"""Aggregation: what the server makes of the decoded updates of a round.

Each rule combines C updates x_i with aggregation weights p_i into one update Δ, which the server's optimizer steps with.

    rule               Δ                                                     breakdown       weights
    weighted-mean      Σ p_i x_i (the default)                               0               any
    mean-of-senders    weighted mean over the clients that sent a coordinate 0               any
    median             median of each coordinate                             1/2             equal
    trimmed-mean       mean of each coordinate without both ends             β               equal
    krum, multi-krum   updates that are closest to their neighbours          f, 2f + 2 < C   equal
    geometric-median   smallest sum of distances                             1/2             that add up to 1
    norm-clipping      weighted mean of clipped updates                      bounded by τ    any
    centered-clipping  last aggregate plus clipped differences               bounded by τ    that add up to 1

Breakdown: the share of hostile updates up to which the distance of the aggregate from the honest updates is bounded.
CAFe, EF21, FetchSGD and SCAFFOLD have server halves of their own, and no other rule can aggregate their updates.

To add a rule, write its module and add its line to the registry here.
"""

from fedsgd.aggregation.base import AggregationContext, AggregationResult, Aggregator, WeightedUpdate, weighted_sum
from fedsgd.aggregation.blocks import CohortAggregator, DecodedCohort
from fedsgd.aggregation.mean import WeightedMean
from fedsgd.compression import CompressionScheme
from fedsgd.config.component import FieldError
from fedsgd.config.registry import Registry

AGGREGATORS: Registry[type[Aggregator]] = Registry(
    "aggregator",
    Aggregator,
    {
        "weighted-mean": "fedsgd.aggregation.mean:WeightedMean",
        "mean-of-senders": "fedsgd.aggregation.mean:MeanOfSenders",
        "median": "fedsgd.aggregation.coordinate_wise:Median",
        "trimmed-mean": "fedsgd.aggregation.coordinate_wise:TrimmedMean",
        "krum": "fedsgd.aggregation.krum:Krum",
        "multi-krum": "fedsgd.aggregation.krum:MultiKrum",
        "geometric-median": "fedsgd.aggregation.geometric_median:GeometricMedian",
        "norm-clipping": "fedsgd.aggregation.clipping:NormClipping",
        "centered-clipping": "fedsgd.aggregation.clipping:CenteredClipping",
        "cafe": "fedsgd.aggregation.scheme_aggregators:CAFeAggregator",
        "ef21": "fedsgd.aggregation.scheme_aggregators:EF21Aggregator",
        "fetch-sgd": "fedsgd.aggregation.scheme_aggregators:FetchSGDAggregator",
        "scaffold": "fedsgd.aggregation.scheme_aggregators:ScaffoldAggregator",
    },
)
"""Aggregators by the name that a scenario gives them. The last four are server halves of schemes."""


def select_aggregator(aggregator: Aggregator | None, scheme: CompressionScheme) -> Aggregator:
    """Return the aggregator of a run: the given one, the scheme's own, or the weighted mean.

    Args:
        aggregator: aggregator of the scenario; None if it names none.
        scheme: scheme of the uplink.

    Raises:
        FieldError: aggregator and scheme do not belong together.
    """
    own = AGGREGATORS[scheme.aggregator] if isinstance(scheme.aggregator, str) else scheme.aggregator
    if own is not None and aggregator is not None and not isinstance(aggregator, own):
        cause = f"the server half of {scheme.name} aggregates"
        raise FieldError("server", "aggregator", f'got "{aggregator.name}", expected "{own.name}" or the key left out: {cause}')
    rule = aggregator or (WeightedMean() if own is None else own())
    if not isinstance(rule, Aggregator):
        problem = f"the aggregator of {scheme.name} is {own!r}, expected a subclass of Aggregator"
        raise FieldError("uplink", "compressor", problem)
    rule.check_scheme(scheme)
    return rule


__all__ = [
    "AGGREGATORS",
    "AggregationContext",
    "AggregationResult",
    "Aggregator",
    "CohortAggregator",
    "DecodedCohort",
    "WeightedMean",
    "WeightedUpdate",
    "select_aggregator",
    "weighted_sum",
]
