"""Aggregators: rules that combine the updates of a round."""

from fedsgd.aggregation import AGGREGATORS
from fedsgd.aggregation.clipping import CenteredClipping, NormClipping
from fedsgd.aggregation.coordinate_wise import Median, TrimmedMean
from fedsgd.aggregation.geometric_median import GeometricMedian
from fedsgd.aggregation.krum import Krum, MultiKrum
from fedsgd.aggregation.mean import MeanOfSenders, WeightedMean
from fedsgd.aggregation.scheme_aggregators import CAFeAggregator, EF21Aggregator, FetchSGDAggregator, ScaffoldAggregator

register = AGGREGATORS.register

__all__ = [
    "CAFeAggregator",
    "CenteredClipping",
    "EF21Aggregator",
    "FetchSGDAggregator",
    "GeometricMedian",
    "Krum",
    "MeanOfSenders",
    "Median",
    "MultiKrum",
    "NormClipping",
    "ScaffoldAggregator",
    "TrimmedMean",
    "WeightedMean",
    "register",
]
