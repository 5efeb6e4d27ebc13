"""Runs that are resumed from a checkpoint, compared with runs that were never interrupted."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import fedsgd
from fedsgd.aggregation import AGGREGATORS
from fedsgd.compression import COMPRESSORS
from fedsgd.errors import CheckpointError, NonFiniteError, OutputError, ResumeWarning, RunInterrupted, ScenarioError
from fedsgd.experiment.checkpoints import list_manifests
from fedsgd.experiment.resume import resume, run_or_resume
from fedsgd.experiment.run_tables import RunTables
from fedsgd.experiment.runner import run
from fedsgd.federation.round_record import RoundRecord
from fedsgd.optim import OPTIMIZERS
from fedsgd.scenario.scenario import Scenario
from fedsgd.storage.run_directory import is_complete
from tests.effort import EFFORT, nightly_unless
from tests.torture import Torturer, find_difference, read_results

BASE: Mapping[str, Any] = {
    "name": "short",
    "rounds": 5,
    "data.partition": {"name": "iid", "clients": 8},
    "model.hidden": [4],
    "client": {"steps": 2, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.1}},
    "server": {"cohort": 4},
    "participation": {"dropout": 0.2},
    "engine": {"name": "captured"},
    "checkpoint": {"every": 2},
}


OVERFLOW = {
    "faults.hostile": {"kind": "scaling", "share": 0.25, "factor": 3e38},
    "client": {"steps": 2, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 50.0}},
    "participation": {},
}
"""Two of eight clients multiply their update by more than float32 can hold."""


class StopError(Exception):
    """Error that ends a run from within a callback."""


def make_scenario(settings: Mapping[str, Any] | None = None) -> Scenario:
    return Scenario(name="short").with_settings({**BASE, **(settings or {})})


def stop_after(round: int) -> Callable[[RoundRecord], None]:
    def on_round(record: RoundRecord) -> None:
        if record.round == round:
            raise StopError

    return on_round


def press_after(round: int) -> Callable[[RoundRecord], None]:
    """Return a callback that presses Ctrl-C after a round."""

    def on_round(record: RoundRecord) -> None:
        if record.round == round:
            os.kill(os.getpid(), signal.SIGINT)

    return on_round


def interrupt(scenario: Scenario, out: Path, round: int, **arguments: Any) -> None:
    with pytest.raises(StopError):
        run(scenario, out=out, on_round=stop_after(round), **arguments)


def check_resumed_run(settings: Mapping[str, Any], folder: Path) -> None:
    """Interrupt a run after a checkpoint and a further round, resume it, and compare."""
    scenario = make_scenario(settings)
    run(scenario, out=folder / "whole")
    interrupt(scenario, folder / "cut", 3)
    seen: list[int] = []
    resume(folder / "cut", on_round=lambda record: seen.append(record.round))
    assert seen == [3, 4, 5]
    assert find_difference(read_results(folder / "whole"), read_results(folder / "cut")) is None


def compressor_settings(name: str) -> dict[str, Any]:
    """Return settings under which a compressor can be used on the uplink."""
    table: dict[str, Any] = {"name": name}
    if name == "per-layer":
        table["op"] = {"name": "top-k", "density": 0.1}
    if name == "scheduled":
        table |= {"op": {"name": "top-k", "density": 0.1}}
    return {"uplink": {"compressor": table}, "server": {"cohort": 4, "weighting": "uniform"}}


DAILY_COMPRESSORS = ("fetch-sgd", "scaffold", "top-k")
"""Compressors with state of the server and of both, and error feedback; operators have no state."""


@pytest.mark.slow
@pytest.mark.parametrize("name", nightly_unless(DAILY_COMPRESSORS.__contains__, sorted(COMPRESSORS)))
def test_resumed_run_equals_whole_run_with_every_compressor(name: str, tmp_path: Path) -> None:
    check_resumed_run(compressor_settings(name), tmp_path)


DAILY_AGGREGATORS = ("weighted-mean", "centered-clipping")
DAILY_OPTIMIZERS = ("sgd", "fedadam")
"""Members without and with state."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    nightly_unless(DAILY_AGGREGATORS.__contains__, sorted({*AGGREGATORS} - {*COMPRESSORS})),
)  # others belong to the compressor of their name
def test_resumed_run_equals_whole_run_with_every_aggregator(name: str, tmp_path: Path) -> None:
    server = {"cohort": 8, "weighting": "uniform", "aggregator": {"name": name}}
    check_resumed_run({"server": server, "participation": {}}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", nightly_unless(DAILY_OPTIMIZERS.__contains__, sorted(OPTIMIZERS)))
def test_resumed_run_equals_whole_run_with_every_server_optimizer(name: str, tmp_path: Path) -> None:
    check_resumed_run({"server": {"cohort": 4, "optimizer": {"name": name, "lr": 0.1}}}, tmp_path)


SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "differences": {"downlink": {"policy": "difference"}, "uplink.compressor": {"name": "top-k", "density": 0.05}},
    "differences of three rounds": {"downlink": {"policy": "difference", "remember": 3}},
    "unbiased": {"downlink": {"policy": "unbiased", "compressor": {"name": "qsgd"}}},
    "error feedback down": {"downlink": {"policy": "error-feedback", "compressor": {"name": "top-k", "density": 0.1}}},
    "ef21-p": {"downlink": {"policy": "ef21-p", "compressor": {"name": "top-k", "density": 0.1}}},
    "rounded model": {"downlink.compressor": {"name": "dense", "values": "bfloat16"}},
    "bfloat16 on disk": {
        "uplink": {"compressor": {"name": "top-k", "density": 0.1}, "error_feedback": "persist"},
        "state": {"precision": "bfloat16", "store": "disk"},
    },
    "velocity": {"client.optimizer": {"name": "momentum", "lr": 0.1}, "client.velocity": "carry"},
    "moments": {
        "client": {"optimizer": {"name": "adamw", "lr": 0.01}, "velocity": "carry"},
        "server.optimizer": {"name": "diloco", "schedule": {"name": "exponential"}},
    },
    "weighted sampler": {"server": {"cohort": 4, "sampler": {"name": "weighted"}}},
    "late replies": {
        "participation": {"deadline": 1.0, "durations": {"name": "log-normal"}},
        "uplink": {"compressor": {"name": "top-k", "density": 0.1}, "error_feedback": "persist"},
    },
    "stragglers": {"participation": {"stragglers": 0.5}, "client.optimizer": {"name": "momentum", "lr": 0.1}},
    "dropped stragglers": {
        "participation": {"stragglers": 0.5, "straggler_policy": "drop", "dropout": 0.2},
        "uplink": {"compressor": {"name": "top-k", "density": 0.1}, "error_feedback": "persist"},
        "downlink": {"policy": "difference"},
    },
    "clients' own tests": {
        "data.held_out": 0.2,
        "evaluation": {"clients": True, "training": True, "every": 2, "validation": 0.2},
    },
    "target reached": {"stop.target": "accuracy>0.05", "evaluation.every": 3},
    "one checkpoint is kept": {"checkpoint.keep": 1},
}
DAILY_SETTINGS = {
    "differences of three rounds",
    "error feedback down",
    "moments",
    "bfloat16 on disk",
    "clients' own tests",
    "target reached",
}


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize("name", nightly_unless(DAILY_SETTINGS.__contains__, SETTINGS))
def test_resumed_run_equals_whole_run(name: str, tmp_path: Path) -> None:
    settings = {**SETTINGS[name]}
    if name != "target reached":
        check_resumed_run(settings, tmp_path)
        return
    run(make_scenario(settings), out=tmp_path / "whole")
    interrupt(make_scenario(settings), tmp_path / "cut", 2)
    assert resume(tmp_path / "cut").history[-1].round == 3
    assert find_difference(read_results(tmp_path / "whole"), read_results(tmp_path / "cut")) is None


@pytest.mark.deployment
def test_resumed_run_does_not_depend_on_workers(tmp_path: Path) -> None:
    scenario = make_scenario(SETTINGS["differences"])
    run(scenario, out=tmp_path / "whole")
    two = fedsgd.ExecutionConfig(workers=2)
    interrupt(scenario, tmp_path / "one", 3)
    resume(tmp_path / "one", execution=two)
    interrupt(scenario, tmp_path / "two", 3, execution=two)
    resume(tmp_path / "two")
    for name in ("one", "two"):
        assert find_difference(read_results(tmp_path / "whole"), read_results(tmp_path / name)) is None


@pytest.mark.deployment
def test_killed_runs_have_the_results_of_whole_runs(tmp_path: Path) -> None:
    """The short form of `python -m tests.torture`."""
    n_kills = 2 if EFFORT == 1 else 4
    kills = [chain.kills for chain in Torturer(tmp_path, seed=5).kill_runs(n_kills)]
    assert sum(map(len, kills)) == n_kills


@pytest.mark.slow
def test_module_and_data_of_python_are_given_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 10))
    scenario = make_scenario({"model.batch_norm": "mean", "engine.name": "sequential"})
    run(scenario, model=module, out=tmp_path / "whole")
    interrupt(scenario, tmp_path / "cut", 3, model=module)
    with pytest.raises(ScenarioError, match=r"model.name: "):
        resume(tmp_path / "cut")
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 9), torch.nn.BatchNorm1d(9), torch.nn.Linear(9, 10))
    with pytest.raises(ScenarioError, match=r"model.sha256: "):
        resume(tmp_path / "cut", model=other)
    resume(tmp_path / "cut", model=module)
    assert find_difference(read_results(tmp_path / "whole"), read_results(tmp_path / "cut")) is None


# --------------------------------------------------------------------------------------------------- more rounds, refusals


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a finished run with checkpoints, for tests that copy it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(make_scenario(SETTINGS["differences"]), out=folder)
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.mark.slow
def test_finished_run_continues(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the run is finished, after 5 rounds; pass --rounds"):
        resume(copy)
    with pytest.raises(ScenarioError, match="rounds: expected a whole number of at least 6, got 5; 5 rounds are done"):
        resume(copy, rounds=5)
    resume(copy, rounds=8)
    run(make_scenario({**SETTINGS["differences"], "rounds": 8}), out=tmp_path / "whole")
    assert find_difference(read_results(tmp_path / "whole"), read_results(copy)) is None
    assert fedsgd.load(copy / "scenario.toml").rounds == 8


def test_run_that_reached_its_target_does_not_continue(tmp_path: Path) -> None:
    run(make_scenario({"stop.target": "accuracy>0.01"}), out=tmp_path / "run")
    with pytest.raises(ScenarioError, match=r"the run ended after round 1, because it reached the target of \[stop\]"):
        resume(tmp_path / "run", rounds=9)


def test_finished_run_whose_continuation_is_refused_stays_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(make_scenario({"stop.target": "accuracy>0.01", "rounds": 1}), out=folder)
    rows = [pq.read_table(folder / name) for name in ("ledger.parquet", "rounds.parquet")]
    with pytest.raises(CheckpointError, match=r"the run ended after round 1, because it reached the target of \[stop\]"):
        resume(folder, rounds=9)
    assert is_complete(folder)
    assert [pq.read_table(folder / name) for name in ("ledger.parquet", "rounds.parquet")] == rows


@pytest.mark.parametrize(("missing", "other"), [("ledger", "rounds"), ("rounds", "ledger")])
def test_refused_continuation_without_a_table_leaves_the_other_table(missing: str, other: str, copy: Path) -> None:
    (copy / f"{missing}.parquet").unlink()
    rows = pq.read_table(copy / f"{other}.parquet")
    with pytest.raises(CheckpointError, match=rf"{missing}\.parquet: not found, but the checkpoint was written after \d+ rows"):
        resume(copy, rounds=9)
    assert not (copy / f"{missing}.parquet").exists()
    assert (copy / f"{other}.parquet").is_file()
    assert pq.read_table(copy / f"{other}.parquet") == rows


@pytest.mark.parametrize(
    ("model", "difference"),
    [
        (
            fedsgd.CustomModel(loss=lambda output, target: 2 * torch.nn.functional.cross_entropy(output, target)),
            "model.loss was",
        ),
        (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), "model.name was 'mlp', now 'python-object'"),
        (fedsgd.CustomModel(metrics={"mine": lambda output, target: output.sum(1)}), "model.metrics.mine was unset, now"),
    ],
    ids=["loss", "module", "metric"],
)
def test_object_that_the_run_did_not_have_is_refused(model: Any, difference: str, copy: Path) -> None:
    with pytest.raises(CheckpointError, match=f"its results would change: {difference}"):
        resume(copy, rounds=6, model=model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "optimizer"),
    [
        ("client.optimizer", {"name": "sgd", "schedule": {"name": "cosine", "length": 5}}),
        ("client.optimizer", {"name": "sgd", "schedule": {"name": "cosine", "length": 10}, "schedule_over": "steps"}),
        (
            "server.optimizer",
            {"name": "sgd", "schedule": {"name": "warm-up", "length": 2, "then": {"name": "cosine", "length": 4}}},
        ),
    ],
)
def test_schedule_that_ends_with_the_run_refuses_more_rounds(key: str, optimizer: dict[str, Any], tmp_path: Path) -> None:
    run(make_scenario({key: optimizer}), out=tmp_path / "run")
    with pytest.raises(ScenarioError, match=f"rounds: {key}.schedule depends on the number of rounds"):
        resume(tmp_path / "run", rounds=6)


def test_changed_setting_is_refused_key_by_key(copy: Path) -> None:
    path = copy / "scenario.toml"
    text = path.read_text().replace("seed = 0", "seed = 1", 1).replace("lr = 0.1", "lr = 0.2", 1)
    path.write_text(text)
    with pytest.raises(CheckpointError, match="its results would change: seed was 0, now 1") as caught:
        resume(copy, rounds=6)
    assert caught.value.__notes__ == ["client.optimizer.lr was 0.1, now 0.2"]


@pytest.mark.slow
def test_checkpoint_settings_may_change(copy: Path) -> None:
    path = copy / "scenario.toml"
    path.write_text(path.read_text().replace("every = 2", "every = 1").replace("keep = 2", "keep = 3"))
    resume(copy, rounds=8)
    assert [path.name for path in list_manifests(copy / "checkpoints")] == [
        f"checkpoint-00000{round}.json" for round in (8, 7, 6)
    ]


def edit_manifest(folder: Path, **values: Any) -> None:
    """Change values of the run in all manifests, and their checksums, as another release or machine would have written them."""
    for path in list_manifests(folder / "checkpoints"):
        table = json.loads(path.read_text())
        for key, value in values.items():
            table["checkpoint"]["run"][key] |= value
        write_manifest(path, table)


def write_manifest(path: Path, table: dict[str, Any]) -> None:
    """Write a manifest with the checksum of its content."""
    table["sha256"] = hashlib.sha256(json.dumps(table["checkpoint"]).encode()).hexdigest()
    path.write_text(json.dumps(table))


def make_older(folder: Path) -> None:
    """Turn a run into one of an earlier release, without keys that came later and with an earlier name of a policy."""
    path = folder / "scenario.toml"
    text = path.read_text()
    older_text = re.sub(r"(?m)^(stragglers|held_out) = .*\n", "", text).replace('policy = "unbiased"', 'policy = "plain"')
    assert len(older_text.splitlines()) == len(text.splitlines()) - 2
    assert older_text.count('"plain"') == 1
    path.write_text(older_text)
    for manifest in list_manifests(folder / "checkpoints"):
        table = json.loads(manifest.read_text())
        table["checkpoint"]["run"]["scenario"] = older_text
        write_manifest(manifest, table)


def test_checkpoint_of_an_earlier_release_is_resumed_twice(tmp_path: Path) -> None:
    run(make_scenario({**SETTINGS["unbiased"], "rounds": 2}), out=tmp_path / "run")
    make_older(tmp_path / "run")
    with pytest.raises(StopError):  # scenario.toml has the later keys now, and the checkpoint has not
        resume(tmp_path / "run", rounds=4, on_round=stop_after(3))
    assert resume(tmp_path / "run").history[-1].round == 4


@pytest.mark.parametrize(("old", "new"), [("keep = 2", "keep = 0"), ("rounds = 5", 'rounds = "x"'), ("seed = 0", "sed = 0")])
def test_scenario_file_with_an_error_is_named(old: str, new: str, copy: Path) -> None:
    path = copy / "scenario.toml"
    path.write_text(path.read_text().replace(old, new, 1))
    key = new.partition(" ")[0]
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))}: (scenario\.|checkpoint\.)?{key}: "):
        resume(copy, rounds=6)


def test_checkpoint_of_an_earlier_release_is_not_run_again(tmp_path: Path) -> None:
    scenario = make_scenario(SETTINGS["unbiased"])
    interrupt(scenario, tmp_path / "run", 3)
    make_older(tmp_path / "run")
    rounds: list[int] = []
    run_or_resume(scenario, tmp_path / "run", data=None, on_round=lambda record: rounds.append(record.round))
    assert rounds == [3, 4, 5]


def test_other_versions_and_data_are_refused(copy: Path) -> None:
    edit_manifest(copy, identity={"versions.torch": "2.6.0", "versions.wire format": 0, "data.sha256": "feed"})
    with pytest.raises(CheckpointError, match=r"its results would change: versions.torch was '2.6.0', now ") as caught:
        resume(copy, rounds=6)
    notes = caught.value.__notes__
    assert [note.partition(",")[0] for note in notes] == ["versions.wire format was 0", "data.sha256 was 'feed'"]


def test_other_machine_is_a_warning(copy: Path) -> None:
    edit_manifest(copy, environment={"machine": "Linux abacus"})
    with pytest.warns(ResumeWarning, match="machine was 'Linux abacus', now .*: roundings may differ"):
        resume(copy, rounds=6)


def test_rounds_of_an_edited_scenario_are_continued(copy: Path, tmp_path: Path) -> None:
    path = copy / "scenario.toml"
    path.write_text(path.read_text().replace("rounds = 5", "rounds = 7"))
    assert resume(copy).history[-1].round == 7


@pytest.mark.slow
def test_longer_run_has_no_evaluation_of_the_shorter_runs_end(tmp_path: Path) -> None:
    settings = {"evaluation.every": 4, "rounds": 6, "stop.target": "accuracy>0.99"}
    run(make_scenario(settings), out=tmp_path / "run")
    resume(tmp_path / "run", rounds=8)
    run(make_scenario({**settings, "rounds": 8}), out=tmp_path / "whole")
    assert find_difference(read_results(tmp_path / "whole"), read_results(tmp_path / "run")) is None


@pytest.mark.slow
def test_target_of_the_shorter_runs_end_does_not_end_the_longer_run(tmp_path: Path) -> None:
    settings = {"evaluation.every": 4, "rounds": 5, "stop.target": "accuracy>0.01"}
    run(make_scenario({**settings, "evaluation.every": 100}), out=tmp_path / "run")
    assert resume(tmp_path / "run", rounds=7).history[-1].round == 7
    run(make_scenario({**settings, "evaluation.every": 5}), out=tmp_path / "over")
    with pytest.raises(CheckpointError, match=r"the run ended after round 5, because it reached the target of \[stop\]"):
        resume(tmp_path / "over", rounds=7)
    assert (tmp_path / "over" / "summary.json").exists()


@pytest.mark.slow
def test_stop_soon_after_more_rounds_continues_to_them(copy: Path) -> None:
    with pytest.raises(StopError):
        resume(copy, rounds=9, on_round=stop_after(6))
    assert resume(copy).history[-1].round == 9


@pytest.mark.slow
def test_run_that_ctrl_c_stopped_is_finished_after_it_was_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RunInterrupted):
        run(make_scenario({"checkpoint": {}}), out=folder, on_round=press_after(2))
    resume(folder)
    with pytest.raises(CheckpointError, match="the run is finished, after 5 rounds"):
        resume(folder)


# ------------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "every"), nightly_unless(lambda case: case in ((1, 2), (2, 1)), product((1, 2), (1, 2))))
def test_interrupt_at_a_checkpoint_keeps_the_states(every: int, keep: int, tmp_path: Path) -> None:
    scenario = make_scenario({**SETTINGS["differences"], "checkpoint": {"every": every, "keep": keep}, "rounds": 9})
    run(scenario, out=tmp_path / "whole")
    with pytest.raises(RunInterrupted):
        run(scenario, out=tmp_path / "cut", on_round=press_after(4))
    with pytest.raises(RunInterrupted):
        resume(tmp_path / "cut", on_round=press_after(8))
    resume(tmp_path / "cut")
    assert find_difference(read_results(tmp_path / "whole"), read_results(tmp_path / "cut")) is None


@pytest.mark.slow
@pytest.mark.parametrize("target", [None, "accuracy>0.01"])
def test_run_that_was_stopped_between_its_summary_and_its_tables_is_completed(
    target: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = {} if target is None else {"stop.target": target, "evaluation.every": 3}
    scenario = make_scenario({**SETTINGS["differences"], **stop, "checkpoint.keep": 1})
    run(scenario, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(RunTables, "close_ledger", lambda self: (_ for _ in ()).throw(StopError))
        with pytest.raises(StopError):
            run(scenario, out=tmp_path / "cut")
    resume(tmp_path / "cut")
    assert find_difference(read_results(tmp_path / "whole"), read_results(tmp_path / "cut")) is None
    if target is None:
        assert resume(tmp_path / "cut", rounds=6).history[-1].round == 6


@pytest.mark.slow
def test_failures_after_the_checkpoint_are_not_kept(tmp_path: Path) -> None:
    settings = {**OVERFLOW, "participation.on_failure": "continue", "server": {"cohort": 1}, "rounds": 8, "seed": 7}
    run(make_scenario({**settings, "checkpoint.every": 1}), out=tmp_path / "whole")
    first = pq.read_table(tmp_path / "whole" / "failures.parquet")["round"].to_pylist()[0]
    assert first > 2
    interrupt(make_scenario({**settings, "checkpoint.every": first - 1}), tmp_path / "cut", first)
    resume(tmp_path / "cut")
    tables = [pq.read_table(tmp_path / name / "failures.parquet").to_pylist() for name in ("whole", "cut")]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("name", ["rounds", "ledger"])
def test_damaged_table_is_refused_in_one_line_before_results_are_removed(name: str, copy: Path) -> None:
    path = copy / f"{name}.parquet"
    content = bytearray(path.read_bytes())
    content[10:200] = bytes(190)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"(cannot be read|was changed after the checkpoint)"):
        resume(copy, rounds=6)
    assert (copy / "summary.json").exists()


def test_changed_number_of_a_round_is_refused(copy: Path) -> None:
    table = pq.read_table(copy / "rounds.parquet")
    rows = table.to_pylist()
    rows[1]["loss"] += 1.0
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), copy / "rounds.parquet")
    with pytest.raises(CheckpointError, match=r"rounds\.parquet or failures\.parquet was changed after the checkpoint"):
        resume(copy, rounds=6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "pattern"),
    nightly_unless(
        lambda case: case[1].startswith({"cut": "checkpoint", "changed": "server", "missing": "clients"}[case[0]]),
        product(
            ("cut", "changed", "missing"),
            ("checkpoint-000005.json", "server-000005.safetensors", "clients-000005.safetensors"),
        ),
    ),
)
def test_damaged_checkpoint_is_replaced_by_the_one_before(pattern: str, damage: str, copy: Path, tmp_path: Path) -> None:
    path = copy / "checkpoints" / pattern
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        middle = len(content) // 2
        path.write_bytes(
            content[:middle] if damage == "cut" else content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        )
    expectation = pytest.warns(ResumeWarning, match="the run continues from the checkpoint after round 4")
    with nullcontext() if damage == "missing" and "json" in pattern else expectation:
        result = resume(copy, rounds=6)
    assert [record.round for record in result.history] == [1, 2, 3, 4, 5, 6]
    run(make_scenario({**SETTINGS["differences"], "rounds": 6}), out=tmp_path / "whole")
    assert find_difference(read_results(tmp_path / "whole"), read_results(copy)) is None


def test_run_without_a_usable_checkpoint_is_refused_in_one_line(copy: Path, tmp_path: Path) -> None:
    for path in (copy / "checkpoints").glob("checkpoint-*"):
        path.write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot be resumed: .*checkpoint-000005.json: is not a complete manifest"):
        resume(copy, rounds=6)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(CheckpointError, match="cannot be resumed: it has no checkpoint"):
        resume(copy)
    with pytest.raises(CheckpointError, match="there is no such run directory"):
        resume(tmp_path / "nowhere")


def test_changed_ledger_is_refused(copy: Path) -> None:
    table = pq.read_table(copy / "ledger.parquet").to_pylist()
    table[3]["n_bytes"] += 1
    pq.write_table(pa.Table.from_pylist(table), copy / "ledger.parquet")
    with pytest.raises(CheckpointError, match=r"ledger.parquet was changed after the checkpoint"):
        resume(copy, rounds=6)


def test_second_start_in_a_run_directory_names_the_ways_on(copy: Path) -> None:
    with pytest.raises(
        OutputError, match=r"is not empty .*choose another folder, or pass --overwrite .*; or continue the run: "
    ):
        run(make_scenario(), out=copy)
    run(make_scenario({"checkpoint": {}}), out=copy, overwrite=True)
    assert not (copy / "checkpoints").exists()


def test_two_runs_in_one_directory_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def start_another(record: RoundRecord) -> None:
        for start in (lambda: run(make_scenario(), out=folder, overwrite=True), lambda: resume(folder)):
            with pytest.raises(OutputError, match="another run is writing to it"):
                start()

    run(make_scenario({"rounds": 1}), out=folder, on_round=start_another)


# --------------------------------------------------------------------------------------------------------- Ctrl-C, sweeps


@pytest.mark.slow
def test_first_interrupt_ends_the_round_and_writes_a_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scenario = make_scenario({"checkpoint": {}})
    run(scenario, out=tmp_path / "whole")

    def press(record: RoundRecord) -> None:
        if record.round == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(
        RunInterrupted, match=rf"^stopped after round 2; to continue: fedsgd resume {re.escape(str(tmp_path))}/cut$"
    ):
        run(scenario, out=tmp_path / "cut", on_round=press)
    assert "the run ends after this round; press Ctrl-C again to stop now" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resume(tmp_path / "cut")
    assert find_difference(read_results(tmp_path / "whole"), read_results(tmp_path / "cut")) is None


def test_second_interrupt_stops_at_once_with_a_readable_ledger(tmp_path: Path) -> None:
    def press_twice(record: RoundRecord) -> None:
        if record.round == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        run(make_scenario({"checkpoint": {}}), out=tmp_path / "run", on_round=press_twice)
    assert not isinstance(caught.value, RunInterrupted)
    assert set(pq.read_table(tmp_path / "run" / "ledger.parquet")["round"].to_pylist()) == {1, 2}


@pytest.mark.slow
def test_run_or_resume_begins_again_where_a_checkpoint_cannot_be_used(tmp_path: Path) -> None:
    folder, scenario = tmp_path / "run", make_scenario()
    seen: list[int] = []
    interrupt(scenario, folder, 3)
    planned = scenario.with_settings({"checkpoint.every": 1, "checkpoint.keep": 3})
    run_or_resume(planned, folder, None, lambda record: seen.append(record.round))
    assert seen == [3, 4, 5]
    assert len(list_manifests(folder / "checkpoints")) == 3
    interrupt(scenario, folder, 3, overwrite=True)
    edit_manifest(folder, identity={"versions.torch": "2.6.0"})
    seen.clear()
    with pytest.warns(ResumeWarning, match="versions.torch was '2.6.0'.*: the run begins again"):
        run_or_resume(scenario, folder, None, lambda record: seen.append(record.round))
    assert seen == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_sweep_resumes_inside_its_cells(tmp_path: Path) -> None:
    scenario, seen = make_scenario(), list[int]()

    def stop(cell: object, record: RoundRecord) -> None:
        seen.append(record.round)
        if len(seen) == 8:  # in the second cell
            raise StopError

    with pytest.raises(StopError):
        fedsgd.sweep(scenario, out=tmp_path, seeds=2, callbacks=fedsgd.SweepCallbacks(on_round=stop))
    fedsgd.sweep(scenario, out=tmp_path, seeds=2, callbacks=fedsgd.SweepCallbacks(on_round=stop))
    assert seen == [1, 2, 3, 4, 5, 1, 2, 3, 3, 4, 5]


@pytest.mark.slow
def test_sweep_runs_cells_of_another_scenario_from_the_start(tmp_path: Path) -> None:
    seen: list[int] = []

    def stop(cell: object, record: RoundRecord) -> None:
        seen.append(record.round)
        if len(seen) == 3:
            raise StopError

    callbacks = fedsgd.SweepCallbacks(on_round=stop)
    with pytest.raises(StopError):
        fedsgd.sweep(make_scenario(), out=tmp_path, callbacks=callbacks)
    fedsgd.sweep(make_scenario({"server.cohort": 5}), out=tmp_path, callbacks=callbacks)
    assert seen == [1, 2, 3, 1, 2, 3, 4, 5]


# ---------------------------------------------------------------------------------------------------- numbers that are not finite


def test_update_that_is_not_finite_stops_the_run_and_names_the_last_checkpoint(tmp_path: Path) -> None:
    scenario = make_scenario({**OVERFLOW, "server": {"cohort": 2}, "checkpoint.every": 1, "seed": 0})
    with pytest.raises(NonFiniteError, match=r"round \d, client \d: the update is not finite") as caught:
        run(scenario, out=tmp_path / "run")
    done = caught.value.round - 1
    assert done
    assert caught.value.__notes__ == [f"last checkpoint: after round {done}; to continue: fedsgd resume {tmp_path}/run"]
    assert set(pq.read_table(tmp_path / "run" / "ledger.parquet")["round"].to_pylist()) == {*range(1, done + 2)}


@pytest.mark.slow
def test_skipped_clients_are_counted_in_summary_and_ledger(tmp_path: Path) -> None:
    settings = {**OVERFLOW, "participation.on_divergence": "skip", "server": {"cohort": 8}}
    check_resumed_run(settings, tmp_path)
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    rows = pq.read_table(tmp_path / "whole" / "ledger.parquet").to_pylist()
    diverged = [row for row in rows if row["fate"] == "diverged"]
    assert len(diverged) == summary["diverged_clients"] == summary["failures"] == 2 * 5
    assert {(row["kind"], row["direction"], row["n_bytes"], row["kept"]) for row in diverged} == {("UPDATE", "up", 0, 0)}
    assert summary["uplink_bytes"] == sum(
        row["n_bytes"] for row in rows if row["fate"] == "received" and row["direction"] == "up"
    )


def test_test_loss_that_is_not_finite_stops_the_run_unless_clients_are_skipped() -> None:
    def infinite_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(output, target) + (torch.inf if not torch.is_grad_enabled() else 0.0)

    def ones(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(output))

    model = fedsgd.CustomModel(loss=infinite_loss, metrics={"ones": ones})
    settings = {"engine.name": "sequential", "evaluation.every": 2}
    with pytest.raises(NonFiniteError, match="round 2, server: the test loss is inf"):
        run(make_scenario(settings), model=model)
    result = run(make_scenario({**settings, "participation.on_divergence": "skip"}), model=model)
    assert result.summary["diverged"] == "test loss is not finite after round 5"


@pytest.mark.slow
def test_imports_without_a_digest_in_the_checkpoint_are_no_difference(tmp_path: Path, user_folder: Path) -> None:
    """Earlier releases recorded the module of a function alone."""
    (user_folder / "resumed_size.py").write_text("SIZE = 64\n")
    (user_folder / "resumed_net.py").write_text(
        "import torch\nfrom resumed_size import SIZE\n\ndef make():\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIZE, 10))\n"
    )
    settings = {key: value for key, value in BASE.items() if key != "model.hidden"} | {"model.module": "resumed_net:make"}
    interrupt(Scenario(name="short").with_settings(settings), tmp_path / "run", 3)
    for path in list_manifests(tmp_path / "run" / "checkpoints"):
        table = json.loads(path.read_text())
        del table["checkpoint"]["run"]["identity"]["user_code.resumed_net:make, imports"]
        write_manifest(path, table)
    assert resume(tmp_path / "run").history[-1].round == 5
    edit_manifest(tmp_path / "run", identity={"user_code.resumed_net:make, imports": "feed"})
    with pytest.raises(CheckpointError, match=r"user_code\.resumed_net:make, imports was 'feed', now "):
        resume(tmp_path / "run", rounds=6)


@pytest.mark.slow
def test_module_of_the_run_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "resumed_operator.py").write_text(
        "from dataclasses import dataclass\n"
        "from fedsgd.compression.operators.dense import Dense\n"
        "@dataclass(frozen=True)\n"
        "class Whole(Dense):\n"
        "    name = 'whole'\n"
    )
    monkeypatch.syspath_prepend(folder)
    interrupt(make_scenario({"uplink.compressor": {"name": "resumed_operator:Whole"}}), tmp_path / "run", 3)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(folder)])
    monkeypatch.delitem(sys.modules, "resumed_operator")
    assert resume(tmp_path / "run").history[-1].round == 5
    assert sys.path.count(str(folder)) == 1, "the folder stays, because functions may import more later"
