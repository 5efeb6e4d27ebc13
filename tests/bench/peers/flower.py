"""Flower's simulation engine: `flwr run APP` on a SuperLink with `--simulation`, Ray, one CPU for each client.

`flwr run` alone would start a SuperLink that continues to run. This SuperLink is a child of the driver with a separate home,
and is stopped. Telemetry and installations at run time are disabled. The time includes the start of the SuperLink, as for a
user's first `flwr run`. A simulation passes messages by reference and does not count bytes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from fedsgd.flower.deployment import app_bundle, processes
from fedsgd.system.forkserver import THREAD_COUNT_VARIABLES
from tests.bench.peers.work import Work, read_work
from tests.flower.run import CONNECTION, RAY, wait_until_ready

CPUS = 2


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of the SuperLink, the command and their children, which are started by name."""
    home, root = folder / "home", str(Path(__file__).resolve().parents[3])
    env = processes.build_environment(home, folder)
    for name in THREAD_COUNT_VARIABLES:  # Ray sets them
        env.pop(name, None)
    return {
        **env,
        "PYTHONPATH": os.pathsep.join((root, env.get("PYTHONPATH", ""))),
        **RAY,
        "RAY_TMPDIR": str(home),
    }


def write_app(folder: Path, port: int) -> Path:
    """Write the app and the connection that `flwr run` uses, and return the app's folder."""
    home = folder / "home"
    home.mkdir()
    app = app_bundle.write_app(
        folder / "app", {"folder": str(folder)}, server_app="flower_app:server", client_app="flower_app:client"
    )
    shutil.copy(Path(__file__).with_name("flower_app.py"), app)
    (home / "config.toml").write_text(CONNECTION.format(port=port))
    return app


def simulate(folder: Path, work: Work) -> None:
    """Run the app, which writes the report, to its end."""
    port, env = processes.find_free_port(), environment(folder)
    app = write_app(folder, port)
    options = ["--insecure", "--simulation", "--disable-runtime-dependency-installation", "--host", "127.0.0.1", "--port"]
    federation = f"num-supernodes={work.clients} client-resources-num-cpus=1 init-args-num-cpus={CPUS}"
    link = subprocess.Popen(["flower-superlink", *options, str(port)], env=env)
    try:
        wait_until_ready(link, port)
        command = ["flwr", "run", str(app), "here", "--federation-config", federation, "--stream"]
        subprocess.run(command, env=env, check=True)
    finally:
        link.terminate()
        link.wait()


if __name__ == "__main__":
    prepared = Path(sys.argv[1])
    simulate(prepared, read_work(prepared))
