"""Targets: a threshold on a metric, in either direction, and the criterion by which models are compared."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from numbers import Real
from typing import ClassVar, Literal

from fedsgd.config.component import FieldError, ValidatedConfig, describe_value
from fedsgd.errors import ScenarioError

Direction = Literal["above", "below"]
"""Side of a threshold on which a target is reached; "above" if larger values of a metric are better."""
EXAMPLES = '0.9, "accuracy>0.9" or "loss<0.3"'


@dataclass(frozen=True)
class Criterion:
    """Metric by which models are compared, with the direction of better values.

    >>> Criterion("loss", "below").best_name
    'lowest loss'

    Attributes:
        metric: name of the metric.
        direction: "above" if larger values are better, "below" if smaller values are better.
    """

    metric: str = "accuracy"
    direction: Direction = "above"

    @classmethod
    def default(cls, metrics: Container[str]) -> Criterion:
        """Return the criterion without a target: the highest accuracy or, if it is not among the metrics, the lowest loss."""
        return cls("accuracy", "above") if "accuracy" in metrics else cls("loss", "below")

    @property
    def sign(self) -> float:
        """Factor with which larger values are better."""
        return 1.0 if self.direction == "above" else -1.0

    @property
    def best_name(self) -> str:
        """Name of the best value: "best accuracy", "lowest loss", "highest macro-f1"."""
        if (self.metric, self.direction) == ("accuracy", "above"):
            return "best accuracy"
        return f"{'highest' if self.direction == 'above' else 'lowest'} {self.metric}"

    def find_best(self, values: Iterable[float]) -> float | None:
        """Return the best finite value, None if there is none."""
        return max((value for value in values if math.isfinite(value)), key=lambda value: self.sign * value, default=None)


@dataclass(frozen=True)
class Target(ValidatedConfig):
    """Threshold on a metric that a run is to reach. The text of a target can be parsed; an accuracy is a number alone.

    >>> Target("loss", below=0.3)
    Target(metric='loss', above=None, below=0.3)
    >>> str(Target("loss", below=0.3)), str(Target("accuracy", above=0.9))
    ('loss<0.3', '0.9')

    Attributes:
        metric: name of the metric, a column of rounds.parquet.
        above: threshold that the metric is to reach from below; exactly one of `above` and `below` is set.
        below: threshold that the metric is to reach from above.
    """

    has_short_form: ClassVar[bool] = True

    metric: str = field(metadata={"example": '"loss"'})
    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.metric.strip() or not self.metric.isprintable():
            raise FieldError("Target", "metric", f"got {describe_value(self.metric)}, expected the name of a metric")
        if self.above is not None and self.below is not None:
            problem = f"got above = {self.above:g} and below = {self.below:g}, expected only one of them"
            raise FieldError("Target", "above", problem)
        if self.above is None and self.below is None:
            raise FieldError("Target", "above", "missing, expected above or below, for example below = 0.3")
        if self.metric == "accuracy" and not 0 < self.threshold <= 1:
            percent = f", did you mean {self.threshold / 100:g}?" if 10 <= self.threshold <= 100 else ""
            problem = f"got an accuracy of {self.threshold:g}, expected a number above 0 and at most 1{percent}"
            raise FieldError("Target", self.direction, problem)

    @property
    def direction(self) -> Direction:
        """Side of the threshold on which the target is reached."""
        return "below" if self.above is None else "above"

    @property
    def threshold(self) -> float:
        """Value at which the target is reached."""
        threshold = self.below if self.above is None else self.above
        assert threshold is not None
        return threshold

    @property
    def criterion(self) -> Criterion:
        """Metric and direction of the target."""
        return Criterion(self.metric, self.direction)

    @property
    def accuracy(self) -> float | None:
        """Threshold of a target accuracy, None for any other target."""
        return self.above if self.metric == "accuracy" else None

    @property
    def short_form(self) -> float | str:
        """Value that `parse_target` turns into an equal target: a target accuracy as a number, any other target as text."""
        return str(self) if self.accuracy is None else self.accuracy

    def is_reached_by(self, value: float) -> bool:
        """Return True if a value of the metric reaches the target; a value that is not finite does not.

        Args:
            value: value of the target's metric.
        """
        is_beyond = value >= self.threshold if self.direction == "above" else value <= self.threshold
        return is_beyond and math.isfinite(value)

    def __str__(self) -> str:
        short = f"{self.threshold:g}"
        threshold = short if float(short) == self.threshold else repr(self.threshold)
        sign = ">" if self.direction == "above" else "<"
        return threshold if self.accuracy is not None else f"{self.metric}{sign}{threshold}"


TargetLike = Target | float | str
"""Target, target accuracy, or text of a target, as for `parse_target`."""


def parse_target(value: object) -> Target:
    """Return a target from its text, or from a number, which is a target accuracy.

    >>> parse_target("loss<0.3") == Target("loss", below=0.3)
    True
    >>> parse_target(0.9) == parse_target("accuracy>=0.9") == Target("accuracy", above=0.9)
    True

    Args:
        value: `Target`; number; or text with a metric, one of <, <=, > and >=, and a number. <= means the same as <. The last
            such sign counts, because the name of a metric may have one too.

    Raises:
        ScenarioError: the value is no target.
    """
    if isinstance(value, Target):
        return value
    try:
        if isinstance(value, str):
            return _parse_text(value)
        if not isinstance(value, bool) and isinstance(value, Real):
            return Target("accuracy", above=float(value))
    except OverflowError:
        raise ScenarioError(f"got a number beyond those of float64, expected a target such as {EXAMPLES}") from None
    except FieldError as error:
        raise ScenarioError(error.problem) from None
    raise ScenarioError(f"got {describe_value(value)}, expected a target such as {EXAMPLES}")


def resolve_target(value: TargetLike | None) -> Target | None:
    """Return the argument `target` of a function as a `Target`; a ScenarioError begins with the argument's name."""
    try:
        return None if value is None else parse_target(value)
    except ScenarioError as error:
        raise ScenarioError(f"target: {error}") from None


def _parse_text(text: str) -> Target:
    match = re.fullmatch(r"(.*?)([<>]=?)([^<>]*)", text.strip(), re.DOTALL)
    metric, sign, number = ("accuracy", ">", text) if match is None else map(str.strip, match.groups())
    try:
        threshold = float(number)
    except ValueError:
        got = f"got {describe_value(text)}"
        if match is None:
            raise ScenarioError(f"{got}, expected a target such as {EXAMPLES}") from None
        raise ScenarioError(f'{got}, expected a number after "{sign}", such as "{metric or "loss"}{sign}0.3"') from None
    if not metric:
        raise ScenarioError(f'got {describe_value(text)}, expected a metric before "{sign}", such as "loss{sign}{number}"')
    return Target(metric, **{"above" if sign[0] == ">" else "below": threshold})
