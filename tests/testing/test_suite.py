"""Law suites as a user runs them: under pytest, in a script, with arguments of the wrong family."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsgd.aggregation import WeightedMean
from fedsgd.compression import ErrorFeedback
from fedsgd.compression.operators.sign import Sign
from fedsgd.compression.schemes.ef21 import EF21
from fedsgd.config.component import Component
from fedsgd.data import Examples
from fedsgd.data.partitioners.shards import Shards
from fedsgd.errors import LawError
from fedsgd.sampling.uniform import Uniform
from fedsgd.testing import check_aggregator, check_compressor, check_partitioner, check_sampler, list_laws, parametrize_laws

USER_MODULE = '''
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from fedsgd.aggregation import Aggregator, weighted_sum
from fedsgd.sampling.uniform import Uniform
from fedsgd.testing import check_aggregator, check_sampler, parametrize_laws

@dataclass(frozen=True)
class HalvedMean(Aggregator):
    """Half of the weighted mean."""

    name: ClassVar[str] = "halved-mean"
    share: float = 0.5

    def aggregate(self, state, updates, ctx):
        return (self.share * weighted_sum(updates, ctx)).astype(np.float32), state
'''


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.nightly
def test_laws_under_pytest_are_one_test_each_and_the_broken_law_fails(tmp_path: Path) -> None:
    test = "@parametrize_laws(HalvedMean(), Uniform())\ndef test_component(law):\n    law()\n"
    (tmp_path / "test_halved.py").write_text(f"{USER_MODULE}\n{test}")
    result = run_python(tmp_path, "-m", "pytest", "-p", "no:cacheprovider", "-v", "test_halved.py")
    n_laws = len(list_laws(WeightedMean())) + len(list_laws(Uniform()))
    assert f"1 failed, {n_laws - 1} passed" in result.stdout
    assert "test_component[halved-mean-equal_updates] FAILED" in result.stdout
    assert "test_component[uniform-valid_cohort] PASSED" in result.stdout
    assert "LawError: equal_updates: HalvedMean(share=0.5): 1 equal update of norm 0.00781: |difference| = " in result.stdout


@pytest.mark.nightly
@pytest.mark.slow
def test_laws_of_a_class_of_a_script_run(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(f"{USER_MODULE}\ncheck_aggregator(HalvedMean(1.0))\nprint('obeys the laws')\n")
    result = run_python(tmp_path, "script.py")
    assert (result.stdout, result.stderr) == ("obeys the laws\n", "")


@pytest.mark.nightly
def test_import_of_the_laws_imports_no_library_of_tests() -> None:
    code = "import sys, fedsgd.testing; print({'pytest', '_pytest', 'hypothesis'} & {*sys.modules})"
    assert run_python(Path(), "-c", code).stdout == "set()\n"


def read_ids(*components: Component) -> list[str]:
    decorator: Any = parametrize_laws(*components)
    return list(decorator.kwargs["ids"])


def test_ids_name_component_and_law_and_are_unique() -> None:
    assert read_ids(Sign())[:3] == ["sign-immutable_value", "sign-settings_round_trip", "sign-preserves_zero"]
    assert "Shards(clients=2, shards_per_client=1, iid_share=0.0)-valid_partition" in read_ids(Shards(2, 1), Shards(3, 1))
    ids = read_ids(EF21(Sign()), Uniform())
    assert {"ef21-scale", "sign-scale", "uniform-refused_sizes"} < {*ids}
    assert len(ids) == len({*ids})


def test_every_law_has_a_statement() -> None:
    components = (ErrorFeedback(Sign()), WeightedMean(), Shards(2), Uniform())
    assert all(law.statement.endswith(".") for component in components for law in list_laws(component))


@pytest.mark.parametrize(
    ("check", "component", "message"),
    [
        (
            check_compressor,
            Uniform(),
            "got Uniform(), expected an instance of a subclass of fedsgd.compression.base.Compressor",
        ),
        (
            check_aggregator,
            WeightedMean,
            "expected an instance of a subclass of fedsgd.aggregation.base.Aggregator; pass an inst",
        ),
        (check_sampler, "uniform", 'got "uniform", expected an instance of a subclass of fedsgd.sampling.base.Sampler'),
        (list_laws, None, "got None, expected an instance of a subclass of fedsgd.compression.base.Compressor, "),
    ],
    ids=["another family", "class", "name", "none"],
)
def test_argument_of_another_family_is_refused(check: Callable[..., object], component: object, message: str) -> None:
    with pytest.raises(TypeError) as error:
        check(component)
    assert message in str(error.value)


def test_partitioner_is_checked_with_the_examples_of_the_user() -> None:
    examples = Examples(np.zeros((12, 1), np.float32), np.arange(12) % 3)
    check_partitioner(Shards(6, 2), examples=examples)
    with pytest.raises(LawError, match=r"^valid_partition: .*7 clients × 2 shards are 14 shards, but there are 12"):
        check_partitioner(Shards(7, 2), examples=examples)


@pytest.mark.slow
def test_global_generators_keep_their_states() -> None:
    state = np.random.get_bit_generator().state["state"]["key"].copy()
    check_sampler(Uniform())
    assert np.array_equal(np.random.get_bit_generator().state["state"]["key"], state)
