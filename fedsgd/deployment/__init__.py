"""Scenarios as real deployments: Flower's SuperLink and SuperNodes started, watched, measured and stopped on this machine.

`fedsgd.flower` is what runs inside Flower's processes; this is what is around them, and does not import Flower.
"""

from fedsgd.deployment.run import Deployed, deploy
from fedsgd.deployment.watch import Watched

__all__ = ["Deployed", "Watched", "deploy"]
