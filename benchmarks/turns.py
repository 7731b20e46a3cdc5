"""The cost of a turn, with a model that answers at once: round trips by number of tools, bytes by conversation."""

import asyncio
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.report import Table
from benchmarks.stage import OWNER, Spent, Stage
from factorial import AgentContext, BaseAgent, TurnCompletion
from factorial.testing import ScriptedModel, call, calls, say
from factorial.testing.scripted import Reply

__all__ = ["measure"]

_TURNS = 50
_NOISE = 0.02
"""The tolerance for the bytes of late turns: turn numbers and message counts in events have more digits."""


async def look(place: str) -> str:
    """Look at a place. Returns two kilobytes."""
    return "x" * 2048


class _Counted(BaseAgent[AgentContext]):
    """Takes `_TURNS` turns with `tools` tool calls each, and records the traffic so far at the start of each."""

    def __init__(self, tools: int) -> None:
        super().__init__(name="counted", tools=[look], model=ScriptedModel(_script(tools)))
        self.spent: Callable[[], Spent] = Spent
        self.at_start: list[Spent] = []
        self.finished = asyncio.Event()

    async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
        """Take an ordinary turn, except that the run continues if the model called no tool."""
        self.at_start.append(self.spent())
        if agent_ctx.turn == _TURNS:
            self.finished.set()
            return TurnCompletion(is_done=True, context=agent_ctx)
        completion = await super().run_turn(agent_ctx)
        completion.is_done = False
        return completion


def _script(tools: int) -> Callable[[Sequence[Mapping[str, Any]]], Reply]:
    reply = calls(*(call("look", place="here") for _ in range(tools))) if tools else say("nothing to do")
    return lambda messages: reply


async def measure(stage: Stage, table: Table) -> None:
    """Runs of many turns, one at a time."""
    table.title(f"turns of one task, the median of {_TURNS}")
    for tools in (0, 1, 2, 4):
        turns = await _turns(stage, tools)
        trips = statistics.median(turn.commands for turn in turns)
        writes = statistics.median(turn.writes for turn in turns)
        sent = statistics.median(turn.bytes_out for turn in turns)
        name = f"round trips with {tools} tools" if tools else "round trips without tools"
        mean = statistics.mean(turn.commands for turn in turns)
        about = f"commands (mean {mean:.2f}) in {writes:g} writes, {sent:,.0f} bytes sent"
        table.at_most(name, f"{trips:g}", trips, 1 + tools, about)
    turns = await _turns(stage, tools=1)
    early, late = (statistics.median(turn.bytes_out for turn in turns[n - 3 : n + 2]) for n in (5, 45))
    table.title("bytes of a turn with one tool result of 2 KB")
    table.figure("sent in turn 5", f"{early:,.0f}")
    table.at_most("sent in turn 45", f"{late:,.0f}", late / early, 1 + _NOISE, "times turn 5")


async def _turns(stage: Stage, tools: int) -> list[Spent]:
    """The traffic of each turn of a task, from its start to the start of the next."""
    redis, agent = stage.redis(), _Counted(tools)
    async with stage.client(redis) as client, stage.worker(agent, redis) as worker:
        agent.spent = lambda: worker.spent
        await client.enqueue_task(agent, owner_id=OWNER, payload=AgentContext(query="look around"))
        await agent.finished.wait()
    return [after - before for before, after in zip(agent.at_start, agent.at_start[1:], strict=False)]
