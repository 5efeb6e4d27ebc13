"""Analysis of finished runs: bytes and time to a target accuracy, prices on networks, break-evens.

from fedsgd.analysis import compare, load_methods
from fedsgd.network import build_pricing_model

methods = load_methods(["runs/dense-1", "runs/topk-1"])
comparison = compare(methods, target=0.9, pricing_models={"4g": build_pricing_model("4g", spread=0.5)})
comparison.rows[0].network_costs["4g"].seconds.median, comparison.break_evens["4g"]
"""

from fedsgd.analysis.comparison import Comparison, compare
from fedsgd.analysis.methods import Method, load_methods
from fedsgd.analysis.pricing import PricedRun, break_evens, price
from fedsgd.analysis.runs import Run, load_run

__all__ = ["Comparison", "Method", "PricedRun", "Run", "break_evens", "compare", "load_methods", "load_run", "price"]
