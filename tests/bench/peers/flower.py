"""Flower's simulation engine as its users run it: `flwr run APP` on a SuperLink with `--simulation`, Ray, one CPU a client.

`flwr run` by itself would start a SuperLink that nobody stops; this one is a child of the driver, with a home of its own, and is
stopped. Nothing phones home, nothing is installed at run time. The clock starts before the SuperLink does, as a user's first
`flwr run` would start it too. A simulation passes messages by reference and says nothing of bytes.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path

from tests.bench.peers.work import Work, read_work

READY_SECONDS = 60.0
CPUS = 2
APP = """\
[project]
name = "peer"
version = "1.0.0"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>={flwr}"]

[tool.flwr.app]
publisher = "fedsgd"
fab-format-version = 1
flwr-version-target = "{flwr}"
[tool.flwr.app.components]
serverapp = "flower_app:server"
clientapp = "flower_app:client"
[tool.flwr.app.config]
folder = "{folder}"
"""
CONNECTION = """\
[superlink]
default = "here"
[superlink.here]
address = "127.0.0.1:{port}"
insecure = true
"""


def environment(folder: Path) -> dict[str, str]:
    """Of the SuperLink, the command and all their children, which are launched by name."""
    bin_folder, root = str(Path(sys.executable).parent), str(Path(__file__).resolve().parents[3])
    home = folder / "home"
    return {
        **os.environ,
        "PATH": os.pathsep.join((bin_folder, os.environ.get("PATH", ""))),
        "PYTHONPATH": os.pathsep.join((root, os.environ.get("PYTHONPATH", ""))),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # wherever it runs, Ray then listens at 127.0.0.1 alone
        "RAY_TMPDIR": str(home),
        "NO_PROXY": "127.0.0.1,localhost",
    }


def write_app(folder: Path, port: int) -> Path:
    """The app's folder, and the connection that `flwr run` will use."""
    app, home = folder / "app", folder / "home"
    app.mkdir()
    home.mkdir()
    shutil.copy(Path(__file__).with_name("flower_app.py"), app)
    (app / "LICENSE").touch()
    (app / "pyproject.toml").write_text(APP.format(folder=folder, flwr=version("flwr")))
    (home / "config.toml").write_text(CONNECTION.format(port=port))
    return app


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
    return port


def wait_until_ready(link: subprocess.Popen[bytes], port: int) -> None:
    """Returns when the SuperLink answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and link.poll() is None:
        try:
            with opener.open(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("Flower's SuperLink did not start")


def simulate(folder: Path, work: Work) -> None:
    """Run the app to its end. It writes the report itself."""
    port, env = free_port(), environment(folder)
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
