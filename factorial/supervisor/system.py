"""A running system: where mailbox, tree, signals, orders and health are put together.

`run_system` opens the mailbox, which proves that the server will do and is there to release what a dead process held,
runs the tree, and beside it what looks after it:

    the monitor         the health of the processes           (monitor.py)
    the ear             orders and reports, through Redis     (orders.py)
    the signals         SIGHUP reloads, SIGUSR1 dumps         (signals.py)
    the service manager systemd is told how we are            (notify.py)

A child of a system with `embedded:DIR` is given that URL and attaches to the server by itself, as we do here: should
the supervisor be killed, the last child to leave stops the server.
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
from factorial.supervisor.monitor import Monitor
from factorial.supervisor.notify import ServiceManager
from factorial.supervisor.operations import Operator
from factorial.supervisor.orders import obey
from factorial.supervisor.plan import Runners, tree_spec
from factorial.supervisor.process import ChildProcess
from factorial.supervisor.signals import StopRequests, stop_requests
from factorial.supervisor.spec import ChildExit
from factorial.supervisor.stacks import of_tasks
from factorial.supervisor.status import Subject, draw
from factorial.supervisor.tree import Tree
from factorial.telemetry.task_log import TaskLog

if TYPE_CHECKING:
    from factorial.mailbox import Namespace
    from factorial.mailbox.operations.lease import Cause

__all__ = ["Guest", "blame", "run_system"]

log = logging.getLogger(__name__)


class Guest(Protocol):
    """An agent that runs in the supervisor's own process, beside the tree."""

    async def run(self, mailbox: "Namespace", requests: StopRequests) -> None: ...

    def node(self) -> dict[str, Any]:
        """How it is, as `report.describe` tells of a process."""


_FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")


async def run_system(
    config: SystemConfig,
    runners: Runners,
    guests: Sequence[Guest] = (),
    *,
    path: str | None = None,
    logs: LoggingConfig | None = None,
) -> None:
    """Run the whole system until it is asked to stop. Raises a `FactorialError` that says why it could not go on.

    `runners`: those of `config`, loaded. When one of the guests ends, all of it does. `path` is the file that `config`
    comes from: it is read again on SIGHUP. `logs`: how its processes log, if not as the configuration says.
    """
    spec = tree_spec(config, runners)
    launch = partial(ChildProcess, logs=logs or config.logging.resolved)
    manager = ServiceManager()
    from factorial.mailbox import Namespace

    with stop_requests() as requests:
        mailbox = await Namespace.open(config.redis, config.events, config.metrics)
        try:
            changed = asyncio.Event()
            tree = Tree(spec, launch=launch, on_exit=partial(_release, mailbox), on_change=changed.set)
            name = f"{re.sub('[^A-Za-z0-9_.-]', '-', socket.gethostname())[:100]}-{secrets.token_hex(3)}"
            operator = Operator(name, config, tree, requests, path, changed, lambda: [guest.node() for guest in guests])
            monitor = Monitor(partial(_processes, tree), operator.replace)
            log.info(
                "this is supervisor %s of factorial %s, in namespace %s", name, __version__, config.redis.namespace
            )
            _warn(runners)
            async with _beside(
                monitor.run(),
                obey(operator, mailbox, name),
                manager.reassure(),
                _announce(tree, requests, manager, config.supervisor.grace),
                _on_each(requests.reload, partial(_reload, operator, manager)),
                _on_each(requests.dump, partial(_dump, operator, tree)),
            ):
                await _run(tree, requests, [guest.run(mailbox, requests) for guest in guests])
                log.info("%s has stopped", name)
        finally:
            await mailbox.close()


def _warn(runners: Runners) -> None:
    for name, runner in runners.items():
        lost_after = runner.worker.lease + 2 * runner.worker.heartbeat_interval
        if runner.health.blocked_after > lost_after:
            log.warning(
                "%s: a process whose event loop is blocked loses its tasks to others after %g s, and is killed after "
                "%g s: a task that blocks may block several. Make blocked_after shorter than heartbeat_interval times "
                "(missed_heartbeats + 2)",
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
async def _beside(*coroutines: Coroutine[None, None, Any]) -> AsyncIterator[None]:
    """Run these as long as the block does. None of them may end supervision: what one of them raises is logged."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    for task in tasks:
        task.add_done_callback(_tell_failure)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _tell_failure(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("a part of the supervisor has failed, the tree goes on without it", exc_info=error)


async def _on_each(event: asyncio.Event, react: Callable[[], Awaitable[None]]) -> None:
    while True:
        await event.wait()
        event.clear()
        try:
            await react()
        except Exception:  # a mistake of ours in one reaction must not make the supervisor deaf to the next signal
            log.exception("a signal could not be answered")


async def _announce(tree: Tree, requests: StopRequests, manager: ServiceManager, grace: float) -> None:
    started = asyncio.create_task(tree.started.wait())
    stopping = asyncio.create_task(requests.graceful.wait())
    try:
        await asyncio.wait({started, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if started.done():
            count = sum(1 for _ in tree.workers())
            log.info("all %d children are ready", count)
            manager.ready(f"{count} processes")
        await stopping
        log.info("stopping: tasks are given back at their next step, within %g s; a second signal: now", grace)
        manager.stopping()
        await requests.now.wait()
        log.info("stopping now: tasks are given back as they are")
    finally:
        started.cancel()
        stopping.cancel()


async def _reload(operator: Operator, manager: ServiceManager) -> None:
    log.info("reloading, as asked for by SIGHUP")
    manager.reloading()
    outcome = "not reloaded: see the log"
    try:
        outcome = await operator.reload()
        log.info("%s", outcome)
    except FactorialError as refused:
        outcome = f"not reloaded: {' '.join(str(refused).split())}"
        log.error("%s", outcome)
    finally:
        manager.ready(outcome)


async def _dump(operator: Operator, tree: Tree) -> None:
    """Write the tree and all stacks to standard error: ours, and those of every process, one after the other."""
    log.info("the tree and all stacks follow, as asked for by SIGUSR1")
    tasks = of_tasks("supervisor", asyncio.get_running_loop())
    print(draw([Subject(operator.report(), 0.0, False)], {}), tasks, sep="\n", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(sys.stderr, all_threads=True)
    for process in _processes(tree):
        process.dump()
        await asyncio.sleep(0.1)  # so that they do not write into each other's lines


def _processes(tree: Tree) -> list[ChildProcess]:
    return [member.child for member in tree.workers() if isinstance(member.child, ChildProcess)]


async def _release(mailbox: "Namespace", exit: ChildExit) -> None:
    """Have others go on at once with what the process held."""
    cause = blame(exit)
    try:
        taken = await mailbox.release_process(exit.process, cause)
    except MailboxError as unreachable:
        log.warning("the tasks of %s go on when its lease is over: %s", exit.process, unreachable)
        return
    agent = exit.child_id.rpartition(".")[0]
    for task_id in taken.go_on:
        TaskLog(task_id, agent).reclaimed(exit.process, cause)
    for task_id in taken.given_up:
        TaskLog(task_id, agent).given_up(exit.process)


def blame(exit: ChildExit) -> "Cause":
    """What the end of a process says about the tasks that it held.

    Who was asked to end proves nothing, whatever became of it. A signal that others send says little. A crash, a kill
    for its health, and an exit that nobody asked for are the doing of something that was executed there: a process that
    ends in order has given its tasks back before.
    """
    from factorial.mailbox.operations.lease import Cause

    if exit.asked:
        return Cause.LEFT
    if not exit.why and (exit.signal in _FROM_OUTSIDE or exit.exitcode is None):
        return Cause.KILLED
    return Cause.CRASHED
