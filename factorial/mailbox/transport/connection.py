"""The connection that all ordinary commands of a process share.

    execute -> queue -> (end of the loop's tick) one write -> waiting, oldest first -> reply -> the caller's future

All commands that are issued in the same tick of the event loop leave in one write. Replies arrive in order, so each
reply belongs to the oldest waiting command. Every command that we send is idempotent: when the connection is lost, all
commands without a reply are sent again.
Opened by the orchestrator and by each worker process. Used by every module of the mailbox.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from factorial.config import RedisConfig
from factorial.errors import MailboxError, MailboxUnavailableError
from factorial.mailbox.transport.address import is_temporary, is_wrong_server, translate
from factorial.mailbox.transport.endpoint import Backoff, Endpoint
from factorial.mailbox.transport.link import Link, pack

__all__ = ["Connection", "ConnectionStats"]


@dataclass(slots=True)
class ConnectionStats:
    """What a connection has sent and received since it was opened. A command that was sent again counts again."""

    commands: int = 0
    writes: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    reconnects: int = 0


class _Command:
    """A command without a reply. `deadline`: until when it is sent again; 0 before its first failure."""

    __slots__ = ("deadline", "future", "payload", "sent_at")

    def __init__(self, payload: bytes, future: "asyncio.Future[Any]") -> None:
        self.payload = payload
        self.future = future
        self.deadline = 0.0
        self.sent_at = 0.0


class Connection:
    """A multiplexed connection with automatic pipelining. It belongs to the event loop that opened it.

    `await connection.execute("HGET", key, field)`: one argument per word. Replies are bytes, integers, lists or None.
    Raises `MailboxUnavailableError` if the server could not be reached for `retry_for` seconds, `MailboxRefusedError`,
    `MailboxFullError`, or redis-py's errors for the reply of a script or command (`redis.exceptions.NoScriptError`,
    `ResponseError`). Never send a command that blocks the connection: use `BlockingConnection`.
    """

    def __init__(self, endpoint: Endpoint, retry_for: float) -> None:
        self.endpoint = endpoint
        self.on_moved: Callable[[], None] = lambda: None
        """Called when the server reports that another one has the namespace, or is the primary."""
        self._retry_for = retry_for
        self._loop = asyncio.get_running_loop()
        self._link: Link | None = None
        self._queue: list[_Command] = []
        self._waiting: deque[_Command] = deque()
        self._postponed: list[_Command] = []
        self._flush_is_due = False
        self._closed = False
        self._watchdog: asyncio.TimerHandle | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self._backoff = Backoff()
        self._redirected = False
        """Whether the present link was given up because another server has the namespace."""
        self._stats = ConnectionStats()

    @classmethod
    async def open(cls, config: RedisConfig, *, patient: bool = False) -> "Connection":
        """Connect to the server of `config`. `patient`: keep trying for `config.retry_for` seconds.

        Raises `MailboxUnavailableError`, `MailboxRefusedError`, and `ConfigError` for an invalid URL.
        """
        connection = cls(Endpoint.of(config), config.retry_for)
        deadline = connection._loop.time() + (config.retry_for if patient else 0.0)
        while True:
            try:
                connection._link = await connection._connect()
            except MailboxUnavailableError:
                left = deadline - connection._loop.time()
                if left <= 0:
                    raise
                await connection._backoff.pause(at_most=left)
            else:
                return connection

    @property
    def stats(self) -> ConnectionStats:
        """The present counters."""
        if self._link is not None:
            self._stats.bytes_in += self._link.bytes_in
            self._link.bytes_in = 0
        return self._stats

    async def execute(self, *args: bytes | str | int | float) -> Any:
        """The server's reply to one command."""
        return await self.send(*args)

    def send(self, *args: bytes | str | int | float) -> "asyncio.Future[Any]":
        """Issue one command now. The future is for what `execute` returns or raises. It costs no coroutine."""
        if self._closed:
            raise MailboxUnavailableError(f"the connection to {self.endpoint.shown} was closed")
        future = self._loop.create_future()
        self._queue.append(_Command(pack(args), future))
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)
        return future

    async def close(self) -> None:
        """Close the connection. Commands that still wait for a reply raise `MailboxUnavailableError`."""
        self._closed = True
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            await asyncio.wait([self._reconnecting])
        self._fail_all(MailboxUnavailableError(f"the connection to {self.endpoint.shown} was closed"))
        if self._link is not None:
            await self._link.close()
            self._link = None

    def _flush(self) -> None:
        """Send all queued commands in one write."""
        self._flush_is_due = False
        link = self._link
        if link is None:
            if self._queue:
                self._start_reconnecting()
            return
        if link.paused or self._postponed:
            return  # on_writable or _requeue_postponed calls this again; commands keep their order
        commands = [command for command in self._queue if not command.future.done()]
        self._queue.clear()
        if not commands:
            return
        now = self._loop.time()
        for command in commands:
            command.sent_at = now
        self._waiting.extend(commands)
        data = b"".join([command.payload for command in commands])
        stats = self._stats
        stats.commands += len(commands)
        stats.writes += 1
        stats.bytes_out += len(data)
        link.write(data)
        if self._watchdog is None:
            self._watchdog = self._loop.call_later(self.endpoint.timeout, self._check_for_silence)

    def _check_for_silence(self) -> None:
        """Abort the link if a command waits for its reply and no byte has arrived for `timeout` seconds.

        A long reply is not silence, because bytes keep arriving. One timer serves all commands.
        """
        self._watchdog = None
        if self._link is None or not self._waiting:
            return
        silent_since = max(self._waiting[0].sent_at, self._link.last_received)
        left = silent_since + self.endpoint.timeout - self._loop.time()
        if left <= 0:
            self._link.abort()
        else:
            self._watchdog = self._loop.call_later(left, self._check_for_silence)

    def _on_reply(self, reply: Any) -> None:
        if not self._waiting:
            # A reply without a command: replies can no longer be matched to commands.
            if self._link is not None:
                self._link.abort()
            return
        command = self._waiting.popleft()
        future = command.future
        if isinstance(reply, Exception):
            self._on_error(command, reply)
        elif not future.done():  # done: its caller was cancelled
            future.set_result(reply)

    def _on_error(self, command: _Command, error: Exception) -> None:
        if command.future.done():
            return
        if is_temporary(error) and self._may_retry(command):
            if is_wrong_server(error) and self._link is not None:
                # Another server is the primary now, or has our keys. Reconnecting finds it.
                self._postponed.append(command)
                if not self._redirected:  # once for each link
                    self._redirected = True
                    self.endpoint.route.invalidate()
                    self._link.abort()
                    self.on_moved()
            else:
                self._postpone(command)
            return
        command.future.set_exception(translate(error, self.endpoint.shown))

    def _may_retry(self, command: _Command) -> bool:
        """Whether `command` has time left. Its time starts with its first failure."""
        now = self._loop.time()
        if not command.deadline:
            command.deadline = now + self._retry_for
        return now < command.deadline

    def _postpone(self, command: _Command) -> None:
        if not self._postponed:
            self._loop.call_later(random.uniform(0.05, 0.15), self._requeue_postponed)
        self._postponed.append(command)

    def _requeue_postponed(self) -> None:
        self._queue[:0] = self._postponed
        self._postponed.clear()
        if not self._closed:
            self._flush()

    async def _connect(self) -> Link:
        link = await self.endpoint.connect(self._on_reply, self._on_lost)
        link.on_writable = self._flush
        return link

    def _on_lost(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            self._stats.bytes_in += link.bytes_in
            if link.bytes_in and not self._redirected:
                self._backoff.reset()
            self._redirected = False
        # A command that makes the server close the connection must not be sent again without end.
        self._queue[:0] = [*self._postponed, *self._waiting]
        self._postponed.clear()
        self._waiting.clear()
        self._expire(MailboxUnavailableError(f"{self.endpoint.shown} closed the connection or stopped responding"))
        if self._queue:
            self._start_reconnecting()

    def _start_reconnecting(self) -> None:
        if self._reconnecting is None and not self._closed:
            self._reconnecting = self._loop.create_task(self._reconnect(), name="reconnect commands")

    async def _reconnect(self) -> None:
        """Reconnect, as long as commands are queued, and then send them."""
        try:
            while self._queue:
                await self._backoff.pause(at_most=self._time_left())
                try:
                    self._link = await self._connect()
                except MailboxUnavailableError as failure:
                    self._expire(failure)
                except MailboxError as refusal:
                    self._fail_all(refusal)
                else:
                    self._stats.reconnects += 1
                    break
        finally:
            self._reconnecting = None
        self._flush()

    def _expire(self, reason: MailboxError) -> None:
        """Fail the queued commands whose time is over, and drop those whose caller was cancelled."""
        kept = []
        for command in self._queue:
            if command.future.done():
                continue
            if self._may_retry(command):
                kept.append(command)
            else:
                tried = f"{reason} (tried again for {self._retry_for:g} s)"
                command.future.set_exception(type(reason)(tried))
        self._queue = kept

    def _time_left(self) -> float:
        now = self._loop.time()
        return min(((c.deadline or now + self._retry_for) for c in self._queue), default=now) - now

    def _fail_all(self, reason: MailboxError) -> None:
        for command in [*self._waiting, *self._queue, *self._postponed]:
            if not command.future.done():
                # One exception object per caller: a traceback grows each time that the object is raised.
                command.future.set_exception(type(reason)(*reason.args))
        self._waiting.clear()
        self._queue.clear()
        self._postponed.clear()
