"""`Task`, `TaskStatus`, `TaskMetadata` and `Batch` at their path of nfactorial 0.1.x."""

from factorial.context import Batch
from factorial.task import Task, TaskMetadata, TaskStatus

__all__ = ["Batch", "Task", "TaskMetadata", "TaskStatus"]
