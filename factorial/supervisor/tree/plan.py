"""Makes the specification of a tree from a `SystemConfig`. Starts nothing.

system                      [supervisor]
 ├── pipeline               [[group]]     with the runners that name it
 │     └── planner          [[runner]]    by the name of its agent
 │           └── planner.1  a process
 └── weather
       ├── weather.1
       └── weather.2
"""

from dataclasses import replace

from factorial.config import RunnerConfig, SystemConfig
from factorial.config.validated import as_mapping
from factorial.errors import ConfigError
from factorial.supervisor.rules.spec import (
    AutoShutdown,
    ChildSpec,
    HealthLimits,
    Restart,
    Spec,
    Strategy,
    SupervisorFlags,
    SupervisorSpec,
)

__all__ = ["MOST_PROCESSES", "Runners", "load_runners", "tree_spec"]

_ROOT = "system"
"""The id of the root."""
_TARGET = "factorial.actors.worker_process:run_process"
_START_TIMEOUT = 60.0
"""Seconds for a process to import its agent, to connect, and to get ready."""

MOST_PROCESSES = 1000
"""The most processes of one runner on one machine."""

Runners = dict[str, RunnerConfig]
"""The runners by the names of their agents."""


def load_runners(config: SystemConfig) -> Runners:
    """Import and check the agents of `config`, and return its runners. Raises `ConfigError`."""
    from factorial.agent.load import load_agent

    runners: Runners = {}
    for runner in config.runner:
        agent = load_agent(runner.agent)
        agent.check_ready()
        name = agent.name
        if name in runners:
            raise ConfigError(
                f"two runners have an agent named {name!r} ({runners[name].agent} and {runner.agent}): "
                "merge them, or give one agent another name=..."
            )
        if name in (_ROOT, *(group.name for group in config.group)):
            raise ConfigError(
                f"the agent of {runner.agent} is named {name!r}, like {'the root' if name == _ROOT else 'a group'} of "
                "the tree: give one of them another name"
            )
        if runner.process_count > MOST_PROCESSES:
            raise ConfigError(f"{runner.agent}: processes={runner.process_count}: use 1 to {MOST_PROCESSES}")
        runners[name] = runner
    return runners


def tree_spec(config: SystemConfig, runners: Runners) -> SupervisorSpec:
    """The specification of the tree of `config`."""
    children: list[Spec] = []
    groups = {group.name: group for group in config.group}
    for name, runner in runners.items():
        if runner.group is None:
            children.append(_runner_spec(config, name, runner))
        elif group := groups.pop(runner.group, None):
            below = [_runner_spec(config, other, each) for other, each in runners.items() if each.group == group.name]
            flags = _flags(config, group.strategy, group.intensity, group.period)
            children.append(
                SupervisorSpec(
                    id=group.name,
                    flags=flags,
                    children=tuple(below),
                    restart=Restart(group.restart),
                    significant=group.significant,
                )
            )
    flags = replace(
        _flags(config, config.supervisor.strategy, None, None),
        auto_shutdown=AutoShutdown(config.supervisor.auto_shutdown),
    )
    return SupervisorSpec(id=_ROOT, flags=flags, children=tuple(children))


def _flags(config: SystemConfig, strategy: str, intensity: int | None, period: float | None) -> SupervisorFlags:
    """Children of a one_for_one supervisor do not depend on each other, so they start together."""
    supervisor = config.supervisor
    return SupervisorFlags(
        strategy=Strategy(strategy),
        intensity=supervisor.intensity if intensity is None else intensity,
        period=period or supervisor.period,
        start_together=strategy == Strategy.ONE_FOR_ONE,
        backoff=supervisor.backoff,
        max_backoff=supervisor.max_backoff,
    )


def _runner_spec(config: SystemConfig, name: str, runner: RunnerConfig) -> SupervisorSpec:
    redis = replace(config.redis, url=config.redis.resolved_url)
    kwargs = {
        "runner": as_mapping(runner),
        "redis": as_mapping(redis),
        "events": as_mapping(config.events),
        "metrics": as_mapping(config.metrics),
        "grace": config.supervisor.childrens_grace,
    }
    health = HealthLimits(
        blocked_after=runner.health.blocked_after,
        soft_memory=runner.health.soft_memory,
        hard_memory=runner.health.hard_memory,
    )
    processes = [
        ChildSpec(
            id=f"{name}.{number}",
            target=_TARGET,
            kwargs=kwargs,
            shutdown=config.supervisor.grace,
            start_timeout=_START_TIMEOUT,
            health=health,
        )
        for number in range(1, runner.process_count + 1)
    ]
    supervisor = runner.supervisor
    return SupervisorSpec(
        id=name,
        flags=_flags(config, supervisor.strategy, supervisor.intensity, supervisor.period),
        children=tuple(processes),
        restart=Restart(runner.restart),
        significant=runner.significant,
    )
