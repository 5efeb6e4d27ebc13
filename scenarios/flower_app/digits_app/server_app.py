"""Flower ServerApp with a compressed strategy."""

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from digits_app.task import make_net
from fedsgd.flower import CompressedStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg over all nodes. Each round waits until `min-nodes` nodes are connected."""
    nodes = int(context.run_config["min-nodes"])
    strategy = FedAvg(min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes)
    # Line 2 of 2: nodes send the largest 1 % of an update and add the rest to the next; the server sends changes of the model.
    strategy = CompressedStrategy(strategy, "top-k", error_feedback="persist", downlink={"policy": "difference"})
    strategy.start(grid, ArrayRecord(make_net().state_dict()), num_rounds=context.run_config["num-server-rounds"])
