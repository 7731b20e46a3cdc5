"""The tasks that a run spawns. Their ids follow from the step that spawns them, so that a step that is executed again
spawns nothing twice.
"""

import uuid
from collections.abc import Callable, Collection, Sequence
from typing import Any

from factorial._core.text import with_article
from factorial.agent.lifecycle.definition import Spawnable
from factorial.agent.lifecycle.host import Child
from factorial.agent.lifecycle.run_state import RunState
from factorial.context import AgentContext, Batch
from factorial.errors import ConfigError

__all__ = ["spawn_children"]

_MOST_CHILDREN = 10_000
"""Tasks that one call may spawn."""


async def spawn_children(
    state: RunState[Any],
    origin: str,
    count: Callable[[str], int],
    agent: object,
    contexts: Sequence[AgentContext],
    *,
    as_batch: bool,
) -> Batch:
    """Spawn a task of `agent` for each of `contexts`. `origin` names the step, or the place in the run; `count` numbers
    its spawns. Raises `ContextError` for a context that does not fit the agent, and spawns nothing then."""
    _check(agent, contexts, "spawn_child_tasks" if as_batch else "spawn_child_task")
    assert isinstance(agent, Spawnable)
    accepted = [agent.accepted_payload(context) for context in contexts]
    # The time at which the run began distinguishes it from an earlier run of a task with the same id.
    place = f"{origin}:{state.started_at.isoformat()}:spawn#{count(f'spawn:{origin}')}"
    task_ids = [_id(f"{place}:{number}") for number in range(len(contexts))]
    children = [Child(task_id, agent, context) for task_id, context in zip(task_ids, accepted, strict=True)]
    batch = Batch(_id(place), task_ids)
    if children:
        await state.host.spawn(batch.id if as_batch else "", children)
    return batch


def _check(agent: object, contexts: object, called: str) -> None:
    if isinstance(agent, type) or not isinstance(agent, Spawnable):
        raise ConfigError(f"{called}: agent={agent!r}: give the agent itself")
    if isinstance(contexts, AgentContext) or not isinstance(contexts, Collection):
        raise ConfigError(
            f"spawn_child_tasks: payloads are {with_article(type(contexts).__name__)}: give a list of contexts, or "
            "use spawn_child_task"
        )
    if len(contexts) > _MOST_CHILDREN:
        raise ConfigError(f"{len(contexts)} children at once, and {_MOST_CHILDREN} is the most: spawn them in parts")


def _id(place: str) -> str:
    return uuid.uuid5(uuid.NAMESPACE_OID, place).hex
