"""Tasks at their path of nfactorial 0.1.x. New programs use `factorial`.

The functions of 0.1.x that took a Redis client do not exist any more. To import one raises `ImportError`, which
names the method of `Orchestrator` to use.
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
