"""Evaluation of the model: on the test examples, by client, and on training and validation examples.

Columns of rounds.parquet with the metrics, null in a round without an evaluation:

| column | type | meaning |
|---|---|---|
| loss | float | mean loss of the test examples, of the dataset or of all clients as `[evaluation] test` says |
| accuracy, other metrics | float | metrics of `[model] metrics` and `[evaluation] metrics` on the test examples |
| client_accuracy_mean | float | mean of the accuracy by client, with `[evaluation] clients` |
| client_accuracy_worst_tenth | float | mean over the tenth of the clients with the lowest accuracy |
| client_accuracy_std | float | standard deviation over the clients |
| train_loss, train_accuracy, ... | float | same metrics on the training examples, with `[evaluation] training` |
| validation_loss, ... | float | same metrics on the validation examples, with `[evaluation] validation` |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from fedsgd.data import ClientData, Dataset, Examples
from fedsgd.errors import DataError, ScenarioError, suggest_name
from fedsgd.models.set_metrics import SET_METRICS, VALIDATION_PREFIX, name_validation_metric
from fedsgd.numerics.arrays import F32, F64
from fedsgd.scenario.scenario import Scenario
from fedsgd.training import EvaluationResult, EvaluationSets

CLIENT_METRICS = ("client_accuracy_mean", "client_accuracy_worst_tenth", "client_accuracy_std")
"""Names of the figures that summarize the accuracy by client."""
RESERVED_PREFIXES = ("client_accuracy_", "train_", VALIDATION_PREFIX)
"""Prefixes that a user's metric must not have: those of figures by client, on training and on validation examples."""

if TYPE_CHECKING:
    from fedsgd.models.task import LearningTask
    from fedsgd.training.slice_evaluation import SetMetrics


class SupportsEvaluate(Protocol):
    """Object that evaluates a model: an engine, or a pool of workers."""

    def evaluate(self, weights: F32, examples: Examples, buffers: F32 | None = None) -> EvaluationResult:
        """Evaluate a model.

        Args:
            weights: [P] float32, parameters.
            examples: examples to evaluate on.
            buffers: [S] float32, module buffers; None for the initial ones.
        """


Mask = NDArray[np.bool_]
LocalModelOf = Callable[[int, F32 | None], tuple[F32, F32 | None]]
"""Function from a client and the averaged buffers to (the client's local parameters [L], averaged and then local buffers)."""


@dataclass(frozen=True, eq=False)
class EvaluationPlan:
    """Evaluation that a scenario asks for.

    Attributes:
        metrics: names of the task's metrics with one number for each example.
        test: test examples of the dataset.
        held_out: each client's own test examples, for the accuracy by client; None without that evaluation.
        train: training examples, for loss and metrics of training; None without that evaluation.
        set_metrics: metrics of a whole set; None: there are none.
        validation: validation examples, on which no client trains; None without that evaluation.
    """

    metrics: tuple[str, ...]
    test: Examples
    held_out: ClientData | None = None
    train: ClientData | None = None
    set_metrics: SetMetrics | None = None
    validation: ClientData | None = None

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the figures in order: "loss", metrics, figures by client, figures of training, figures of validation."""
        names = ("loss", *self.metrics, *(() if self.set_metrics is None else self.set_metrics.metrics))
        by_client = () if self.held_out is None else CLIENT_METRICS
        training = () if self.train is None else (f"train_{name}" for name in names)
        return (*names, *by_client, *training, *(() if self.validation is None else map(name_validation_metric, names)))


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Function that evaluates a model as a plan describes.

    Attributes:
        plan: examples and metrics.
        engine: object that evaluates a model on examples.
        local_model_of: reader of the parameters and buffers that stay at a client, None where all clients have the same model.
            With local models, each client's model is evaluated on the client's own examples.
    """

    plan: EvaluationPlan
    engine: SupportsEvaluate
    local_model_of: LocalModelOf | None = None

    def __call__(self, weights: F32, buffers: F32 | None = None) -> tuple[dict[str, float], F64 | None]:
        """Return (figures by name, accuracy by client [N] or None) of the model with parameters [P] and buffers [S].

        The accuracy is NaN for a client without examples, or with ignored targets only.
        """
        if self.local_model_of is not None and self.plan.held_out is not None:
            return self._evaluate_all_local_models(weights, buffers, self.local_model_of, self.plan.held_out)
        values = self._measure(weights, self.plan.test, buffers)
        accuracy = None
        if self.plan.held_out is not None:
            accuracy, is_counted = self._measure_client_accuracy(weights, self.plan.held_out, buffers)
            values.update(_client_accuracy_summary(accuracy[is_counted]))
        if self.plan.train is not None:
            training_values = self._measure(weights, self.plan.train.all_examples(), buffers)
            values.update({f"train_{name}": value for name, value in training_values.items()})
        if self.plan.validation is not None:
            validation_values = self._measure(weights, self.plan.validation.all_examples(), buffers)
            values.update({name_validation_metric(name): value for name, value in validation_values.items()})
        return values, accuracy

    def _measure(self, weights: F32, examples: Examples, buffers: F32 | None) -> dict[str, float]:
        """Return loss and metrics of one model on examples."""
        result = self.engine.evaluate(weights, examples, buffers)
        return {**result.means, **self._compute_set_metrics(result.mean_loss, [result])}

    def _compute_set_metrics(self, mean_loss: float, results: Sequence[EvaluationResult]) -> dict[str, float]:
        metrics = self.plan.set_metrics
        return {} if metrics is None else metrics.compute(mean_loss, [result.outputs for result in results])

    def _evaluate_all_local_models(
        self, weights: F32, buffers: F32 | None, local_model_of: LocalModelOf, held_out: ClientData
    ) -> tuple[dict[str, float], F64]:
        """Evaluate each client's model on the client's test examples, and on its validation examples if there are any."""
        values, accuracy = self._evaluate_local_models(weights, buffers, local_model_of, held_out)
        if self.plan.validation is not None:
            all_values, _ = self._evaluate_local_models(weights, buffers, local_model_of, self.plan.validation)
            values |= {name_validation_metric(name): v for name, v in all_values.items() if name not in CLIENT_METRICS}
        return values, accuracy

    def _evaluate_local_models(
        self, weights: F32, buffers: F32 | None, local_model_of: LocalModelOf, data: ClientData
    ) -> tuple[dict[str, float], F64]:
        """Evaluate each client's model on the client's examples, and return (figures of all clients, accuracy by client [N]).

        A metric is the mean over all examples; accuracy, over all targets that are not ignored. The loss is the mean of the
        clients' losses, weighted by the client's examples (for PyTorch's cross-entropy, by the targets that are not ignored).
        A loss that is a sum over examples is the sum of the clients' losses. A metric of a whole set is computed from the
        outputs of all clients' models together: a mean of the clients' F1 or AUC would not be the F1 or AUC of all examples.
        """
        accuracy, is_counted = np.full(len(data), np.nan), np.zeros(len(data), dtype=bool)
        totals, shares = (dict.fromkeys(("loss", *self.plan.metrics), 0.0) for _ in range(2))
        results: list[EvaluationResult] = []
        for client in np.flatnonzero(data.sizes()).tolist():
            parameters, statistics = local_model_of(client, buffers)
            result = self.engine.evaluate(np.concatenate([weights, parameters]), data.examples_of(client), statistics)
            for name, mean in result.means.items():
                share = 1.0 if name == "loss" and result.is_loss_sum else result.sum_weights(name)
                totals[name] += mean * share if share else 0.0
                shares[name] = 1.0 if name == "loss" and result.is_loss_sum else shares[name] + share
            accuracy[client], is_counted[client] = result.means["accuracy"], result.sum_weights("accuracy") > 0
            if self.plan.set_metrics is not None:
                results.append(result)
        values = {name: total / shares[name] if shares[name] else math.nan for name, total in totals.items()}
        set_values = self._compute_set_metrics(_average_losses(results), results)
        return {**values, **set_values, **_client_accuracy_summary(accuracy[is_counted])}, accuracy

    def _measure_client_accuracy(self, weights: F32, data: ClientData, buffers: F32 | None) -> tuple[F64, Mask]:
        """Return the accuracy of each client [N], and a mask of the clients with a target that is not ignored [N]."""
        result = self.engine.evaluate(weights, data.all_examples(), buffers)
        counts, clients = result.get_score_weights("accuracy"), np.repeat(np.arange(len(data)), data.sizes())
        scores = np.multiply(result.scores["accuracy"], counts, out=np.zeros(len(counts)), where=counts > 0)
        total, n = (np.bincount(clients, weights=values, minlength=len(data)) for values in (scores, counts))
        accuracy: F64 = np.divide(total, n, out=np.full(len(data), np.nan), where=n > 0)
        return accuracy, n > 0


def _average_losses(results: Sequence[EvaluationResult]) -> float:
    """Return the mean loss over all terms of several sets; NaN if there are none."""
    pairs = [(result.mean_loss, result.sum_weights("loss")) for result in results]
    n_terms = sum(n for _, n in pairs)
    return sum(loss * n for loss, n in pairs if n) / n_terms if n_terms else math.nan


def check_accuracy(scenario: Scenario, task: LearningTask) -> None:
    """Raise a ScenarioError if the scenario evaluates clients and the task has no accuracy with one number for each example."""
    if not scenario.evaluation.clients or "accuracy" in task.metrics:
        return
    if "accuracy" in task.set_metrics:
        raise ScenarioError(
            "evaluation.clients: got an accuracy that is one number for the whole set, expected one number per example, whose "
            "mean over each client's examples is the client's accuracy"
        )
    names = ", ".join(sorted([*task.metrics, *task.set_metrics])) or "none"
    raise ScenarioError(f"evaluation.clients: there is no metric named accuracy (metrics: {names})")


def check_targets(scenario: Scenario, plan: EvaluationPlan) -> None:
    """Raise a ScenarioError if a target of the scenario is on a metric that the evaluation does not have."""
    for section, config in (("report", scenario.report), ("stop", scenario.stop)):
        target = config.resolved_target
        if target is not None and target.metric not in plan.metric_names:
            hint = suggest_name(target.metric, plan.metric_names)
            name, column = target.metric.replace("_", "-"), target.metric.replace("-", "_")
            if name in SET_METRICS and column not in plan.metric_names:
                hint = f': set evaluation.metrics = ["{name}"], whose column is {column}'
            further_metrics = {
                "clients = true": CLIENT_METRICS,
                "training = true": [f"train_{name}" for name in plan.metric_names],
                "validation = 0.1": [*map(name_validation_metric, plan.metric_names)],
            }
            for setting, metrics in further_metrics.items():
                if target.metric in metrics and not getattr(scenario.evaluation, setting.split()[0]):
                    hint = f": set evaluation.{setting}"
            raise ScenarioError(f"{section}.{config.target_key}: there is no metric named {target.metric}{hint}")


def select_evaluation_sets(
    scenario: Scenario,
    task: LearningTask,
    dataset: Dataset,
    train: ClientData,
    held_out: ClientData | None,
    validation: ClientData | None = None,
) -> EvaluationSets:
    """Return the examples on which models will be evaluated, or raise a ScenarioError if [evaluation] does not fit them."""
    config = scenario.evaluation
    has_local_models = task.n_local_parameters + task.n_local_buffers > 0
    if has_local_models and (config.training or not config.clients):
        key = "batch_norm" if scenario.model.batch_norm == "local" else "buffers"
        problem = "no two clients have the same model: set evaluation.clients = true, and leave evaluation.training out"
        raise ScenarioError(f'model.{key}: with "local", {problem}')
    if config.clients and (held_out is None or not held_out.distinct_sizes()[0].any()):
        raise ScenarioError("evaluation.clients: no client has test examples of its own; set data.held_out, for example to 0.2")
    try:
        sets = {} if has_local_models else {"test": select_test_examples(scenario, dataset, held_out)}
    except DataError as error:
        raise ScenarioError(f"evaluation.test: {error}; use fewer clients, or leave this key out") from error
    parts = {
        "clients": held_out if config.clients else None,
        "training": train if config.training else None,
        "validation": validation,
    }
    for key, data in parts.items():
        try:
            if data is not None:
                sets[key] = data.all_examples()
        except DataError as error:
            remedy = "set it to 0" if key == "validation" else "leave this key out"
            raise ScenarioError(f"evaluation.{key}: {error}; use fewer clients, or {remedy}") from error
    if has_local_models:
        local_sets = {key: (sets[key], *data.distinct_sizes()) for key, data in parts.items() if data is not None}
        return EvaluationSets({}, local_sets)
    return EvaluationSets(sets, {})


def select_test_examples(scenario: Scenario, dataset: Dataset, held_out: ClientData | None) -> Examples:
    """Return the test examples of the dataset, or of all clients; DataError for too many, ScenarioError if there are none."""
    if scenario.evaluation.test == "dataset":
        return dataset.test
    if held_out is None or not held_out.distinct_sizes()[0].any():
        problem = 'got "clients", but no client has test examples of its own; set data.held_out, for example to 0.2'
        raise ScenarioError(f"evaluation.test: {problem}")
    return held_out.all_examples()


def _client_accuracy_summary(accuracy: F64) -> dict[str, float]:
    """Return mean, mean of the worst tenth, and standard deviation over clients with equal weights.

    The worst tenth (Li et al. 2020, "Fair resource allocation") is rounded up to whole clients. All figures are NaN if an
    accuracy is not finite, or if there is no client.
    """
    if not len(accuracy) or not np.isfinite(accuracy).all():
        return dict.fromkeys(CLIENT_METRICS, math.nan)
    worst_tenth = np.sort(accuracy)[: math.ceil(len(accuracy) / 10)]
    return dict(zip(CLIENT_METRICS, (float(accuracy.mean()), float(worst_tenth.mean()), float(accuracy.std())), strict=True))
