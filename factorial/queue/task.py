"""`Task`, `TaskStatus` and their kin by the path that nfactorial 0.1.x had for them."""

from factorial.context import Batch
from factorial.task import Task, TaskMetadata, TaskStatus

__all__ = ["Batch", "Task", "TaskMetadata", "TaskStatus"]
