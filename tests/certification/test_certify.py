"""Certificates: what is measured is exact where theory is, and whatever a compressor does wrong is in them."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import CliRunner, Result

import fedsgd
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
from fedsgd.certification.simulate_rounds import RoundFrames, decode_rounds, encode_rounds, hash_frames, simulate_rounds
from fedsgd.cli import main
from fedsgd.compression import (
    COMPRESSORS,
    AggregationContext,
    CodecContext,
    EncodedUpdate,
    ErrorFeedback,
    MemorylessScheme,
    StateArrays,
    WeightedUpdate,
)
from fedsgd.compression.operators.dense import Dense
from fedsgd.compression.operators.randk import RandK
from fedsgd.compression.operators.topk import TopK
from fedsgd.compression.schemes.cafe import CAFe
from fedsgd.errors import LawError, OutputError, ScenarioError
from fedsgd.numerics.arrays import F32
from fedsgd.numerics.parameter_layout import ParameterLayout
from fedsgd.system.global_generators import read_generator_states
from fedsgd.wire import Sections, decode_values, encode_values
from tests.laws import planted, planted_bytes, planted_rounds

SMALL: dict[str, Any] = {"data": "gaussian", "size": 1000}
MINE = """
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
    codec: ClassVar[int] = 210
    density: float = 0.5

@dataclass(frozen=True)
class Raises(TopK):
    name: ClassVar[str] = "raises"
    codec: ClassVar[int] = 211
    def encode(self, x, ctx):
        if len(x) > 999:
            raise IndexError("list index out of range")
        return super().encode(x, ctx)

@dataclass(frozen=True)
class ByProcess(Dense):
    name: ClassVar[str] = "by-process"
    codec: ClassVar[int] = 212
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
    """The fresh interpreter's part, in this process."""

    def __init__(self, compressors: Sequence[CompressorLike]) -> None:
        self.compressors = compressors

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def decode(self, compressor: int, rounds: Sequence[RoundFrames], layout: ParameterLayout, seconds: float) -> Iterator[Any]:
        return decode_rounds(self.compressors[compressor], rounds, layout)

    def compute_digests(
        self, updates: F32, layout: ParameterLayout, references: Sequence[Sequence[bytes]]
    ) -> list[tuple[str | None, str]]:
        digests: list[tuple[str | None, str]] = []
        for compressor, of_rounds in zip(self.compressors, references, strict=True):
            try:
                digests.append((hash_frames(encode_rounds(compressor, updates, layout, of_rounds)), ""))
            except (IndexError, ValueError) as error:
                digests.append((None, str(error)))
        return digests


@pytest.fixture
def fresh_interpreter() -> None:
    """A test that uses this one starts interpreters; all others compare within the process, which is quick."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "fresh_interpreter" not in request.fixturenames:
        monkeypatch.setattr(runner, "FreshInterpreter", InProcess)
    monkeypatch.setattr(throughput, "MEASUREMENT_SECONDS", 0.0)
    monkeypatch.setattr(throughput, "MIN_POOL_BYTES", 2**20)
    monkeypatch.setattr(throughput, "read_cache_bytes", lambda: None)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, with a user's module in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "mine_certified.py").write_text(MINE)
    yield tmp_path
    sys.modules.pop("mine_certified", None)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["certify", *(str(a) for a in arguments), "--data", "gaussian", "--size", "1000"])


def broken(certificate: Certificate) -> dict[str, str]:
    return {verdict.law: verdict.detail for verdict in certificate.laws if verdict.passed is False}


# ------------------------------------------------------------------------------------------------------------- exact figures


@pytest.mark.usefixtures("fresh_interpreter")
def test_dense_float32_is_32_bits_a_parameter_and_loses_nothing() -> None:
    made = fedsgd.certify("dense", **SMALL)
    assert made.passed
    assert made.traffic is not None
    assert made.errors is not None
    assert made.traffic.payload_bits_per_parameter == 32
    assert made.traffic.frame_bits_per_parameter == 8 * (26 + 1 + 2 + 4 * 1000 + 4) / 1000
    assert made.traffic.uplink_ratio == 1.0
    assert (made.traffic.kept, made.traffic.index, made.traffic.side, made.traffic.header) == (1000, 0, 0, 33)
    assert made.traffic.position_bits_per_kept == pytest.approx(0, abs=1e-9)
    assert (made.errors.error, made.errors.bias, made.errors.variance, made.errors.least_contraction) == (0, 0, 0, 1)
    assert made.errors.stated_contraction == 1.0
    assert made.frames_sha256 == made.fresh_frames_sha256


def test_rand_k_has_the_variance_of_theory_and_the_bias_of_chance() -> None:
    errors = fedsgd.certify("rand-k", {"density": 0.1}, **SMALL).errors
    assert errors is not None
    assert errors.stated_variance == pytest.approx(9)
    assert errors.variance == pytest.approx(9, abs=5 * errors.variance_standard_error)
    assert errors.chance_bias == pytest.approx(math.sqrt(errors.variance / errors.contexts))
    assert errors.bias == pytest.approx(errors.chance_bias, rel=0.1)
    assert errors.stated_contraction is None


def test_top_k_is_biased_and_contracts_by_more_than_its_worst_case() -> None:
    made = fedsgd.certify("top-k", {"density": 0.1}, **SMALL)
    assert made.errors is not None
    assert made.traffic is not None
    assert made.errors.bias > 10 * made.errors.chance_bias / math.sqrt(made.errors.contexts)
    assert made.errors.bias == pytest.approx(math.sqrt(made.errors.variance))
    assert made.errors.stated_contraction == 0.1 < made.errors.least_contraction < made.errors.median_contraction < 0.6
    assert made.traffic.kept == 100
    bits = made.traffic.bits_per_kept
    assert bits is not None
    assert made.traffic.position_bits_per_kept is not None
    assert made.traffic.position_bits_per_kept <= bits["index"] <= made.traffic.position_bits_per_kept + 0.5
    assert bits["index"] == 8 * made.traffic.index / 100
    assert sum(bits.values()) == pytest.approx(made.traffic.frame_bits_per_parameter * 10)


@pytest.mark.parametrize(("n", "k"), [(5, 0), (5, 5), (5, 2), (1000, 10)])
def test_log2_of_the_number_of_subsets(n: int, k: int) -> None:
    assert measure.log2_choose(n, k) == pytest.approx(math.log2(math.comb(n, k)), abs=1e-9)


def test_the_entropy_of_bytes() -> None:
    assert measure._entropy_bits(np.array([4.0, 4.0])) == 8
    assert measure._entropy_bits(np.array([7.0])) == 0
    assert measure._entropy_bits(np.array([])) == 0


def test_a_scheme_says_what_was_delivered_and_what_is_held_back() -> None:
    made = fedsgd.certify("top-k", {"density": 0.1}, error_feedback="persist", **SMALL)
    assert made.kind == "scheme"
    assert made.errors is None
    assert made.delivery is not None
    assert 0.5 < made.delivery.delivered < 1
    assert made.delivery.withheld is not None
    assert made.delivery.most_withheld is not None
    assert 0 < made.delivery.withheld <= made.delivery.most_withheld
    assert made.error == made.delivery.error
    everything = fedsgd.certify(ErrorFeedback(Dense()), **SMALL).delivery
    assert everything is not None
    assert everything.delivered == pytest.approx(1)
    assert (everything.error, everything.withheld) == (pytest.approx(0, abs=1e-12), 0)
    nothing_kept_back = fedsgd.certify(MemorylessScheme(RandK(scaled=False)), **SMALL).delivery
    assert nothing_kept_back is not None
    assert nothing_kept_back.withheld is None


@dataclass(frozen=True)
class Announces(MemorylessScheme):
    """Clients send what differs from the last aggregate, which they are told beside the model."""

    name: ClassVar[str] = "announces"

    def send(self, x: F32, state: StateArrays, ctx: CodecContext) -> EncodedUpdate:
        return super().send(x if ctx.reference is None else x - ctx.reference, state, ctx)

    def aggregate(
        self, server_state: StateArrays, replies: Iterable[WeightedUpdate], ctx: AggregationContext
    ) -> tuple[F32, StateArrays]:
        update = self.weighted_mean(replies, ctx.layout)
        if "last" in server_state:
            update += server_state["last"]
        return update, {"last": update}

    def encode_reference(self, server_state: StateArrays, ctx: CodecContext) -> Sections:
        return encode_values(server_state["last"], "float32", 0, False)[0] if "last" in server_state else ()

    def decode_reference(self, sections: Sections, ctx: CodecContext) -> F32 | None:
        return decode_values(sections, ctx.layout.size, "float32", False)


def test_what_a_scheme_sends_beside_the_model_is_counted_and_read() -> None:
    made = fedsgd.certify(Announces(Dense()), **SMALL)
    assert made.label == "announces(dense)"
    assert made.traffic is not None
    assert made.traffic.reference_bytes == 7 / 8 * (26 + 1 + 2 + 4000 + 4)
    assert made.delivery is not None
    assert made.delivery.delivered == pytest.approx(1)
    assert made.delivery.error == pytest.approx(0, abs=1e-12)
    assert "reference frame, bytes" in report.to_markdown(made)


def test_every_law_of_the_suite_has_a_verdict() -> None:
    every = [law.__name__ for law in (*SAMPLED_VECTOR_LAWS, *INPUT_LAWS)]
    names = [name for name in every if name not in ("mean_error", "variance")]  # dense is neither unbiased nor random
    last = [*(law.__name__ for law in (*ROUND_LAWS, *DECODING_LAWS)), "vectors", "decodes_from_bytes", "reproducible"]
    made = fedsgd.certify("dense", **SMALL)
    assert [v.law for v in made.laws] == [*names, *last]
    unbiased = fedsgd.certify("rand-k", **SMALL)
    assert [v.law for v in unbiased.laws] == [*(name for name in every if name != "contraction"), *last]
    assert all(v.statement for v in made.laws)
    made = fedsgd.certify(ErrorFeedback(Dense()), **SMALL)
    assert [v.law for v in made.laws] == [*names, *(law.__name__ for law in SCHEME_LAWS), *last]


# ------------------------------------------------------------------------------------------------------------ what goes wrong


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
def test_a_broken_law_is_reported_with_its_figures(compressor: Any, law: str, figures: str) -> None:
    made = fedsgd.certify(compressor, **SMALL)
    assert not made.passed
    assert figures in broken(made)[law]
    assert "laws broken" in report.to_markdown(made)
    assert str(compressor) not in broken(made)[law]


def test_a_broken_law_is_exit_status_1(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(root)])
    result = run("tests.laws.planted:SignInAByte")
    assert result.exit_code == 1
    assert "BROKEN incompressible_payload: zlib compresses" in result.stdout
    result = run("tests.laws.planted:NormDivision", "--json")
    assert result.exit_code == 1
    table = json.loads(result.stdout)
    assert not table["passed"]
    assert next(law["law"] for law in table["laws"] if not law["passed"]) == "preserves_zero"


def test_an_exception_is_a_broken_law_that_names_it(here: Path) -> None:
    result = run("mine_certified:Raises")
    assert result.exit_code == 1
    assert "BROKEN vectors: IndexError: list index out of range (mine_certified.py:" in result.stdout
    assert "Traceback" not in result.output
    made = fedsgd.certify("mine_certified:Raises", **SMALL)
    assert made.traffic is None
    assert made.to_json()["traffic"] is None
    assert broken(made).keys() >= {"boundary_positions", "round_trip", "vectors"}
    assert [v.passed for v in made.laws if v.law == "reproducible"] == [None]
    assert "not tried" in report.to_markdown(made)
    assert report.build_comparison_rows([made])[0][2:7] == ("", "", "", "", "")


@pytest.mark.usefixtures("fresh_interpreter")
def test_bytes_that_differ_in_a_fresh_interpreter(here: Path) -> None:
    made = fedsgd.certify("mine_certified:ByProcess", **SMALL)
    assert made.frames_sha256 is not None
    assert made.fresh_frames_sha256 is not None
    assert made.frames_sha256 != made.fresh_frames_sha256
    assert made.frames_sha256[:16] in broken(made)["reproducible"]


@pytest.mark.usefixtures("fresh_interpreter")
def test_decoding_from_anything_but_the_bytes_is_a_broken_law(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(here))
    monkeypatch.setattr(os, "environ", os.environ.copy())
    subjects = [*planted_rounds.CHANNELS, planted_rounds.DyingDecoder(), planted_rounds.OrderedDecoder(), TopK()]
    *others, dying, ordered, right = runner._make_certificates(
        subjects, samples.sample_updates("gaussian", 1000), with_laws=False
    )
    for made in others:
        assert broken(made).keys() == {"decodes_from_bytes"}, made.compressor
        assert re.match(r"round \d, client \d: (KeyError|IndexError|FileNotFoundError): ", broken(made)["decodes_from_bytes"])
    assert broken(dying) == {"decodes_from_bytes": "the fresh interpreter ended with exit status 7: no message"}
    assert re.fullmatch(
        r"round \d, client \d: coordinate \d+ is \S+, expected \S+; \d+ of 1000 differ", broken(ordered)["decodes_from_bytes"]
    )
    assert right.passed


@pytest.mark.usefixtures("fresh_interpreter")
def test_client_that_reads_the_aggregate_from_the_process_is_not_reproducible() -> None:
    subjects = [planted_bytes.FreeReference(TopK()), CAFe(TopK())]
    liar, right = runner._make_certificates(subjects, samples.sample_updates("gaussian", 1000), with_laws=False)
    assert broken(liar).keys() == {"reproducible"}
    assert right.passed


def test_certificate_of_a_seeding_compressor_leaves_the_global_generators_alone() -> None:
    before = read_generator_states()
    made = fedsgd.certify(planted_rounds.SeededByEncode(0.1), **SMALL)
    assert "draws from the global generator of numpy.random" in broken(made)["global_generators"]
    assert read_generator_states() == before


def test_class_in_main_within_a_scheme_is_not_tried_in_a_fresh_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted_rounds.PeekingDecoder, "__module__", "__main__")
    made = fedsgd.certify(ErrorFeedback(planted_rounds.PeekingDecoder(0.1)), **SMALL)
    not_tried = {verdict.law: verdict.detail for verdict in made.laws if verdict.passed is None}
    assert not_tried.keys() == {"decodes_from_bytes", "reproducible"}
    assert all("put it into a module" in why for why in not_tried.values())


@pytest.mark.usefixtures("fresh_interpreter")
def test_decoder_that_waits_for_ever_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "BASE_TIMEOUT", 1.0)
    monkeypatch.setattr(runner, "TIMEOUT_FACTOR", 0.0)
    (made,) = runner._make_certificates(
        [planted_rounds.WaitingDecoder()], samples.sample_updates("gaussian", 100), with_laws=False
    )
    assert broken(made) == {"decodes_from_bytes": "the fresh interpreter did not reply in 1 s"}


@pytest.mark.usefixtures("fresh_interpreter")
def test_fresh_interpreter_that_cannot_start_or_unpickle_gives_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Local(TopK):
        pass

    drawn = samples.sample_updates("gaussian", 10)
    frames = [exchange.frames for exchange in simulate_rounds(TopK(), drawn.updates, drawn.layout)]
    with reproducibility.FreshInterpreter([Local(), TopK()]) as interpreter:
        with pytest.raises(LawError, match="cannot be pickled"):
            next(interpreter.decode(0, frames, drawn.layout, 60))
        assert len([*interpreter.decode(1, frames, drawn.layout, 60)]) == 8 * 4 + 2 * 8
        (sha, why), (other, _) = interpreter.compute_digests(drawn.updates, drawn.layout, [[b""] * 8] * 2)
    assert sha is None
    assert "cannot be pickled" in why
    assert other is not None
    monkeypatch.setattr(reproducibility, "SERVE_COMMAND", "raise SystemExit('gone')")
    with reproducibility.FreshInterpreter([TopK()]) as interpreter:
        with pytest.raises(LawError, match=r"^the fresh interpreter ended with exit status 1: gone$"):
            interpreter.decode(0, frames, drawn.layout, 60)
        assert interpreter.compute_digests(drawn.updates, drawn.layout, [[b""] * 8]) == [
            (None, "the fresh interpreter ended with exit status 1: gone")
        ]
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with (
        reproducibility.FreshInterpreter([TopK()]) as interpreter,
        pytest.raises(LawError, match=r"cannot be started: .*/nowhere/python"),
    ):
        interpreter.decode(0, frames, drawn.layout, 60)


# ------------------------------------------------------------------------------------------------------------ which compressor


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
        (["mine_certified:Nameless"], "does not define codec, contraction, decode, encode, kind, max_bytes"),
        (["mine_certified:Fussy"], "mine_certified:Fussy: cannot be built: KeyError: 'no luck'"),
        (["mine_certified:Wraps"], "op: missing"),
        (["mine_certified:Wraps", "--set", "op.name=topk"], 'op.name: got "topk", did you mean "top-k"?'),
        (["mine_certified:Wraps", "--set", "op=dense", "--error-feedback", "persist"], "wraps has a memory of its own"),
    ],
)
def test_a_wrong_question_is_answered_on_one_line(here: Path, arguments: list[str], message: str) -> None:
    result = run(*arguments)
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
def test_options_that_do_not_go_together(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, message in result.stderr) == (2, True)


def test_wrong_vectors_and_settings() -> None:
    neither: Any = 3
    with pytest.raises(ScenarioError, match="size: got 10, expected none"):
        fedsgd.certify("dense", size=10)
    with pytest.raises(ScenarioError, match="size: got 0"):
        fedsgd.certify("dense", data="laplace", size=0)
    with pytest.raises(ScenarioError, match='data: got "gauss", did you mean "gaussian"'):
        fedsgd.certify("dense", data="gauss")
    with pytest.raises(ScenarioError, match="density: settings are for a compressor that is given by name"):
        fedsgd.certify(TopK(), {"density": 0.5}, **SMALL)
    with pytest.raises(ScenarioError, match="expected a frozen dataclass"):
        fedsgd.certify(neither, **SMALL)


def test_a_class_of_the_users_own_is_certified(here: Path) -> None:
    result = run("mine_certified:Half", "--json", "--set", "density=0.25")
    assert result.exit_code == 0, result.output
    table = json.loads(result.stdout)
    assert table["compressor"] == {"name": "half", "density": 0.25, "values": "float32"}
    assert result.stderr == "a module may print\n"
    assert table["class"] == "mine_certified:Half"
    assert table["traffic"]["kept"] == 250
    result = run("mine_certified:Wraps", "--set", "op.name=top-k", "--set", "op.density=0.1")
    assert result.exit_code == 0, result.output
    assert re.search(r"wraps\(top-k\) \(scheme\): all \d+ laws hold", result.stdout)


def test_the_command_finds_a_module_in_the_working_directory(here: Path, root: Path) -> None:
    command = [sys.executable, "-m", "fedsgd", "certify", "mine_certified:Half", "--data", "laplace", "--size", "500"]
    ours = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([*command, "--quiet"], capture_output=True, text=True, check=False, env=ours)
    assert (done.returncode, done.stderr) == (0, "a module may print\n")
    assert re.search(r"half \(contractive\): all \d+ laws hold", done.stdout)


# -------------------------------------------------------------------------------------------------------------------- outputs


def test_json_is_the_same_apart_from_times_and_the_folder_is_written(here: Path) -> None:
    first, second = (run("top-k", "--out", "a/b", "--json") for _ in range(2))
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


def test_a_folder_that_cannot_be_written(here: Path) -> None:
    Path("file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        report.save(fedsgd.certify("dense", **SMALL), Path("file"))
    result = run("dense", "--out", "file")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_the_table_fits_a_terminal_and_markdown_is_printed(here: Path) -> None:
    result = run("top-k", "--error-feedback", "decay")
    assert result.exit_code == 0
    for words in ("bits/parameter, payload", "log₂C(P, k)/k", "undelivered energy", "× memcpy", "frames_sha256", "bounded"):
        assert words in result.stdout
    assert max(len(line) for line in result.stdout.splitlines() if line.startswith(" ")) <= 80
    assert run("top-k", "--markdown").stdout.startswith("# top-k (contractive)")


def test_all_compressors_in_one_table_by_bits_per_parameter() -> None:
    result = run("--all", "--no-laws")
    assert result.exit_code == 0, result.output
    made = certify_all(laws=False, **SMALL)
    assert {c.compressor.name for c in made} == set(COMPRESSORS)
    bits = [c.traffic.frame_bits_per_parameter for c in made if c.traffic is not None]
    assert len(bits) == len(COMPRESSORS)
    assert bits == sorted(bits)
    rows = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    labels = [c.label for c in made]
    assert [row for row in rows if row in labels] == labels
    page = run("--all", "--no-laws", "--markdown").stdout.splitlines()
    assert page[0] == f"| {' | '.join(report.COLUMNS)} |"
    assert [line.split(" | ")[0].removeprefix("| ") for line in page[2 : 2 + len(made)]] == labels
    tables = json.loads(run("--all", "--no-laws", "--json").stdout)
    assert [table["compressor"]["name"] for table in tables] == [c.compressor.name for c in made]
    assert [len(table["laws"]) for table in tables] == [3] * len(made)


# -------------------------------------------------------------------------------------------------------------------- vectors


def test_real_vectors_are_updates_of_trained_clients_and_always_the_same() -> None:
    made = samples.sample_updates("real", None)
    assert made.updates.shape == (8, 4, 200_650)
    assert len(made.layout.names) == 6
    flat = made.updates.reshape(32, -1)
    assert len({row.tobytes() for row in flat}) == 32
    assert (np.square(flat).sum(axis=1) > 0).all()
    samples._train_updates.cache_clear()
    assert samples.sample_updates("real", None).summary == made.summary


@pytest.mark.parametrize(("kind", "kurtosis"), [("gaussian", 3), ("laplace", 6)])
def test_drawn_vectors_are_what_they_are_called(kind: str, kurtosis: float) -> None:
    made = samples.sample_updates(kind, 10_000)
    x = made.updates.astype(np.float64)
    assert (x**4).mean() / (x**2).mean() ** 2 == pytest.approx(kurtosis, rel=0.05)
    assert made.layout.shapes == ((100, 100),)
    assert samples.sample_updates(kind, 3).layout.shapes == ((1, 1), (2,))


def test_of_long_vectors_there_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_SAMPLE_BYTES", 4 * 4 * 1000 * 3)
    assert samples.sample_updates("gaussian", 1000).updates.shape == (3, 4, 1000)
    assert samples.sample_updates("gaussian", 10_000).updates.shape == (1, 4, 10_000)


def test_the_pool_is_larger_than_the_last_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = samples.sample_updates("gaussian", 1000)
    assert throughput.build_pool(drawn).nbytes >= 2**20
    monkeypatch.setattr(throughput, "read_cache_bytes", lambda: 2**20)
    pool = throughput.build_pool(drawn)
    assert pool.nbytes == 512 * 4000  # no more than 512 vectors
    assert (pool[32] == drawn.updates[0, 0]).all()
