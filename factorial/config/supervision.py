"""Settings of the supervision tree: its root, groups of runners, runners, and the health of processes."""

import re
from typing import Annotated

from annotated_types import Ge, Le
from pydantic import AllowInfNan, Strict

from factorial.config.bounds import AutoShutdown, Flag, Limit, Megabytes, Pause, Restart, Seconds, Strategy
from factorial.config.validated import settings

__all__ = ["GroupConfig", "HealthConfig", "RunnerSupervisorConfig", "SupervisorConfig", "check_significant"]

_GROUP = re.compile(r"[A-Za-z0-9_-]{1,64}")


@settings
class SupervisorConfig:
    """The root of the supervision tree."""

    strategy: Strategy = "one_for_one"
    """What is restarted when a group or a runner ends: only that one, all, or that one and those started after it."""
    intensity: Limit = 5
    """Restarts that are accepted within `period`. One more, and the supervisor gives up. It is also the default for
    groups and runners."""
    period: Seconds = 60.0
    """Length of the sliding window in which restarts are counted, in seconds."""
    auto_shutdown: AutoShutdown = "never"
    """Whether the system ends when significant groups and runners have ended by themselves: any of them, or all."""
    backoff: Pause = 0.2
    """Seconds before the second restart of the same process within `period`. Each further restart doubles it. The
    first restart is immediate."""
    max_backoff: Pause = 10.0
    """The longest pause between two restarts, in seconds."""
    grace: Seconds = 30.0
    """Seconds from asking a process to stop until it is killed."""

    @property
    def childrens_grace(self) -> float:
        """Seconds that a process has to finish or release its work. It is less than `grace`, so that all can end."""
        return self.grace - min(5.0, self.grace / 4)


@settings
class GroupConfig:
    """Runners that are supervised together: a level of the tree between the root and the runners."""

    name: str
    """Letters, digits, `_` and `-`. Runners refer to it by `group`."""
    strategy: Strategy = "one_for_one"
    """What is restarted when one of its runners ends. Runners are started in the order of the file."""
    intensity: Limit | None = None
    """Restarts of its runners that are accepted within `period`. Default: as in `[supervisor]`."""
    period: Seconds | None = None
    """Seconds. Default: as in `[supervisor]`."""
    restart: Restart = "permanent"
    """Whether its parent restarts the group after it gave up."""
    significant: Flag = False
    """Whether its end counts for `auto_shutdown`."""

    def __post_init__(self) -> None:
        if not _GROUP.fullmatch(self.name):
            raise ValueError(f"name={self.name!r}: use 1 to 64 letters, digits, '_' or '-'")
        check_significant(self.significant, self.restart)


@settings
class RunnerSupervisorConfig:
    """How the processes of one runner are supervised."""

    strategy: Strategy = "one_for_one"
    """What is restarted when one of its processes ends."""
    intensity: Limit | None = None
    """Restarts of its processes that are accepted within `period`. Default: as in `[supervisor]`."""
    period: Seconds | None = None
    """Seconds. Default: as in `[supervisor]`."""


@settings
class HealthConfig:
    """When a process counts as unhealthy, and what happens to it then."""

    blocked_after: Annotated[float, Strict(), AllowInfNan(False), Ge(0.1), Le(86_400)] = 15.0
    """Seconds for which its event loop may be blocked. After that, the process logs its stacks and is replaced."""
    soft_memory_mb: Megabytes | None = None
    """Resident memory above which a process is drained and replaced, in MB of 1024 * 1024 bytes."""
    hard_memory_mb: Megabytes | None = None
    """Resident memory above which a process is killed and replaced, in the same unit."""

    def __post_init__(self) -> None:
        if self.soft_memory_mb and self.hard_memory_mb and self.soft_memory_mb >= self.hard_memory_mb:
            raise ValueError(
                f"soft_memory_mb={self.soft_memory_mb} must be less than hard_memory_mb={self.hard_memory_mb}: "
                "at the first a process is drained, at the second it is killed"
            )

    @property
    def soft_memory(self) -> int | None:
        """`soft_memory_mb` in bytes."""
        return self.soft_memory_mb and self.soft_memory_mb * 1024 * 1024

    @property
    def hard_memory(self) -> int | None:
        """`hard_memory_mb` in bytes."""
        return self.hard_memory_mb and self.hard_memory_mb * 1024 * 1024


def check_significant(significant: bool, restart: str) -> None:
    """A permanent child is always restarted, so its end cannot be significant. Raises `ValueError`."""
    if significant and restart == "permanent":
        raise ValueError(
            "significant=true: a permanent child never ends by itself; give it restart = 'transient' or 'temporary'"
        )
