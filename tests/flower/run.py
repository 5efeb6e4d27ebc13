"""The README's command `flwr run scenarios/flower_app`, over a deployment and in Flower's simulation engine.

    python -m tests.flower.run deployment
    python -m tests.flower.run simulation

By default, Flower installs an app's dependencies before it runs the app. Here uv has neither network nor cache, so an app fails if
it needs a package that is not installed. FLWR_HOME is a temporary folder, and all processes of Flower and Ray end with the
command. The simulation needs the extra `simulation`. Neither command needs pytest.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedsgd.flower.deployment import processes

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "flwr run scenarios/flower_app --stream"
ROUNDS = 2
NODES = 2
"""Number of nodes of the deployment, and by default of Flower's simulation engine."""
RUN_SECONDS = 480.0
READY_SECONDS = 60.0
RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on every system, Ray then listens at 127.0.0.1 only
}
NO_INSTALLATION = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"
CONNECTION = '[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'


@dataclass(frozen=True)
class AppRun:
    """Outcome of `flwr run`.

    Attributes:
        status: Flower's status of the run.
        log: the run's log, as the command printed it.
        bytes_up: bytes from nodes to the SuperLink by Flower's own counter; 0 in a simulation.
    """

    status: str
    log: str
    bytes_up: int

    def check(self) -> None:
        """Check that the run finished and that fedsgd compressed each round.

        Raises:
            AssertionError: the check failed; the message has the end of the log.
        """
        end = f"{self.status}\n{self.log[-3000:]}"
        assert self.status == "finished:completed", end
        rounds = set(re.findall(r"fedsgd: round (\d+): [\d,]+ bytes up", self.log))
        assert rounds == {str(number) for number in range(1, ROUNDS + 1)}, end
        assert "'accuracy'" in self.log, end


@contextmanager
def make_private_home() -> Iterator[Path]:
    """Yield a folder for FLWR_HOME on a short path, because Ray's sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="flower-run-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def run_in_deployment() -> AppRun:
    """Run the command over a SuperLink and two SuperNodes."""
    with make_private_home() as home:
        env = build_environment(home)
        with start_deployment(home, env):
            return run_app(env)


def run_in_simulation() -> AppRun:
    """Run the command without a connection: it starts a SuperLink in simulation mode, which is stopped afterwards."""
    with make_private_home() as home:
        env = build_environment(home)
        port = env["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"]
        try:
            return run_app(env)
        finally:
            processes.stop(home, [], [f"127.0.0.1:{port}"])


def build_environment(home: Path) -> dict[str, str]:
    """Return a user's environment with this FLWR_HOME, private ports, and uv without network and cache."""
    env = {**processes.build_environment(home, home / "bin"), **RAY, "RAY_TMPDIR": str(home)}
    env.pop(NO_INSTALLATION, None)
    ports = {f"FLWR_LOCAL_{name}_API_PORT": str(processes.find_free_port()) for name in ("SUPERLINK_HTTP", "CONTROL")}
    return {**env, **ports, "UV_OFFLINE": "1", "UV_CACHE_DIR": str(home / "uv")}


@contextmanager
def start_deployment(home: Path, env: Mapping[str, str]) -> Iterator[None]:
    """Start a SuperLink and SuperNodes with Flower's defaults, and make the link the default connection."""
    port, *node_ports = (processes.find_free_port() for _ in range(NODES + 1))
    (home / "config.toml").write_text(CONNECTION.format(port=port))
    address_options = ["--insecure", "--host", "127.0.0.1", "--port"]
    programs = [processes.start(["flower-superlink", *address_options, str(port)], env, home / "superlink.log")]
    try:
        wait_until_ready(programs[0], port)
        for partition, node_port in enumerate(node_ports):
            config = ["--node-config", f"partition-id={partition} num-partitions={NODES}"]
            command = ["flower-supernode", *address_options, str(node_port), "--superlink", f"127.0.0.1:{port}", *config]
            programs.append(processes.start(command, env, home / f"node-{partition}.log"))
        yield
    finally:
        processes.stop(home, programs[::-1], [f"127.0.0.1:{number}" for number in (port, *node_ports)])


def wait_until_ready(link: subprocess.Popen[bytes], port: int) -> None:
    """Wait until a SuperLink replies to HTTP requests.

    Raises:
        SystemExit: the SuperLink ended, or did not reply in time.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and link.poll() is None:
        try:
            with opener.open(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("Flower's SuperLink did not start")


def run_app(env: Mapping[str, str]) -> AppRun:
    """Run the command for at most RUN_SECONDS, and return Flower's record of the run."""
    command = [*COMMAND.split(), "--run-config", f"num-server-rounds={ROUNDS}"]
    try:
        process = subprocess.run(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=RUN_SECONDS, check=False
        )
        output = process.stdout
    except subprocess.TimeoutExpired as error:
        output = error.output or b""
    log = output.decode(errors="replace")
    listing = subprocess.run(
        ["flwr", "list", "--format", "json"], env=env, capture_output=True, timeout=READY_SECONDS, check=False
    )
    runs = json.loads(listing.stdout or "{}").get("runs")
    if not runs:
        return AppRun("not started", log, 0)
    return AppRun(runs[0]["status"], log, int(runs[0]["network-traffic"]["inbound-bytes"]))


def main(arguments: list[str] | None = None) -> None:
    """Run the command in a deployment or a simulation, print its log, and fail if the run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", choices=["deployment", "simulation"])
    place = parser.parse_args(arguments).place
    run = run_in_deployment() if place == "deployment" else run_in_simulation()
    print(run.log)
    run.check()
    print(f"{COMMAND}: {run.status} in {place}")


if __name__ == "__main__":
    main()
