"""What the tasks of the storm do: an agent whose script follows from the kind of the task, and what each kind comes to.

Every model call and tool call that is executed writes a line when it begins and one when it ends, into a file of its
process in the directory that CHAOS_DIARY names: a witness outside of Factorial. `Line` is one of them.
"""

import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from factorial import (
    AgentContext,
    BaseAgent,
    Batch,
    ExecutionContext,
    FatalAgentError,
    RetryableError,
    deferred_result,
    forking_tool,
)
from factorial.testing import ScriptedModel

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

__all__ = ["CHILD_KINDS", "DIARY", "KINDS", "Kind", "Line", "StormContext", "call_id", "opening", "storm"]

DIARY = "CHAOS_DIARY"
CHILD_KINDS = ("small", "tool", "small", "tool")
SMALL_TALK = 30
"""Questions and answers that a long conversation begins with."""


@dataclass(frozen=True)
class Kind:
    """What a task of a kind does, and what becomes of it."""

    share: int
    """Of a thousand tasks, so many are of this kind."""
    turns: tuple[tuple[str, ...], ...] = ()
    """The tools that each turn calls; the last one answers."""
    answer: str = ""
    status: str = "completed"


KINDS: Mapping[str, Kind] = {
    "small": Kind(770, ((),), "well"),
    "tool": Kind(80, (("quick",), ()), "q0"),
    "turns": Kind(30, (("quick", "slow"), ("quick", "slow"), ("quick", "slow"), ()), "q0 s0 q1 s1 q2 s2"),
    "long": Kind(20, (("quick",), ()), "q0"),
    "ask": Kind(20, (("ask",), ()), "yes"),
    "family": Kind(10, (("send",), ()), "4 children have completed"),
    "steer": Kind(20, (("slow",), ("slow",), ()), "s0 s1"),
    "cancel": Kind(20, (("slow",), ("slow",), ("slow",), ()), "s0 s1 s2"),
    "retry": Kind(20, (("flaky",), ()), "at last"),
    "fail": Kind(10, (("doom",),), status="failed"),
}
"""Steered tasks may take another turn, cancelled ones may have come to their end before."""


class StormContext(AgentContext):
    """The query is the task's kind."""

    label: str
    """Its name in the diary: that of its cohort, a dot, and its own."""
    pause: float
    """Seconds that each call takes."""


def opening(kind: str) -> list[dict[str, Any]]:
    """The conversation that a task of this kind begins with, before its query."""
    if kind != "long":
        return []
    return [
        {"role": role, "content": f"{role} {number}: " + 20 * "so it goes, "}
        for number in range(SMALL_TALK)
        for role in ("user", "assistant")
    ]


class Line(NamedTuple):
    """What the witness saw."""

    at: float
    edge: str
    """`begin` or `end`."""
    label: str
    what: str
    """`model`, or the tool."""
    turn: int
    attempt: int
    pid: int

    @classmethod
    def read(cls, text: str, pid: int) -> "Line":
        at, edge, label, what, turn, attempt = text.split(" ")
        return cls(float(at), edge, label, what, int(turn), int(attempt), pid)


class _Diary:
    """The file of this process; each line is one write, so a line is there whole, or not at all."""

    def __init__(self) -> None:
        self._file = -1

    def note(self, edge: str, what: str, context: StormContext) -> None:
        if self._file < 0:
            path = Path(os.environ[DIARY], str(os.getpid()))
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        attempt = ExecutionContext.current().retries + 1
        line = f"{time.time():.6f} {edge} {context.label} {what} {context.turn} {attempt}\n"
        os.write(self._file, line.encode())


_diary = _Diary()


@contextmanager
def witnessed(what: str, context: StormContext) -> Iterator[None]:
    """Write down the beginning, and the end if there is one."""
    _diary.note("begin", what, context)
    yield
    _diary.note("end", what, context)


def quick(number: int, agent_ctx: StormContext) -> str:
    """Is done at once, in a thread."""
    with witnessed("quick", agent_ctx):
        return f"q{number}"


async def slow(number: int, agent_ctx: StormContext) -> str:
    """Takes its time."""
    with witnessed("slow", agent_ctx):
        await asyncio.sleep(agent_ctx.pause)
        return f"s{number}"


@deferred_result(timeout=3600)
async def ask(number: int, agent_ctx: StormContext) -> None:
    """Asks somebody outside."""
    with witnessed("ask", agent_ctx):
        await asyncio.sleep(agent_ctx.pause)


@forking_tool(timeout=3600)
async def send(number: int, agent_ctx: StormContext, execution_ctx: ExecutionContext) -> Batch:
    """Sends children, who do something small."""
    with witnessed("send", agent_ctx):
        return await execution_ctx.spawn_child_tasks(
            storm,
            [
                StormContext(query=kind, label=f"{agent_ctx.label}.{child}", pause=agent_ctx.pause)
                for child, kind in enumerate(CHILD_KINDS)
            ],
        )


async def flaky(number: int, agent_ctx: StormContext, execution_ctx: ExecutionContext) -> str:
    """Fails at the first attempt."""
    with witnessed("flaky", agent_ctx):
        await asyncio.sleep(agent_ctx.pause)
    if execution_ctx.retries == 0:
        raise RetryableError("not yet")
    return "at last"


async def doom(number: int, agent_ctx: StormContext) -> str:
    """Fails for good."""
    with witnessed("doom", agent_ctx):
        await asyncio.sleep(agent_ctx.pause)
    raise FatalAgentError("never")


class _Storm(BaseAgent[StormContext]):
    """Does what the task's kind says. Its model costs next to nothing: it is asked some 200 times a second."""

    def __init__(self) -> None:
        tools: list[Any] = [quick, slow, ask, send, flaky, doom]
        super().__init__(name="storm", tools=tools, context_class=StormContext, model=ScriptedModel([]))

    async def completion(self, agent_ctx: StormContext, messages: list[dict[str, Any]]) -> "ChatCompletion":
        with witnessed("model", agent_ctx):
            await asyncio.sleep(agent_ctx.pause)
            return _reply(messages)


def _reply(messages: Sequence[Mapping[str, Any]]) -> "ChatCompletion":
    from openai.types.chat import ChatCompletion

    turn, text, tools = _script(messages)
    calls = [
        {
            "id": call_id(turn, number),
            "type": "function",
            "function": {"name": tool, "arguments": f'{{"number":{turn}}}'},
        }
        for number, tool in enumerate(tools)
    ]
    message = {"role": "assistant", "content": text, "tool_calls": calls or None}
    finish = "tool_calls" if calls else "stop"
    return ChatCompletion.model_validate({
        "id": f"reply-{turn}", "object": "chat.completion", "created": 0, "model": "storm",
        "choices": [{"index": 0, "finish_reason": finish, "message": message}],
    })  # fmt: skip


def call_id(turn: int, number: int) -> str:
    """The id of a turn's tool call."""
    return f"call_{turn}_{number}"


def _script(messages: Sequence[Mapping[str, Any]]) -> tuple[int, str | None, tuple[str, ...]]:
    """Which turn it is, and what is said, or which tools are called."""
    asked = next(number for number, message in enumerate(messages) if message["content"] in KINDS)
    kind = KINDS[messages[asked]["content"]]
    since = messages[asked + 1 :]
    turn = sum(message["role"] == "assistant" for message in since)
    if turn < len(kind.turns) and kind.turns[turn]:
        return turn, None, kind.turns[turn]
    heard = [message["content"] for role in ("tool", "user") for message in since if message["role"] == role]
    if kind is KINDS["family"]:
        heard = [f"{heard[0].count('<sub_task_result ')} children have completed"]
    return turn, " ".join(heard) or kind.answer, ()


storm = _Storm()
