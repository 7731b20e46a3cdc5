"""Waits for what a process has to hear at once: wake tokens of its agent's queue, and its own signals.

One blocking connection per process. The token is only waited for while a worker has room for a run: a token that is
taken by somebody who cannot use it has to be passed on. Signals:

    cancel <task id>    abandon the run: somebody asked for its end
    listen              a worker has room again: wait for tokens, too
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from factorial.actors.worker import Ready, Worker
from factorial.errors import MailboxError
from factorial.mailbox.operations.claim import claim
from factorial.mailbox.script import Scripts
from factorial.mailbox.transport.blocking import BlockingConnection

__all__ = ["Control"]

logger = logging.getLogger(__name__)

PATIENCE = 5
"""Seconds after which a worker with room looks for work unasked: the safety net below the tokens."""


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
        """Wait, and pass on what comes. Ends when it is cancelled."""
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
        """Look for work after `seconds`: a run is due then."""
        loop = asyncio.get_running_loop()
        at = loop.time() + seconds
        if self._timer is not None:
            if loop.time() < self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = loop.call_at(at, self.send_for_work)

    async def has_room(self) -> None:
        """A worker can take runs: if the present wait does not include tokens, break it."""
        if not self._waits_for_tokens:
            await self._scripts.commands.execute("RPUSH", self._scripts.keys.signals(self._process), "listen")

    def close(self) -> None:
        """Forget the run that is due next."""
        if self._timer is not None:
            self._timer.cancel()

    def send_for_work(self) -> bool:
        """Have the worker with the most room claim. Tells whether there is one."""
        roomiest = max(self._workers, key=lambda worker: worker.free_slots)
        if roomiest.free_slots > 0:
            roomiest.tell(Ready())
            return True
        return False

    async def pass_on_token(self) -> None:
        """Use the token, or put it back: all workers may have become busy while it was waited for."""
        if not self.send_for_work():
            with contextlib.suppress(MailboxError):  # without an answer, others look around within PATIENCE
                await claim(
                    self._scripts, process=self._process, worker="control", agent=self._agent, count=0, recovery_limit=0
                )

    async def _look_around(self) -> None:
        """Nothing came, or the connection was lost, and signals with it: look for work, and for cancelled runs."""
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
                logger.warning("%s got an unknown signal: %r", self._process, verb[:40])
