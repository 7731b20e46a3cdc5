"""Tasks by the path that nfactorial 0.1.x had for them. New programs import `factorial`.

Its functions over a Redis client are gone; who asks for one is told which method of the `Orchestrator` to use.
"""

from typing import NoReturn

from factorial.queue.task import Batch, Task, TaskMetadata, TaskStatus

__all__ = ["Batch", "Task", "TaskMetadata", "TaskStatus"]

_INSTEAD = {
    "cancel_task": "orchestrator.cancel_task",
    "complete_deferred_tool": "orchestrator.complete_deferred_tool",
    "enqueue_task": "orchestrator.enqueue_task",
    "get_task_agent": "orchestrator.get_task_agent",
    "get_task_data": "orchestrator.get_task_data",
    "get_task_status": "orchestrator.get_task_status",
    "get_task_steering_messages": 'orchestrator.get_task_data(...)["payload"]["messages"]',
    "maintenance_loop": "orchestrator.run()",
    "steer_task": "orchestrator.steer_task",
    "worker_loop": "orchestrator.run()",
}


def __getattr__(name: str) -> NoReturn:
    if name in _INSTEAD:
        raise ImportError(f"factorial.queue.{name} is gone: use {_INSTEAD[name]}; see MIGRATION.md")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
