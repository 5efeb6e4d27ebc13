"""What runs on the server."""

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from digits_app.task import make_net
from fedsgd.flower import CompressedStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg over all nodes, and wait before a round until `min-nodes` of them are there."""
    nodes = int(context.run_config["min-nodes"])
    strategy = FedAvg(min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes)
    # Line 2 of 2: of each update the largest 1 % is sent, the rest is remembered; of the model, only what changed.
    strategy = CompressedStrategy(strategy, "top-k", error_feedback="persist", downlink={"policy": "difference"})
    strategy.start(grid, ArrayRecord(make_net().state_dict()), num_rounds=context.run_config["num-server-rounds"])
