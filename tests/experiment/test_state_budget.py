"""Budget of client state: size and location are planned, or refused with remedies, before the first round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedsgd.compression import CompressionScheme
from fedsgd.errors import ScenarioError
from fedsgd.experiment.state_budget import (
    StateBudget,
    StoreLocation,
    measure_free_bytes,
    plan_state_storage,
    representative_state,
)
from fedsgd.federation import BufferPlan, ClientTask, DecodedDownlink, encode_update
from fedsgd.federation.client_state import ClientState
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.optim import AdamW, Momentum
from fedsgd.runtime.stores.shared import stored_bytes
from fedsgd.training import TrainingJob, TrainingResult
from tests.laws.federation import NO_EXAMPLES, make_plan
from tests.laws.members import schemes

GIB = 2**30
LAYOUT = ParameterLayout(("a", "b"), ((30, 40), (40,)))


def plan(
    where: StoreLocation = "auto", budget: int = 2 * GIB, free: int = 10**12, folder: Path | None = Path("/data"), **keys: int
) -> StateBudget:
    sizes = {"clients": 10**6, "cohort": 100, "rounds": 50, "bytes_per_client": 62_800, **keys}
    return plan_state_storage(**sizes, location=where, budget=budget, folder=folder, free_bytes_probe=lambda _: free)


def test_budget_text_states_sizes_and_location() -> None:
    assert str(plan()) == ("client state: at most 5,000 of 1,000,000 clients x 62.8 kB = 314 MB, in memory (budget 2 GiB)")
    assert str(plan(model_bytes=7_700_000)) == (
        "client state: at most 5,000 of 1,000,000 clients x 62.8 kB = 314 MB, in memory with 7.7 MB of models (budget 2 GiB)"
    )
    assert str(plan("disk")) == "client state: at most 5,000 of 1,000,000 clients x 62.8 kB = 314 MB, on disk in /data"
    assert str(plan(bytes_per_client=0)) == "client state: none"
    assert str(plan(clients=70)).startswith("client state: at most 70 of 70 clients x 62.8 kB = 4.4 MB")


def test_auto_location_is_memory_up_to_the_budget_then_disk() -> None:
    assert plan(budget=314_000_000).location == "memory"
    on_disk = plan(budget=313_999_999)
    assert (on_disk.location, on_disk.folder, on_disk.max_participants, on_disk.n_bytes) == (
        "disk",
        Path("/data"),
        5000,
        314_000_000,
    )
    assert plan(budget=314_000_000, model_bytes=1).location == "disk", "models occupy memory too"
    assert plan(budget=0, free=314_000_000).location == "disk"
    assert plan("disk", bytes_per_client=0).location == "memory", "an empty state needs no disk"


@pytest.mark.parametrize(
    ("location", "budget", "free", "folder", "message"),
    [
        (
            "memory",
            10**8,
            10**12,
            "/data",
            "the budget of memory is 100 MB; remedies: states in bfloat16, about half the size; states on disk; fewer",
        ),
        ("auto", GIB // 4, 10**8, "/data", "the budget of memory is 256 MiB and the disk of /data has 100 MB free; remedies: "),
        ("auto", GIB // 4, 10**8, None, "the budget of memory is 256 MiB and state.folder names no folder on disk; remedies: "),
        (
            "disk",
            2 * GIB,
            10**8,
            "/data",
            "the disk of /data has 100 MB free; remedies: states in bfloat16, about half the size; states in memory",
        ),
        ("disk", 2 * GIB, 10**12, None, "state.folder names no folder on disk; "),
    ],
)
def test_insufficient_room_is_refused_with_remedies(
    location: StoreLocation, budget: int, free: int, folder: str | None, message: str
) -> None:
    with pytest.raises(ScenarioError) as error:
        plan(location, budget, free, folder and Path(folder))
    text = str(error.value)
    assert text.startswith("no room for client state: at most 5,000 of 1,000,000 clients x 62.8 kB = 314 MB, but ")
    assert message in text
    for remedy in ("bfloat16", "fewer rounds", "compressor without state"):
        assert remedy in text


@pytest.mark.parametrize("location", ["auto", "memory", "disk"])
def test_models_beyond_the_memory_budget_are_refused_at_any_location(location: StoreLocation) -> None:
    message = r"models that clients keep: at most 200 MB, but the budget of memory is 100 MB; remedies: .*downlink\.remember"
    with pytest.raises(ScenarioError, match=message):
        plan(location, budget=10**8, model_bytes=2 * 10**8)


def test_free_disk_space_is_measured_only_if_needed(tmp_path: Path) -> None:
    def failing_probe(folder: Path) -> int:
        raise AssertionError

    plan_state_storage(10, 1, 1, 100, budget=GIB, folder=Path("/nowhere"), free_bytes_probe=failing_probe)
    assert plan_state_storage(10, 1, 1, 100, location="disk", budget=0, folder=tmp_path).location == "disk"
    assert measure_free_bytes(tmp_path) > 0
    with pytest.raises(ScenarioError, match=r"'a\\x00b': expected a folder for client state \(embedded null byte\)"):
        measure_free_bytes(Path("a\0b"))
    with pytest.raises(ScenarioError, match=r"nowhere: expected a folder for client state \(No such file or directory\)"):
        plan_state_storage(10, 1, 1, 100, location="disk", budget=0, folder=tmp_path / "nowhere")


def test_store_opens_at_the_planned_location(tmp_path: Path) -> None:
    for state_budget in (plan(), plan("disk", folder=tmp_path)):
        store = state_budget.open_shared_store()
        assert store.n_clients == 10**6
        store.close()


@pytest.mark.parametrize("scheme", list(schemes()), ids=str)
def test_representative_state_bounds_the_state_of_later_rounds(scheme: CompressionScheme) -> None:
    round_plan = replace(make_plan(scheme), layout=LAYOUT)
    state = representative_state(round_plan, LAYOUT.size)
    assert state.uncommitted_state is not None
    assert state.uncommitted_state.round == 2
    for round in range(3, 7):  # the state grows no further
        x = np.random.default_rng(round).standard_normal(LAYOUT.size, dtype=np.float32)
        downlink = DecodedDownlink(x, None, np.zeros_like(x), 0.0)
        task = ClientTask(
            TrainingJob(0, round, 0, x, NO_EXAMPLES), ClientState(state.resolve(round, round - 1)), downlink, 0, -1, 0.0
        )
        _, state = encode_update(round_plan, task, TrainingResult(0, x, 1, 1))
        assert stored_bytes(state) <= 1.1 * stored_bytes(representative_state(round_plan, LAYOUT.size)) + 64


def test_representative_state_has_the_moments_of_adamw_and_exact_counts_of_steps() -> None:
    round_plan = replace(make_plan(), layout=LAYOUT)
    local_training = replace(round_plan.local_training, optimizer=AdamW(), keep_optimizer_state=True)
    for is_rounded, expected in ((False, [4, 4, 4]), (True, [2, 2, 4])):
        plan = replace(round_plan, local_training=local_training, bfloat16_states=is_rounded)
        arrays = representative_state(plan, LAYOUT.size).state_if_accepted
        names = [f"optimizer/{name}" for name in ("first_moment", "second_moment", "steps")]
        assert {name: array.nbytes / LAYOUT.size for name, array in arrays.items()} == dict(zip(names, expected, strict=True))


def test_representative_state_counts_optimizer_state_and_buffers() -> None:
    round_plan = replace(make_plan(), layout=LAYOUT)
    with_velocity = replace(
        round_plan, local_training=replace(round_plan.local_training, optimizer=Momentum(), keep_optimizer_state=True)
    )
    in_bfloat16 = replace(with_velocity, bfloat16_states=True)
    norm = BufferPlan(None, np.ones(20_000, np.float32), np.ones(20_000, np.float32))
    local = replace(round_plan, buffers=norm)
    size = LAYOUT.size + 20_000
    none, velocity, half, with_buffers = (
        stored_bytes(representative_state(p, size)) for p in (round_plan, with_velocity, in_bfloat16, local)
    )
    assert none == 64
    assert velocity > 4 * size
    assert half < 0.7 * velocity
    assert with_buffers > 8 * 20_000
