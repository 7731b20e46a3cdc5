"""A running system: puts the namespace, the tree, signals, orders and health together.

`run_system` opens the namespace. This checks the server, and the connection is used to reclaim the tasks of dead
processes. Then it runs the tree, and next to it:

    the monitor          the health of the processes             (process/monitor.py)
    the control mailbox  orders and reports, through the server  (service/orders.py)
    the signals          SIGHUP reloads, SIGUSR1 dumps           (process/signals.py)
    the service manager  the state of the supervisor, to systemd (service/notify.py)

With `embedded:DIR`, each child receives that URL and attaches to the embedded server by itself, as the supervisor does.
If the supervisor is killed, the last child that leaves stops the server.
"""

import asyncio
import faulthandler
import logging
import re
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from factorial._core.version import __version__
from factorial.config import LoggingConfig, SystemConfig
from factorial.errors import FactorialError, MailboxError
from factorial.supervisor.operate.operations import Operator, Source
from factorial.supervisor.operate.status import Subject, draw
from factorial.supervisor.process.child_process import ChildProcess
from factorial.supervisor.process.monitor import Monitor
from factorial.supervisor.process.signals import StopRequests, stop_requests
from factorial.supervisor.process.stacks import task_stacks
from factorial.supervisor.rules.spec import ChildExit
from factorial.supervisor.service.notify import ServiceManager
from factorial.supervisor.service.orders import take_orders
from factorial.supervisor.tree.plan import Runners, tree_spec
from factorial.supervisor.tree.tree import Tree
from factorial.telemetry.task_log import TaskLog

if TYPE_CHECKING:
    from factorial.mailbox import Namespace
    from factorial.mailbox.operations.lease import Cause

__all__ = ["cause_of", "run_system"]

_logger = logging.getLogger(__name__)


class _Guest(Protocol):
    """An agent that runs in the supervisor's own process, next to the tree."""

    async def run(self, namespace: "Namespace", requests: StopRequests) -> None: ...

    def node(self) -> dict[str, Any]:
        """Its report node, like that of a process (`tree/nodes.py`)."""


_OUTSIDE_SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")


async def run_system(
    config: SystemConfig,
    runners: Runners,
    guests: Sequence[_Guest] = (),
    *,
    path: str | None = None,
    logs: LoggingConfig | None = None,
) -> None:
    """Run the whole system until it is asked to stop. Raises `FactorialError` with the reason if it has to end.

    `runners`: the loaded runners of `config`. `guests`: when one of them ends, the system stops. `path`: the file of
    `config`, which is read again on SIGHUP. `logs`: logging settings that replace those of `config`.
    """
    spec = tree_spec(config, runners)
    launch = partial(ChildProcess, logs=logs or config.logging.resolved)
    manager = ServiceManager()
    from factorial.mailbox import Namespace

    with stop_requests() as requests:
        namespace = await Namespace.open(config.redis, config.events, config.metrics)
        try:
            changed = asyncio.Event()
            tree = Tree(spec, launch=launch, on_exit=partial(_reclaim, namespace), on_change=changed.set)
            name = f"{re.sub('[^A-Za-z0-9_.-]', '-', socket.gethostname())[:100]}-{secrets.token_hex(3)}"
            operator = Operator(
                name, Source(config, path), tree, requests, changed, lambda: [guest.node() for guest in guests]
            )
            monitor = Monitor(partial(_processes, tree), operator.replace)
            _logger.info(
                "this is supervisor %s of factorial %s, in namespace %s", name, __version__, config.redis.namespace
            )
            _warn(runners)
            async with _background(
                monitor.run(),
                take_orders(operator, namespace, name),
                manager.keep_alive(),
                _announce(tree, requests, manager, config.supervisor.grace),
                _on_each(requests.reload, partial(_reload, operator, manager)),
                _on_each(requests.dump, partial(_dump, operator, tree)),
            ):
                await _run(tree, requests, [guest.run(namespace, requests) for guest in guests])
                _logger.info("%s has stopped", name)
        finally:
            await namespace.close()


def _warn(runners: Runners) -> None:
    for name, runner in runners.items():
        lost_after = runner.worker.lease + runner.worker.grace_to_register
        if runner.health.blocked_after > lost_after:
            _logger.warning(
                "%s: a process with a blocked event loop loses its tasks to other processes after %g s, and is killed "
                "only after %g s. So a task that blocks can block several processes. Make blocked_after shorter than "
                "heartbeat_interval * (missed_heartbeats + 1.5)",
                name, lost_after, runner.health.blocked_after,
            )  # fmt: skip


async def _run(tree: Tree, requests: StopRequests, guests: Sequence[Coroutine[None, None, None]]) -> None:
    tasks = [asyncio.create_task(guest) for guest in guests]
    for task in tasks:
        task.add_done_callback(lambda _: requests.graceful.set())
    try:
        await tree.run(requests.graceful, requests.now)
    finally:
        requests.graceful.set()
        await asyncio.gather(*tasks)


@asynccontextmanager
async def _background(*coroutines: Coroutine[None, None, Any]) -> AsyncIterator[None]:
    """Run the coroutines until the block ends. An error in one of them is logged, and does not end supervision."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    for task in tasks:
        task.add_done_callback(_log_failure)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _log_failure(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled() and (error := task.exception()):
        _logger.error("a part of the supervisor has failed; the tree goes on without it", exc_info=error)


async def _on_each(event: asyncio.Event, react: Callable[[], Awaitable[None]]) -> None:
    while True:
        await event.wait()
        event.clear()
        try:
            await react()
        except Exception:  # a bug in one reaction must not keep the supervisor from handling the next signal
            _logger.exception("the reaction to a signal failed")


async def _announce(tree: Tree, requests: StopRequests, manager: ServiceManager, grace: float) -> None:
    started = asyncio.create_task(tree.started.wait())
    stopping = asyncio.create_task(requests.graceful.wait())
    try:
        await asyncio.wait({started, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if started.done():
            count = sum(1 for _ in tree.processes())
            _logger.info("all %d children are ready", count)
            manager.ready(f"{count} processes")
        await stopping
        _logger.info("stopping: tasks are released at their next step, within %g s; a second signal stops now", grace)
        manager.stopping()
        await requests.now.wait()
        _logger.info("stopping now: tasks are released without waiting for their next step")
    finally:
        started.cancel()
        stopping.cancel()


async def _reload(operator: Operator, manager: ServiceManager) -> None:
    _logger.info("SIGHUP: reloading")
    manager.reloading()
    outcome = "not reloaded: see the log"
    try:
        outcome = await operator.reload()
        _logger.info("%s", outcome)
    except FactorialError as refused:
        outcome = f"not reloaded: {' '.join(str(refused).split())}"
        _logger.error("%s", outcome)
    finally:
        manager.ready(outcome)


async def _dump(operator: Operator, tree: Tree) -> None:
    """Write the tree and all stacks to standard error: those of the supervisor, then those of each process."""
    _logger.info("SIGUSR1: the tree and all stacks follow")
    tasks = task_stacks("supervisor", asyncio.get_running_loop())
    print(draw([Subject(operator.report(), 0.0, False)], {}), tasks, sep="\n", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(sys.stderr, all_threads=True)
    for process in _processes(tree):
        process.dump()
        await asyncio.sleep(0.1)  # so that their lines do not mix


def _processes(tree: Tree) -> list[ChildProcess]:
    return [each.child for each in tree.processes() if isinstance(each.child, ChildProcess)]


async def _reclaim(namespace: "Namespace", exit: ChildExit) -> None:
    """Reclaim the tasks of a process that has ended, so that other processes continue them at once."""
    cause = cause_of(exit)
    try:
        taken = await namespace.reclaim_process(exit.process, cause)
    except MailboxError as unreachable:
        _logger.warning("the tasks of %s continue only after its lease has expired: %s", exit.process, unreachable)
        return
    agent = exit.child_id.rpartition(".")[0]
    for task_id in taken.go_on:
        TaskLog(task_id, agent).reclaimed(exit.process, cause)
    for task_id in taken.given_up:
        TaskLog(task_id, agent).given_up(exit.process)


def cause_of(exit: ChildExit) -> "Cause":
    """What the end of a process says about the tasks that it held.

    The end of a process that was asked to end says nothing about them, and a signal from outside says little. A crash,
    a kill for its health, and an unrequested exit were caused by something that ran in the process: a process that
    ends in order has released its tasks before.
    """
    from factorial.mailbox.operations.lease import Cause

    if exit.asked:
        return Cause.LEFT
    if not exit.why and (exit.signal in _OUTSIDE_SIGNALS or exit.exitcode is None):
        return Cause.KILLED
    return Cause.CRASHED
