"""Linear classifier of scikit-learn on pairs of pixels, whose arrays are float64."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from sklearn.linear_model import SGDClassifier
from sklearn.preprocessing import PolynomialFeatures

from .data import CLASSES, PIXELS, Examples

PAIRS = PolynomialFeatures(2, include_bias=False)
FEATURES = PIXELS + PIXELS * (PIXELS + 1) // 2


class LinearModel:
    """Logistic regression, one against all, with 21,450 parameters."""

    def initial(self) -> ArrayRecord:
        """Return the arrays before training."""
        return _record(np.zeros((CLASSES, FEATURES)), np.zeros(CLASSES))

    def train(self, arrays: ArrayRecord, examples: Examples, state: RecordDict, seed: int) -> ArrayRecord:
        """Return the arrays after one local epoch."""
        classifier = _classifier(seed)
        coef, intercept = arrays["coef"].numpy(), arrays["intercept"].numpy()
        classifier.fit(PAIRS.fit_transform(examples.x), examples.y, coef_init=coef, intercept_init=intercept)
        return _record(classifier.coef_, classifier.intercept_)

    def accuracy(self, arrays: ArrayRecord, examples: Examples, state: RecordDict) -> float:
        """Return the accuracy of the arrays on examples."""
        classifier = _classifier(0)
        classifier.coef_, classifier.intercept_ = arrays["coef"].numpy(), arrays["intercept"].numpy()
        classifier.classes_ = np.arange(CLASSES)
        return float(classifier.score(PAIRS.fit_transform(examples.x), examples.y))


def _classifier(seed: int) -> SGDClassifier:
    return SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.02, max_iter=1, tol=None, random_state=seed)


def _record(coef: np.ndarray, intercept: np.ndarray) -> ArrayRecord:
    return ArrayRecord({"coef": Array(coef), "intercept": Array(intercept)})
