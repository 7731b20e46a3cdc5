"""Ready runs of an agent that has no wake token: no process is notified of them."""

from collections.abc import Iterable
from typing import Any

from factorial.mailbox.doctor.aggregates import about_wake
from factorial.mailbox.doctor.invariants import Finding
from factorial.mailbox.doctor.notes import served_agents
from factorial.mailbox.doctor.reader import Reader, text
from factorial.mailbox.doctor.rereading import unchanged
from factorial.mailbox.doctor.shared import Shared
from factorial.mailbox.doctor.tally import Tally

__all__ = ["confirmed_without_token"]

_READS, _PAUSE = 13, 1.0
"""A wake token may be missing for 12 s. A process that dies after taking it is reclaimed, workers with free slots look
for ready runs every 5 s, and maintenance adds the token every 10 s."""
_HEAD = 9
"""This many runs of a queue, and one more, are compared to see whether the queue moves."""


async def confirmed_without_token(reader: Reader, shared: Shared, tally: Tally, *, still: bool) -> list[Finding]:
    """Agents with ready runs or suspects, but without a wake token, whose queues do not move."""
    found = {
        agent: finding
        for agent, queued in tally.queued.items()
        for finding in about_wake(
            agent, queued["ready"], queued["suspects"],
            has_token=shared.wake.get(agent, False), passed=len(shared.passed.get(agent, ())),
        )
    }  # fmt: skip
    if still:
        return list(found.values())

    async def queues(agents: Iterable[str]) -> dict[str, Any]:
        return {agent: queues for agent in agents if (queues := await _queues_without_token(reader, agent))}

    # Without a process nobody takes a token. The first process looks for ready runs when it starts.
    served = [agent for agent in found if agent in served_agents(shared)]
    return [found[agent] for agent in await unchanged(served, queues, reads=_READS, pause=_PAUSE)]


async def _queues_without_token(reader: Reader, agent: str) -> Any:
    """The heads and lengths of the agent's queues; None if there is a token, or nothing is queued."""
    keys = reader.keys
    *queues, token, passed = await reader.ask([
        ("LRANGE", keys.ready(agent), 0, _HEAD), ("LLEN", keys.ready(agent)),
        ("LRANGE", keys.key("suspects", agent), 0, _HEAD), ("LLEN", keys.key("suspects", agent)),
        ("EXISTS", keys.wake(agent)), ("EXISTS", keys.key("passed", agent)),
    ])  # fmt: skip
    ready, suspects = ([text(id) for id in queue or ()] for queue in queues[::2])
    statuses = await reader.ask_of_all("run", ready or suspects, "HGET", "status")
    if token or (passed and not ready) or b"queued" not in statuses.values():
        return None
    return queues
