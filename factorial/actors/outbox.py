"""`Outbox`: finished steps and events of an activation that were not sent yet, in order.

A step that must be recorded before the turn goes on is sent at once, with all events before it. Anything else waits a
moment: usually the turn's commit takes it along, and it costs no message of its own. One message is under way at a
time, so nothing overtakes anything.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass

from factorial.errors import MailboxError
from factorial.mailbox.operations.claim import Token
from factorial.mailbox.operations.record import Accepted, Superseded, record
from factorial.mailbox.script import Scripts

__all__ = ["Outbox", "Pending", "Reply"]

LINGER = 0.05
"""Seconds that an event may wait. Subscribers do not notice, and a turn that is quicker saves a message."""

Reply = Accepted | Superseded | MailboxError


@dataclass(frozen=True, slots=True)
class Pending:
    """What was not sent yet."""

    entries: dict[str, bytes]
    events: list[bytes]
    unanswered: int = 0
    """The number of a message that was sent and not answered, with the first `unanswered_events`; 0: there is none."""
    unanswered_events: int = 0


class Outbox:
    """The outgoing side of one activation. `on_reply` gets the reply to each message that the outbox sends itself."""

    def __init__(self, scripts: Scripts, task_id: str, token: Token, on_reply: Callable[[Reply], None]) -> None:
        self.token = token
        """The present token of the activation, under which messages are written."""
        self._scripts = scripts
        self._task_id = task_id
        self._on_reply = on_reply
        self._pending = Pending({}, [])
        self._message_number = 0
        self._unanswered: Pending | None = None
        """The latest message, from when it is sent until it is answered. It is sent again as it was, under the same
        number, so that its events are published once."""
        self._timer: asyncio.TimerHandle | None = None
        self._sender: asyncio.Task[None] | None = None
        self._held_back: list[bytes] | None = None
        self._may_send = asyncio.Event()
        self._may_send.set()

    def add_event(self, event: bytes, *, is_progress: bool = False) -> None:
        """Publish `event` soon."""
        if is_progress and self._held_back is not None:
            self._held_back.append(event)
            return
        self._pending.events.append(event)
        self._arm()

    def hold_back(self) -> None:
        """Publish no progress until `let_out`: a deferred task makes many attempts, and most of them in vain."""
        self._held_back = []

    def let_out(self) -> None:
        """The attempt is not in vain: publish the progress that was held back."""
        held_back, self._held_back = self._held_back or [], None
        for event in held_back:
            self.add_event(event)

    def add_entries(self, entries: dict[str, bytes]) -> None:
        """Keep these journal entries soon."""
        self._pending.entries.update(entries)
        self._arm()

    async def flush(self) -> None:
        """Send everything, and return when it is answered. What is under way goes on if the caller is cancelled."""
        await self._may_send.wait()
        self._send_now()
        await self.answered()

    async def answered(self) -> None:
        """Wait until nothing is under way."""
        while self._sender is not None:
            await asyncio.shield(self._sender)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Send nothing within the block: a commit is under way, and what is added meanwhile comes after it."""
        self._may_send.clear()
        try:
            yield
        finally:
            self._may_send.set()
            if self._has_more:
                self._arm()

    def close(self) -> None:
        """The activation is over: nothing more is sent, and replies are ignored."""
        self._disarm()
        self._on_reply = _ignore

    def take(self) -> Pending:
        """Everything that was not sent, to be sent with something else."""
        self._disarm()
        pending, self._pending = self._pending, Pending({}, [])
        sent, self._unanswered = self._unanswered, None
        if sent is None:
            return pending
        return Pending(
            sent.entries | pending.entries, sent.events + pending.events, self._message_number, len(sent.events)
        )

    @property
    def _has_more(self) -> bool:
        return bool(self._unanswered or self._pending.entries or self._pending.events)

    def _arm(self) -> None:
        if self._timer is None and self._sender is None:
            # With a context of its own: the event loop keeps a cancelled timer, and everything that its context holds.
            self._timer = asyncio.get_running_loop().call_later(LINGER, self._send_now, context=Context())

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send_now(self) -> None:
        self._disarm()
        if self._sender is None and self._may_send.is_set() and self._has_more:
            self._sender = asyncio.get_running_loop().create_task(self._send_all(), name=f"outbox of {self._task_id}")

    async def _send_all(self) -> None:
        """Send message after message until nothing is left, a commit takes the rest, or the server refuses one."""
        reply: Reply = Accepted(cancelled=False)
        while isinstance(reply, Accepted) and self._may_send.is_set() and self._has_more:
            if self._unanswered is None:
                self._unanswered = self.take()
                self._message_number += 1
            try:
                reply = await record(
                    self._scripts,
                    task_id=self._task_id,
                    token=self.token,
                    message_number=self._message_number,
                    entries=self._unanswered.entries,
                    events=self._unanswered.events,
                )
                self._unanswered = None
            except MailboxError as error:
                reply = error  # it may still be sent with what the activation writes last
        self._sender = None
        self._on_reply(reply)


def _ignore(reply: Reply) -> None:
    """A reply that comes too late."""
