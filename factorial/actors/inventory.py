"""Compares what the process executes with what it is said to hold, and mends the difference.

There is none while the server keeps its data. After a failover, or a restart with older data, a run may be held by a
process that has long been done with it, and would wait for ever; or be somebody else's, and be executed in vain. What
differs in two looks in a row is given back, or abandoned: what is just on its way differs once. Should it be on its way
all the same, its token is not good any more when it arrives.
"""

from collections.abc import Callable, Mapping

from factorial.actors.actor import Actor, Tick
from factorial.actors.durable_host import DurableHost
from factorial.mailbox.operations import lease
from factorial.mailbox.script import Scripts
from factorial.telemetry.task_log import TaskLog

__all__ = ["Inventory"]


class Inventory(Actor[None]):
    """Looks every `interval` seconds. `hosts` gives what the process has at hand, by task id."""

    def __init__(
        self,
        scripts: Scripts,
        process: str,
        agent: str,
        interval: float,
        hosts: Callable[[], Mapping[str, DurableHost]],
    ) -> None:
        super().__init__("inventory", interval)
        self._scripts = scripts
        self._process = process
        self._agent = agent
        self._hosts = hosts
        self._before: set[str] = set()
        """What differed at the last look."""

    async def receive(self, message: Tick | None) -> None:
        """One look."""
        held = await lease.held(self._scripts, process=self._process)
        hosts = self._hosts()
        differs = held ^ hosts.keys()
        again, self._before = differs & self._before, differs
        for task_id in again - held:
            hosts[task_id].abandon()
        if strays := again & held:
            for task_id in await lease.disown(self._scripts, process=self._process, task_ids=strays):
                TaskLog(task_id, self._agent).reclaimed(self._process, lease.Cause.LEFT)
