"""The time from the call of enqueue_task to the start of the agent's run_turn, on an idle worker."""

import asyncio
import statistics
import time

from benchmarks.report import Table
from benchmarks.stage import OWNER, Stage, Worker
from benchmarks.yardstick import ping_rate
from factorial import AgentContext, BaseAgent, TurnCompletion
from factorial.orchestrator import Orchestrator

__all__ = ["measure"]

_WARM_UP = 30
_ROUNDS = 5
_SAMPLES = 100
"""Samples per round. The yardstick is measured before each round."""


class _Clock(BaseAgent[AgentContext]):
    """Records when its turn starts."""

    def __init__(self) -> None:
        super().__init__(name="clock")
        self.started: asyncio.Queue[float] = asyncio.Queue()

    async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
        """Record the time."""
        self.started.put_nowait(time.perf_counter())
        return TurnCompletion(is_done=True, context=agent_ctx)


async def measure(stage: Stage, table: Table) -> None:
    """One task at a time. The client and the worker share this process, but not a connection."""
    samples = _ROUNDS * _SAMPLES
    table.title(f"an idle worker: one task at a time, {samples} samples")
    redis, agent = stage.redis(), _Clock()
    waits: list[float] = []
    pings: list[float] = []
    async with stage.client(redis) as client, stage.worker(agent, redis) as worker:
        for _ in range(_WARM_UP):
            await _sample(client, agent, worker)
        before = worker.spent
        for _ in range(_ROUNDS):
            pings.append(await ping_rate(stage))
            waits += [await _sample(client, agent, worker) for _ in range(_SAMPLES)]
        spent = worker.spent - before
    round_trip = 1 / statistics.median(pings)
    middle, slow = statistics.median(waits), statistics.quantiles(waits, n=100)[98]
    table.at_most("enqueue to start, p50", f"{middle * 1000:.3f} ms", middle / round_trip, 8, "round trips of PING")
    table.figure("enqueue to start, p99", f"{slow * 1000:.3f} ms", f"{slow / round_trip:.2f} round trips of PING")
    table.figure("worker: round trips per task", f"{spent.commands / samples:.2f}", "without the blocking wait")
    received = f"sent; {spent.bytes_in / samples:,.0f} received"
    table.figure("worker: bytes per task", f"{spent.bytes_out / samples:,.0f}", received)


async def _sample(client: Orchestrator, agent: _Clock, worker: Worker) -> float:
    enqueued = time.perf_counter()
    await client.enqueue_task(agent, owner_id=OWNER, payload=AgentContext(query="what time is it?"))
    started = await agent.started.get()
    while not await worker.holds_nothing():
        pass  # without a pause, in which the processor might sleep and slow the next sample down
    await worker.observer.ping()  # the worker has its answer by now, and waits for the next task
    return started - enqueued
