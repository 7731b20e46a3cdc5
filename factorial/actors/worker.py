"""Takes runs from the mailbox and executes them, as many at once as it has slots; a slot that frees is refilled.

A worker claims when a wake token says that something is ready, and after each claim that was filled: more may be there.
A claim that came back short has emptied the queue, and the next token is waited for.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from factorial.actors.actor import Actor, Tick
from factorial.actors.durable_host import Execution
from factorial.agent.agent import BaseAgent
from factorial.config import AgentWorkerConfig
from factorial.mailbox.operations.claim import Claim, NoLease, claim, new_nonce
from factorial.mailbox.script import Scripts

__all__ = ["Ready", "Refill", "Surroundings", "Worker"]

logger = logging.getLogger(__name__)


class Ready:
    """Something may be ready in the queue."""


class Refill:
    """A slot has become free."""


class Surroundings(Protocol):
    """What a worker asks of its process."""

    def lease_is_lost(self) -> None:
        """A claim was refused: the process has to register again."""

    def wake_in(self, seconds: float) -> None:
        """A run is due then: have somebody look."""

    async def has_room(self) -> None:
        """The worker has free slots and found nothing: tell it when something comes."""

    async def pass_on(self) -> None:
        """Something may be ready, and the worker has no room for it: have another one look."""


@dataclass(frozen=True, slots=True)
class Post:
    """Where a worker works: for which agent, in which process, by which rules."""

    agent: BaseAgent[Any]
    scripts: Scripts
    process: str
    policy: AgentWorkerConfig


class Worker(Actor[Ready | Refill]):
    """`batch_size` slots, each with one run at a time."""

    def __init__(self, name: str, post: Post, surroundings: Surroundings) -> None:
        super().__init__(name)
        self._post = post
        self._surroundings = surroundings
        self._executions: dict[str, Execution] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._refill_is_due = False
        self._queue_is_empty = False
        self._nonce = new_nonce()
        """Of the present claim. One whose answer was lost is made again as it was: it may have taken runs."""
        self._draining = False

    @property
    def free_slots(self) -> int:
        """How many more runs this worker can take; none while it drains."""
        return 0 if self._draining else self._post.policy.batch_size - len(self._tasks)

    @property
    def executions(self) -> dict[str, Execution]:
        """The runs in this worker's slots, by task id."""
        return self._executions

    async def receive(self, message: Ready | Refill | Tick) -> None:
        """Fill the free slots."""
        if isinstance(message, Refill):
            self._refill_is_due = False
            if self._queue_is_empty:
                return
        elif self.free_slots == 0:  # a claim has filled it since the token was given to it
            await self._surroundings.pass_on()
            return
        await self._fill()

    async def _fill(self) -> None:
        self._queue_is_empty = False
        while (wanted := self.free_slots) > 0:
            answer = await claim(
                self._post.scripts,
                process=self._post.process,
                worker=self.name,
                agent=self._post.agent.name,
                count=wanted,
                recovery_limit=self._post.policy.max_recoveries,
                owner_limit=self._post.policy.owner_limit,
                nonce=self._nonce,
            )
            if isinstance(answer, NoLease):
                self._surroundings.lease_is_lost()
                return
            self._nonce = new_nonce()
            self._start(answer)
            if len(answer.runs) < wanted:
                self._queue_is_empty = True
                await self._surroundings.has_room()
                return

    def _start(self, answer: Claim) -> None:
        if answer.next_due is not None:
            self._surroundings.wake_in(answer.next_due)
        for claimed in answer.runs:
            execution = Execution(self._post.agent, claimed, self._post.scripts, self._post.process, self._post.policy)
            self._executions[execution.task_id] = execution
            task = execution.start()
            self._tasks.add(task)
            task.add_done_callback(self._freeing(execution))
            if self._draining:
                execution.release()

    def _freeing(self, execution: Execution) -> Callable[["asyncio.Task[None]"], None]:
        def free(task: "asyncio.Task[None]") -> None:
            self._tasks.discard(task)
            if self._executions.get(execution.task_id) is execution:
                del self._executions[execution.task_id]
            if execution.due_in is not None:
                self._surroundings.wake_in(execution.due_in)
            if not self._refill_is_due and not self._draining:
                self._refill_is_due = True
                self.tell(Refill())

        return free

    def drain(self) -> None:
        """Claim no more; give each run back at its next step boundary."""
        self._draining = True
        for execution in list(self._executions.values()):
            execution.drain()

    async def settle(self, seconds: float) -> bool:
        """Wait until all slots are free, for so many seconds at the most. Tells whether they are."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        return not self._tasks

    def release_all(self) -> None:
        """Give every run back now."""
        for execution in list(self._executions.values()):
            execution.release()

    async def tear_down(self) -> None:
        """What is still executing is given up: its lease will tell."""
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=1.0)
