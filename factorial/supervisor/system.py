"""From a `SystemConfig` to a running supervision tree: where mailbox, agents and processes are put together.

`plan` validates without starting anything. `run_system` opens the mailbox, which proves that the server will do and is
there to release what a dead process held, and then runs the tree.

A child of a system with `embedded:DIR` is given that URL and attaches to the server by itself, as we do here: should
the supervisor be killed, the last child to leave stops the server.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from factorial.config import RunnerConfig, SystemConfig, as_mapping
from factorial.errors import ConfigError, MailboxError
from factorial.supervisor.process import ChildProcess
from factorial.supervisor.signals import StopRequests, stop_requests
from factorial.supervisor.spec import ChildExit, ChildSpec, Strategy, SupervisorFlags
from factorial.supervisor.tree import Tree

if TYPE_CHECKING:
    from factorial.mailbox import Mailbox

__all__ = ["Companion", "child_specs", "plan", "run_system"]

log = logging.getLogger(__name__)

Companion = Callable[["Mailbox", StopRequests], Coroutine[None, None, None]]

RUNNER_TARGET = "factorial.actors.runner:run_process"
START_TIMEOUT = 60.0
"""Seconds for a process to import its agent, connect, and get ready."""


def plan(config: SystemConfig) -> dict[str, RunnerConfig]:
    """The runners by the names of their agents, each of which has been imported. Raises `ConfigError`."""
    from factorial.agent.load import load_agent

    runners: dict[str, RunnerConfig] = {}
    for runner in config.runner:
        agent = load_agent(runner.agent)
        agent.check_ready()
        name = agent.name
        if name in runners:
            raise ConfigError(
                f"two runners have an agent named {name!r} ({runners[name].agent} and {runner.agent}): "
                "merge them, or give one agent another name=..."
            )
        runners[name] = runner
    return runners


def flags(config: SystemConfig) -> SupervisorFlags:
    """The supervisor's flags. Runners that are restarted one for one do not need each other: they stop together."""
    supervisor = config.supervisor
    return SupervisorFlags(
        strategy=Strategy(supervisor.strategy),
        intensity=supervisor.intensity,
        period=supervisor.period,
        stop_together=supervisor.strategy == "one_for_one",
    )


def child_specs(config: SystemConfig, runners: dict[str, RunnerConfig]) -> Sequence[ChildSpec]:
    """One child for each process of each runner: `weather.1`, `weather.2`, ..."""
    redis = replace(config.redis, url=config.redis.resolved_url)
    return [
        ChildSpec(
            id=f"{name}.{number}",
            target=RUNNER_TARGET,
            kwargs={
                "runner": as_mapping(runner),
                "redis": as_mapping(redis),
                "events": as_mapping(config.events),
                "grace": config.supervisor.childrens_grace,
            },
            shutdown=config.supervisor.grace,
            start_timeout=START_TIMEOUT,
        )
        for name, runner in runners.items()
        for number in range(1, runner.process_count + 1)
    ]


async def run_system(config: SystemConfig, companions: Sequence[Companion] = ()) -> None:
    """Run the whole system until SIGTERM or SIGINT. Raises a `FactorialError` that says why it could not go on.

    `companions` run in this process, beside the tree; when one of them ends, all of it does.
    """
    specs = child_specs(config, plan(config))
    from factorial.mailbox import Mailbox

    with stop_requests() as requests:
        mailbox = await Mailbox.open(config.redis, config.events)

        async def release(exit: ChildExit) -> None:
            try:
                released = await mailbox.release_process(exit.process)
            except MailboxError as unreachable:
                log.warning("the tasks of %s go on when its lease is over: %s", exit.process, unreachable)
                return
            if released:
                log.info("released %d tasks that %s held", released, exit.process)

        try:
            tree = Tree(flags(config), specs, launch=ChildProcess, on_exit=release)
            beside = [asyncio.create_task(companion(mailbox, requests)) for companion in companions]
            for task in beside:
                task.add_done_callback(lambda _: requests.graceful.set())
            try:
                await tree.run(requests.graceful, requests.now)
            finally:
                requests.graceful.set()
                await asyncio.gather(*beside)
        finally:
            await mailbox.close()
