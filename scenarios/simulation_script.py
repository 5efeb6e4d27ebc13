"""fedsgd from Python: bytes that top-k 1 % needs to 90 % accuracy, with 2 and with 20 of 20 clients a round.

python scenarios/simulation_script.py [ROUNDS]
"""

import sys
from pathlib import Path

import fedsgd

rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
quickstart = fedsgd.load(Path(__file__).parent / "quickstart.toml", {"rounds": rounds, "report.target_accuracy": 0.9})

for cohort in (2, 20):
    scenario = quickstart.with_settings({"server.cohort": cohort})
    result = fedsgd.run(scenario, on_round=lambda r: print(f"\rround {r.round}: accuracy {r.accuracy:.3f}", end=""))

    summary, up = result.summary, result.summary["uplink"]
    n_bytes = summary["uplink_bytes_to_target"]
    cost = "not reached" if n_bytes is None else f"after {n_bytes:,.0f} bytes up"
    print(f"\n{cohort} clients a round: 90 % {cost}; best {summary['best_accuracy']:.3f}")
    print(f"  {up['n_bytes']:,} bytes up in all: {up['index']:,} positions, {up['value']:,} values, {up['header']:,} headers")
