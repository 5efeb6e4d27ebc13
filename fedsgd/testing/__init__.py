"""Laws of components, for the test suite of a user's own classes.

A law is a property that every component of a family must have, such as "decode returns the update that encode returned".
`check_compressor`, `check_aggregator`, ... check all laws of a component. Under pytest, `parametrize_laws` makes one test of
each law:

    from fedsgd.testing import parametrize_laws
    from my_package import MyAggregator, MyCompressor

    @parametrize_laws(MyCompressor(), MyAggregator())
    def test_component_obeys_its_law(law):
        law()

A law that does not hold raises LawError, with the law, the component and the numbers. An error that the component raises is
the LawError's `__cause__`. The laws of the built-in components are checked by the same functions.

    >>> from fedsgd.sampling.cyclic import Cyclic
    >>> check_sampler(Cyclic())
    >>> print(list_laws(Cyclic())[2].statement)
    A cohort has m distinct clients in [0, N), ascending, or at most m if `always_full` is False; each π_i is in (0, 1].
"""

from fedsgd.certification.law import Law
from fedsgd.errors import LawError
from fedsgd.testing.suite import (
    check_aggregator,
    check_compressor,
    check_durations,
    check_optimizer,
    check_partitioner,
    check_sampler,
    check_schedule,
    list_laws,
    parametrize_laws,
)

__all__ = [
    "Law",
    "LawError",
    "check_aggregator",
    "check_compressor",
    "check_durations",
    "check_optimizer",
    "check_partitioner",
    "check_sampler",
    "check_schedule",
    "list_laws",
    "parametrize_laws",
]
