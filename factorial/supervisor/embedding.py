"""A system from the agents of a running program: what `orchestrator.run()` does.

Each agent is run by processes that import it by name. An agent that has none (it was made in a function, or in a
notebook) cannot be imported by anybody else: it runs in this process, and the log says so.
"""

import asyncio
import logging
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from factorial.config import (
    AgentWorkerConfig,
    EventsConfig,
    MaintenanceWorkerConfig,
    RedisConfig,
    RunnerConfig,
    SupervisorConfig,
    SystemConfig,
)
from factorial.errors import ConfigError
from factorial.supervisor.lifeline import inside_child
from factorial.supervisor.logs import log_to_stderr
from factorial.supervisor.plan import load_runners
from factorial.supervisor.signals import StopRequests
from factorial.supervisor.system import run_system

if TYPE_CHECKING:
    from factorial.agent.agent import BaseAgent
    from factorial.mailbox import Mailbox

__all__ = ["Registered", "run_registered"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Registered:
    """An agent, and how it is to be run."""

    agent: "BaseAgent[Any]"
    worker: AgentWorkerConfig
    maintenance: MaintenanceWorkerConfig


def run_registered(
    redis: RedisConfig, events: EventsConfig, supervisor: SupervisorConfig, registered: Sequence[Registered]
) -> None:
    """Run them all until SIGINT or SIGTERM. In a process of such a system, which imports the program, do nothing."""
    if inside_child():
        return
    if not registered:
        raise ConfigError("orchestrator.run(): no runner is registered: call register_runner(agent=...) first")
    if not logging.getLogger().hasHandlers():
        log_to_stderr("supervisor")
    runners, companions = [], []
    for one in registered:
        one.agent.check_ready()
        if reference := _reference(one.agent):
            runners.append(RunnerConfig(agent=reference, worker=one.worker, maintenance=one.maintenance))
        else:
            log.warning(
                "agent %r is no attribute of a module that could be imported: it runs in this process, "
                "without the protection of one of its own",
                one.agent.name,
            )
            companions.append(partial(_run_here, one, supervisor.childrens_grace))
    config = SystemConfig(redis=redis, events=events, supervisor=supervisor, runner=tuple(runners))
    asyncio.run(run_system(config, load_runners(config), companions))


def _reference(agent: "BaseAgent[Any]") -> str | None:
    """`module:attribute` under which another process finds `agent`."""
    main = sys.modules.get("__main__")
    others = [(name, module) for name, module in list(sys.modules.items()) if name not in ("__main__", "__mp_main__")]
    # The main program last: to import it, a process runs it up to `orchestrator.run()` and from there on.
    for name, module in [*others, (_importable_name(main), main)]:
        if name and isinstance(module, ModuleType):
            for attribute, value in list(vars(module).items()):
                if value is agent:
                    return f"{name}:{attribute}"
    return None


def _importable_name(main: ModuleType | None) -> str | None:
    """The name by which the main program can be imported, too."""
    if main is None:
        return None
    if (spec := getattr(main, "__spec__", None)) is not None:
        return str(spec.name)
    file = Path(getattr(main, "__file__", None) or "")
    found = file.suffix == ".py" and file.stem.isidentifier() and str(file.resolve().parent) in map(_resolved, sys.path)
    return file.stem if found else None


def _resolved(directory: str) -> str:
    return str(Path(directory or ".").resolve())


@dataclass(frozen=True, slots=True)
class _Lifeline:
    process: str
    draining: asyncio.Event
    leaving: asyncio.Event

    def ready(self) -> None:
        log.info("%s is ready", self.process)

    def gauge(self, name: str, read: Callable[[], float]) -> None:
        """Nobody asks: there is no process of its own."""


async def _run_here(one: Registered, grace: float, mailbox: "Mailbox", requests: StopRequests) -> None:
    from factorial.actors.runner import Runner

    lifeline = _Lifeline(f"{one.agent.name}.here-{secrets.token_hex(3)}", requests.graceful, requests.now)
    worker = replace(one.worker, processes=1)
    await Runner(one.agent, mailbox, lifeline.process, worker, one.maintenance).run(lifeline, grace)
