"""What a held run has to tell the mailbox: finished steps and events, in order, in as few messages as possible.

A step that must be kept before the turn goes on is sent at once, with all events before it. Anything else waits a
moment for company: usually the turn's commit takes it along, and costs no message of its own.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from factorial.errors import MailboxError
from factorial.mailbox.claim import Token
from factorial.mailbox.script import Scripts
from factorial.mailbox.step import Noted, Superseded, step

__all__ = ["Ledger", "Pending"]

LINGER = 0.02
"""Seconds that an event waits for company. Nobody who watches a run notices; a turn that is quicker saves a message."""

Reply = Noted | Superseded | MailboxError


@dataclass(frozen=True, slots=True)
class Pending:
    """What was not sent yet."""

    entries: dict[str, bytes]
    events: list[bytes]


class Ledger:
    """The outgoing side of one execution. `on_reply` hears what the mailbox answers to messages of its own."""

    def __init__(self, scripts: Scripts, task_id: str, on_reply: Callable[[Reply], None]) -> None:
        self._scripts = scripts
        self._task_id = task_id
        self._on_reply = on_reply
        self._pending = Pending({}, [])
        self._told = 0
        self._timer: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self.token = Token(0, "", 0)

    def add_event(self, event: bytes) -> None:
        """Publish `event` soon."""
        self._pending.events.append(event)
        self._arm()

    def add_entries(self, entries: dict[str, bytes]) -> None:
        """Keep these journal entries soon."""
        self._pending.entries.update(entries)
        self._arm()

    async def flush(self) -> None:
        """Send what waits, and return when it is kept."""
        pending = self.take()
        if pending.entries or pending.events:
            await self._send(pending)

    def take(self) -> Pending:
        """What waits, to be sent along with something else."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pending, self._pending = self._pending, Pending({}, [])
        return pending

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LINGER, self._flush_soon)

    def _flush_soon(self) -> None:
        task = asyncio.get_running_loop().create_task(self._send(self.take()))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, pending: Pending) -> None:
        self._told += 1
        try:
            reply: Reply = await step(
                self._scripts,
                task_id=self._task_id,
                token=self.token,
                told=self._told,
                entries=pending.entries,
                events=pending.events,
            )
        except MailboxError as error:
            reply = error
        self._on_reply(reply)
