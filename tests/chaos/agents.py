"""Agents for the chaos tests. Every model call and tool call that is executed writes a line when it begins and one when
it ends, into the file that CHAOS_DIARY names: a witness outside of Factorial.

The script is that of issue-sized work: so many turns of two tools each, then an answer.
"""

import asyncio
import ctypes
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from factorial import AgentContext, BaseAgent, ExecutionContext
from factorial.testing import Reply, ScriptedModel, call, calls, say

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

DIARY = "CHAOS_DIARY"
HASTE = "CHAOS_HASTE"


class WorkContext(AgentContext):
    """How much there is to do, and how long each call takes."""

    turns: int = 5
    model_seconds: float = 0.05
    tool_seconds: float = 0.05
    long_turn: int = -1
    """The turn in which the model takes `long_seconds`, unless CHAOS_HASTE is set."""
    long_seconds: float = 30.0
    notes: list[str] = Field(default_factory=list)


@contextmanager
def witnessed(what: str, turn: int) -> Iterator[None]:
    """Write down the beginning, and the end if there is one."""
    note(what, turn, "begin")
    yield
    note(what, turn, "end")


def note(what: str, turn: int, edge: str) -> None:
    execution = ExecutionContext.current()
    write(what, turn, edge, execution.task_id, execution.process)


def write(what: str, turn: int, edge: str, task: str, process: str) -> None:
    line = {
        "what": what, "turn": turn, "edge": edge, "task": task, "process": process,
        "pid": os.getpid(), "at": time.time(),
    }  # fmt: skip
    with Path(os.environ[DIARY]).open("a") as diary:
        diary.write(json.dumps(line) + "\n")


def script(messages: Sequence[Mapping[str, Any]]) -> Reply:
    turn = sum(message["role"] == "assistant" for message in messages)
    turns = int(next(message["content"] for message in messages if message["role"] == "user"))
    if turn < turns:
        return calls(call("quick", number=turn), call("slow", number=turn))
    results = [message["content"] for message in messages if message["role"] == "tool"]
    return say(" ".join(results))


def quick(number: int, agent_ctx: WorkContext) -> str:
    """A tool that is done at once, in a thread, and changes the context."""
    with witnessed("quick", agent_ctx.turn):
        agent_ctx.notes.append(f"quick {number}")
        return f"q{number}"


async def slow(number: int, agent_ctx: WorkContext) -> str:
    """A tool that takes its time."""
    with witnessed("slow", agent_ctx.turn):
        await asyncio.sleep(agent_ctx.tool_seconds)
        return f"s{number}"


class Worker(BaseAgent[WorkContext]):
    """Calls `quick` and `slow` in each turn, as many turns as the query says."""

    def __init__(self) -> None:
        super().__init__(
            name="work", tools=[quick, slow], context_class=WorkContext, model=ScriptedModel(script, name="chaos")
        )

    async def completion(self, agent_ctx: WorkContext, messages: list[dict[str, Any]]) -> "ChatCompletion":
        is_long = agent_ctx.turn == agent_ctx.long_turn and HASTE not in os.environ
        with witnessed("model", agent_ctx.turn):
            await asyncio.sleep(agent_ctx.long_seconds if is_long else agent_ctx.model_seconds)
            return await super().completion(agent_ctx, messages)


work = Worker()


class HarmContext(AgentContext):
    """What the task's tool does to the process that it is executed in."""

    harm: str = ""
    seconds: float = 0.3


def recurse() -> None:
    recurse()


async def leave_in_a_task_of_its_own() -> None:
    raise SystemExit("I leave, and the event loop with me")


async def do(agent_ctx: HarmContext) -> str:
    """Wait a moment, and then do harm, or nothing."""
    with witnessed("do", agent_ctx.turn):
        await asyncio.sleep(agent_ctx.seconds)
        match agent_ctx.harm:
            case "be killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exit":
                os._exit(7)
            case "abort":
                ctypes.pythonapi.Py_FatalError(b"raised from C")
            case "block":
                time.sleep(3600)  # noqa: ASYNC251  # this is the blocking line
            case "hoard":
                hoard = [bytearray(os.urandom(1)) * 50_000_000 for _ in range(16)]
                await asyncio.sleep(3600 + len(hoard))
            case "recurse":
                recurse()
            case "leave":
                raise SystemExit("I leave")
            case "interrupt":
                raise KeyboardInterrupt
            case "close":
                raise GeneratorExit
            case "leave elsewhere":
                await asyncio.gather(leave_in_a_task_of_its_own(), asyncio.sleep(0.1))
            case "exhaust":
                bytearray(2**62)
        return "done"


harm = BaseAgent[HarmContext](
    name="harm", tools=[do], context_class=HarmContext, model=ScriptedModel([call("do"), say("well")])
)


class OddContext(AgentContext):
    """A context with a field that may hold what JSON cannot."""

    handle: Any = None


odd = BaseAgent[OddContext](name="odd", context_class=OddContext, model=ScriptedModel([say("done")]))
