"""Strategy wrapper that compresses the messages of a user's ServerApp."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedsgd.compression import Compressor
from fedsgd.config.argument_checks import check_flag, resolve_whole_number
from fedsgd.errors import ScenarioError
from fedsgd.flower.app.array_layout import (
    build_array_layout,
    describe_dtypes,
    describe_exact_arrays,
    guess_ties,
    parse_exact_patterns,
    resolve_tied_groups,
)
from fedsgd.flower.app.class_check import ClassCheck
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


class CompressedStrategy(WrappingStrategy):
    """Wrapper that adds compressed updates to any strategy of Flower's message API.

    The ClientApp needs `mods=[compression_mod()]`. The inner strategy's own `start`, attributes and methods stay in use:
    `strategy.name` is `inner.name` unless this class has the name. Each reply that `inner` gets is the sent model plus the
    decoded update. A subclass sets its own attributes before `super().__init__()`; later assignments set attributes of `inner`.

    **Tied weights.** A tensor with several names is sent once and restored under all names. Without `tied`, initial arrays that
    are equal and not constant are assumed to be one tensor. A reply that contradicts the groups is sent uncompressed, and the
    next round starts a new session, with a warning. To avoid a wrong assumption, set `tied` to the result of
    `fedsgd.flower.tied_names`, or to [] for none. A reply in which one array is the transpose or a range of rows of another
    array is refused. Other views of the same memory are not detected. Put the names of such arrays into `exact`.

    **Differential privacy.**

    - Flower's wrappers belong inside: `CompressedStrategy(DifferentialPrivacy...(FedAvg(), ...))`. Outer wrappers are refused,
      because they would clip compressed messages. Server-side wrappers inside clip the decoded updates.
    - A client-side wrapper sends a norm under Flower's key `clipping_norm`. A decoded update with a larger norm is clipped once
      more before `inner` gets the update. The norm counts all arrays of the reply in float64, including exact arrays, but no
      arrays without dimensions (a batch counter), which Flower's mods skip. An update without a norm is an error of its node.
    - Flower's mods `fixedclipping_mod`, `adaptiveclipping_mod` and `LocalDpMod` belong behind `compression_mod`, in
      `@app.train(mods=[fixedclipping_mod])`. In `ClientApp(mods=[...])` these mods refuse evaluations, also without fedsgd.
    - Compression after the noise of `LocalDpMod` preserves the guarantee of `LocalDpMod`. Error feedback and compressors with
      memory are refused unless `dp_error_feedback` is set. SecAgg+ masks vectors of integers and is refused.

    **Robust strategies.** `FedMedian`, `FedTrimmedAvg` and `Bulyan` learn almost nothing from sparse updates, because a median
    of mostly zeros is zero. Good compressors for these strategies are "natural", "eden", "drive", "qsgd" with many levels,
    "top-k" with a density of 0.5 and error feedback, and "dense" with bfloat16 values. `Krum` and `MultiKrum` average too few
    updates to average out the errors of sparse unbiased compressors like "rand-k". The log warns of both cases.

    **Types.** Arrays of float16 and float64 are compressed in float32 and returned in their own types: a float64 is rounded to
    24 bits. A model without floats is sent as it is, and so are a reply's arrays that the model does not have.

    **Replies.** A client's reply counts as received when `inner` returns a model, even if `inner` did not use the reply. A
    reply that cannot be read is an error of its node, and the client keeps its residual. If the caller changes arrays between
    rounds, the whole model is sent. A coordinate is not sent if no client changed it and `inner` changed it by no more than the
    rounding of a mean. Without node authentication, a restarted node is a new node for Flower and starts without state.

    Attributes:
        inner: inner strategy, which cannot be replaced.
        traffic: bytes of each training and each evaluation, in order.

    >>> from flwr.serverapp.strategy import FedAvg
    >>> from fedsgd.flower import CompressedStrategy
    >>> strategy = CompressedStrategy(FedAvg(), {"name": "top-k", "density": 0.01}, error_feedback="persist")
    >>> type(strategy.inner).__name__, strategy.traffic
    ('FedAvg', [])
    """

    def __init__(
        self,
        inner: Strategy,
        compressor: str | Mapping[str, Any] | Compressor = "top-k",
        *,
        error_feedback: str = "none",
        downlink: str | Mapping[str, Any] | None = None,
        seed: int = 0,
        exact: Sequence[str] = (),
        tied: Sequence[Sequence[str]] | None = None,
        dp_error_feedback: bool = False,
    ) -> None:
        """Check the settings. Training logs a warning for settings that do not suit the compressor.

        Args:
            inner: strategy of `flwr.serverapp.strategy`, or of a subclass.
            compressor: name as in a scenario's `[uplink.compressor]`, table with the name and settings, or `Compressor`. A
                class outside fedsgd has the name "my_package.my_module:MyClass" and is allowed by `compression_mod(allow=...)`.
            error_feedback: "none", "persist", "decay" or "reset".
            downlink: policy as in `[downlink]`, or a table; by default the whole model is sent, uncompressed.
            seed: seed of the randomness that server and clients share, at least 0.
            exact: name patterns, like "*.mask", of arrays that are sent bit for bit. The running statistics of batch norms, and
                all arrays that are not finite floats, always are.
            tied: groups of names that are one tensor each, like `[("embed.weight", "head.weight")]`; None to detect them.
            dp_error_feedback: True to allow error feedback and compressors with memory under differential privacy.

        Raises:
            ScenarioError: a setting is wrong, or the compressor's server does more than decode updates.
        """
        if not isinstance(inner, Strategy):
            raise ScenarioError(f"inner: got {inner!r}, expected a strategy of flwr.serverapp.strategy, like FedAvg()")
        if any(isinstance(part, CompressedStrategy) for part in iterate_strategies(inner)):
            raise ScenarioError("inner: got a CompressedStrategy, expected a strategy without compression")
        self._seed = resolve_whole_number("seed", seed, 0, 2**63 - 1)
        check_flag("dp_error_feedback", dp_error_feedback)
        self.traffic: list[RoundTraffic] = []
        self._link_settings = parse_uplink(compressor, error_feedback), parse_downlink(downlink)
        self._class_check = ClassCheck.from_settings(*self._link_settings)
        self._exact_patterns = parse_exact_patterns(exact)
        self._tied_groups = None if tied is None else parse_tied_groups(tied)
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
        super().__init__(inner)  # later assignments set attributes of the inner strategy

    def start(self, *args: Any, **kwargs: Any) -> Result:
        """Run the inner strategy's `start` with compressed messages.

        During the call, this object's methods replace the methods that `start` calls on the inner object, and call the original
        methods. For this purpose, `vars(inner)` has five additional items. If `inner` defines its own `start`, its calls of
        `self.configure_train()` return compressed messages, without a record of arrays.

        Args:
            *args: arguments of the inner `start`: `grid`, `initial_arrays` and more.
            **kwargs: keyword arguments of the inner `start`.
        """
        self._timeout, n_previous = find_timeout(self.inner.start, args, kwargs), len(self.traffic)
        with self._inner_methods.replace_methods(self):
            result = self.inner.start(*args, **kwargs)
        if type(self.inner).start is not Strategy.start and "configure_train" not in self._inner_methods.called_names:
            name = type(self.inner).__name__
            self._warning_log.warn("start", f"{name}.start() did not call self.configure_train(): nothing was compressed")
        if self.traffic[n_previous:]:
            LOG.info("fedsgd: %s", describe_total(self.traffic[n_previous:]))
        return result

    def summary(self) -> None:
        """Log the settings of the compression and the inner strategy's summary."""
        uplink, downlink = self._link_settings
        LOG.info("\t├──> Compression by fedsgd:")
        LOG.info("\t│\t├── Uplink: %s, error feedback: %s", uplink.compressor, uplink.error_feedback)
        LOG.info("\t│\t└── Downlink: %s, %s", downlink.policy, downlink.compressor)
        self._inner_methods.call("summary")

    # ------------------------------------------------------------------------------------------------------------- training

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Return the inner strategy's messages. Each node's first message with the model is compressed.

        Args:
            server_round: Flower's number of the round.
            arrays: the model.
            config: configuration that the strategy sends to nodes.
            grid: Flower's grid.

        Raises:
            NonFiniteError: the model is not finite.
            ModelError: a message of the inner strategy has a record with a name that fedsgd uses.
            ScenarioError: a wrapper for differential privacy is around this strategy, or `tied` or a compressor does not fit
                the model, or a node lacks the class of a user's compressor or has another one. Or, without
                `dp_error_feedback`, `inner` sends a clipping norm and the compressor has memory.
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
            self._class_check.check_nodes(messages, grid, self._timeout)
            weighted_by = find_setting(self.inner, "weighted_by_key", "num-examples")
            self._train_round.compress_messages(
                messages, lambda contents, key: session.compress_train_messages(contents, arrays, key, weighted_by)
            )
            allows_memory = self._allows_memory or not (self._clipping_norms or self._is_private)
            for text in session.find_warnings(self.inner, len([*grid.get_node_ids()]), allows_memory):
                self._warning_log.warn(text.partition(":")[0], text)
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """Return the result of the inner strategy for the decompressed replies.

        Under the downlink policies "unbiased" and "error-feedback", the result has the model that clients will decode.

        Args:
            server_round: Flower's number of the round.
            replies: replies of the nodes.

        Raises:
            NonFiniteError: the model is not finite.
            ScenarioError: a wrapper for differential privacy is around this strategy.
        """
        self._check_outer_strategies()
        session, train_round, self._train_round = self._session, self._train_round, None
        accepted_nodes: list[int] = []
        if train_round is not None:
            replies, accepted_nodes = self._decompress_replies(session, train_round, replies)
        clipped_replies, refused_nodes = self._clip_replies(replies)
        if session is None or train_round is None:
            return self._inner_methods.call("aggregate_train", server_round, clipped_replies)
        accepted_nodes = [node for node in accepted_nodes if node not in refused_nodes]
        n_accepted = len(accepted_nodes)
        sparsity = describe_sparsity(self.inner, self._link_settings[0], session.measure_overlap(n_accepted), n_accepted)
        if sparsity is not None:
            self._warning_log.warn("sparse", sparsity)
        if self._clipping_norms or self._is_private:
            session.mark_all_changed()
        result = self._inner_methods.call("aggregate_train", server_round, clipped_replies)
        if not isinstance(result, tuple | list):  # a strategy with its own `start` may return the model alone
            return self._finish_round(session, train_round, result, accepted_nodes)
        return self._finish_round(session, train_round, result[0], accepted_nodes), *result[1:]

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
            self._warning_log.warn("model", f"the strategy returned a different model ({problem}): a new session starts")
            return arrays
        if arrays is not None and (unequal_groups := session.array_layout.find_unequal_groups(arrays)):
            text = f"{describe_pair(unequal_groups)} are one tensor, but the strategy returned different values"
            self._warning_log.warn("unequal", f'{text}: clients get the value of "{unequal_groups[0][-1]}"')
        return session.finish_round(arrays, accepted_nodes)

    def _check_outer_strategies(self) -> None:
        warning = check_outer_strategies(find_outer_strategies(self), self.inner)
        if warning is not None:
            self._warning_log.warn("outer", warning)

    def _clip_replies(self, replies: Iterable[Message]) -> tuple[list[Message], set[int]]:
        """Return the replies with clipped updates, and the nodes whose replies are discarded."""
        clipped_replies, reasons, warning = clip_replies(self._clipping_norms, replies, self._link_settings[0].compressor.name)
        if warning is not None:
            self._warning_log.warn("clipping", warning)
        for node, reason in reasons.items():
            LOG.warning("fedsgd: node %d: the reply is discarded: %s", node, reason)
        return clipped_replies, {*reasons}

    def _restart_with_ties(
        self, session: CompressionSession, strategy_round: StrategyRound, arrays: ArrayRecord | None
    ) -> ArrayRecord | None:
        """Start a session with the detected groups of tied names, and return the arrays of the next round."""
        for kind, text in describe_changes(session.initial_groups, session.ties.groups).items():
            self._warning_log.warn(kind, text)
        if arrays is not None and session.array_layout.find_mismatch(arrays) is not None:
            return arrays
        if arrays is not None:
            session.check_finite(arrays)
        new_session = self._start_session(strategy_round.arrays if arrays is None else arrays, session.ties)
        if arrays is None or new_session is None:
            return arrays
        return new_session.write_weights(arrays, new_session.server.weights)

    def _get_session(self, arrays: ArrayRecord) -> CompressionSession | None:
        """Return the session for a round with this model: a new session if layout or tied names changed."""
        session = self._session
        if session is None or session.array_layout.find_mismatch(arrays) is not None:
            if self._tied_groups is None:
                return self._start_session(arrays, TieState(guess_ties(arrays, self._exact_patterns)))
            return self._start_session(arrays, TieState(resolve_tied_groups(self._tied_groups, arrays)))
        if session.array_layout.find_unequal_groups(arrays):
            session.ties.split_unequal(session.array_layout.flatten_arrays(arrays))
        if session.is_over:
            return self._start_session(arrays, session.ties)
        session.set_model(arrays)
        return session

    def _start_session(self, arrays: ArrayRecord, ties: TieState) -> CompressionSession | None:
        """Start a session with this model; return None if none of its arrays can be compressed."""
        array_layout = build_array_layout(arrays, self._exact_patterns, ties.groups)
        if array_layout is None:
            self._session = None
            names = describe_exact_arrays(arrays, arrays) or "it has no arrays"
            text = f"no array of the model can be compressed ({names}): messages are sent uncompressed"
            self._warning_log.warn("nothing", text)
            return None
        previous_settings = None if self._session is None else self._session.settings
        settings = create_settings(*self._link_settings, array_layout, self._seed, previous_settings)
        self._session = CompressionSession(settings, arrays, ties)
        layout, tied_groups, exact_shapes = array_layout.layout, array_layout.tied_groups, array_layout.exact_shapes
        LOG.info("fedsgd: %d arrays with %s numbers are compressed", len(layout.names), f"{layout.size:,}")
        LOG.info("fedsgd: %s", describe_state(settings))
        if array_layout.dtypes:
            LOG.info("fedsgd: %s are compressed as float32 and returned in their own types", describe_dtypes(array_layout))
        if tied_groups:
            names = describe_pair(tied_groups)
            LOG.info("fedsgd: %d tensors have several names and are sent once: %s", len(tied_groups), names)
        if exact_shapes:
            names = describe_exact_arrays(arrays, exact_shapes)
            LOG.info("fedsgd: %d arrays are sent uncompressed: %s", len(exact_shapes), names)
        return self._session

    # ----------------------------------------------------------------------------------------------------------- evaluation

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Return the inner strategy's messages, with the compressed model if `arrays` is the model of the next round.

        Args:
            server_round: Flower's number of the round.
            arrays: the model.
            config: configuration that the strategy sends to nodes.
            grid: Flower's grid.

        Raises:
            ScenarioError: a node lacks the class of a user's compressor, or has another one.
        """
        self._grid, self._evaluate_round = grid, None
        messages: list[Message] = self._inner_methods.call("configure_evaluate", server_round, arrays, config, grid)
        session = self._session
        if messages:
            self._evaluate_round = StrategyRound(server_round, "evaluate", arrays, self._warning_log)
            if session is not None and session.matches(arrays):
                self._class_check.check_nodes(messages, grid, self._timeout)
                self._evaluate_round.compress_messages(
                    messages, lambda contents, key: session.compress_evaluate_messages(contents, arrays, key)
                )
            else:
                self._evaluate_round.compress_messages(messages, None)
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the inner strategy's metrics for the decompressed replies.

        Args:
            server_round: Flower's number of the round.
            replies: replies of the nodes.
        """
        evaluate_round, self._evaluate_round = self._evaluate_round, None
        if evaluate_round is not None:
            replies, _ = self._decompress_replies(self._session, evaluate_round, replies)
        metrics: MetricRecord | None = self._inner_methods.call("aggregate_evaluate", server_round, replies)
        return metrics

    def _decompress_replies(
        self, session: CompressionSession | None, strategy_round: StrategyRound, replies: Iterable[Message]
    ) -> tuple[list[Message], list[int]]:
        """Return the replies without compression, and the nodes whose updates are in these replies; log the bytes."""
        assert self._grid is not None
        restored_replies, accepted_nodes = strategy_round.decompress_replies(session, replies, self._grid, self._timeout)
        self.traffic.append(strategy_round.traffic)
        LOG.info("fedsgd: %s", strategy_round.traffic)
        return restored_replies, accepted_nodes
