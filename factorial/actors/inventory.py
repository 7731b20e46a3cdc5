"""Compares what the process executes with what it holds according to the server, and fixes the difference.

There is none while the server keeps its data. After a failover, or a restart with older data, a run may be held by a
process that finished with it long ago, and would stay there forever; or it may be held by another process, and be
executed in vain. What differs in two comparisons in a row is released or abandoned. A claim or commit that is under way
differs only once; if it arrives later all the same, its token is no longer valid.
"""

from collections.abc import Callable, Mapping

from factorial.actors.actor import Actor, Tick
from factorial.actors.durable_host import DurableHost
from factorial.mailbox.operations import lease
from factorial.mailbox.script import Scripts
from factorial.telemetry.task_log import TaskLog

__all__ = ["Inventory"]


class Inventory(Actor[None]):
    """Compares every `interval` seconds. `hosts` returns what the process executes, by task id."""

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
        """What differed at the last comparison."""

    async def receive(self, message: Tick | None) -> None:
        """Compare once."""
        held = await lease.held(self._scripts, process=self._process)
        hosts = self._hosts()
        differs = held ^ hosts.keys()
        again, self._before = differs & self._before, differs
        for task_id in again - held:
            hosts[task_id].abandon()
        if strays := again & held:
            for task_id in await lease.release(self._scripts, process=self._process, task_ids=strays):
                TaskLog(task_id, self._agent).reclaimed(self._process, lease.Cause.LEFT)
