"""Metrics of the agents, as a client asks for them."""

from collections.abc import Awaitable, Callable

from factorial.agent.agent import BaseAgent
from factorial.client.options import config_or_default
from factorial.config import MetricsTimelineConfig
from factorial.errors import ConfigError
from factorial.mailbox.script import Scripts
from factorial.mailbox.views.metrics import Metrics, read_metrics

__all__ = ["metrics_of"]


async def metrics_of(
    connect: Callable[[], Awaitable[Scripts]],
    agent: object,
    timeline: MetricsTimelineConfig | None,
    default: MetricsTimelineConfig,
) -> Metrics:
    """The metrics of `agent`, which is an agent, a name, or None for all. Raises `ConfigError`."""
    name: object = agent.name if isinstance(agent, BaseAgent) else agent
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"get_metrics(agent={name!r}): give an agent, or the name of one")
    view = default
    if timeline is not None:
        view = config_or_default("get_metrics", "timeline", timeline, MetricsTimelineConfig)
    return await read_metrics(await connect(), view, name)
