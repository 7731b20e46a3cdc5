"""Waits for the wake tokens of the agent's queue, and for the signals to this process.

One blocking connection per process. It waits for tokens only while a worker has room for a run, because a process that
takes a token and cannot use it has to pass it on. Signals:

    cancel <task id>    break off the run: it was cancelled
    listen              a worker has room again: wait for tokens, too
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from factorial.actors.worker import Ready, Worker
from factorial.errors import MailboxError
from factorial.mailbox.operations.claim import ClaimRequest, claim
from factorial.mailbox.script import Scripts
from factorial.mailbox.transport.blocking import BlockingConnection

__all__ = ["Control"]

_logger = logging.getLogger(__name__)

PATIENCE = 5
"""Seconds after which a worker with room claims without a token, in case one was lost."""


class Control:
    """The control mailbox of one process."""

    def __init__(
        self,
        scripts: Scripts,
        blocking: BlockingConnection,
        process: str,
        agent: str,
        workers: Sequence[Worker],
    ) -> None:
        self._scripts = scripts
        self._blocking = blocking
        self._process = process
        self._agent = agent
        self._workers = workers
        self._waits_for_tokens = False
        self._timer: asyncio.TimerHandle | None = None

    async def serve(self) -> None:
        """Wait, and act on what arrives, until cancelled."""
        signals, tokens = self._scripts.keys.signals(self._process), self._scripts.keys.wake(self._agent)
        while True:
            self._waits_for_tokens = any(worker.free_slots > 0 for worker in self._workers)
            keys = [signals, tokens] if self._waits_for_tokens else [signals]
            found = await self._blocking.execute("BLPOP", *keys, PATIENCE, seconds=PATIENCE)
            if found is None:
                await self._look_around()
            elif found[0] == tokens.encode():
                await self.pass_on_token()
            else:
                self._obey(found[1].decode())

    def wake_in(self, seconds: float) -> None:
        """Claim after `seconds`: a run is due then."""
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        if self._timer is not None:
            if loop.time() < self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = loop.call_at(at, self.send_for_work)

    async def has_room(self) -> None:
        """A worker has room: if the present wait does not include tokens, end it."""
        if not self._waits_for_tokens:
            await self._scripts.commands.execute("RPUSH", self._scripts.keys.signals(self._process), "listen")

    def close(self) -> None:
        """Stop the timer of the run that is due next."""
        if self._timer is not None:
            self._timer.cancel()

    def send_for_work(self) -> bool:
        """Have the worker with the most room claim. False if none has room."""
        roomiest = max(self._workers, key=lambda worker: worker.free_slots)
        if roomiest.free_slots > 0:
            roomiest.send(Ready())
            return True
        return False

    async def pass_on_token(self) -> None:
        """Use the token, or put it back: all workers may have become busy while it was waited for."""
        if not self.send_for_work():
            with contextlib.suppress(MailboxError):  # if this fails, other processes claim within PATIENCE
                request = ClaimRequest(self._process, "control", self._agent, count=0, recovery_limit=0)
                await claim(self._scripts, request)

    async def _look_around(self) -> None:
        """Nothing arrived, or the connection was lost with signals in it: claim, and check for cancelled runs."""
        self.send_for_work()
        held = [host for worker in self._workers for host in worker.hosts.values()]
        with contextlib.suppress(MailboxError):
            flags = await asyncio.gather(
                *(
                    self._scripts.commands.execute("HGET", self._scripts.keys.run(run.task_id), "cancel_requested")
                    for run in held
                )
            )
            for host, flag in zip(held, flags, strict=True):
                if flag == b"1":
                    host.cancel()

    def _obey(self, signal: str) -> None:
        verb, _, task_id = signal.partition(" ")
        match verb:
            case "cancel":
                for worker in self._workers:
                    if host := worker.hosts.get(task_id):
                        host.cancel()
            case "listen":
                pass  # the next wait includes the tokens
            case _:
                _logger.warning("%s got an unknown signal: %r", self._process, verb[:40])
