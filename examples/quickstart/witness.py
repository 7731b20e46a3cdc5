"""A witness outside of Factorial: a file with a line for each model call and tool call that was really made.

The agent in the worker processes writes it, and the demo reads it. It does not depend on leases, journals or events.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from factorial import ExecutionContext

__all__ = ["FILE_VARIABLE", "MODEL_CALL", "Execution", "note", "testimony"]

FILE_VARIABLE = "QUICKSTART_WITNESS"
"""The environment variable that names the file. Without it, nothing is written."""
MODEL_CALL = "model call"


@dataclass(frozen=True)
class Execution:
    """One execution of a call. `call` is MODEL_CALL, or the id of a tool call."""

    task_id: str
    turn: int
    call: str
    process: str
    pid: int

    @property
    def identity(self) -> tuple[str, int, str]:
        """The call, without the process that executes it."""
        return self.task_id, self.turn, self.call


def note(execution: ExecutionContext, turn: int, call: str) -> None:
    """Record that `call` is about to be made in this process."""
    if file := os.environ.get(FILE_VARIABLE):
        line = json.dumps(asdict(Execution(execution.task_id, turn, call, execution.process, os.getpid())))
        with open(file, "a", encoding="utf-8") as diary:  # one short write, so lines of two processes do not mix
            diary.write(line + "\n")


def testimony(file: Path) -> list[Execution]:
    """All executions so far, in order."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [Execution(**json.loads(line)) for line in lines]
