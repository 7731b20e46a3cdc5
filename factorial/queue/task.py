"""`Task`, `TaskStatus`, `TaskMetadata`, `Batch` and `BatchMetadata` at their path of nfactorial 0.1.x."""

from factorial.context import Batch, BatchMetadata
from factorial.task import Task, TaskMetadata, TaskStatus

__all__ = ["Batch", "BatchMetadata", "Task", "TaskMetadata", "TaskStatus"]
