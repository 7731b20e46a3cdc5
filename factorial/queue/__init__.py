"""Tasks by the path that nfactorial 0.1.x had for them. New programs import `factorial`.

Its functions over a Redis client (`enqueue_task`, `cancel_task`, `steer_task`, `get_task_data` and the others) are
methods of the `Orchestrator`.
"""

from factorial.queue.task import Batch, Task, TaskMetadata, TaskStatus

__all__ = ["Batch", "Task", "TaskMetadata", "TaskStatus"]
