"""A client at work while something goes wrong: it enqueues one task after the other, and keeps what it was answered.

    async with Load(system) as load:
        ...                                  # whatever goes wrong meanwhile
    after = await load.settle()

That answer is the witness of what must not be lost, and the diary (`agents.py`) of what was executed.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from factorial import Task
from factorial.errors import MailboxError
from factorial.mailbox.views.read import read_status
from tests.chaos.agents import WorkContext, work
from tests.chaos.system import OWNER, System, check_result
from tests.redis.doctor import assert_invariants
from tests.support import wait_until

__all__ = ["Load", "Settled"]

TURNS = 2


@dataclass(frozen=True)
class Settled:
    """How it stands when every run has ended, each as it would have without any trouble."""

    accepted: int
    existing: int
    """Runs on the server, also those whose acceptance the client did not hear of."""
    lost: list[str]
    """The ids of those that were accepted and are not there."""
    retries: int
    reclaimed: int
    """Runs that were taken from processes that were held for dead, as the server counted them."""
    completed: int
    """Commits that ended a run, as the server counted them: more than the runs would be commits twice."""
    handed_over: int
    """Times that a run was taken up again."""
    repeated: Counter[str]
    """Steps that were begun again, by kind."""
    repeated_after_their_end: int
    """Those of them that had finished before."""


class Load:
    """A task each `every` seconds, for as long as the block lasts; each has `turns` with two tools, and an answer."""

    def __init__(self, system: System, *, every: float = 0.05, turns: int = TURNS, **work_to_do: Any) -> None:
        self.refused: list[MailboxError] = []
        """What the client was told instead of an acceptance."""
        self.issued: dict[str, Task[WorkContext]] = {}
        self.accepted_at: dict[str, float] = {}
        """When the client heard of the acceptance, by task id: `time.monotonic()`."""
        self._system = system
        self._every = every
        self._turns = turns
        self._work_to_do = work_to_do
        self._issuing: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self._issuing = asyncio.create_task(self._issue())
        await wait_until(lambda: len(self._system.witness()) > 20, message="tasks under way")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._issuing.cancel()
        with suppress(asyncio.CancelledError):
            await self._issuing

    async def _issue(self) -> None:
        """Ask for one after the other, however long the answers take; when it is cancelled, wait for these."""
        asking: set[asyncio.Task[None]] = set()
        try:
            while True:
                asking.add(asyncio.create_task(self._ask()))
                await asyncio.sleep(self._every)
        finally:
            await asyncio.gather(*asking)

    async def _ask(self) -> None:
        task = work.create_task(OWNER, WorkContext(query=str(self._turns), turns=self._turns, **self._work_to_do))
        self.issued[task.id] = task
        try:
            await self._system.orchestrator.enqueue_task(work, task)
        except MailboxError as refusal:
            self.refused.append(refusal)
        else:
            self.accepted_at[task.id] = time.monotonic()

    async def accepts(self, count: int = 1, timeout: float = 60.0) -> None:
        """Wait until so many more tasks are accepted."""
        wanted = len(self.accepted_at) + count
        await wait_until(lambda: len(self.accepted_at) >= wanted, timeout, f"{count} more tasks to be accepted")

    async def statuses(self) -> dict[str, str]:
        """The status of each run that there is, by task id."""
        scripts = (await self._system.orchestrator._namespace()).scripts
        issued = list(self.issued)
        found = await asyncio.gather(*(read_status(scripts, task_id) for task_id in issued))
        return {task_id: str(status) for task_id, status in zip(issued, found, strict=True) if status}

    async def completed(self, tasks: Collection[str], timeout: float = 60.0) -> None:
        """Wait until these tasks are completed."""

        async def are_completed() -> bool:
            statuses = await self._look()
            return all(statuses.get(task_id) == "completed" for task_id in tasks)

        await wait_until(are_completed, timeout, f"{len(tasks)} tasks to be completed; log: {self._system.log}")

    async def settle(self, timeout: float = 90.0) -> Settled:
        """Wait for the end of every run, stop the system, and see what has become of it all.

        Asserts what holds whatever has happened: the invariants; and that each run that exists has ended as it would
        have without any trouble, with each of its turns in its conversation once.
        """

        async def have_ended() -> bool:
            return not set((await self._look()).values()) - {"completed", "failed", "cancelled"}

        system = self._system
        await wait_until(have_ended, timeout, f"the end of every run; log: {system.log}")
        assert await system.stop() == 0, system.log.read_text()
        existing = await self.statuses()
        data = await asyncio.gather(*(system.orchestrator.get_task_data(task_id) for task_id in existing))
        for each in data:
            assert each is not None
            check_result(each, turns=self._turns)
        mailbox = await system.orchestrator._namespace()
        await assert_invariants(mailbox.connection, system.namespace, quiet=True)
        counted = (await system.orchestrator.get_metrics(work))["agents"]["work"]["totals"]
        repeated, repeated_after_their_end = self._repetitions()
        return Settled(
            accepted=len(self.accepted_at),
            existing=len(existing),
            lost=[task_id for task_id in self.accepted_at if task_id not in existing],
            retries=sum(each["retries"] for each in data if each) + counted["retried"],
            reclaimed=counted["recovered"],
            completed=counted["completed"],
            handed_over=sum(each["pickups"] - 1 for each in data if each),
            repeated=repeated,
            repeated_after_their_end=repeated_after_their_end,
        )

    async def _look(self) -> dict[str, str]:
        await asyncio.sleep(0.05)  # so many are not asked for all the time
        return await self.statuses()

    def _repetitions(self) -> tuple[Counter[str], int]:
        repeated: Counter[str] = Counter()
        begun: set[tuple[str, str, int]] = set()
        ended: set[tuple[str, str, int]] = set()
        after_their_end = 0
        for line in self._system.witness():
            step = (line["task"], line["what"], line["turn"])
            if line["edge"] == "end":
                ended.add(step)
            else:
                repeated[line["what"]] += step in begun
                after_their_end += step in ended
                begun.add(step)
        return +repeated, after_their_end
