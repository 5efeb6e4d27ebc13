"""Groups of options of `fedsgd.sweep`: execution and callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsgd.federation.round_record import RoundRecord
from fedsgd.sweeps.cells import Cell, Sweep

RoundCallback = Callable[[Cell, RoundRecord], None]


@dataclass(frozen=True)
class SweepConfig:
    """Processes and data of a sweep, and the cells that run again.

    Attributes:
        jobs: number of processes; with more than one, a script must start the sweep under `if __name__ == "__main__":`.
        data: folder of the data files; None for the folder that FEDSGD_DATA names.
        overwrite: run cells again that are finished with another scenario, or with another source of a user's class.
        retry_failed: run cells again that failed with a RunError.
        stop_after: seconds after which no further cell begins; None for no limit. The next call runs the other cells.
        launcher: "slurm" runs each cell as a job of Slurm, "local" in a process as if it were such a job (needs submitit); None
            runs cells in this process or, with `jobs`, in processes of this machine.
        launcher_options: parameters of Slurm's jobs by name, such as partition.
    """

    jobs: int = 1
    data: str | Path | None = None
    overwrite: bool = False
    retry_failed: bool = False
    stop_after: float | None = None
    launcher: str | None = None
    launcher_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepCallbacks:
    """Functions that are called during a sweep.

    Attributes:
        on_begin: called with the sweep before the first run.
        on_round: called with the cell and the record after each round, if `jobs` is 1.
        on_cell: called after each cell with the sweep, the cell and its duration in seconds.
    """

    on_begin: Callable[[Sweep], None] | None = None
    on_round: RoundCallback | None = None
    on_cell: Callable[[Sweep, Cell, float], None] | None = None
