"""Certificates: figures that theory predicts, broken laws, errors, output files and samples."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import CliRunner, Result

import fedsgd
from fedsgd.aggregation import AggregationContext, Aggregator, WeightedUpdate, weighted_sum
from fedsgd.certification import (
    Certificate,
    certify_all,
    measure,
    report,
    reproducibility,
    runner,
    samples,
    throughput,
)
from fedsgd.certification.certificate import CompressorLike
from fedsgd.certification.decoding_laws import DECODING_LAWS
from fedsgd.certification.law_suite import SAMPLED_VECTOR_LAWS, SCHEME_LAWS
from fedsgd.certification.operator_laws import INPUT_LAWS
from fedsgd.certification.round_laws import ROUND_LAWS
from fedsgd.certification.samples import sample_updates
from fedsgd.certification.simulate_rounds import RoundFrames, decode_rounds, encode_rounds, hash_frames, simulate_rounds
from fedsgd.cli import main
from fedsgd.compression import (
    COMPRESSORS,
    CodecContext,
    EncodedUpdate,
    ErrorFeedback,
    MemorylessScheme,
    StateArrays,
)
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.randk import RandK
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.cafe import CAFe
from fedsgd.config.component import Component
from fedsgd.errors import LawError, OutputError, ScenarioError
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.system.global_generators import read_generator_states
from fedsgd.wire import Sections, decode_values, encode_values
from tests.laws import planted, planted_bytes, planted_rounds

SMALL_SAMPLE: dict[str, Any] = {"data": "gaussian", "size": 1000}
USER_MODULE = """
import os
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from fedsgd.compression import CompressionOperator, MemorylessScheme
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.operators.dense import Dense

print("a module may print")

@dataclass(frozen=True)
class Half(TopK):
    name: ClassVar[str] = "half"
    density: float = 0.5

@dataclass(frozen=True)
class Raises(TopK):
    name: ClassVar[str] = "raises"
    def encode(self, x, ctx):
        if len(x) > 999:
            raise IndexError("list index out of range")
        return super().encode(x, ctx)

@dataclass(frozen=True)
class ByProcess(Dense):
    name: ClassVar[str] = "by-process"
    def encode(self, x, ctx):
        return super().encode(np.full_like(x, os.getpid()), ctx)

class Undecorated(TopK):
    pass

@dataclass(frozen=True)
class Nameless(CompressionOperator):
    pass

@dataclass(frozen=True)
class Wraps(MemorylessScheme):
    name: ClassVar[str] = "wraps"

@dataclass(frozen=True)
class Fussy(TopK):
    name: ClassVar[str] = "fussy"
    def __post_init__(self):
        raise KeyError("no luck")

not_a_class = 3
"""


class InProcess:
    """Substitute for the fresh interpreter in this process."""

    def __init__(self, compressors: Sequence[CompressorLike]) -> None:
        self.compressors = compressors

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def decode(
        self, compressor_index: int, rounds: Sequence[RoundFrames], layout: ParameterLayout, seconds: float
    ) -> Iterator[Any]:
        return decode_rounds(self.compressors[compressor_index], rounds, layout)

    def compute_digests(
        self, updates: F32, layout: ParameterLayout, references: Sequence[Sequence[bytes]]
    ) -> list[tuple[str | None, str]]:
        digests: list[tuple[str | None, str]] = []
        for compressor, frames in zip(self.compressors, references, strict=True):
            try:
                digests.append((hash_frames(encode_rounds(compressor, updates, layout, frames)), ""))
            except (IndexError, ValueError) as error:
                digests.append((None, str(error)))
        return digests


@pytest.fixture
def fresh_interpreter() -> None:
    """Let a test start interpreters. All other tests compare within the process, which is faster."""


@pytest.fixture(autouse=True)
def _reduce_work(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "fresh_interpreter" not in request.fixturenames:
        monkeypatch.setattr(runner, "FreshInterpreter", InProcess)
    monkeypatch.setattr(throughput, "MEASUREMENT_SECONDS", 0.0)
    monkeypatch.setattr(throughput, "MIN_POOL_BYTES", 2**20)
    monkeypatch.setattr(throughput, "read_cache_bytes", lambda: None)


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Change to a folder with a user's module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "mine_certified.py").write_text(USER_MODULE)
    yield tmp_path
    sys.modules.pop("mine_certified", None)


def run_certify(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["certify", *(str(a) for a in arguments), "--data", "gaussian", "--size", "1000"])


@cache
def certify_small(compressor: CompressorLike | str) -> Certificate:
    """Return the certificate on a small sample; equal compressors have the same object."""
    return fedsgd.certify(compressor, **SMALL_SAMPLE)


def list_broken_laws(certificate: Certificate) -> dict[str, str]:
    return {result.law: result.detail for result in certificate.laws if result.passed is False}


# ------------------------------------------------------------------------------------------------------------------- figures


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.usefixtures("fresh_interpreter")
def test_dense_float32_has_32_bits_a_parameter_and_no_error() -> None:
    certificate = fedsgd.certify("dense", **SMALL_SAMPLE)
    assert certificate.passed
    traffic, errors = certificate.traffic, certificate.errors
    assert traffic is not None
    assert errors is not None
    assert traffic.payload_bits_per_parameter == 32
    assert traffic.frame_bits_per_parameter == 8 * (26 + 1 + 2 + 4 * 1000 + 4) / 1000
    assert traffic.uplink_ratio == 1.0
    assert (traffic.kept, traffic.index, traffic.side, traffic.header) == (1000, 0, 0, 33)
    assert traffic.position_bits_per_kept == pytest.approx(0, abs=1e-9)
    assert (errors.error, errors.bias, errors.variance, errors.least_contraction) == (0, 0, 0, 1)
    assert errors.stated_contraction == 1.0
    assert certificate.frames_sha256 == certificate.fresh_frames_sha256


@pytest.mark.slow
@pytest.mark.nightly
def test_rand_k_has_the_stated_variance_and_no_bias() -> None:
    errors = certify_small(RandK(density=0.1)).errors
    assert errors is not None
    assert errors.stated_variance == pytest.approx(9)
    assert errors.variance == pytest.approx(9, abs=5 * errors.variance_standard_error)
    assert errors.chance_bias == pytest.approx(math.sqrt(errors.variance / errors.contexts))
    assert errors.bias == pytest.approx(errors.chance_bias, rel=0.1)
    assert errors.stated_contraction is None


@pytest.mark.slow
def test_top_k_is_biased_and_contracts_more_than_stated() -> None:
    certificate = fedsgd.certify("top-k", {"density": 0.1}, **SMALL_SAMPLE)
    traffic, errors = certificate.traffic, certificate.errors
    assert errors is not None
    assert traffic is not None
    assert errors.bias > 10 * errors.chance_bias / math.sqrt(errors.contexts)
    assert errors.bias == pytest.approx(math.sqrt(errors.variance))
    assert errors.stated_contraction == 0.1 < errors.least_contraction < errors.median_contraction < 0.6
    assert traffic.kept == 100
    bits = traffic.bits_per_kept
    assert bits is not None
    assert traffic.position_bits_per_kept is not None
    assert traffic.position_bits_per_kept <= bits["index"] <= traffic.position_bits_per_kept + 0.5
    assert bits["index"] == 8 * traffic.index / 100
    assert sum(bits.values()) == pytest.approx(traffic.frame_bits_per_parameter * 10)


def test_entropy_of_bytes_is_zeroth_order() -> None:
    assert measure._entropy_bits(np.array([4.0, 4.0])) == 8
    assert measure._entropy_bits(np.array([7.0])) == 0
    assert measure._entropy_bits(np.array([])) == 0


@pytest.mark.slow
@pytest.mark.nightly
def test_scheme_errors_are_delivered_and_undelivered_updates() -> None:
    certificate = fedsgd.certify("top-k", {"density": 0.1}, error_feedback="persist", **SMALL_SAMPLE)
    assert certificate.kind == "scheme"
    assert certificate.errors is None
    assert certificate.delivery is not None
    assert 0.5 < certificate.delivery.delivered < 1
    assert certificate.delivery.withheld is not None
    assert certificate.delivery.most_withheld is not None
    assert 0 < certificate.delivery.withheld <= certificate.delivery.most_withheld
    assert certificate.error == certificate.delivery.error
    lossless = certify_small(ErrorFeedback(Dense())).delivery
    assert lossless is not None
    assert lossless.delivered == pytest.approx(1)
    assert (lossless.error, lossless.withheld) == (pytest.approx(0, abs=1e-12), 0)
    memoryless = fedsgd.certify(MemorylessScheme(RandK(scaled=False)), **SMALL_SAMPLE).delivery
    assert memoryless is not None
    assert memoryless.withheld is None


@dataclass(frozen=True)
class SumWithLastAggregate(Aggregator):
    """Last aggregate, plus the weighted mean of the updates."""

    name: ClassVar[str] = "sum-with-last-aggregate"

    def aggregate(
        self, state: StateArrays, updates: Iterable[WeightedUpdate], ctx: AggregationContext
    ) -> tuple[F32, StateArrays]:
        update = weighted_sum(updates, ctx).astype(np.float32)
        if "last" in state:
            update += state["last"]
        return update, {"last": update}


@dataclass(frozen=True)
class ReferencedUpdates(MemorylessScheme):
    """Clients send the difference from the last aggregate, which the server sends in addition to the model."""

    name: ClassVar[str] = "referenced-updates"
    aggregator: ClassVar[type[Component]] = SumWithLastAggregate

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        return super().send(x if ctx.reference is None else x - ctx.reference, state, ctx)

    def encode_reference(self, aggregator_state: StateArrays, ctx: CodecContext) -> Sections:
        return encode_values(aggregator_state["last"], "float32", 0, False)[0] if "last" in aggregator_state else ()

    def decode_reference(self, sections: Sections, ctx: CodecContext) -> F32 | None:
        return decode_values(sections, ctx.layout.size, "float32", False)


@pytest.mark.slow
def test_reference_frame_of_scheme_is_counted_and_decoded() -> None:
    certificate = fedsgd.certify(ReferencedUpdates(Dense()), **SMALL_SAMPLE)
    assert certificate.label == "referenced-updates(dense)"
    assert certificate.traffic is not None
    assert certificate.traffic.reference_bytes == 7 / 8 * (26 + 1 + 2 + 4000 + 4)
    assert certificate.delivery is not None
    assert certificate.delivery.delivered == pytest.approx(1)
    assert certificate.delivery.error == pytest.approx(0, abs=1e-12)
    assert "reference frame, bytes" in report.to_markdown(certificate)


@pytest.mark.slow
def test_certificate_has_a_result_for_every_law() -> None:
    laws = [law.__name__ for law in (*SAMPLED_VECTOR_LAWS, *INPUT_LAWS)]
    names = [name for name in laws if name not in ("mean_error", "variance")]  # dense is neither unbiased nor random
    last = [*(law.__name__ for law in (*ROUND_LAWS, *DECODING_LAWS)), "vectors", "decodes_from_bytes", "reproducible"]
    certificate = certify_small("dense")
    assert [result.law for result in certificate.laws] == [*names, *last]
    unbiased = certify_small(RandK(density=0.1))
    assert [result.law for result in unbiased.laws] == [*(name for name in laws if name != "contraction"), *last]
    assert all(result.statement for result in certificate.laws)
    certificate = certify_small(ErrorFeedback(Dense()))
    assert [result.law for result in certificate.laws] == [*names, *(law.__name__ for law in SCHEME_LAWS), *last]


# --------------------------------------------------------------------------------------------------------------- broken laws


@pytest.mark.slow
@pytest.mark.sampled
@pytest.mark.parametrize(
    ("compressor", "law", "figures"),
    [
        (planted.SignInAByte(), "incompressible_payload", "zlib compresses"),
        (planted.OffByOneAtTheEnd(density=0.05), "boundary_positions", "contraction: |x − C(x)|² = 2.25, at most"),
        (planted.RandKWithoutLast(density=0.25), "position_invariance", "position 63 of 64"),
        (planted.ForgetfulFeedback(TopK(density=0.05)), "telescoping", "delivered and undelivered updates add up to"),
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_broken_law_is_reported_with_its_figures(compressor: Any, law: str, figures: str) -> None:
    certificate = fedsgd.certify(compressor, **SMALL_SAMPLE)
    assert not certificate.passed
    assert figures in list_broken_laws(certificate)[law]
    assert "laws broken" in report.to_markdown(certificate)
    assert str(compressor) not in list_broken_laws(certificate)[law]


@pytest.mark.slow
@pytest.mark.nightly
def test_broken_law_gives_exit_status_1(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(root)])
    result = run_certify("tests.laws.planted:SignInAByte")
    assert result.exit_code == 1
    assert "BROKEN incompressible_payload: zlib compresses" in result.stdout
    result = run_certify("tests.laws.planted:NormDivision", "--json")
    assert result.exit_code == 1
    table = json.loads(result.stdout)
    assert not table["passed"]
    assert next(law["law"] for law in table["laws"] if not law["passed"]) == "preserves_zero"


@pytest.mark.slow
def test_exception_of_compressor_is_a_broken_law_with_its_location(user_folder: Path) -> None:
    result = run_certify("mine_certified:Raises")
    assert result.exit_code == 1
    assert "BROKEN vectors: IndexError: list index out of range (mine_certified.py:" in result.stdout
    assert "Traceback" not in result.output
    certificate = fedsgd.certify("mine_certified:Raises", **SMALL_SAMPLE)
    assert certificate.traffic is None
    assert certificate.to_json()["traffic"] is None
    assert list_broken_laws(certificate).keys() >= {"boundary_positions", "round_trip", "vectors"}
    assert [result.passed for result in certificate.laws if result.law == "reproducible"] == [None]
    assert "not tried" in report.to_markdown(certificate)
    assert report.build_comparison_rows([certificate])[0][2:7] == ("", "", "", "", "")


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_interpreter")
@pytest.mark.nightly
def test_bytes_that_differ_in_a_fresh_interpreter_are_not_reproducible(user_folder: Path) -> None:
    compressor = importlib.import_module("mine_certified").ByProcess()
    sample = samples.sample_updates("gaussian", 1000)
    (certificate,) = runner._make_certificates([compressor], sample, with_laws=False)
    assert certificate.frames_sha256 is not None
    assert certificate.fresh_frames_sha256 is not None
    assert certificate.frames_sha256 != certificate.fresh_frames_sha256
    assert certificate.frames_sha256[:16] in list_broken_laws(certificate)["reproducible"]


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.usefixtures("fresh_interpreter")
def test_decoder_that_uses_more_than_the_bytes_breaks_a_law(user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(user_folder))
    monkeypatch.setattr(os, "environ", os.environ.copy())
    compressors = [*planted_rounds.CHANNELS, planted_rounds.DyingDecoder(), planted_rounds.OrderedDecoder(), TopK()]
    *channels, dying, ordered, correct = runner._make_certificates(
        compressors, samples.sample_updates("gaussian", 1000), with_laws=False
    )
    for certificate in channels:
        assert list_broken_laws(certificate).keys() == {"decodes_from_bytes"}, certificate.compressor
        assert re.match(
            r"round \d, client \d: (KeyError|IndexError|FileNotFoundError): ",
            list_broken_laws(certificate)["decodes_from_bytes"],
        )
    assert list_broken_laws(dying) == {"decodes_from_bytes": "the fresh interpreter ended with exit status 7: no message"}
    assert re.fullmatch(
        r"round \d, client \d: coordinate \d+ is \S+, expected \S+; \d+ of 1000 differ",
        list_broken_laws(ordered)["decodes_from_bytes"],
    )
    assert correct.passed


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.usefixtures("fresh_interpreter")
def test_client_that_reads_the_aggregate_from_the_process_is_not_reproducible() -> None:
    compressors = [planted_bytes.FreeReference(TopK()), CAFe(TopK())]
    unreproducible, correct = runner._make_certificates(compressors, samples.sample_updates("gaussian", 1000), with_laws=False)
    assert list_broken_laws(unreproducible).keys() == {"reproducible"}
    assert correct.passed


@pytest.mark.slow
def test_certificate_of_a_seeding_compressor_leaves_the_global_generators_alone() -> None:
    before = read_generator_states()
    certificate = fedsgd.certify(planted_rounds.SeededByEncode(0.1), **SMALL_SAMPLE)
    assert "draws from the global generator of numpy.random" in list_broken_laws(certificate)["global_generators"]
    assert read_generator_states() == before


@pytest.mark.slow
def test_class_in_main_within_a_scheme_is_not_tried_in_a_fresh_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted_rounds.PeekingDecoder, "__module__", "__main__")
    certificate = fedsgd.certify(ErrorFeedback(planted_rounds.PeekingDecoder(0.1)), **SMALL_SAMPLE)
    not_tried = {result.law: result.detail for result in certificate.laws if result.passed is None}
    assert not_tried.keys() == {"decodes_from_bytes", "reproducible"}
    assert all("put it into a module" in reason for reason in not_tried.values())
    unbroken = replace(certificate, laws=tuple(result for result in certificate.laws if result.passed is not False))
    assert report.format_title(unbroken).endswith(f": {len(unbroken.laws) - 2} of {len(unbroken.laws)} laws hold, 2 not tried")
    assert f"{len(unbroken.laws) - 2} of {len(unbroken.laws)} laws hold, 2 not tried: " in repr(unbroken)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_interpreter")
@pytest.mark.nightly
def test_decoder_that_does_not_return_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "BASE_TIMEOUT", 1.0)
    monkeypatch.setattr(runner, "TIMEOUT_FACTOR", 0.0)
    (certificate,) = runner._make_certificates(
        [planted_rounds.WaitingDecoder()], samples.sample_updates("gaussian", 100), with_laws=False
    )
    assert list_broken_laws(certificate) == {"decodes_from_bytes": "the fresh interpreter did not reply in 1 s"}


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.usefixtures("fresh_interpreter")
def test_fresh_interpreter_that_cannot_start_or_unpickle_gives_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Local(TopK):
        pass

    sample = samples.sample_updates("gaussian", 10)
    frames = [simulated.frames for simulated in simulate_rounds(TopK(), sample.updates, sample.layout)]
    with reproducibility.FreshInterpreter([Local(), TopK()]) as interpreter:
        with pytest.raises(LawError, match="cannot be pickled"):
            next(interpreter.decode(0, frames, sample.layout, 60))
        assert len([*interpreter.decode(1, frames, sample.layout, 60)]) == 8 * 4 + 2 * 8
        (digest, reason), (second_digest, _) = interpreter.compute_digests(sample.updates, sample.layout, [[b""] * 8] * 2)
    assert digest is None
    assert "cannot be pickled" in reason
    assert second_digest is not None
    monkeypatch.setattr(reproducibility, "SERVE_COMMAND", "raise SystemExit('gone')")
    with reproducibility.FreshInterpreter([TopK()]) as interpreter:
        with pytest.raises(LawError, match=r"^the fresh interpreter ended with exit status 1: gone$"):
            interpreter.decode(0, frames, sample.layout, 60)
        assert interpreter.compute_digests(sample.updates, sample.layout, [[b""] * 8]) == [
            (None, "the fresh interpreter ended with exit status 1: gone")
        ]
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with (
        reproducibility.FreshInterpreter([TopK()]) as interpreter,
        pytest.raises(LawError, match=r"cannot be started: .*/nowhere/python"),
    ):
        interpreter.decode(0, frames, sample.layout, 60)


# ----------------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["topk"], 'compressor: got "topk", did you mean "top-k"?'),
        (["a.b.C"], "a class of your own is named my_package.my_module:MyCompressor"),
        (["top-k", "--set", "densty=0.1"], 'densty: unknown key, did you mean "density"?'),
        (["top-k", "--set", "density=2"], "density: expected a number above 0 and at most 1, got 2"),
        (["top-k", "--set", "density"], "expected KEY=VALUE"),
        (["rand-k", "--error-feedback", "persist"], "error-feedback needs a contractive compressor"),
        (["nowhere_at_all:Thing"], 'cannot import "nowhere_at_all"'),
        (["mine_certified:Halfs"], 'has no "Halfs", did you mean "Half"?'),
        (["mine_certified:not_a_class"], '"mine_certified:not_a_class" is 3, expected a frozen dataclass'),
        (["pathlib:Path"], '"pathlib:Path" is a class of pathlib.PurePath, expected a frozen dataclass'),
        (["mine_certified:Undecorated"], "is not decorated with @dataclass(frozen=True)"),
        (["mine_certified:Nameless"], "does not define contraction, decode, encode, kind, max_bytes"),
        (["mine_certified:Fussy"], "mine_certified:Fussy: cannot be built: KeyError: 'no luck'"),
        (["mine_certified:Wraps"], "op: missing"),
        (["mine_certified:Wraps", "--set", "op.name=topk"], 'op.name: got "topk", did you mean "top-k"?'),
        (["mine_certified:Wraps", "--set", "op=dense", "--error-feedback", "persist"], "the state of wraps is not a residual"),
    ],
)
def test_invalid_compressor_gives_one_line_and_exit_status_2(user_folder: Path, arguments: list[str], message: str) -> None:
    result = run_certify(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.removeprefix("a module may print\n").splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either COMPRESSOR or --all"),
        (["top-k", "--all"], "give either COMPRESSOR or --all"),
        (["--all", "--json", "--markdown"], "give either --json or --markdown"),
        (["--all", "--out", "o"], "are for one COMPRESSOR"),
        (["top-k", "--no-laws"], "--no-laws needs --all"),
    ],
)
def test_options_that_exclude_each_other_give_exit_status_2(arguments: list[str], message: str) -> None:
    result = run_certify(*arguments)
    assert (result.exit_code, message in result.stderr) == (2, True)


def test_invalid_arguments_raise_scenario_error() -> None:
    number: Any = 3
    with pytest.raises(ScenarioError, match="size: got 10, expected none"):
        fedsgd.certify("dense", size=10)
    with pytest.raises(ScenarioError, match=r"size: expected a whole number of at least 1, got true"):
        fedsgd.certify("top-k", size=True, data="laplace")
    assert sample_updates("laplace", np.int64(100)).layout.size == 100  # type: ignore[arg-type]
    with pytest.raises(ScenarioError, match="size: expected a whole number of at least 1, got 0"):
        fedsgd.certify("dense", data="laplace", size=0)
    with pytest.raises(ScenarioError, match='data: got "gauss", did you mean "gaussian"'):
        fedsgd.certify("dense", data="gauss")
    with pytest.raises(ScenarioError, match="density: settings are for a compressor that is given by name"):
        fedsgd.certify(TopK(), {"density": 0.5}, **SMALL_SAMPLE)
    with pytest.raises(ScenarioError, match="expected a frozen dataclass"):
        fedsgd.certify(number, **SMALL_SAMPLE)


@pytest.mark.slow
def test_user_class_is_certified(user_folder: Path) -> None:
    result = run_certify("mine_certified:Half", "--json", "--set", "density=0.25")
    assert result.exit_code == 0, result.output
    table = json.loads(result.stdout)
    assert table["compressor"] == {"name": "half", "density": 0.25, "values": "float32"}
    assert result.stderr == "a module may print\n"
    assert table["class"] == "mine_certified:Half"
    assert table["traffic"]["kept"] == 250
    result = run_certify("mine_certified:Wraps", "--set", "op.name=top-k", "--set", "op.density=0.1")
    assert result.exit_code == 0, result.output
    assert re.search(r"wraps\(top-k\) \(scheme\): all \d+ laws hold", result.stdout)


@pytest.mark.slow
@pytest.mark.nightly
def test_command_imports_a_module_of_the_working_directory(user_folder: Path, root: Path) -> None:
    command = [sys.executable, "-m", "fedsgd", "certify", "mine_certified:Half", "--data", "laplace", "--size", "500"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.run([*command, "--quiet"], capture_output=True, text=True, check=False, env=environment)
    assert (process.returncode, process.stderr) == (0, "a module may print\n")
    assert re.search(r"half \(contractive\): all \d+ laws hold", process.stdout)


# -------------------------------------------------------------------------------------------------------------------- outputs


@pytest.mark.slow
def test_json_is_equal_except_times_and_files_are_written(user_folder: Path) -> None:
    first, second = (run_certify("top-k", "--out", "a/b", "--json") for _ in range(2))
    assert first.exit_code == second.exit_code == 0
    assert Path("a/b/certificate.json").read_text() == second.stdout
    tables = [json.loads(result.stdout) for result in (first, second)]
    times = [table.pop("throughput") for table in tables]
    assert tables[0] == tables[1]
    assert times[0]["encode_memcpys"] == times[0]["encode_seconds"] / times[0]["memcpy_seconds"]
    assert tables[0]["format"] == 1
    assert tables[0]["compressor"] == {"name": "top-k", "density": 0.01, "values": "float32"}
    assert tables[0]["vectors"]["parameters"] == 1000
    page = Path("a/b/certificate.md").read_text()
    assert page.startswith(f"# top-k (contractive): all {len(tables[0]['laws'])} laws hold\n")
    assert r"| \|x − C(x)\|²/\|x\|² |" in page
    assert tables[0]["frames_sha256"] in page
    assert sorted(p.name for p in Path("a/b").iterdir()) == ["certificate.json", "certificate.md"]
    assert first.stderr == "written to a/b\n"


@pytest.mark.slow
def test_folder_that_cannot_be_written_raises_output_error(user_folder: Path) -> None:
    Path("file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        report.save(certify_small("dense"), Path("file"))
    result = run_certify("dense", "--out", "file")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


@pytest.mark.slow
def test_tables_fit_a_terminal_of_80_columns(user_folder: Path) -> None:
    result = run_certify("top-k", "--error-feedback", "decay")
    assert result.exit_code == 0
    for words in ("bits/parameter, payload", "log₂C(P, k)/k", "undelivered energy", "× memcpy", "frames_sha256", "bounded"):
        assert words in result.stdout
    assert max(len(line) for line in result.stdout.splitlines() if line.startswith(" ")) <= 80
    assert run_certify("top-k", "--markdown").stdout.startswith("# top-k (contractive)")


@pytest.mark.slow
@pytest.mark.nightly
def test_table_of_all_compressors_is_sorted_by_bits_per_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = json.loads(run_certify("--all", "--no-laws", "--json").stdout)
    certificates = certify_all(laws=False, **SMALL_SAMPLE)
    monkeypatch.setattr("fedsgd.certification.certify_all", lambda *arguments, **options: certificates)
    result = run_certify("--all", "--no-laws")
    assert result.exit_code == 0, result.output
    assert {c.compressor.name for c in certificates} == set(COMPRESSORS)
    bits = [c.traffic.frame_bits_per_parameter for c in certificates if c.traffic is not None]
    assert len(bits) == len(COMPRESSORS)
    assert bits == sorted(bits)
    rows = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    labels = [c.label for c in certificates]
    assert [row for row in rows if row in labels] == labels
    page = run_certify("--all", "--no-laws", "--markdown").stdout.splitlines()
    assert page[0] == f"| {' | '.join(report.COLUMNS)} |"
    assert [line.split(" | ")[0].removeprefix("| ") for line in page[2 : 2 + len(certificates)]] == labels
    assert [table["compressor"]["name"] for table in tables] == [c.compressor.name for c in certificates]
    assert [len(table["laws"]) for table in tables] == [3] * len(certificates)


# -------------------------------------------------------------------------------------------------------------------- samples


@pytest.mark.slow
@pytest.mark.nightly
def test_real_sample_has_distinct_updates_and_is_reproducible() -> None:
    sample = samples.sample_updates("real", None)
    assert sample.updates.shape == (8, 4, 200_650)
    assert len(sample.layout.names) == 6
    flat = sample.updates.reshape(32, -1)
    assert len({row.tobytes() for row in flat}) == 32
    assert (np.square(flat).sum(axis=1) > 0).all()
    samples._train_updates.cache_clear()
    assert samples.sample_updates("real", None).summary == sample.summary


@pytest.mark.parametrize(("kind", "kurtosis"), [("gaussian", 3), ("laplace", 6)])
def test_random_sample_has_the_kurtosis_of_its_distribution(kind: str, kurtosis: float) -> None:
    sample = samples.sample_updates(kind, 10_000)
    x = sample.updates.astype(np.float64)
    assert (x**4).mean() / (x**2).mean() ** 2 == pytest.approx(kurtosis, rel=0.05)
    assert sample.layout.shapes == ((100, 100),)
    assert samples.sample_updates(kind, 3).layout.shapes == ((1, 1), (2,))


def test_sample_of_long_vectors_has_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_SAMPLE_BYTES", 4 * 4 * 1000 * 3)
    assert samples.sample_updates("gaussian", 1000).updates.shape == (3, 4, 1000)
    assert samples.sample_updates("gaussian", 10_000).updates.shape == (1, 4, 10_000)


def test_pool_is_larger_than_the_last_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = samples.sample_updates("gaussian", 1000)
    assert throughput.build_pool(sample).nbytes >= 2**20
    monkeypatch.setattr(throughput, "read_cache_bytes", lambda: 2**20)
    pool = throughput.build_pool(sample)
    assert pool.nbytes == 512 * 4000  # no more than 512 vectors
    assert (pool[32] == sample.updates[0, 0]).all()
