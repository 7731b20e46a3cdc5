"""A system from the agents of a running program: what `orchestrator.run()` does.

Each agent is run by processes that import it by its name in a module. An agent without such a name (made in a function,
or in a notebook) cannot be imported by another process. It runs in this process, and the log says so.
"""

import asyncio
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_args

from factorial.config import (
    AgentWorkerConfig,
    HealthConfig,
    LoggingConfig,
    MaintenanceWorkerConfig,
    ObservabilityConfig,
    RunnerConfig,
    RunnerSupervisorConfig,
    SystemConfig,
)
from factorial.config.bounds import LogLevel, Restart
from factorial.errors import ConfigError
from factorial.supervisor.process.lifeline import inside_child
from factorial.supervisor.process.signals import StopRequests
from factorial.supervisor.service.system import run_system
from factorial.supervisor.tree.plan import load_runners
from factorial.telemetry.logs import logging_to_stderr
from factorial.telemetry.task_log import TaskFields

if TYPE_CHECKING:
    from factorial.agent.agent import BaseAgent
    from factorial.mailbox import Namespace

__all__ = ["Registered", "run_registered"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Registered:
    """An agent, with the settings of its runner."""

    agent: "BaseAgent[Any]"
    worker: AgentWorkerConfig
    maintenance: MaintenanceWorkerConfig
    supervisor: RunnerSupervisorConfig
    health: HealthConfig
    restart: Restart


def run_registered(
    config: SystemConfig, registered: Sequence[Registered], observability: ObservabilityConfig | None = None
) -> None:
    """Run a system of these agents until SIGINT or SIGTERM. In a worker process of such a system, which imports the
    program, do nothing.

    `config` has everything except the runners. `observability`: the settings that were passed, if any.
    """
    if inside_child():
        return
    if not registered:
        raise ConfigError("orchestrator.run(): no runner is registered: call register_runner(agent=...) first")
    if _in_event_loop():
        raise ConfigError(
            "orchestrator.run() blocks, and an event loop is running here (an async function, a notebook): call it "
            "where no event loop runs, in a program of its own"
        )
    with logging_to_stderr("supervisor", logs := _logs(config.logging)) as handler:
        if handler is not None:
            handler.addFilter(TaskFields())
        _run(config, registered, observability, logs)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _logs(config: LoggingConfig) -> LoggingConfig:
    """The logging settings of the processes. Without any, they log at the level that the program has set up."""
    root = logging.getLogger()
    if config == LoggingConfig() and root.handlers:
        named = [level for level in get_args(LogLevel) if logging.getLevelName(level.upper()) <= root.level]
        config = LoggingConfig(level=named[-1] if named else "debug")
    return config.resolved


def _run(
    config: SystemConfig,
    registered: Sequence[Registered],
    observability: ObservabilityConfig | None,
    logs: LoggingConfig,
) -> None:
    if observability is not None and observability.enabled:
        _logger.warning(
            "ObservabilityConfig(enabled=True): this release has no dashboard page. `python -m factorial.supervisor "
            "status` shows the system, and orchestrator.get_metrics() returns the counts of tasks"
        )
    runners, guests = [], []
    for one in registered:
        one.agent.check_ready()
        if reference := _reference(one.agent):
            runners.append(
                RunnerConfig(
                    agent=reference,
                    worker=one.worker,
                    maintenance=one.maintenance,
                    supervisor=one.supervisor,
                    health=one.health,
                    restart=one.restart,
                )
            )
        else:
            _logger.warning(
                "agent %r is not an attribute of an importable module: it runs in the supervisor's process, "
                "and its failures are not isolated",
                one.agent.name,
            )
            guests.append(_Guest(one, config.supervisor.childrens_grace))
    config = replace(config, runner=tuple(runners))
    asyncio.run(run_system(config, load_runners(config), guests, logs=logs))


def _reference(agent: "BaseAgent[Any]") -> str | None:
    """The `module:attribute` by which another process can import `agent`, or None."""
    main = sys.modules.get("__main__")
    others = [(name, module) for name, module in list(sys.modules.items()) if name not in ("__main__", "__mp_main__")]
    # The main program comes last, because its import executes the whole program, except for `orchestrator.run()`.
    for name, module in [*others, (_importable_name(main), main)]:
        if name and isinstance(module, ModuleType):
            for attribute, value in list(vars(module).items()):
                if value is agent:
                    return f"{name}:{attribute}"
    return None


def _importable_name(main: ModuleType | None) -> str | None:
    """The name by which the main program can be imported."""
    if main is None:
        return None
    if (spec := getattr(main, "__spec__", None)) is not None:
        return str(spec.name)
    file = Path(getattr(main, "__file__", None) or "")
    found = file.suffix == ".py" and file.stem.isidentifier() and str(file.resolve().parent) in map(_resolved, sys.path)
    return file.stem if found else None


def _resolved(directory: str) -> str:
    return str(Path(directory or ".").resolve())


class _Guest:
    """An agent that runs in this process. It has the interface of a lifeline for its worker."""

    def __init__(self, registered: Registered, grace: float) -> None:
        self.process = f"{registered.agent.name}.here-{secrets.token_hex(3)}"
        self.draining = asyncio.Event()
        self.leaving = asyncio.Event()
        self._registered = registered
        self._grace = grace
        self._gauges: dict[str, Callable[[], float]] = {}
        self._ready_at: float | None = None

    def ready(self) -> None:
        self._ready_at = time.monotonic()
        _logger.info("%s is ready", self.process)

    def gauge(self, name: str, read: Callable[[], float]) -> None:
        self._gauges[name] = read

    async def run(self, namespace: "Namespace", requests: StopRequests) -> None:
        """Execute tasks until the supervisor is asked to stop."""
        from factorial.actors.worker_process import WorkerProcess

        self.draining, self.leaving = requests.graceful, requests.now
        one = self._registered
        worker = replace(one.worker, processes=1)
        await WorkerProcess(one.agent, namespace, self.process, worker, one.maintenance).run(self, self._grace)

    def node(self) -> dict[str, Any]:
        """Its report node, like that of a process (`tree/nodes.py`)."""
        about = {
            "id": f"{self._registered.agent.name}.here", "type": "worker", "process": self.process, "pid": os.getpid(),
            "state": "starting", "restarts": 0, "last_exit": None, "predecessors": [],
        }  # fmt: skip
        if self._ready_at is not None:
            about["state"] = "draining" if self.draining.is_set() else "running"
            about["uptime"] = round(time.monotonic() - self._ready_at, 1)
        return about | {name: read() for name, read in self._gauges.items()}
