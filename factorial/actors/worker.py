"""Claims runs and executes them, as many at once as it has slots.

A worker claims when a wake token says that something is ready, when a slot becomes free, and after each claim that was
filled, because more may be ready. A claim that returned fewer runs than wanted has emptied the queue: the worker waits
for the next token.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Protocol

from factorial.actors.actor import Actor, Tick
from factorial.actors.durable_host import DurableHost, Workplace
from factorial.mailbox.operations.claim import Claim, ClaimRequest, NoLease, claim, new_nonce

__all__ = ["Ready", "Refill", "Surroundings", "Worker"]

_logger = logging.getLogger(__name__)


class Ready:
    """Something may be ready in the queue."""


class Refill:
    """A slot has become free."""


class Surroundings(Protocol):
    """What a worker needs from its process."""

    def lease_is_lost(self) -> None:
        """A claim was refused for want of a lease: the process has to register again."""

    def wake_in(self, seconds: float) -> None:
        """A run is due after so many seconds: claim then."""

    async def has_room(self) -> None:
        """The worker has free slots and found nothing ready: send it `Ready` when something is."""

    async def pass_on(self) -> None:
        """Something may be ready, and the worker has no room for it: let another one claim."""


class Worker(Actor[Ready | Refill]):
    """`batch_size` slots, each with one run at a time."""

    def __init__(self, name: str, workplace: Workplace, surroundings: Surroundings) -> None:
        super().__init__(name)
        self._workplace = workplace
        self._surroundings = surroundings
        self._hosts: dict[str, DurableHost] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._refill_is_due = False
        self._queue_is_empty = False
        self._nonce = new_nonce()
        """Of the present claim. A claim whose answer was lost is repeated with it, because it may have taken runs."""
        self._draining = False

    @property
    def free_slots(self) -> int:
        """How many more runs this worker can take; none while it drains."""
        return 0 if self._draining else self._workplace.policy.batch_size - len(self._tasks)

    @property
    def hosts(self) -> dict[str, DurableHost]:
        """The runs in this worker's slots, by task id."""
        return self._hosts

    async def receive(self, message: Ready | Refill | Tick) -> None:
        """Fill the free slots."""
        if isinstance(message, Refill):
            self._refill_is_due = False
            if self._queue_is_empty:
                return
        elif self.free_slots == 0:  # a claim has filled it since it was sent the token
            await self._surroundings.pass_on()
            return
        await self._fill()

    async def _fill(self) -> None:
        self._queue_is_empty = False
        while (wanted := self.free_slots) > 0:
            request = ClaimRequest(
                process=self._workplace.process,
                worker=self.name,
                agent=self._workplace.agent.name,
                count=wanted,
                recovery_limit=self._workplace.policy.max_recoveries,
                owner_limit=self._workplace.policy.owner_limit,
                nonce=self._nonce,
            )
            answer = await claim(self._workplace.scripts, request)
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
            host = DurableHost(self._workplace, claimed)
            self._hosts[host.task_id] = host
            task = host.start()
            self._tasks.add(task)
            task.add_done_callback(self._freeing(host))
            if self._draining:
                host.release()

    def _freeing(self, host: DurableHost) -> Callable[["asyncio.Task[None]"], None]:
        def free(task: "asyncio.Task[None]") -> None:
            self._tasks.discard(task)
            if self._hosts.get(host.task_id) is host:
                del self._hosts[host.task_id]
            if host.due_in is not None:
                self._surroundings.wake_in(host.due_in)
            if not self._refill_is_due and not self._draining:
                self._refill_is_due = True
                self.send(Refill())

        return free

    def drain(self) -> None:
        """Claim no more, and release each run at its next step boundary."""
        self._draining = True
        for host in list(self._hosts.values()):
            host.drain()

    async def settle(self, seconds: float) -> bool:
        """Wait until all slots are free, at most so many seconds. False if some are not."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        return not self._tasks

    def release_all(self) -> None:
        """Release every run now."""
        for host in list(self._hosts.values()):
            host.release()

    async def tear_down(self) -> None:
        """Stop what still executes. Other processes reclaim it when the lease expires."""
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=1.0)
