"""Prices and comparisons of run directories, with networks and devices as objects or by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedsgd.analysis.comparison import Comparison
from fedsgd.analysis.comparison import compare as compare_methods
from fedsgd.analysis.methods import RunSpec, load_methods
from fedsgd.analysis.pricing import PricedRun
from fedsgd.analysis.pricing import price as price_run
from fedsgd.analysis.runs import load_run
from fedsgd.config.argument_checks import check_flag
from fedsgd.config.component import describe_value
from fedsgd.config.quantities import parse_seconds
from fedsgd.errors import ScenarioError, ScenarioWarning, warn_once
from fedsgd.experiment.scenario_warnings import find_direction_problem
from fedsgd.network import Device, Link, Network, PricingModel, get_device, get_network
from fedsgd.scenario.target import TargetLike, resolve_target
from fedsgd.system.user_files import expand_user_path

DEFAULT_DEVICE, DEFAULT_SERVER = "phone", "server"


def price(
    run: str | Path,
    network: Network | Link | str,
    *,
    device: Device | str = DEFAULT_DEVICE,
    server: Device | str = DEFAULT_SERVER,
    deadline: str | None = None,
    measured_coding: bool = False,
) -> PricedRun:
    """Compute the time of a finished run on a network, from its ledger and without training.

    >>> import tempfile
    >>> import fedsgd as fs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = fs.run(fs.Scenario(name="digits", rounds=2), out=folder)
    ...     slow, fast = (fs.price(folder, fs.networks.Link(up=up, down="20 Mbit/s")) for up in ("1 kbit/s", "1 Mbit/s"))
    >>> slow.cumulative_seconds.shape, bool(slow.cumulative_seconds[-1] > fast.cumulative_seconds[-1])
    ((3,), True)

    Args:
        run: run directory.
        network: name of a network, such as "4g", or an object of `fedsgd.networks`.
        device: device of the clients, by name or as an object.
        server: device of the server, by name or as an object.
        deadline: time that the server waits for a lost reply, such as "30 s"; None: the round lasts as if the reply had
            arrived.
        measured_coding: True for coding times that the run's machine measured, False for those of the table of codec costs.

    Raises:
        ScenarioError: a network or device has no such name, or an argument is wrong.
        ReportError: the directory has no finished run, or participation in it depended on time.
    """
    check_flag("measured_coding", measured_coding)
    model = _build_pricing_model(network, device, server, deadline)
    return price_run(load_run(expand_user_path(run, "run")), [model], measured_coding)[0]


def compare(
    runs: Sequence[RunSpec],
    target: TargetLike | None = None,
    *,
    networks: Mapping[str, Network | Link | str] | Sequence[str] = (),
    device: Device | str = DEFAULT_DEVICE,
    server: Device | str = DEFAULT_SERVER,
    tuned: Sequence[str] = (),
    measured_coding: bool = False,
    baseline: str | None = None,
) -> Comparison:
    """Compare finished runs by the bytes and the time that each method needs to reach a target.

    >>> import tempfile
    >>> import fedsgd as fs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = fs.run(fs.Scenario(name="digits", rounds=2), out=folder)
    ...     comparison = fs.compare([("dense", folder)], networks=["3g", "4g"])
    >>> [row.label for row in comparison.rows], [*comparison.rows[0].network_costs]
    (['dense'], ['3g', '4g'])

    Args:
        runs: run directories, folders of run directories and sweeps, each a path or a pair (label, path).
        target: test accuracy, a text such as "loss<0.3", or a `Target`; None for the end of each run. A target that worse
            models reach, such as "loss>0.3", causes a `ScenarioWarning`.
        networks: names of networks; or names, objects of `fedsgd.networks`, by heading.
        device: device of the clients, by name or as an object.
        server: device of the server, by name or as an object.
        tuned: settings of which each method is reported at its best value, as dotted keys.
        measured_coding: True for coding times that each run's machine measured.
        baseline: label of the method that ratios refer to; None for the first uncompressed method, otherwise the first method.

    Raises:
        ScenarioError: a network or device has no such name, or an argument is wrong.
        ReportError: a path has no run, runs of one label have different settings, runs of one method have different sources of
            a user's class, no run is finished, a run does not measure the target's metric, or no method has the baseline's
            label.
    """
    check_flag("measured_coding", measured_coding)
    if isinstance(tuned, str) or not isinstance(tuned, Sequence) or not all(isinstance(key, str) for key in tuned):
        raise ScenarioError(f'tuned: got {describe_value(tuned)}, expected a list of keys such as ["client.optimizer.lr"]')
    if not isinstance(runs, list | tuple):
        raise ScenarioError(f"runs: got {describe_value(runs)}, expected a list of run directories")
    if isinstance(networks, str) or not isinstance(networks, Mapping | Sequence):
        raise ScenarioError(f'networks: got {describe_value(networks)}, expected names such as ["4g"], or objects by heading')
    if not isinstance(networks, Mapping) and not all(isinstance(name, str) for name in networks):
        raise ScenarioError('networks: got a list with an object, expected names, or objects by heading: {"lab": network}')
    by_heading = networks if isinstance(networks, Mapping) else {name: name for name in networks}
    device, server = _resolve_device("device", device), _resolve_device("server", server)
    models = {heading: _build_pricing_model(network, device, server, None) for heading, network in by_heading.items()}
    goal = resolve_target(target)
    problem = None if goal is None else find_direction_problem(goal)
    if problem is not None:
        warn_once(f'target = "{goal}": {problem}', ScenarioWarning, stacklevel=2)
    methods = load_methods(runs, goal, tuned)
    return compare_methods(methods, goal, models, measured_coding=measured_coding, baseline=baseline)


def _build_pricing_model(
    network: Network | Link | str, device: Device | str, server: Device | str, deadline: str | None
) -> PricingModel:
    """Return the pricing model of networks and devices that are objects or names."""
    if isinstance(network, str):
        with _errors_of_argument("network"):
            network = get_network(network)
    elif isinstance(network, Link):
        network = Network(network)
    elif not isinstance(network, Network):
        raise ScenarioError(
            f'network: got {describe_value(network)}, expected a name such as "4g", or fedsgd.networks.Network(...)'
        )
    seconds = None if deadline is None else _parse_deadline(deadline)
    return PricingModel(network, _resolve_device("device", device), _resolve_device("server", server), seconds)


def _resolve_device(argument: str, device: Device | str) -> Device:
    """Return a device that is an object or a name."""
    if isinstance(device, str):
        with _errors_of_argument(argument):
            device = get_device(device)
    if not isinstance(device, Device):
        raise ScenarioError(
            f'{argument}: got {describe_value(device)}, expected a name such as "phone", or fedsgd.networks.Device(...)'
        )
    return device


@contextmanager
def _errors_of_argument(argument: str) -> Iterator[None]:
    """Put the name of an argument in front of a ScenarioError of the body."""
    try:
        yield
    except ScenarioError as error:
        raise ScenarioError(f"{argument}: {error}") from error.__cause__


def _parse_deadline(text: object) -> float:
    """Return a deadline in seconds, above 0."""
    if not isinstance(text, str):
        raise ScenarioError(f'deadline: got {describe_value(text)}, expected a time such as "30 s"')
    with _errors_of_argument("deadline"):
        seconds = parse_seconds(text)
    if not seconds:
        raise ScenarioError(f"deadline: got {text!r}, expected a time above 0")
    return seconds
