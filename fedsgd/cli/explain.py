"""`fedsgd explain`."""

from __future__ import annotations

import json
from functools import partial

import click

from fedsgd.cli.app import main
from fedsgd.cli.completers import complete_explained
from fedsgd.cli.options import plugin_option
from fedsgd.cli.streams import echo, echo_json

EXAMPLES = """Examples:

\b
    fedsgd explain uplink.error_feedback
    fedsgd explain density
    fedsgd explain top-k
    fedsgd explain participation
"""


@main.command("explain", epilog=EXAMPLES, short_help="Explain a key, a component or a section.")
@click.argument("name", shell_complete=complete_explained)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, and nothing else there.")
@plugin_option
def explain_command(name: str, as_json: bool) -> None:
    """Explain NAME: a key of a scenario, a component or a section.

    A key is explained by its type with bounds, its default, its options, its meaning and an example. NAME is a dotted key
    such as uplink.compressor.density, the last part of a dotted key, a component such as top-k, a class of your own
    (my_package.my_module:MyClass), a key of a component (top-k.density), or a section. If several components have the key,
    each different description is printed with its components.
    """
    from fedsgd.cli.key_text import echo_component, echo_key, echo_section
    from fedsgd.scenario.key_search import explain

    explanation = explain(name)
    if as_json:
        echo_json(json.dumps(explanation.to_json(), indent=2, default=str))
        return
    prints = [partial(echo_section, section, in_full=True) for section in explanation.sections]
    prints += [partial(echo_component, component) for component in explanation.components]
    prints += [partial(echo_key, key) for key in explanation.keys]
    for i, print_part in enumerate(prints):
        if i:
            echo()
        print_part()
