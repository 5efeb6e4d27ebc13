"""Compression in somebody's ServerApp: the half that runs on the server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedsgd.compression import Compressor
from fedsgd.errors import ScenarioError
from fedsgd.flower.app.array_layout import (
    build_array_layout,
    describe_dtypes,
    describe_exact_arrays,
    guess_ties,
    resolve_tied_groups,
)
from fedsgd.flower.app.client_state import create_settings, describe_state
from fedsgd.flower.app.inner_strategy import (
    DEFAULT_TIMEOUT,
    InnerMethods,
    WrappingStrategy,
    find_outer_strategies,
    find_setting,
    find_timeout,
    iterate_strategies,
)
from fedsgd.flower.app.privacy import (
    ClippingNorm,
    check_outer_strategies,
    clip_replies,
    find_clipping_norms,
    is_private,
    require_memoryless,
)
from fedsgd.flower.app.robustness import describe_sparsity
from fedsgd.flower.app.session import CompressionSession
from fedsgd.flower.app.settings import parse_downlink, parse_uplink
from fedsgd.flower.app.strategy_round import LOG, StrategyRound, WarningLog
from fedsgd.flower.app.tied_weights import TieState, describe_changes, describe_pair, parse_tied_groups
from fedsgd.flower.app.traffic import RoundTraffic, describe_total

DEFAULT_EXACT_PATTERNS = ("*running_mean", "*running_var", "*num_batches_tracked")
"""Names of batch norm's statistics: a compressed variance might be negative."""


class CompressedStrategy(WrappingStrategy):
    """Any strategy of Flower's message API, with compressed updates, if the ClientApp has `mods=[compression_mod()]`.

    The inner strategy's own `start`, attributes and methods stay in use: `strategy.name` is `inner.name` unless it is a name of
    this class. For every reply, `inner` sees the model that it sent plus the update that arrived. A subclass sets its own
    attributes before `super().__init__()`; later ones are set on `inner`.

    Attributes:
        inner: the inner strategy.
        traffic: bytes that crossed, round by round.

    **Tied weights.** A tensor with several names (or a module that is registered twice) is sent once and restored under all
    names. Names begin as one tensor where their initial arrays are equal and not constant. A reply that contradicts this
    travels uncompressed, and the next round begins anew, with a warning; `tied_groups` avoids that ([] for none, or the result
    of
    `fedsgd.flower.tied_names` for a module). A reply in which an array is the transpose or some rows of a different one is
    refused: name both in `lossless`. Other views of the same memory are not found: name them there, too.

    **Differential privacy.** Flower's wrappers belong inside: `CompressedStrategy(DifferentialPrivacy...(FedAvg(), ...))`.
    Around a CompressedStrategy they are refused, because they would clip compressed messages. Server-side wrappers inside clip
    the decoded updates. A client-side wrapper sends a norm under Flower's key `clipping_norm`; then each decoded update is
    clipped once more before `inner` gets it. Its norm counts all arrays of the reply, `lossless` arrays too, in float64, but
    not
    those without dimensions (a batch counter), which Flower's mods do not shorten. A shorter update keeps all its bits; an
    update without a norm is an error of its node. Flower's mods `fixedclipping_mod`, `adaptiveclipping_mod` and `LocalDpMod`
    stand behind ours, in `@app.train(mods=[fixedclipping_mod])`: in ClientApp(mods=[...]) they refuse evaluations, with plain
    Flower too. Compression after the noise of `LocalDpMod` keeps its guarantee. Error feedback and compressors with a memory
    are refused, unless `dp_error_feedback` is set. SecAgg+ cannot work: its masks cancel in sums of integers.

    **Robust strategies.** `FedMedian`, `FedTrimmedAvg` and `Bulyan` learn next to nothing from sparse updates, because a median
    of mostly zeros is zero. They learn almost as without compression with "natural", "eden", "drive", "qsgd" with many levels,
    "top-k" with a density of 0.5 and error feedback, and "dense" with bfloat16 values. `Krum` and `MultiKrum` use few updates,
    so the errors of sparse unbiased compressors like "rand-k" are hardly averaged. The log warns of both.

    **Types.** Arrays of float16 and float64 are compressed in float32 and returned in their own types: a float64 is rounded to
    24 bits. Messages of a model without floats, and arrays of a reply that the model does not have, cross as they are.

    **Replies.** A client's reply counts as received once `inner` has made a model, even if `inner` left the reply out. A reply
    that cannot be read is an error of its node, and the client keeps its residual. Arrays that the caller changes between
    rounds are sent whole. A coordinate that no client changed, and that `inner` changes by no more than the rounding of a mean,
    is not sent. A node that is started again without a key of its own (node authentication) is a new node for Flower, and
    begins anew.
    """

    def __init__(
        self,
        inner: Strategy,
        compressor: str | Mapping[str, Any] | Compressor = "top-k",
        *,
        error_feedback: str = "none",
        downlink: str | Mapping[str, Any] | None = None,
        seed: int = 0,
        exact: Sequence[str] = DEFAULT_EXACT_PATTERNS,
        tied: Sequence[Sequence[str]] | None = None,
        dp_error_feedback: bool = False,
    ) -> None:
        """Check the settings. The log warns of settings that a compressor is not made for.

        Args:
            inner: strategy of `flwr.serverapp.strategy`, or a subclass.
            compressor: a name as in a scenario's `[uplink]`, a table with its settings, or a `Compressor`.
            error_feedback: "none", "persist", "decay" or "reset".
            downlink: a policy as in `[downlink]`, or a table; by default the whole model is sent, uncompressed.
            seed: seed of the randomness that both ends share.
            exact: patterns of the names of arrays that travel bit for bit, as do integers and arrays that are not finite.
            tied: groups of names that are one tensor each, like `[("embed.weight", "head.weight")]`.
            dp_error_feedback: True to allow clients to keep a part of an update for later rounds under differential privacy.

        Raises:
            ScenarioError: a setting is wrong, or the compressor does not give the strategy each client's arrays.
        """
        if not isinstance(inner, Strategy):
            raise ScenarioError(f"inner: got {inner!r}, expected a strategy of flwr.serverapp.strategy, like FedAvg()")
        if any(isinstance(part, CompressedStrategy) for part in iterate_strategies(inner)):
            raise ScenarioError("inner: got a CompressedStrategy, expected a strategy that is not compressed yet")
        if not isinstance(seed, int) or seed < 0:
            raise ScenarioError(f"seed: got {seed!r}, expected a whole number from 0 on")
        if isinstance(exact, str):
            raise ScenarioError(f'exact: got "{exact}", expected a list of patterns')
        if not isinstance(dp_error_feedback, bool):
            raise ScenarioError(f"dp_error_feedback: got {dp_error_feedback!r}, expected True or False")
        self.traffic: list[RoundTraffic] = []
        self._link_settings = parse_uplink(compressor, error_feedback), parse_downlink(downlink)
        self._seed, self._exact_patterns, self._tied_groups = (
            seed,
            tuple(exact),
            None if tied is None else parse_tied_groups(tied),
        )
        self._session: CompressionSession | None = None
        self._train_round: StrategyRound | None = None
        self._evaluate_round: StrategyRound | None = None
        self._grid: Grid | None = None
        self._timeout: float | None = DEFAULT_TIMEOUT
        self._warning_log = WarningLog()
        self._inner_methods = InnerMethods(inner)
        self._clipping_norms: dict[int, ClippingNorm] = {}
        self._is_private, self._allows_memory = is_private(inner), dp_error_feedback
        if self._is_private and not dp_error_feedback:
            require_memoryless(self._link_settings[0])
        super().__init__(inner)  # names that are set from here on are the inner strategy's

    def start(self, *args: Any, **kwargs: Any) -> Result:
        """Run the inner strategy's `start`, with compressed messages.

        Meanwhile, the methods that `start` calls on the inner object are this object's, which call the inner ones: the inner
        object's `vars` have five more items. A `start` of its own gets compressed messages from `self.configure_train()`,
        without their record of arrays.

        Args:
            *args: arguments of the inner `start`: `grid`, `initial_arrays` and more.
            **kwargs: keyword arguments of the inner `start`.

        Returns:
            The result of the inner `start`.
        """
        self._timeout, begun = find_timeout(self.inner.start, args, kwargs), len(self.traffic)
        with self._inner_methods.replace_methods(self):
            result = self.inner.start(*args, **kwargs)
        if type(self.inner).start is not Strategy.start and "configure_train" not in self._inner_methods.called_names:
            name = type(self.inner).__name__
            self._warning_log.warn("start", f"{name}.start() has not called self.configure_train(): nothing is compressed")
        if self.traffic[begun:]:
            LOG.info("fedsgd: %s", describe_total(self.traffic[begun:]))
        return result

    def summary(self) -> None:
        """Log the compression, and the inner strategy's summary."""
        uplink, downlink = self._link_settings
        LOG.info("\t├──> Compression by fedsgd:")
        LOG.info("\t│\t├── Uplink: %s, error feedback: %s", uplink.compressor, uplink.error_feedback)
        LOG.info("\t│\t└── Downlink: %s, %s", downlink.policy, downlink.compressor)
        self._inner_methods.call("summary")

    # ------------------------------------------------------------------------------------------------------------- training

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Return the inner strategy's messages, with the compressed model in the place of the model.

        Raises:
            NonFiniteError: the model is not finite.
            ScenarioError: a wrapper for differential privacy is around this strategy, or clients keep a part of their updates
                although a clipping norm is in force.
        """
        self._check_outer_strategies()
        self._grid, self._train_round = grid, None
        messages: list[Message] = self._inner_methods.call("configure_train", server_round, arrays, config, grid)
        self._clipping_norms = find_clipping_norms(messages)
        if self._clipping_norms and not self._allows_memory:
            require_memoryless(self._link_settings[0])
        if messages:
            session = self._get_session(arrays)
            self._train_round = StrategyRound(server_round, "train", arrays, self._warning_log)
            if session is None:
                self._train_round.compress_messages(messages, None)
                return messages
            weighted_by = find_setting(self.inner, "weighted_by_key", "num-examples")
            self._train_round.compress_messages(
                messages, lambda contents, key: session.compress_train_messages(contents, arrays, key, weighted_by)
            )
            allows_memory = self._allows_memory or not (self._clipping_norms or self._is_private)
            for text in session.find_warnings(self.inner, len([*grid.get_node_ids()]), allows_memory):
                self._warning_log.warn(text.partition(":")[0], text)
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """Return the result of the inner strategy. Where the downlink is lossy, return the model of the clients in it.

        Raises:
            NonFiniteError: the model is not finite.
            ScenarioError: a wrapper for differential privacy is around this strategy.
        """
        self._check_outer_strategies()
        session, exchange, self._train_round = self._session, self._train_round, None
        accepted: list[int] = []
        if exchange is not None:
            replies, accepted = self._decompress_replies(session, exchange, replies)
        settled, refused = self._clip_replies(replies)
        if session is None or exchange is None:
            return self._inner_methods.call("aggregate_train", server_round, settled)
        accepted = [node for node in accepted if node not in refused]
        sparse = describe_sparsity(self.inner, self._link_settings[0], session.measure_overlap(len(accepted)), len(accepted))
        if sparse is not None:
            self._warning_log.warn("sparse", sparse)
        if self._clipping_norms or self._is_private:
            session.mark_all_changed()
        result = self._inner_methods.call("aggregate_train", server_round, settled)
        if not isinstance(result, tuple | list):  # the model alone, for a start() of its own
            return self._finish_round(session, exchange, result, accepted)
        return self._finish_round(session, exchange, result[0], accepted), *result[1:]

    def _finish_round(
        self, session: CompressionSession, strategy_round: StrategyRound, arrays: ArrayRecord | None, accepted_nodes: list[int]
    ) -> ArrayRecord | None:
        """End the round with the inner strategy's model, and return the model of the next round."""
        if session.is_over:
            return self._restart_with_ties(session, strategy_round, arrays)
        for kind, text in session.find_irregularities().items():
            self._warning_log.warn(kind, text)
        problem = None if arrays is None else session.array_layout.find_mismatch(arrays)
        if problem is not None:
            self._warning_log.warn("model", f"{problem}: the strategy returned a different model; compression begins anew")
            return arrays
        if arrays is not None and (unequal := session.array_layout.find_unequal_groups(arrays)):
            last = f'clients are sent the value of "{unequal[0][-1]}", which a module loads last'
            self._warning_log.warn(
                "unequal", f"the strategy makes {describe_pair(unequal)} differ, which are one tensor so far: {last}"
            )
        return session.finish_round(arrays, accepted_nodes)

    def _check_outer_strategies(self) -> None:
        line = check_outer_strategies(find_outer_strategies(self), self.inner)
        if line is not None:
            self._warning_log.warn("outer", line)

    def _clip_replies(self, replies: Iterable[Message]) -> tuple[list[Message], set[int]]:
        """Return the replies as their clipping norms allow them, and the nodes whose replies are left out."""
        clipped, refused, line = clip_replies(self._clipping_norms, replies, self._link_settings[0].compressor.name)
        if line is not None:
            self._warning_log.warn("clipping", line)
        for node, reason in refused.items():
            LOG.warning("fedsgd: the reply of node %d is left out: %s", node, reason)
        return clipped, {*refused}

    def _restart_with_ties(
        self, session: CompressionSession, strategy_round: StrategyRound, arrays: ArrayRecord | None
    ) -> ArrayRecord | None:
        """Begin a session in which other names are one tensor, and return the arrays that it begins with."""
        for what, change in describe_changes(session.initial_groups, session.ties.groups).items():
            self._warning_log.warn(what, change)
        if arrays is not None and session.array_layout.find_mismatch(arrays) is not None:
            return arrays
        if arrays is not None:
            session.check_finite(arrays)
        after = self._start_session(strategy_round.arrays if arrays is None else arrays, session.ties)
        return arrays if arrays is None or after is None else after.write_weights(arrays, after.server.weights)

    def _get_session(self, arrays: ArrayRecord) -> CompressionSession | None:
        session = self._session
        if session is None or session.array_layout.find_mismatch(arrays) is not None:
            groups = (
                guess_ties(arrays, self._exact_patterns)
                if self._tied_groups is None
                else resolve_tied_groups(self._tied_groups, arrays)
            )
            return self._start_session(arrays, TieState(groups))
        if session.array_layout.find_unequal_groups(arrays):
            session.ties.split_unequal(session.array_layout.flatten_arrays(arrays))
        if session.is_over:
            return self._start_session(arrays, session.ties)
        session.set_model(arrays)
        return session

    def _start_session(self, arrays: ArrayRecord, ties: TieState) -> CompressionSession | None:
        """Begin a session with these arrays; None, and messages go as they are, if nothing in them can be compressed."""
        model = build_array_layout(arrays, self._exact_patterns, ties.groups)
        if model is None:
            self._session = None
            text = f"no array of the model can be compressed: {describe_exact_arrays(arrays, arrays) or 'it has none'}"
            self._warning_log.warn("nothing", f"{text}; messages go as they are")
            return None
        previous = None if self._session is None else self._session.settings
        terms = create_settings(*self._link_settings, model, self._seed, previous)
        self._session = CompressionSession(terms, arrays, ties)
        LOG.info("fedsgd: %d arrays of %s numbers are compressed", len(model.layout.names), f"{model.layout.size:,}")
        LOG.info("fedsgd: %s", describe_state(terms))
        if model.dtypes:
            LOG.info("fedsgd: %s are compressed as float32 and returned in their own types", describe_dtypes(model))
        if model.tied_groups:
            LOG.info(
                "fedsgd: %d tensors have several names and are sent once: %s",
                len(model.tied_groups),
                describe_pair(model.tied_groups),
            )
        if model.exact_shapes:
            LOG.info(
                "fedsgd: %d arrays travel as they are: %s",
                len(model.exact_shapes),
                describe_exact_arrays(arrays, model.exact_shapes),
            )
        return self._session

    # ----------------------------------------------------------------------------------------------------------- evaluation

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Return the inner strategy's messages, with a compressed model if it is the model of the coming round."""
        self._grid, self._evaluate_round = grid, None
        messages: list[Message] = self._inner_methods.call("configure_evaluate", server_round, arrays, config, grid)
        session = self._session
        if messages:
            self._evaluate_round = StrategyRound(server_round, "evaluate", arrays, self._warning_log)
            if session is not None and session.matches(arrays):
                self._evaluate_round.compress_messages(
                    messages, lambda contents, key: session.compress_evaluate_messages(contents, arrays, key)
                )
            else:
                self._evaluate_round.compress_messages(messages, None)
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the inner strategy's metrics."""
        exchange, self._evaluate_round = self._evaluate_round, None
        if exchange is not None:
            replies, _ = self._decompress_replies(self._session, exchange, replies)
        metrics: MetricRecord | None = self._inner_methods.call("aggregate_evaluate", server_round, replies)
        return metrics

    def _decompress_replies(
        self, session: CompressionSession | None, strategy_round: StrategyRound, replies: Iterable[Message]
    ) -> tuple[list[Message], list[int]]:
        """Return the replies as they would be uncompressed, and the nodes whose updates are in them; count the bytes."""
        assert self._grid is not None
        settled, accepted = strategy_round.decompress_replies(session, replies, self._grid, self._timeout)
        self.traffic.append(strategy_round.traffic)
        LOG.info("fedsgd: %s", strategy_round.traffic)
        return settled, accepted
