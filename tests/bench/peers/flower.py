"""Flower's simulation engine as its users run it: `flwr run APP` on a SuperLink with `--simulation`, Ray, one CPU a client.

`flwr run` by itself would start a SuperLink that nobody stops; this one is a child of the driver, with a home of its own, and is
stopped. Nothing phones home, nothing is installed at run time. The clock starts before the SuperLink does, as a user's first
`flwr run` would start it too. A simulation passes messages by reference and says nothing of bytes.
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
    """Of the SuperLink, the command and all their children, which are launched by name."""
    home, root = folder / "home", str(Path(__file__).resolve().parents[3])
    env = {
        name: value for name, value in processes.build_environment(home, folder).items() if name not in THREAD_COUNT_VARIABLES
    }  # Ray's business
    return {
        **env,
        "PYTHONPATH": os.pathsep.join((root, env.get("PYTHONPATH", ""))),
        **RAY,
        "RAY_TMPDIR": str(home),
    }


def write_app(folder: Path, port: int) -> Path:
    """The app's folder, and the connection that `flwr run` will use."""
    home = folder / "home"
    home.mkdir()
    app = app_bundle.write_app(folder / "app", {"folder": str(folder)}, "flower_app:server", "flower_app:client")
    shutil.copy(Path(__file__).with_name("flower_app.py"), app)
    (home / "config.toml").write_text(CONNECTION.format(port=port))
    return app


def simulate(folder: Path, work: Work) -> None:
    """Run the app to its end. It writes the report itself."""
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
