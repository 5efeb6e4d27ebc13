"""From finished runs to answers: bytes to target, time to target on a network, what is cheaper and where it stops being so.

from fedsgd.network import ask
from fedsgd.analysis import compare, gather

comparison = compare(gather(["runs/dense-1", "runs/topk-1"]), target=0.9, terms={"4g": ask("4g", spread=0.5)})
comparison.rows[0].on["4g"].seconds.median, comparison.break_evens["4g"]
"""

from fedsgd.analysis.comparison import Comparison, compare
from fedsgd.analysis.methods import Method, load_methods
from fedsgd.analysis.pricing import PricedRun, break_evens, price
from fedsgd.analysis.runs import Run, load_run

__all__ = ["Comparison", "Method", "PricedRun", "Run", "break_evens", "compare", "load_methods", "load_run", "price"]
