"""`fedsgd list` and `fedsgd explain`: output at 80 columns, JSON and messages."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from fedsgd.cli import main
from fedsgd.scenario.key_reference import list_sections


def fedsgd(*arguments: str) -> Result:
    """Run a command line of fedsgd at 80 columns."""
    return CliRunner(env={"COLUMNS": "80"}).invoke(main, arguments)


@pytest.mark.parametrize("name", ["participation", "[participation]"])
def test_listed_section_has_each_key_with_default_type_and_meaning(name: str) -> None:
    lines = fedsgd("list", name).stdout.splitlines()
    at = lines.index("  dropout = 0.0")
    assert lines[at + 1 : at + 3] == [
        "      probability that a reply is lost",
        "      type: a number of at least 0 and below 1",
    ]
    keys = [line.split(" = ")[0].strip() for line in lines if line.startswith("  ") and line[2] != " "]
    assert keys == [
        "over_selection",
        "dropout",
        "deadline",
        "durations",
        "stragglers",
        "straggler_policy",
        "on_failure",
        "on_divergence",
    ]
    section = json.loads(fedsgd("list", name, "--json").stdout)
    assert [key["key"].removeprefix("participation.") for key in section["keys"]] == keys
    assert section["keys"][1]["bounds"] == {"minimum": 0, "exclusiveMaximum": 1}


@pytest.mark.slow
def test_list_of_sections_has_all_sections_and_keys() -> None:
    output = fedsgd("list", "sections").stdout
    assert all(f"\n  [{name}]: " in output for name in list_sections()[1:])
    assert 'optimizer = { name = "sgd", lr = 1.0 }' in output
    listed = json.loads(fedsgd("list", "sections", "--json").stdout)
    assert [section["section"] for section in listed] == list_sections()
    assert json.loads(fedsgd("list", "--json").stdout)["sections"] == listed
    assert "Further keys are those of the component that `name` selects" in fedsgd("list", "model").stdout


def test_listed_family_has_the_keys_of_all_members_once() -> None:
    output = " ".join(fedsgd("list", "partitioners").stdout.split())
    assert "clients = 100, alpha = 1.0" in output, "the default of clients is not that of all partitioners"
    output = " ".join(fedsgd("list", "optimizers").stdout.split())
    assert output.count("clip_norm = (unset)") == 1
    assert "all optimizers: clip_norm = (unset)" in output
    assert output.count("lr = 0.1, weight_decay = 0.0") == 4
    assert "lr = 0.001, weight_decay = 0.01, beta1 = 0.9" in output, "the default of adamw is not that of all optimizers"


def test_listed_keys_are_broken_between_keys_or_options() -> None:
    lines = fedsgd("list", "compressors").stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("  threshold: "))
    assert lines[at + 1 : at + 3] == [
        '      threshold = 0.001, values = "float32" | "bfloat16" | "float16" | "natural"',
        '      | "int8" | "int4" | "ternary" | "2bit"',
    ]
    at = next(i for i, line in enumerate(lines) if line.startswith("  rand-k: "))
    assert lines[at + 2 : at + 4] == [
        "      density = 0.01,",
        '      values = "float32" | "bfloat16" | "float16" | "natural" | "int8" | "int4",',
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("list",),
        *(("list", name) for name in ("sections", "model", "server", "networks", "devices", "trackers")),
        *(
            ("explain", name)
            for name in ("values", "terngrad", "per-layer", "uplink.compressor.rules", "uplink.compressor.densities")
        ),
        *((command, "--help") for command in ("list", "explain", "completion")),
    ],
    ids=" ".join,
)
def test_output_fits_80_columns(arguments: tuple[str, ...]) -> None:
    result = fedsgd(*arguments)
    assert result.exit_code == 0
    assert [line for line in result.stdout.splitlines() if len(line) > 80] == []


def test_explained_key_has_type_default_meaning_and_examples() -> None:
    assert fedsgd("explain", "uplink.error_feedback").stdout.splitlines() == [
        "uplink.error_feedback",
        "  policy for the residual of a client over the rounds that the client misses:",
        '  "none" (no error feedback), "persist", "decay" or "reset". A scheme with a',
        '  residual of its own (DGC, STC, ...) keeps this residual under "none".',
        "",
        '  type     "none", "persist", "decay" or "reset"',
        '  default  "none"',
        "  TOML     [uplink]",
        '           error_feedback = "persist"',
        "  or       --set uplink.error_feedback=persist",
    ]


def test_explained_key_of_components_names_them_and_their_classes() -> None:
    output = fedsgd("explain", "uplink.compressor.density").stdout
    assert "uplink.compressor.density (of top-k, rand-k, stc)\n" in output
    assert "  class    TopK, RandK, STC\n" in output
    assert '           compressor = { name = "top-k", density = 0.005 }\n' in output
    optimizer = fedsgd("explain", "client.optimizer").stdout
    assert "  options  sgd, momentum, momentum-pytorch, nesterov, adam, adamw\n" in optimizer


def test_explained_component_has_its_docstring_places_and_keys() -> None:
    output = fedsgd("explain", "top-k").stdout
    for text in (
        "top-k (compressor): The k largest coordinates by magnitude",
        "  used in  uplink.compressor, downlink.compressor\n",
        "  or       --set uplink.compressor.name=top-k\n",
        "  density = 0.01\n      k / P, share of the coordinates that is sent.\n      type: a number above 0 and at most 1\n",
    ):
        assert text in output
    assert "sgd (optimizer, or fedavg): Vanilla SGD" in fedsgd("explain", "fedavg").stdout


def test_explained_section_has_whole_meanings() -> None:
    assert '"frozen": use the layer as a constant' in " ".join(fedsgd("explain", "model").stdout.split())
    assert '"frozen": use the layer' not in " ".join(fedsgd("list", "model").stdout.split())


def test_json_of_explain_has_sections_components_and_keys() -> None:
    explained = json.loads(fedsgd("explain", "momentum", "--json").stdout)
    assert (explained["sections"], explained["components"][0]["family"]) == ([], "optimizer")
    key = json.loads(fedsgd("explain", "seed", "--json").stdout)["keys"][0]
    assert (key["key"], key["default"], key["required"], key["example"]) == ("seed", 0, False, "seed = 1")
    assert key["settings"] == ["seed=1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("list", "participaton"), 'fedsgd: list: got "participaton", did you mean "participation"?\n'),
        (
            ("explain", "uplink.eror_feedback"),
            'fedsgd: got "uplink.eror_feedback", expected a section, a component or a key; nearest: "uplink.error_feedback", '
            '"error_feedback", "uplink.feedback_decay"\n',
        ),
        (("explain", "--no-plugins", "my_module:Mine"), 'fedsgd: got "my_module:Mine", which is not part of fedsgd'),
    ],
    ids=["section", "key", "plugin"],
)
def test_unknown_name_is_one_line_and_exit_status_2(arguments: tuple[str, ...], message: str) -> None:
    result = fedsgd(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
