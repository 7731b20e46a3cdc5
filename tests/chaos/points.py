"""The agent of `agents.py`, in processes that strike themselves at a named point of a task's life: by a signal that the
test has chosen, exactly there.

    warrant(directory, task_id, "after the commit", turn=1)      SIGKILL; before the task is enqueued
    system.start(**{WARRANTS: str(directory)})

A warrant is a file, and is torn up before it is carried out: it strikes one process, once.
"""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factorial.mailbox.script import Argument, Scripts
from tests.chaos.agents import WorkContext, Worker, write

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

WARRANTS = "CHAOS_WARRANTS"

TURN_ENDED = "progress_update_run_turn_completed"
ACCEPTED = "commit"
"""What the witness is told of each commit that was accepted; its turn is the number of commits before it."""

CLAIMED, ASKING, ASKED, KEPT = "after the claim", "in a model call", "after the model call", "after a step"
IN_TOOL, BETWEEN, COMMITTING, COMMITTED = "in a tool", "between tools", "before the commit", "after the commit"


@dataclass(frozen=True)
class Stroke:
    """What was done, to whom, and when."""

    task_id: str
    point: str
    pid: int
    at: float


def warrant(directory: Path, task_id: str, point: str, turn: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the process that first comes to this point of the task be struck by the signal."""
    directory.mkdir(exist_ok=True)
    (directory / f"{task_id},{turn},{point}").write_text(str(int(number)))


def strokes(directory: Path) -> list[Stroke]:
    """All warrants that were carried out, in order."""
    found = [path.name.split(",") for path in directory.glob("*,*,*,*,*")]
    done = [Stroke(task_id, point, int(pid), float(at)) for task_id, _, point, pid, at in found]
    return sorted(done, key=lambda stroke: stroke.at)


def of_kept_turns(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`events`, without what was told of the end of a turn that was lost before its commit, and was taken again."""
    ends = {event["turn"]: event["id"] for event in events if event["event_type"] == TURN_ENDED}
    return [event for event in events if event["event_type"] != TURN_ENDED or event["id"] == ends[event["turn"]]]


def come_to(task_id: str, turn: int, point: str) -> None:
    """This process is at the point: strike it, if that was asked for."""
    path = Path(os.environ[WARRANTS]) / f"{task_id},{turn},{point}"
    try:
        carried_out = path.rename(f"{path},{os.getpid()},{time.time()}")
    except FileNotFoundError:
        return
    os.kill(os.getpid(), int(carried_out.read_text()))


class Struck(Worker):
    """Comes to the points that lie in the agent's own code."""

    async def completion(self, agent_ctx: WorkContext, messages: list[dict[str, Any]]) -> "ChatCompletion":
        task_id = self.get_execution_context().task_id
        come_to(task_id, agent_ctx.turn, ASKING)
        response = await super().completion(agent_ctx, messages)
        come_to(task_id, agent_ctx.turn, ASKED)
        return response

    async def tool_action(self, tool_call: Any, agent_ctx: WorkContext) -> Any:
        if tool_call.function.name == "slow":
            come_to(self.get_execution_context().task_id, agent_ctx.turn, IN_TOOL)
        return await super().tool_action(tool_call, agent_ctx)


run_script = Scripts.run


async def run(scripts: Scripts, name: str, *args: Argument) -> Any:
    """Comes to the points that lie before and behind the server's execution of a script."""
    if name == "commit":
        come_to(str(args[0]), int(args[4]), COMMITTING)
    answer = await run_script(scripts, name, *args)
    match name:
        case "claim" if answer[0] == b"OK":
            for found in answer[2]:
                come_to(found[0].decode(), found[3], CLAIMED)
        case "record":
            come_to(str(args[0]), int(args[3]), _kind_of_step(args))
        case "commit":
            if answer[0] == b"OK":
                write(ACCEPTED, int(args[4]), "end", task=str(args[0]), process=str(args[1]))
            come_to(str(args[0]), int(args[4]), COMMITTED)
    return answer


def _kind_of_step(args: Sequence[Argument]) -> str:
    names = [str(name) for name in args[6 : 6 + int(args[5]) : 2]]
    if "completion" in names:
        return KEPT
    return BETWEEN if any(name.startswith("tool:") for name in names) else "at news"


struck = Struck()

if WARRANTS in os.environ:  # in a worker process, and not in the test's
    Scripts.run = run  # type: ignore[method-assign, assignment]
