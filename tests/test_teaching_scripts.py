"""Scripts of the tutorial: exact numbers, valid pictures, errors in one line."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fedsgd.optim import SGD, Momentum
from tests.scripts import load_script

pytestmark = pytest.mark.examples

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def parabola() -> ModuleType:
    return load_script("tutorial/parabola.py")


@pytest.fixture(scope="module")
def valley() -> ModuleType:
    return load_script("tutorial/valley.py")


def assert_exits_with_error(module: ModuleType, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Check that the script exits with 2 and prints the message in the last line of stderr."""
    with pytest.raises(SystemExit) as exit_info:
        module.main(argv)
    assert exit_info.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


def table(out: str) -> list[list[float]]:
    return [[float(cell) for cell in line.split()] for line in out.splitlines() if line.split()[0].isdigit()]


class TestParabola:
    def test_first_steps_match_hand_computation(self, parabola: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
        parabola.main([])
        out = capsys.readouterr().out
        rows = table(out)
        assert [row[0] for row in rows] == list(range(11))
        assert [row[1] for row in rows[:5]] == [5, 4, 3.2, 2.56, 2.048]
        assert [row[4] for row in rows[:8]] == [5, 4, 2.3, 0.31, -1.543, -2.9021, -3.54487, -3.414389]
        assert all(row[1] == row[2] and row[4] == row[5] for row in rows)
        assert all(abs(row[3]) < 1e-14 and abs(row[6]) < 1e-14 for row in rows)
        assert out.splitlines()[-1].endswith("modulus √β = 0.948683: the oscillation decays as β^(t/2).")

    def test_table_of_large_numbers_stays_aligned(self, parabola: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
        parabola.main(["--lr", "2", "--steps", "30"])  # grows to 1e14: the cells change to powers of ten
        lines = capsys.readouterr().out.splitlines()[:-2]
        assert {len(line) for line in lines} == {len(lines[0])}
        assert all(len(line.split()) == 7 for line in lines[1:])

    @pytest.mark.parametrize(
        ("lr", "momentum"),
        [
            (0.1, 0.9),  # complex roots
            (0.49, 0.99),
            (0.01, 0.5),  # real roots
            (0.9, 0.05),  # real and negative
            (0.3, 0.0),  # vanilla SGD: one root is zero
            (0.125, 0.25),  # a double root, exact in binary
            (0.005, 0.81),  # a double root, up to rounding
            (1.125, 0.25),  # a negative double root
            (0.5, 0.0),  # a double root at zero
            (0.125 + 1e-12, 0.25),  # roots that nearly coincide
            (0.125 - 1e-14, 0.25),
        ],
    )
    def test_closed_form_matches_the_optimizer(self, parabola: ModuleType, lr: float, momentum: float) -> None:
        iterates = parabola.iterates(Momentum(lr=lr, momentum=momentum), 5.0, 100)
        assert parabola.closed_form(lr, momentum, 5.0, 100) == pytest.approx(iterates, rel=0, abs=1e-9)
        vanilla = parabola.iterates(SGD(lr=lr), 5.0, 100)
        assert vanilla == pytest.approx([5 * (1 - 2 * lr) ** t for t in range(101)], rel=1e-14, abs=1e-9)

    def test_roots_have_the_sum_and_product_of_their_equation(self, parabola: ModuleType) -> None:
        for lr, momentum in ((0.1, 0.9), (0.01, 0.5), (0.005, 0.81)):
            first, second = parabola.roots(lr, momentum)
            assert first + second == pytest.approx(1 + momentum - 2 * lr)
            assert first * second == pytest.approx(momentum)
            assert abs(first) >= abs(second)

    @pytest.mark.parametrize(
        ("argv", "words"),
        [
            (["--lr", "0.125", "--momentum", "0.25"], "a double root 0.5"),
            (["--lr", "0.01", "--momentum", "0.5"], "real roots 0.958174 and 0.521826"),
            (["--lr", "2", "--momentum", "0.5"], "multiplies x by the first and diverges."),
        ],
    )
    def test_last_line_names_the_case_of_the_roots(
        self, parabola: ModuleType, argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        parabola.main(argv)
        vanilla, momentum = capsys.readouterr().out.splitlines()[-2:]
        assert words in momentum
        assert vanilla.endswith("and diverges.") == (argv[1] == "2")


class TestValley:
    def test_momentum_with_default_options_arrives_first(
        self, valley: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        valley.main([])
        assert (tmp_path / "valley.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        out, err = capsys.readouterr()
        assert out.splitlines() == [
            "vanilla SGD: steps until the loss was below a thousandth of its initial value: 62",
            "momentum: steps until the loss was below a thousandth of its initial value: 20",
        ]
        assert not err

    def test_points_match_hand_computation(self, valley: ModuleType) -> None:
        vanilla = valley.descend("vanilla", SGD(lr=0.1), (1.0, 1.0), 4.0, 2)
        np.testing.assert_allclose(vanilla.points, [[1, 1], [0.9, 0.6], [0.81, 0.36]])
        np.testing.assert_allclose(vanilla.loss, [2.5, (0.81 + 4 * 0.36) / 2, (0.6561 + 4 * 0.1296) / 2])
        momentum = valley.descend("momentum", Momentum(lr=0.1, momentum=0.5), (1.0, 1.0), 4.0, 2)
        np.testing.assert_allclose(momentum.points, [[1, 1], [0.9, 0.6], [0.9 - 0.05 - 0.09, 0.6 - 0.2 - 0.24]])

    @pytest.mark.parametrize("momentum", [0.0, 0.6])
    def test_learning_rate_above_the_bound_makes_the_loss_grow(self, valley: ModuleType, momentum: float) -> None:
        bound = 2 * (1 + momentum) / 40
        for lr, divergent in ((0.99 * bound, False), (1.01 * bound, True)):
            descent = valley.descend("momentum", Momentum(lr=lr, momentum=momentum), (-10.0, 2.0), 40.0, 2000)
            assert descent.bound == pytest.approx(bound)
            assert descent.diverges == divergent
            assert (descent.loss[-1] > descent.loss[0]) == divergent

    def test_descent_started_on_the_valley_floor_does_not_diverge(self, valley: ModuleType) -> None:
        assert not valley.descend("vanilla", SGD(lr=0.06), (-10.0, 0.0), 40.0, 5).diverges

    @pytest.mark.nightly
    def test_pictures_are_valid_and_reproducible(self, valley: ModuleType, tmp_path: Path) -> None:
        pictures = []
        for run in ("a", "b"):
            (tmp_path / run).mkdir()
            png, svg, gif = (tmp_path / run / f"v.{suffix}" for suffix in ("png", "svg", "gif"))
            valley.main(["--steps", "1", "--out", str(png), "--out", str(svg), "--animate", str(gif)])
            pictures.append([path.read_bytes() for path in (png, svg, gif)])
        assert pictures[0] == pictures[1]
        assert pictures[0][0].startswith(b"\x89PNG\r\n\x1a\n")
        root = ElementTree.fromstring(pictures[0][1])
        assert root.tag == f"{SVG}svg"
        assert len(list(root.iter(f"{SVG}path"))) > 100

    @pytest.mark.nightly
    def test_animation_has_one_frame_a_step(self, valley: ModuleType, tmp_path: Path) -> None:
        path = tmp_path / "v.gif"
        valley.main(["--steps", "6", "--out", str(tmp_path / "v.png"), "--animate", str(path)])
        with Image.open(path) as gif:
            assert gif.format == "GIF"
            frames = []
            for i in range(gif.n_frames):
                gif.seek(i)
                frames.append(gif.convert("RGB").tobytes())
        assert len(set(frames)) == 7  # the start and six steps

    @pytest.mark.parametrize(
        ("options", "lines"),
        [
            (["--lr", "0.055"], ["vanilla SGD diverges: its learning rate 0.055 is above the stability bound, 0.05"]),
            (["--lr", "3e38"], ["vanilla SGD diverges", "momentum diverges"]),
            (["--lr", "0.05"], []),  # on the bound: oscillates without decay
        ],
    )
    def test_divergence_is_reported_and_drawn_at_the_scale_of_the_start(
        self, valley: ModuleType, tmp_path: Path, options: list[str], lines: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        valley.main([*options, "--out", str(tmp_path / "v.png")])
        out, err = capsys.readouterr()
        assert len(err.splitlines()) == len(lines)
        assert all(line.startswith(start) for line, start in zip(err.splitlines(), lines, strict=True))
        assert out.splitlines()[0].endswith(": not reached")
        args, descents = valley.parse(options)
        figure, _ = valley.draw(descents, args.condition)
        (left, right), (bottom, top) = figure.axes[0].get_xlim(), figure.axes[0].get_ylim()
        assert -25 < left < -10 < 0 < right < 25
        assert -10 < bottom < 0 < 2 < top < 10
        assert figure.axes[1].get_ylim()[1] < 1e6

    @pytest.mark.parametrize("start", [(-10, 0), (0, 2), (1, 100), (-1, -1)])
    @pytest.mark.parametrize("condition", [1, 1000])
    def test_axes_have_equal_scales_and_contain_the_paths(
        self, valley: ModuleType, start: tuple[float, float], condition: float
    ) -> None:
        _, descents = valley.parse(["--start", *map(str, start), "--condition", str(condition), "--lr", "0.001"])
        figure, _ = valley.draw(descents, condition)
        axes = figure.axes[0]
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert (right - left) / (top - bottom) == pytest.approx(axes.bbox.width / axes.bbox.height)
        for descent in descents:
            x, y = descent.points.T
            assert left < x.min() <= x.max() < right
            assert bottom < y.min() <= y.max() < top

    def test_legend_states_settings_and_final_distances(self, valley: ModuleType) -> None:
        args, descents = valley.parse(["--steps", "3"])
        figure, _ = valley.draw(descents, args.condition)
        vanilla, momentum = (text.get_text() for text in figure.axes[0].get_legend().get_texts())
        ends = [math.hypot(*descent.points[-1]) for descent in descents]
        assert vanilla == f"vanilla SGD: learning rate η = 0.0475, momentum β = 0, ends {ends[0]:.2g} from the minimum"
        assert momentum == f"momentum: learning rate η = 0.0475, momentum β = 0.6, ends {ends[1]:.2g} from the minimum"
        assert figure.get_suptitle() == "Steps to a thousandth of the loss: vanilla SGD over 3, momentum over 3"


class TestOtherFigures:
    def test_distances_on_the_parabola_match_the_closed_form(self) -> None:
        points = load_script("tutorial/step_size.py").descend(0.4, [5.0], [2.0], 5)
        np.testing.assert_allclose(points[:, 0], [5 * 0.2**t for t in range(6)])

    def test_excess_loss_matches_the_formulas(self) -> None:
        noise = load_script("tutorial/mini_batch_noise.py")
        full = noise.excess_loss(0.1, None, noise.ConstantSchedule(), 20, 1)
        np.testing.assert_allclose(full, [50 * 0.81**t for t in range(21)])
        floor = noise.excess_loss(0.4, 10, noise.ConstantSchedule(), 200, 200)[50:].mean()
        assert floor == pytest.approx(0.4 / (2 * 10 * 1.6), rel=0.05)

    def test_positions_of_random_coordinates_are_close_to_the_bound(self) -> None:
        script = load_script("tutorial/frame_bytes.py")
        k, parts = script.encode(199_210, 0.01, "ternary")
        assert (k, parts.side) == (1992, 4)
        assert 1 < 8 * parts.index / k / script.bound(199_210, k) < 1.02

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            pytest.param("step_size", [], marks=pytest.mark.nightly),
            pytest.param("mini_batch_noise", ["--steps", "10", "--runs", "2"], marks=pytest.mark.nightly),
            ("parabola", []),
            pytest.param("frame_bytes", [], marks=pytest.mark.nightly),
        ],
    )
    def test_figure_is_reproducible(self, name: str, options: list[str], tmp_path: Path) -> None:
        script, paths = load_script(f"tutorial/{name}.py"), [tmp_path / "a.svg", tmp_path / "b.svg"]
        for path in paths:
            script.main([*options, "--out", str(path)])
        assert paths[0].read_bytes() == paths[1].read_bytes()
        assert ElementTree.parse(paths[0]).getroot().tag == f"{SVG}svg"


@pytest.mark.parametrize(
    ("name", "argv", "message"),
    [
        ("parabola", ["--lr", "0"], "lr: expected a number above 0, got 0.0"),
        ("parabola", ["--lr", "inf"], "lr: expected a finite number"),
        ("parabola", ["--momentum", "1"], "momentum: expected a number of at least 0 and below 1, got 1.0"),
        ("parabola", ["--momentum", "-0.1"], "momentum: expected a number of at least 0 and below 1, got -0.1"),
        ("parabola", ["--steps", "0"], "--steps: expected at least 1, got 0"),
        ("parabola", ["--start", "nan"], "--start: expected a finite number, got nan"),
        ("parabola", ["--lr", "ten"], "invalid float value: 'ten'"),
        ("parabola", ["--lr", "1e38"], "exceed a float64"),
        ("parabola", ["--start", "1e308", "--lr", "2"], "exceed a float64"),
        ("valley", ["--lr", "0"], "lr: expected a number above 0, got 0.0"),
        ("valley", ["--lr", "nan"], "lr: expected a finite number, got nan"),
        ("valley", ["--momentum", "1"], "momentum: expected a number of at least 0 and below 1, got 1.0"),
        ("valley", ["--momentum", "-0.1"], "momentum: expected a number of at least 0 and below 1, got -0.1"),
        ("valley", ["--steps", "0"], "--steps: expected at least 1, got 0"),
        ("valley", ["--condition", "0.5"], "--condition: expected a number from 1 to 1e9, got 0.5"),
        ("valley", ["--condition", "nan"], "--condition: expected a number from 1 to 1e9, got nan"),
        ("valley", ["--start", "0", "0"], "--start: expected a point from 1e-9 to 1e9 away from the minimum"),
        ("valley", ["--start", "2", "nan"], "--start: expected a point from 1e-9 to 1e9 away from the minimum"),
        ("valley", ["--out", "v.jpg"], "argument --out: 'v.jpg' does not end in .png or .svg"),
        ("valley", ["--out", "no/such/folder/v.png"], "argument --out: there is no folder 'no/such/folder'"),
        ("valley", ["--animate", "v.mp4"], "argument --animate: 'v.mp4' does not end in .gif"),
    ],
)
def test_invalid_option_exits_with_one_line(
    name: str, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_exits_with_error(load_script(f"tutorial/{name}.py"), argv, message, capsys)
