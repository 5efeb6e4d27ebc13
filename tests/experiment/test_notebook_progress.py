"""Progress of `fedsgd.run` in a notebook."""

from __future__ import annotations

from typing import Any

import pytest

import fedsgd as fs
from fedsgd.system import notebook

SCENARIO = fs.Scenario(name="tiny", rounds=3, data=fs.DataConfig(partition=fs.partitioners.Iid(clients=2)))


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Texts that a notebook shows, each with True if the text replaces another one."""
    texts: list[tuple[str, bool]] = []

    def publish(data: dict[str, str], *, transient: dict[str, Any], update: bool) -> None:
        assert len(transient["display_id"]) == 32
        texts.append((data["text/plain"], update))

    monkeypatch.setattr(notebook, "find_publisher", lambda: publish)
    monkeypatch.setattr(notebook, "REFRESH_SECONDS", 0.0)
    return texts


def test_long_run_shows_one_line_that_ends_with_the_result(
    outputs: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notebook, "QUIET_SECONDS", 0.0)
    result = fs.run(SCENARIO)
    assert [update for _, update in outputs] == [False, True, True]
    assert [text.split(",")[0] for text, _ in outputs[:2]] == ["tiny: round 1/3", "tiny: round 2/3"]
    assert outputs[-1][0].startswith("tiny: 3 rounds in ")
    assert outputs[-1][0].endswith(result.history[-1].describe())


@pytest.mark.slow
def test_short_run_and_run_with_a_callback_show_nothing(
    outputs: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notebook, "QUIET_SECONDS", 1e9)
    fs.run(SCENARIO)
    monkeypatch.setattr(notebook, "QUIET_SECONDS", 0.0)
    rounds = list[int]()
    fs.run(SCENARIO, on_round=lambda record: rounds.append(record.round))
    assert (outputs, rounds) == ([], [1, 2, 3])


def test_script_shows_nothing(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "QUIET_SECONDS", 0.0)
    assert notebook.find_publisher() is None
    fs.run(SCENARIO)
    assert capfd.readouterr() == ("", "")
