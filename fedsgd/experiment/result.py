"""Result of a run in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsgd.experiment.ledger import Ledger
from fedsgd.experiment.summary import build_table_row
from fedsgd.experiment.trained_model import load_state
from fedsgd.federation.round_record import RoundRecord
from fedsgd.models.argument_checks import check_module
from fedsgd.numerics.arrays import F32, F64
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.scenario.scenario import Scenario
from fedsgd.storage.run_directory import build_round_frame

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from fedsgd.experiment.trained_model import Module


@dataclass(frozen=True, eq=False)
class Result:
    """Result of a run.

    Attributes:
        scenario: scenario of the run, with the engine that was selected.
        history: one record for each round.
        ledger: table of all frames.
        parameters: [P] float32, the server's final model, in the order of `layout`.
        layout: names and shapes of the parameters.
        client_accuracy: [N] float64, accuracy of the final model (or of the client's own model) on each client's test examples.
            NaN for a client without test examples; None without `[evaluation] clients`.
        summary: contents of summary.json; peak_memory_bytes excludes workers, and is None where the system does not report it.
        out: run directory, None if nothing was written.
        state_dict: complete state of the model that was evaluated last, for `module.load_state_dict(..., strict=True)`;
            parameters and buffers that stay at the clients have their initial values.
    """

    scenario: Scenario
    history: list[RoundRecord]
    ledger: Ledger
    parameters: F32
    layout: ParameterLayout
    client_accuracy: F64 | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    out: Path | None = None
    state_dict: Mapping[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        accuracy = self.history[-1].accuracy if self.history else None
        figures = [f"{len(self.history)} rounds", *([] if accuracy is None else [f"accuracy {accuracy:.4f}"])]
        up, down = (self.ledger.totals[direction].n_bytes for direction in ("up", "down"))
        return f'Result("{self.scenario.name}": {", ".join(figures)}, {up:,} bytes up, {down:,} bytes down)'

    def to_pandas(self) -> pd.DataFrame:
        """Return the rounds as a pandas table, indexed by round, with the columns of rounds.parquet.

        >>> import fedsgd
        >>> result = fedsgd.run(fedsgd.Scenario(name="digits", rounds=2))
        >>> table = result.to_pandas()
        >>> table.index.tolist(), bool((table.uplink_bytes > 0).all())
        ([1, 2], True)

        Raises:
            ReportError: pandas is not installed.
        """
        rows = [build_table_row(record) for record in self.history]
        names = dict.fromkeys(name for row in rows for name in row)  # a round without an evaluation has no metrics
        return build_round_frame({name: [row.get(name) for row in rows] for name in names})

    def load_into(self, module: Module) -> Module:
        """Load the trained parameters and buffers into a torch module, and return the module.

        >>> import fedsgd
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> result = fedsgd.run(fedsgd.Scenario(name="digits", rounds=1), model=network)
        >>> module = result.load_into(network)
        >>> bool((module[1].bias == result.state_dict["1.bias"]).all())
        True

        Args:
            module: module with the tensors of the run's model, whose values are replaced.

        Raises:
            ModelError: names or shapes of the tensors differ.
        """
        check_module(module, "module")
        load_state(module, self.state_dict)
        return module
