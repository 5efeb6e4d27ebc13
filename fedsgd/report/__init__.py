"""From finished runs to answers: bytes to target, time to target on a network, what is cheaper and where it stops being so.

from fedsgd.network import ask
from fedsgd.report import compare, gather

comparison = compare(gather(["runs/dense-1", "runs/topk-1"]), target=0.9, terms={"4g": ask("4g", spread=0.5)})
comparison.rows[0].on["4g"].seconds.median, comparison.break_evens["4g"]
"""

from fedsgd.report.compare import Comparison, compare
from fedsgd.report.methods import Method, gather
from fedsgd.report.price import Priced, break_evens, price
from fedsgd.report.runs import Run, load_run

__all__ = ["Comparison", "Method", "Priced", "Run", "break_evens", "compare", "gather", "load_run", "price"]
