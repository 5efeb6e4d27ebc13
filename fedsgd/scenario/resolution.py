"""Resolution of settings: scheme and aggregator of the uplink, and the downlink, which the settings of a scenario describe."""

from __future__ import annotations

from dataclasses import dataclass

from fedsgd.aggregation import Aggregator, select_aggregator
from fedsgd.compression import CompressionOperator, CompressionScheme, ErrorFeedback, MemorylessScheme, StaleResidualPolicy
from fedsgd.config.component import FieldError
from fedsgd.federation.downlink import ModelBroadcast
from fedsgd.scenario.parsing import errors_in_section
from fedsgd.scenario.sections import DownlinkConfig, ServerConfig, UplinkConfig


@dataclass(frozen=True)
class ResolvedUplink:
    """Uplink of a federation.

    Attributes:
        scheme: scheme that compresses the clients' updates.
        aggregator: rule that combines the updates of a round.
    """

    scheme: CompressionScheme
    aggregator: Aggregator


def resolve_uplink(uplink: UplinkConfig, server: ServerConfig) -> ResolvedUplink:
    """Return the scheme and the aggregator that the settings of uplink and server describe.

    Args:
        uplink: compressor, and policy for its residual.
        server: settings of the server, of which only the aggregator is used.

    Raises:
        ScenarioError: compressor, policy and aggregator do not belong together; the message begins with the dotted key.
    """
    with errors_in_section("uplink"):
        scheme = build_scheme(uplink)
    with errors_in_section("server"):
        return ResolvedUplink(scheme, select_aggregator(server.aggregator, scheme))


def build_scheme(uplink: UplinkConfig) -> CompressionScheme:
    """Return the compressor of an uplink as a scheme, with the policy for its residual.

    Args:
        uplink: compressor, and policy for its residual.

    Raises:
        FieldError: the compressor and the policy do not belong together.
    """
    compressor, policy = uplink.compressor, uplink.error_feedback
    try:
        if uplink.feedback_decay != 1.0 and (policy == "none" or isinstance(compressor, CompressionScheme)):
            cause = (
                'error_feedback = "none"' if policy == "none" else f"{compressor.name}, which has a residual rule of its own"
            )
            raise FieldError("uplink", "feedback_decay", f"got {uplink.feedback_decay:g} with {cause}, expected 1")
        if isinstance(compressor, CompressionScheme):
            scheme = compressor
            if policy != "none" and not scheme.residual_entries:
                problem = f'got "{policy}", expected "none": the state of {scheme.name} is not a residual'
                raise FieldError("uplink", "error_feedback", problem)
        elif isinstance(compressor, CompressionOperator):
            scheme = MemorylessScheme(compressor) if policy == "none" else ErrorFeedback(compressor, uplink.feedback_decay)
        else:
            raise FieldError("uplink", "compressor", f"{compressor.name} is neither an operator nor a scheme")
        if policy == "none" or policy == "persist":
            return scheme
        return StaleResidualPolicy(scheme, policy, uplink.residual_factor, uplink.residual_rounds)
    except FieldError as error:
        field = error.field if error.owner == "uplink" else "error_feedback"
        raise FieldError("uplink", field, error.problem) from None


def build_downlink(downlink: DownlinkConfig) -> ModelBroadcast:
    """Return policy, compressor and history length as the federation uses them.

    Args:
        downlink: settings of the downlink.
    """
    return ModelBroadcast(downlink.policy, downlink.compressor, downlink.remember)
