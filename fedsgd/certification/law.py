"""Laws of components: a name, a statement in one sentence, and a check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fedsgd.config.component import Component
from fedsgd.errors import LawError, describe_error
from fedsgd.system.global_generators import isolate_generators


@dataclass(frozen=True, eq=False)
class Law:
    """Law of one component.

    Attributes:
        name: name of the law, such as "round_trip".
        statement: the law in one sentence.
        component: component that has to obey the law.
        check: function that raises LawError if the law does not hold.
    """

    name: str
    statement: str
    component: Component
    check: Callable[[], None]

    def __call__(self) -> None:
        """Check the law with seeded global generators, whose states are restored afterwards.

        Raises:
            LawError: the component breaks the law, or it raised an error, which is the `__cause__`. The message begins with
                the name of the law and the component.
        """
        with isolate_generators(0):
            try:
                self.check()
            except LawError:
                raise
            except Exception as error:
                raise LawError(f"{self.name}: {self.component}: {describe_error(error)}") from error


def make_law(law: Callable[..., None], component: Component, check: Callable[[], None] | None = None) -> Law:
    """Return a law with the name of its function, and the first paragraph of the function's docstring as the statement.

    Args:
        law: function of the component.
        component: component that has to obey the law.
        check: check of the law; None for `law(component)`.
    """
    statement = " ".join((law.__doc__ or "").partition("\n\n")[0].split())
    return Law(law.__name__, statement, component, check or partial(law, component))
