"""Takes orders from the supervisor's control mailbox, and publishes reports of its tree.

`take_orders` runs next to the tree until it is cancelled. Each order is carried out in an asyncio task of its own, one
at a time; only a stop does not wait for its turn. An order is answered in one line when it is done. An order that has
not started when its sender stops waiting is refused, and never started. Neither a malformed order nor an outage of the
server ends it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from factorial.errors import ConfigError, FactorialError, MailboxError, SupervisionError
from factorial.mailbox import Namespace
from factorial.mailbox.supervisors import reports
from factorial.mailbox.supervisors.orders import Inbox, MalformedOrder, Order, answer
from factorial.mailbox.supervisors.reports import REPORT_INTERVAL
from factorial.mailbox.transport.blocking import BlockingConnection
from factorial.supervisor.operate.verbs import USAGE, Operations, operation, summary

__all__ = ["take_orders"]

_logger = logging.getLogger(__name__)

_MIN_REPORT_INTERVAL = 0.2
"""Seconds between two reports, however often the tree changes."""
_CLOSING_SECONDS = 2.0
"""How long orders in progress, and then a server that does not answer, may delay the end of the supervisor."""


async def take_orders(operations: Operations, namespace: Namespace, name: str) -> None:
    """Publish reports and carry out orders as the supervisor `name`, until cancelled. Raises nothing else."""
    await _ControlMailbox(operations, namespace, name).serve()


class _ControlMailbox:
    def __init__(self, operations: Operations, namespace: Namespace, name: str) -> None:
        self._operations = operations
        self._namespace = namespace
        self._scripts = namespace.scripts
        self._name = name
        self._in_progress: dict[asyncio.Task[None], Order] = {}
        self._publishing_fails = False
        self._taking_fails = False

    async def serve(self) -> None:
        """Publish reports and take orders until cancelled. Then answer the orders in progress, and withdraw."""
        loops = [asyncio.create_task(self._keep_publishing()), asyncio.create_task(self._keep_taking())]
        try:
            await asyncio.gather(*loops)
        finally:
            for task in loops:
                task.cancel()
            await asyncio.wait(loops)
            await self._close()

    async def _keep_publishing(self) -> None:
        while True:
            self._operations.changed.clear()
            await self._publish()
            await asyncio.sleep(_MIN_REPORT_INTERVAL)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._operations.changed.wait(), REPORT_INTERVAL - _MIN_REPORT_INTERVAL)

    async def _keep_taking(self) -> None:
        blocking: BlockingConnection | None = None
        inbox: Inbox | None = None
        try:
            while True:
                try:
                    if blocking is None:
                        blocking = await BlockingConnection.open(self._namespace.redis)
                    inbox = inbox or Inbox(self._scripts, blocking, self._name)
                    order = await inbox.next()
                except MalformedOrder as malformed:
                    _logger.warning(
                        "%s: a malformed order was removed from the control mailbox: %s", self._name, malformed
                    )
                except Exception as failure:  # an outage, or a bug here: the tree goes on in both cases
                    if not self._taking_fails:
                        self._log_outage(failure)
                    self._taking_fails = True
                    await asyncio.sleep(REPORT_INTERVAL)
                else:
                    self._taking_fails = False
                    taken_at = asyncio.get_running_loop().time()
                    task = asyncio.create_task(self._carry_out(order, taken_at))
                    self._in_progress[task] = order
                    task.add_done_callback(self._in_progress.pop)
        finally:
            if blocking is not None:
                await blocking.close()

    async def _publish(self) -> None:
        try:
            await reports.publish(self._scripts, supervisor=self._name, report=self._operations.report())
        except Exception as failure:  # as above
            if not self._publishing_fails:
                self._log_outage(failure)
            self._publishing_fails = True
        else:
            if self._publishing_fails:
                _logger.info("%s can be operated again", self._name)
            self._publishing_fails = False

    def _log_outage(self, failure: Exception) -> None:
        """Called once per outage, so that a long outage does not fill the log."""
        unexpected = None if isinstance(failure, MailboxError) else failure
        _logger.warning("%s cannot be operated, its tree goes on: %s", self._name, failure, exc_info=unexpected)

    async def _carry_out(self, order: Order, taken_at: float) -> None:
        text, error, is_usage = "", "", False
        try:
            text = await self._result(order, taken_at)
        except FactorialError as refused:
            error, is_usage = str(refused), isinstance(refused, ConfigError)
        except Exception as failure:  # a bug in one operation must not end the others
            _logger.exception("an order could not be carried out: %s", summary(order.content))
            error = f"it failed unexpectedly, see the supervisor's log: {failure!r}"
        _logger.info("%s: %s", summary(order.content), error or text)
        await self._publish()  # before the answer, so that a `status` after the answer shows what was done
        await self._answer(order, text, error, is_usage=is_usage)

    async def _result(self, order: Order, taken_at: float) -> str:
        if order.is_stale:
            raise SupervisionError(
                f"the order is {order.age:.0f} s old, and its sender waited for {order.patience:g} s: it was dropped"
            )
        call = operation(self._operations, order.content)
        async with self._turn(order, taken_at):
            _logger.info("order: %s", summary(order.content))
            return await call()

    @asynccontextmanager
    async def _turn(self, order: Order, taken_at: float) -> AsyncIterator[None]:
        """Wait for the turn to change the tree, and hold it. Raises `SupervisionError` when the sender has stopped
        waiting: an order that was reported as not done must not be carried out later."""
        if order.content["verb"] == "stop":
            yield
            return
        turn = self._operations.turn
        if turn.locked():
            _logger.info("waits for its turn: %s", summary(order.content))
        try:
            async with asyncio.timeout_at(taken_at + order.patience - order.age):
                await turn.acquire()
        except TimeoutError:
            raise SupervisionError(
                f"not started within {order.patience:g} s, because another order or a reload was in progress: "
                "it was dropped"
            ) from None
        try:
            yield
        finally:
            turn.release()

    async def _answer(self, order: Order, text: str, error: str, *, is_usage: bool = False) -> None:
        try:
            kind = USAGE if is_usage else ""
            await answer(self._scripts, order_id=order.id, text=text, error=error, kind=kind)
        except MailboxError as failure:
            _logger.warning("the answer to an order (%s) is lost: %s", summary(order.content), failure)

    async def _close(self) -> None:
        if self._in_progress:
            await asyncio.wait(self._in_progress, timeout=_CLOSING_SECONDS)
        left = dict(self._in_progress)
        for task in left:
            task.cancel()
        try:
            async with asyncio.timeout(_CLOSING_SECONDS):
                for order in left.values():
                    await self._answer(order, "", "the supervisor ended before it was done")
                await reports.withdraw(self._scripts, supervisor=self._name)
        except (MailboxError, TimeoutError) as failure:
            _logger.info("%s could not withdraw its report: %s", self._name, str(failure) or "no answer")
