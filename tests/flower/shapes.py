"""App folders and runs in this process for the apps of tests/flower/apps."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Message

from tests.flower.apps.shapes_app import client_app
from tests.flower.apps.shapes_app.server_app import Outcome, federate
from tests.flower.apps.shapes_app.shapes import NODES, SHAPES
from tests.flower.counting import CountingGrid
from tests.flower.grid import InProcessGrid, identity

APP = Path(__file__).parent / "apps"


def client_component(shape: str, compressed: bool) -> str:
    """Return the name of the ClientApp of a shape in `client_app`."""
    return ("compressed" if compressed else "plain") + "_clipping" * SHAPES[shape].clips


def write_app(to: Path, shape: str, compressed: bool, rounds: int, folder: Path) -> Path:
    """Write the app of a shape.

    Args:
        to: folder of the app, which is created.
        shape: name of the shape.
        compressed: True for the app with the two lines of fedsgd.
        rounds: number of rounds.
        folder: folder for the app's results.

    Returns:
        The folder of the app.
    """
    shutil.copytree(APP, to, ignore=shutil.ignore_patterns("__pycache__"))
    project = (to / "pyproject.toml").read_text()
    values = {"shape": f'"{shape}"', "compressed": str(compressed).lower(), "rounds": str(rounds), "folder": f'"{folder}"'}
    values["clientapp"] = f'"shapes_app.client_app:{client_component(shape, compressed)}"'
    for name, value in values.items():
        project, n = re.subn(rf"(?m)^{name} = .*$", lambda _, line=f"{name} = {value}": line, project)
        assert n == 1, name
    (to / "pyproject.toml").write_text(project)
    return to


@dataclass(eq=False)
class ObjectGrid(CountingGrid):
    """Grid that counts the bytes of Flower's objects and stores replies.

    Attributes:
        replies: all replies, in the order of the messages.
    """

    replies: list[Message] = field(default_factory=list)

    @property
    def up(self) -> int:
        """Bytes of all replies."""
        return sum(self.sum_of(phase, "up") for phase in ("train", "evaluate"))

    @property
    def down(self) -> int:
        """Bytes of all messages."""
        return sum(self.sum_of(phase, "down") for phase in ("train", "evaluate"))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies, which are stored."""
        replies = super().send_and_receive(messages, timeout=timeout)
        self.replies += replies
        return replies


def run_shape(shape: str, compressed: bool, rounds: int, folder: Path) -> tuple[Outcome, ObjectGrid]:
    """Run a shape on nodes of this process, and return its outcome and the grid."""
    app = getattr(client_app, client_component(shape, compressed))
    settings = {"shape": shape, "compressed": compressed, "rounds": rounds, "folder": str(folder)}
    grid = ObjectGrid(app, InProcessGrid.of(app, NODES, **settings).nodes)
    random.seed(0)  # Flower draws its cohorts from Python's global generator
    with identity(1):
        return federate(grid, settings), grid
