"""The tasks that a run spawns. Their ids follow from the step that spawns them, so that a step that is executed again
spawns nothing twice.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from factorial._core.text import with_article
from factorial.agent.lifecycle.definition import Spawnable
from factorial.agent.lifecycle.host import Child, SpawnedBatch
from factorial.agent.lifecycle.run_state import RunState
from factorial.context import AgentContext, Batch, BatchMetadata
from factorial.errors import ConfigError
from factorial.task import batch_task_ids, derived_id

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
    task_ids = batch_task_ids(place, len(contexts))
    children = [Child(task_id, agent, context) for task_id, context in zip(task_ids, accepted, strict=True)]
    batch_id, execution_ctx = derived_id(place), state.execution_ctx
    if children:
        await state.host.spawn(SpawnedBatch(batch_id, place, agent.max_turns or 0) if as_batch else None, children)
    metadata = BatchMetadata(
        execution_ctx.owner_id,
        total_tasks=len(children),
        max_progress=len(children) * (agent.max_turns or 1),
        status="active" if children else "completed",
        parent_id=execution_ctx.task_id,
    )
    return Batch(batch_id, task_ids, metadata)


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
