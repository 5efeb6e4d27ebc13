"""`fedsgd certify`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsgd.cli.app import EXIT_FAILURE, main
from fedsgd.cli.completers import complete_field, complete_member
from fedsgd.cli.options import UserPath, plugin_option
from fedsgd.cli.streams import echo, echo_json

if TYPE_CHECKING:
    from fedsgd.certification import Certificate

EXAMPLES = """Examples:

\b
    fedsgd certify top-k --set density=0.001 --set values=bfloat16
    fedsgd certify my_module:MyCompressor --data gaussian --out folder
    fedsgd certify --all
"""


@main.command("certify", epilog=EXAMPLES, short_help="Test a compressor against its laws and measure it.")
@click.argument("compressor", required=False, shell_complete=complete_member("compressors"))
@click.option(
    "--all", "all_compressors", is_flag=True, help="Certify all registered compressors at their defaults, in one table."
)
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    shell_complete=complete_field,
    help="Set a field of COMPRESSOR, e.g. density=0.1. Repeatable.",
)
@click.option(
    "--error-feedback",
    type=click.Choice(("none", "persist", "decay", "reset")),
    default="none",
    show_default=True,
    help="Certify COMPRESSOR under error feedback with this policy for residuals.",
)
@click.option(
    "--data",
    type=click.Choice(("real", "gaussian", "laplace")),
    default="real",
    show_default=True,
    help="Vectors that are measured: updates of a small federation, or random vectors.",
)
@click.option("--size", type=int, help="Number of coordinates in a gaussian or laplace vector.  [default: 200000]")
@click.option("--out", type=UserPath(), help="Folder for certificate.json and certificate.md.")
@click.option("--no-laws", is_flag=True, help="With --all: only measure, do not test the laws.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there.")
@click.option("--markdown", is_flag=True, help="Print Markdown on standard output.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@plugin_option
def certify_command(
    compressor: str | None, all_compressors: bool, out: Path | None, as_json: bool, markdown: bool, quiet: bool, **options: Any
) -> None:
    """Test COMPRESSOR against the laws of its family, and measure its bytes, errors and times.

    COMPRESSOR is a registered name (see `fedsgd list compressors`) or my_package.my_module:MyCompressor. With
    --data real, the vectors are updates of a small federation, which is first trained on handwritten digits.

    Exit status 1 if a law is broken.
    """
    if all_compressors == (compressor is not None):
        raise click.UsageError("give either COMPRESSOR or --all")
    if as_json and markdown:
        raise click.UsageError("give either --json or --markdown")
    if all_compressors and (options["settings"] or out or options["error_feedback"] != "none"):
        raise click.UsageError("--set, --error-feedback and --out are for one COMPRESSOR")
    if options["no_laws"] and not all_compressors:
        raise click.UsageError("--no-laws needs --all")
    from fedsgd.certification import report
    from fedsgd.cli import terminal

    # output of a user's module must not mix with the JSON on standard output
    with terminal.spinner(f"certifying {compressor or 'all compressors'}", quiet), redirect_stdout(sys.stderr):
        certificates = _certify_compressors(compressor, **options)
    if out is not None:
        report.save(certificates[0], out)
    if as_json:
        echo_json(report.to_json_text(*certificates, as_list=all_compressors))
    elif markdown:
        text = report.comparison_to_markdown(certificates) if all_compressors else report.to_markdown(certificates[0])
        echo(text, nl=False)
    elif all_compressors:
        terminal.print_certificates(certificates)
    else:
        terminal.print_certificate(certificates[0])
    if out is not None:
        echo(f"written to {out}", err=True)
    if not all(certificate.passed for certificate in certificates):
        click.get_current_context().exit(EXIT_FAILURE)


def _certify_compressors(
    compressor: str | None, settings: Sequence[str], error_feedback: Any, data: str, size: int | None, no_laws: bool
) -> list[Certificate]:
    from fedsgd.certification import certify as certify_one
    from fedsgd.certification import certify_all
    from fedsgd.scenario.overrides import parse_setting

    if compressor is None:
        return certify_all(data=data, size=size, laws=not no_laws)
    fields = dict(parse_setting(text) for text in settings)
    return [certify_one(compressor, fields, error_feedback=error_feedback, data=data, size=size)]
