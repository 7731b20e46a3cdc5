"""The supervisor's ear: takes orders from its control mailbox, and tells how its tree is.

`obey` runs beside the tree for as long as that does. Each order is carried out in a task of its own, one after the
other; only a stop need not wait for its turn. It is answered when it is done, in one line, or when its sender has
waited for long enough and it has not been begun: then it never is. Nothing that arrives, and no outage of the server,
ends it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Protocol

from factorial._core.text import one_line, shorten
from factorial.errors import ConfigError, FactorialError, MailboxError, SupervisionError
from factorial.mailbox import Namespace
from factorial.mailbox.supervisors import reports as supervisors
from factorial.mailbox.supervisors.reports import REPORT_INTERVAL, Inbox, MalformedOrder, Order
from factorial.mailbox.transport.blocking import BlockingConnection

__all__ = ["USAGE", "Operations", "obey", "shown"]

log = logging.getLogger(__name__)

USAGE = "usage"
"""The `kind` of an answer to an order that was asked for in a wrong way: repeating it is of no use."""

_BREATH_SECONDS = 0.2
"""Between two reports, however much happens."""
_FAREWELL_SECONDS = 2.0
"""How long the end of the supervisor may be put off by orders under way, and by a server that does not answer."""


class Operations(Protocol):
    """What can be done with a running system.

    A target is the id of a group, a runner or a process; "" is everything. Each operation returns one line that says
    what was done, and raises `ConfigError` for a target that is not there, and `SupervisionError` for what cannot be
    done now. Who calls one of them holds `turn`, except for `stop`, which may be called at any time.
    """

    @property
    def turn(self) -> asyncio.Lock:
        """Held by whoever changes the tree."""
        ...

    @property
    def changed(self) -> asyncio.Event:
        """Set when `report` has become another."""
        ...

    def report(self) -> dict[str, Any]:
        """How the system is: the supervisor, and its tree."""
        ...

    async def drain(self, target: str) -> str:
        """Have processes give their tasks back and leave, and start none in their place."""
        ...

    async def resume(self, target: str) -> str:
        """Start again what was drained."""
        ...

    async def restart(self, target: str) -> str:
        """Replace processes one by one; each successor is ready before its predecessor is drained."""
        ...

    async def scale(self, runner: str, processes: int) -> str:
        """Give a runner so many processes."""
        ...

    async def stop(self, now: bool) -> str:
        """Begin to stop the system: gracefully, or now."""
        ...


async def obey(operations: Operations, mailbox: Namespace, name: str) -> None:
    """Publish reports and obey orders as the supervisor `name`, until cancelled. Raises nothing else."""
    await _Ear(operations, mailbox, name).listen()


class _Ear:
    def __init__(self, operations: Operations, mailbox: Namespace, name: str) -> None:
        self._operations = operations
        self._mailbox = mailbox
        self._scripts = mailbox.scripts
        self._name = name
        self._under_way: dict[asyncio.Task[None], Order] = {}
        self._is_mute = False
        self._is_deaf = False

    async def listen(self) -> None:
        """Publish and take orders until cancelled; then answer those under way, and withdraw."""
        loops = [asyncio.create_task(self._keep_publishing()), asyncio.create_task(self._keep_taking())]
        try:
            await asyncio.gather(*loops)
        finally:
            for task in loops:
                task.cancel()
            await asyncio.wait(loops)
            await self._say_farewell()

    async def _keep_publishing(self) -> None:
        while True:
            self._operations.changed.clear()
            await self._publish()
            await asyncio.sleep(_BREATH_SECONDS)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._operations.changed.wait(), REPORT_INTERVAL - _BREATH_SECONDS)

    async def _keep_taking(self) -> None:
        blocking: BlockingConnection | None = None
        inbox: Inbox | None = None
        try:
            while True:
                try:
                    if blocking is None:
                        blocking = await BlockingConnection.open(self._mailbox.redis)
                    inbox = inbox or Inbox(self._scripts, blocking, self._name)
                    order = await inbox.next()
                except MalformedOrder as malformed:
                    log.warning("the control mailbox of %s had something that is no order: %s", self._name, malformed)
                except Exception as failure:  # an outage, or what we have not thought of: the tree stands without us
                    if not self._is_deaf:
                        self._tell(failure)
                    self._is_deaf = True
                    await asyncio.sleep(REPORT_INTERVAL)
                else:
                    self._is_deaf = False
                    taken_at = asyncio.get_running_loop().time()
                    task = asyncio.create_task(self._carry_out(order, taken_at))
                    self._under_way[task] = order
                    task.add_done_callback(self._under_way.pop)
        finally:
            if blocking is not None:
                await blocking.close()

    async def _publish(self) -> None:
        try:
            await supervisors.publish(self._scripts, supervisor=self._name, report=self._operations.report())
        except Exception as failure:  # as above
            if not self._is_mute:
                self._tell(failure)
            self._is_mute = True
        else:
            if self._is_mute:
                log.info("%s can be operated again", self._name)
            self._is_mute = False

    def _tell(self, failure: Exception) -> None:
        """Log it; its like is not told again before things were well: an hour of it must not fill the log."""
        unexpected = None if isinstance(failure, MailboxError) else failure
        log.warning("%s cannot be operated, its tree goes on: %s", self._name, failure, exc_info=unexpected)

    async def _carry_out(self, order: Order, taken_at: float) -> None:
        text, error, is_usage = "", "", False
        try:
            text = await self._outcome(order, taken_at)
        except FactorialError as refused:
            error, is_usage = str(refused), isinstance(refused, ConfigError)
        except Exception as failure:  # a bug in one operation is no reason to let all others down
            log.exception("an order could not be carried out: %s", shown(order.content))
            error = f"it failed unexpectedly, see the supervisor's log: {failure!r}"
        log.info("%s: %s", shown(order.content), error or text)
        await self._publish()  # before the answer: who has it and asks for the status sees what was done
        await self._answer(order, text, error, is_usage=is_usage)

    async def _outcome(self, order: Order, taken_at: float) -> str:
        if order.is_stale:
            raise SupervisionError(
                f"the order was given {order.age:.0f} s ago, and its sender has waited for {order.patience:g} s: "
                "it is not obeyed any more"
            )
        operation = self._operation(order.content)
        async with self._turn(order, taken_at):
            log.info("ordered: %s", shown(order.content))
            return await operation()

    def _operation(self, order: Mapping[str, Any]) -> Callable[[], Awaitable[str]]:
        """What the order asks for. Raises `SupervisionError` if that is not known here."""
        operations = self._operations
        match order:
            case {"verb": "drain", "target": str(target)}:
                return partial(operations.drain, target)
            case {"verb": "resume", "target": str(target)}:
                return partial(operations.resume, target)
            case {"verb": "restart", "target": str(target)}:
                return partial(operations.restart, target)
            case {"verb": "scale", "runner": str(runner), "processes": int(processes)} if processes is not True:
                return partial(operations.scale, runner, processes)
            case {"verb": "stop", "now": bool(now)}:
                return partial(operations.stop, now)
        raise SupervisionError(f"this supervisor knows no such order: {shown(order)}")

    @asynccontextmanager
    async def _turn(self, order: Order, taken_at: float) -> AsyncIterator[None]:
        """Have the tree to oneself, as soon as that can be. Raises `SupervisionError` when nobody waits any more: what
        its sender takes for not done must not be done later."""
        if order.content["verb"] == "stop":
            yield
            return
        turn = self._operations.turn
        if turn.locked():
            log.info("waits for its turn: %s", shown(order.content))
        try:
            async with asyncio.timeout_at(taken_at + order.patience - order.age):
                await turn.acquire()
        except TimeoutError:
            raise SupervisionError(
                f"not begun within {order.patience:g} s, since another order or a reload was under way: "
                "it is not obeyed any more"
            ) from None
        try:
            yield
        finally:
            turn.release()

    async def _answer(self, order: Order, text: str, error: str, *, is_usage: bool = False) -> None:
        try:
            kind = USAGE if is_usage else ""
            await supervisors.answer(self._scripts, order_id=order.id, text=text, error=error, kind=kind)
        except MailboxError as failure:
            log.warning("the answer to an order (%s) is lost: %s", shown(order.content), failure)

    async def _say_farewell(self) -> None:
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=_FAREWELL_SECONDS)
        left = dict(self._under_way)
        for task in left:
            task.cancel()
        try:
            async with asyncio.timeout(_FAREWELL_SECONDS):
                for order in left.values():
                    await self._answer(order, "", "the supervisor ended before it was done")
                await supervisors.withdraw(self._scripts, supervisor=self._name)
        except (MailboxError, TimeoutError) as failure:
            log.info("%s could not say that it has ended: %s", self._name, str(failure) or "no answer")


def shown(order: Mapping[str, Any]) -> str:
    """An order in a few words."""
    words = (str(value) if key != "now" else "--now" * bool(value) for key, value in order.items())
    return one_line(shorten(" ".join(word for word in words if word), 200))
