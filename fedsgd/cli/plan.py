"""`fedsgd plan`."""

from __future__ import annotations

import json

from fedsgd.cli.app import main
from fedsgd.cli.option_groups import checkpoint_option, workers_option
from fedsgd.cli.options import ScenarioOptions, scenario_options
from fedsgd.cli.run_folders import mention_shared_cores
from fedsgd.cli.streams import echo_json

EXAMPLES = """Examples:

\b
    fedsgd plan scenarios/quickstart.toml
    fedsgd plan scenarios/mnist_fedavg.toml --data DIR --workers 2
    fedsgd plan scenarios/quickstart.toml --set rounds=1000 --checkpoint-every 100
"""


@main.command("plan", epilog=EXAMPLES, short_help="Estimate memory, disk, bytes and time of a run.")
@scenario_options
@checkpoint_option
@workers_option
def plan_command(options: ScenarioOptions, workers: int) -> None:
    """Estimate memory, disk space, bytes and time of `fedsgd run SCENARIO` with these options, before it runs.

    The first rounds are run: ten, or as many as begin within five seconds, at least two. Their bytes are those of the run. The
    cohorts of all later rounds are drawn as the run draws them, and their bytes, memory and time are estimated. Nothing remains
    on disk.
    """
    from fedsgd.cli import terminal
    from fedsgd.experiment.options import ExecutionConfig
    from fedsgd.experiment.planning.run_plan import plan
    from fedsgd.scenario.scenario import errors_in_file

    scenario = options.load()
    mention_shared_cores(workers, "workers", options.quiet)
    with errors_in_file(options.scenario), terminal.spinner(f"calibrating {scenario.name}", options.quiet):
        run_plan = plan(scenario, data=options.data, execution=ExecutionConfig(workers))
    if options.as_json:
        echo_json(json.dumps(run_plan.to_json(), indent=2))
    else:
        terminal.print_plan(run_plan)
