"""The cost of a task that does nothing: its agent's turn returns at once, without a model call."""

import asyncio
import statistics
import time
from dataclasses import dataclass

from benchmarks.report import Table
from benchmarks.stage import Spent, Stage, enqueue_many, eventually
from benchmarks.yardstick import ping_rate
from factorial import AgentContext, BaseAgent, TurnCompletion

__all__ = ["measure"]

_TASKS = 3000
_ROUNDS = 3


class _NoOp(BaseAgent[AgentContext]):
    """Returns at once, and sets an event after the expected number of turns."""

    def __init__(self, expected: int) -> None:
        super().__init__(name="no_op")
        self._missing = expected
        self.all_started = asyncio.Event()

    async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
        """Do nothing."""
        self._missing -= 1
        if self._missing == 0:
            self.all_started.set()
        return TurnCompletion(is_done=True, context=agent_ctx, output="done")


@dataclass(frozen=True)
class _Round:
    ping: float
    enqueue_seconds: float
    work_seconds: float
    spent: Spent


async def measure(stage: Stage, table: Table) -> None:
    """Costs, and the median rates of several rounds."""
    table.title(f"no-op tasks: {_TASKS:,} at once in one process, the median of {_ROUNDS} rounds")
    rounds = [await _round(stage) for _ in range(_ROUNDS)]
    spent = rounds[-1].spent
    table.figure("worker: round trips per task", f"{spent.commands / _TASKS:.2f}", "commands, claims included")
    table.figure("worker: socket writes per task", f"{spent.writes / _TASKS:.2f}")
    table.figure(
        "worker: bytes per task", f"{spent.bytes_out / _TASKS:,.0f}", f"sent; {spent.bytes_in / _TASKS:,.0f} received"
    )
    rates = [_TASKS / one.work_seconds for one in rounds]
    ratio = statistics.median(rate / one.ping for rate, one in zip(rates, rounds, strict=True))
    table.at_least("tasks per second", f"{statistics.median(rates):,.0f}/s", ratio, 1 / 3, "the PING rate")
    enqueue = statistics.median(_TASKS / one.enqueue_seconds for one in rounds)
    both = statistics.median(_TASKS / (one.enqueue_seconds + one.work_seconds) for one in rounds)
    table.figure("  with enqueueing", f"{both:,.0f}/s", f"enqueueing alone {enqueue:,.0f}/s")


async def _round(stage: Stage) -> _Round:
    """Enqueue all tasks, then start a worker and wait until it holds no task."""
    ping_before = await ping_rate(stage)
    redis, agent = stage.redis(), _NoOp(_TASKS)
    async with stage.client(redis) as client:
        await enqueue_many(client, agent, 1)  # opens the connection
        started = time.perf_counter()
        await enqueue_many(client, agent, _TASKS - 1)
        enqueue_seconds = time.perf_counter() - started
    async with stage.worker(agent, redis) as worker:
        before = worker.spent
        started = time.perf_counter()
        await agent.all_started.wait()
        await eventually(worker.holds_nothing)
        work_seconds = time.perf_counter() - started
        spent = worker.spent - before
    return _Round((ping_before + await ping_rate(stage)) / 2, enqueue_seconds, work_seconds, spent)
