"""Compression in somebody's ServerApp: the half that runs on the server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedsgd.compress import Compressor
from fedsgd.errors import ScenarioError
from fedsgd.flower.app_exchange import LOG, Exchange, Notices
from fedsgd.flower.app_model import arranged, describe_aside, describe_types, guess_ties, tie_by_name
from fedsgd.flower.app_session import Session
from fedsgd.flower.app_settings import downlink_of, uplink_of
from fedsgd.flower.app_state import begin_terms, describe_state
from fedsgd.flower.app_ties import TieState, describe_changes, name_pair, read_tied
from fedsgd.flower.app_traffic import Traffic

EXACT = ("*running_mean", "*running_var", "*num_batches_tracked")
"""What batch norm keeps beside its parameters: a compressed variance might be negative."""


class CompressedStrategy(Strategy):
    """Any strategy of Flower's message API, with compressed updates, if the ClientApp has `mods=[compression_mod()]`.

    inner: the strategy, which sees arrays as ever: of a reply, the model that it got from `inner` plus the update that arrived.
    compressor: a name as in a scenario's `[uplink]`, a table with its settings or a `Compressor`; error_feedback: "none",
    "persist", "decay" or "reset"; downlink: a table as `[downlink]`, by default the whole model, uncompressed; seed: of the
    randomness that both ends share; exact: patterns of the names of arrays that travel as they are, bit for bit, as do
    integers and arrays that are not finite; tied: groups of names that are one tensor each, like
    [("embed.weight", "head.weight")].

    A tensor with several names (tied weights, a module that is registered twice) is sent once and restored under all names.
    Names begin as one tensor where their initial arrays are equal and not constant. A reply that shows another truth travels
    uncompressed, and the next round begins anew, with a warning; `tied` avoids that ([] for none, or what
    `fedsgd.flower.tied_names` finds in a module). A reply in which an array is the transpose or some rows of a different one is
    refused: name both in `exact`. Other views of the same memory are not found: name them there, too.

    traffic: what crossed, round by round. The log warns of settings that a compressor is not made for. ScenarioError for a bad
    setting, and for a compressor that keeps clients' arrays from the strategy.

    Arrays of float16 and float64 are compressed in float32 and returned in their own types: a float64 is rounded to 24 bits.
    Messages of a model without floats, and arrays of a reply that the model does not have, cross as they are.

    A client's reply counts as received once `inner` has made a model, whatever it did with that reply. One that cannot be read
    is an error of its node, and the client keeps what it held back. Arrays that the caller changes between rounds are sent
    whole. A mean of equal numbers is that number here: what `inner` only rounds, where no client changed anything, is not sent.
    A node that is started again without a key of its own (node authentication) is a new node for Flower, and begins anew.
    """

    def __init__(
        self,
        inner: Strategy,
        compressor: str | Mapping[str, Any] | Compressor = "top-k",
        *,
        error_feedback: str = "none",
        downlink: Mapping[str, Any] | None = None,
        seed: int = 0,
        exact: Sequence[str] = EXACT,
        tied: Sequence[Sequence[str]] | None = None,
    ) -> None:
        if not isinstance(inner, Strategy):
            raise ScenarioError(f"inner: got {inner!r}, expected a strategy of flwr.serverapp.strategy, like FedAvg()")
        if not isinstance(seed, int) or seed < 0:
            raise ScenarioError(f"seed: got {seed!r}, expected a whole number from 0 on")
        if isinstance(exact, str):
            raise ScenarioError(f'exact: got "{exact}", expected a list of patterns')
        self.inner = inner
        self.traffic: list[Traffic] = []
        self._tables = uplink_of(compressor, error_feedback), downlink_of(downlink)
        self._seed, self._exact, self._tied = seed, tuple(exact), None if tied is None else read_tied(tied)
        self._session: Session | None = None
        self._train: Exchange | None = None
        self._evaluate: Exchange | None = None
        self._grid: Grid | None = None
        self._timeout: float | None = 3600.0
        self._notices = Notices()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Flower's own loop over rounds, with this strategy."""
        self._timeout = timeout
        if type(self.inner).start is not Strategy.start:
            self._notices.warn("start", f"{type(self.inner).__name__} has a start() of its own, which is not used")
        return super().start(grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn)

    def summary(self) -> None:
        """Log what is compressed how, and the inner strategy's summary."""
        uplink, downlink = self._tables
        LOG.info("\t├──> Compression by fedsgd:")
        LOG.info("\t│\t├── Uplink: %s, error feedback: %s", uplink.compressor, uplink.error_feedback)
        LOG.info("\t│\t└── Downlink: %s, %s", downlink.policy, downlink.compressor)
        self.inner.summary()

    # ------------------------------------------------------------------------------------------------------------- training

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """The inner strategy's messages, with ours in the place of the model. NonFiniteError for a model that is not finite."""
        self._grid, self._train = grid, None
        messages = list(self.inner.configure_train(server_round, arrays, config, grid))
        if messages:
            session = self._session_from(arrays)
            if session is None:
                return messages
            weighted_by = _setting(self.inner, "weighted_by_key", "num-examples")
            exchange = Exchange(server_round, "train", arrays, self._notices)
            exchange.write(messages, lambda contents, key: session.train(contents, arrays, key, weighted_by))
            for text in session.find_warnings(self.inner, len([*grid.get_node_ids()])):
                self._notices.warn(text.partition(":")[0], text)
            self._train = exchange
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What the inner strategy makes of the replies, and what the next round begins from: where the downlink loses
        something, the model that clients will have. NonFiniteError if that is not finite."""
        session, exchange = self._session, self._train
        if session is None or exchange is None:
            return self.inner.aggregate_train(server_round, replies)
        self._train = None
        settled, accepted = self._settle(session, exchange, replies)
        arrays, metrics = self.inner.aggregate_train(server_round, settled)
        if session.is_over:
            return self._follow_ties(session, exchange, arrays), metrics
        for kind, text in session.find_irregular().items():
            self._notices.warn(kind, text)
        problem = None if arrays is None else session.model.problem(arrays)
        if problem is not None:
            self._notices.warn("model", f"{problem}: the strategy has made another model, which begins anew")
            return arrays, metrics
        if arrays is not None and (unequal := session.model.unequal(arrays)):
            last = f'clients are sent the value of "{unequal[0][-1]}", which a module loads last'
            self._notices.warn(
                "unequal", f"the strategy makes {name_pair(unequal)} differ, which are one tensor so far: {last}"
            )
        return session.moved(arrays, accepted), metrics

    def _follow_ties(self, session: Session, exchange: Exchange, arrays: ArrayRecord | None) -> ArrayRecord | None:
        """Begin a session in which other names are one tensor, and return the arrays that it begins with."""
        for what, change in describe_changes(session.groups, session.ties.groups).items():
            self._notices.warn(what, change)
        if arrays is not None and session.model.problem(arrays) is not None:
            return arrays
        if arrays is not None:
            session.check_finite(arrays)
        after = self._begin(exchange.arrays if arrays is None else arrays, session.ties)
        return arrays if arrays is None or after is None else after.with_weights(arrays, after.server.weights)

    def _session_from(self, arrays: ArrayRecord) -> Session | None:
        session = self._session
        if session is None or session.model.problem(arrays) is not None:
            groups = guess_ties(arrays, self._exact) if self._tied is None else tie_by_name(self._tied, arrays)
            return self._begin(arrays, TieState(groups))
        if session.model.unequal(arrays):
            session.ties.keep_equal(session.model.values(arrays))
        if session.is_over:
            return self._begin(arrays, session.ties)
        session.go_on_from(arrays)
        return session

    def _begin(self, arrays: ArrayRecord, ties: TieState) -> Session | None:
        """Begin a session with these arrays; None, and messages go as they are, if nothing in them can be compressed."""
        model = arranged(arrays, self._exact, ties.groups)
        if model is None:
            self._session = None
            text = f"no array of the model can be compressed: {describe_aside(arrays, arrays) or 'it has none'}"
            self._notices.warn("nothing", f"{text}; messages go as they are")
            return None
        previous = None if self._session is None else self._session.terms
        terms = begin_terms(*self._tables, model, self._seed, previous)
        self._session = Session(terms, arrays, ties)
        LOG.info("fedsgd: %d arrays of %s numbers are compressed", len(model.layout.names), f"{model.layout.size:,}")
        LOG.info("fedsgd: %s", describe_state(terms))
        if model.types:
            LOG.info("fedsgd: %s are compressed as float32 and returned in their own types", describe_types(model))
        if model.tied:
            LOG.info("fedsgd: %d tensors have several names and are sent once: %s", len(model.tied), name_pair(model.tied))
        if model.aside:
            LOG.info("fedsgd: %d arrays travel as they are: %s", len(model.aside), describe_aside(arrays, model.aside))
        return self._session

    # ----------------------------------------------------------------------------------------------------------- evaluation

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """The inner strategy's messages. The model goes the way of the downlink there too, if it is the one that the
        coming round will begin from."""
        self._grid, self._evaluate = grid, None
        messages = list(self.inner.configure_evaluate(server_round, arrays, config, grid))
        session = self._session
        if messages and session is not None and session.goes_on_from(arrays):
            exchange = Exchange(server_round, "evaluate", arrays, self._notices)
            exchange.write(messages, lambda contents, key: session.evaluate(contents, arrays, key))
            self._evaluate = exchange
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """What the inner strategy makes of the replies."""
        session, exchange = self._session, self._evaluate
        if session is None or exchange is None:
            return self.inner.aggregate_evaluate(server_round, replies)
        self._evaluate = None
        settled, _ = self._settle(session, exchange, replies)
        return self.inner.aggregate_evaluate(server_round, settled)

    def _settle(self, session: Session, exchange: Exchange, replies: Iterable[Message]) -> tuple[list[Message], list[int]]:
        """Return the replies as they would be uncompressed, and the nodes whose updates are in them; count the bytes."""
        assert self._grid is not None
        settled, accepted = exchange.settle(session, replies, self._grid, self._timeout)
        if exchange.contents:
            self.traffic.append(exchange.traffic())
            LOG.info("fedsgd: %s", self.traffic[-1])
        return settled, accepted


def _setting(strategy: Any, name: str, default: str) -> str:
    """Of a strategy, or of the one that it wraps."""
    while strategy is not None:
        if isinstance(found := getattr(strategy, name, None), str):
            return found
        strategy = getattr(strategy, "strategy", None)
    return default
