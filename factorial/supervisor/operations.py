"""What may be asked of a running system, by an order through Redis or by a signal: the verbs, carried out on the tree.

A target is the id of a group, a runner or a process; empty, it is everything. Whatever changes the tree is done one
after the other, so that a scaling never meets a rolling restart in the middle. `stop` does not wait for its turn.
"""

import asyncio
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

from factorial.config import SystemConfig
from factorial.errors import ConfigError, SupervisionError
from factorial.supervisor.plan import Runners, tree_spec
from factorial.supervisor.signals import StopRequests
from factorial.supervisor.spec import ChildSpec
from factorial.supervisor.strategy import ChildState
from factorial.supervisor.tree import Tree
from factorial.utils import listed
from factorial.version import __version__

__all__ = ["Operator"]

log = logging.getLogger(__name__)

MOST_PROCESSES = 1000
"""Of one runner, on one machine."""
_CHECK_SECONDS = 60.0


class Operator:
    """Carries out orders on the tree of one supervisor."""

    def __init__(
        self,
        name: str,
        config: SystemConfig,
        runners: Runners,
        tree: Tree,
        requests: StopRequests,
        path: str | None,
        changed: asyncio.Event,
    ) -> None:
        self.name = name
        self.changed = changed
        """The tree is not as it was when this was last cleared."""
        self._config = config
        self._runners = runners
        self._tree = tree
        self._requests = requests
        self._path = path
        self._sizes: dict[str, int] = {}
        self._changing = asyncio.Lock()
        self._is_reloading = False
        self._started_at = time.time()

    def report(self) -> dict[str, Any]:
        """The whole supervisor, as plain data."""
        stopping = self._requests.graceful.is_set()
        return {
            "supervisor": self.name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "config": self._path,
            "started_at": self._started_at,
            "uptime": round(time.time() - self._started_at, 1),
            "state": "stopping" if stopping else "reloading" if self._is_reloading else "running",
            "tree": self._tree.report(),
        }

    async def drain(self, target: str) -> str:
        """Have the processes give their tasks back and end; they stay away until `resume`."""
        async with self._changing:
            processes = list(self._processes(target))
            await asyncio.gather(*(tree.suspend(child_id) for tree, child_id in processes))
            return f"drained {listed([child_id for _, child_id in processes]) or 'nothing'}"

    async def resume(self, target: str) -> str:
        """Start what was drained, and what has given up."""
        async with self._changing:
            resting = [
                (tree, child_id)
                for tree, child_id in self._places(target)
                if tree.state(child_id) in (ChildState.SUSPENDED, ChildState.ENDED)
            ]
            await asyncio.gather(*(tree.resume(child_id) for tree, child_id in resting))
            if not resting:
                return "nothing was drained here, and nothing has ended"
            return f"resumed {listed([child_id for _, child_id in resting])}"

    async def restart(self, target: str) -> str:
        """Replace the processes, one by one: each successor is ready before its predecessor is drained. What has given
        up is started again."""
        async with self._changing:
            began = time.monotonic()
            replaced, started = [], []
            for tree, child_id in list(self._places(target)):
                if tree.state(child_id) is ChildState.ENDED:
                    await tree.resume(child_id)
                    started.append(child_id)
                elif tree.state(child_id) is not ChildState.SUSPENDED and tree.branch(child_id) is None:
                    await tree.replace(child_id)
                    replaced.append(child_id)
            done = [f"replaced {listed(replaced)}"] if replaced else []
            done += [f"started {listed(started)}"] if started else []
            return f"{' and '.join(done) or 'nothing was running here'} in {time.monotonic() - began:.1f} s"

    async def scale(self, runner: str, processes: int) -> str:
        """Have so many processes of a runner, until the configuration is reloaded."""
        if runner not in self._runners:
            raise SupervisionError(f"there is no runner {runner!r} here; there are: {', '.join(self._runners)}")
        if not 1 <= processes <= MOST_PROCESSES:
            raise SupervisionError(
                f"{processes} processes of {runner}: use 1 to {MOST_PROCESSES}; to rest it, drain it"
            )
        async with self._changing:
            before = self._sizes.get(runner, self._runners[runner].process_count)
            self._sizes[runner] = processes
            await self._tree.apply(tree_spec(self._config, self._runners, self._sizes), roll=False)
            return f"{runner} has {processes} processes now, {before} before"

    async def stop(self, now: bool) -> str:
        """End the whole system: gracefully, or as fast as can be without losing anything."""
        self._requests.graceful.set()
        if now:
            self._requests.now.set()
        return "stopping now" if now else "stopping: tasks are given back at their next step"

    async def reload(self) -> str:
        """Read the configuration again, do what has changed, and replace all processes one by one.

        Raises `ConfigError` and changes nothing if the file or an agent is not usable, and `SupervisionError` if a new
        process cannot be started: those that have not been replaced go on as they were.
        """
        async with self._changing:
            began = time.monotonic()
            self._is_reloading = True
            try:
                config, runners = await self._reread()
                await self._tree.apply(tree_spec(config, runners, self._sizes), roll=True)
            finally:
                self._is_reloading = False
            return f"reloaded, and replaced all processes in {time.monotonic() - began:.1f} s"

    async def replace(self, child_id: str, why: str) -> None:
        """Replace one process, for its health."""
        async with self._changing:
            if found := self._tree.find(child_id):
                log.warning("%s is replaced: %s", child_id, why)
                try:
                    await found[0].replace(child_id)
                except SupervisionError as error:
                    log.error("%s", error)

    async def _reread(self) -> tuple[SystemConfig, Runners]:
        if self._path is None:
            return self._config, self._runners
        config = SystemConfig.from_toml(self._path)
        for table in ("redis", "events"):
            if getattr(config, table) != getattr(self._config, table):
                raise ConfigError(f"{self._path}: a change in [{table}] needs a restart of the supervisor")
        names = await _names_in_fresh_process(self._path)
        runners = {names[runner.agent]: runner for runner in config.runner}
        self._config, self._runners = config, runners
        self._sizes.clear()
        return config, runners

    def _places(self, target: str) -> Iterator[tuple[Tree, str]]:
        """The children that the target names, and all below them, each with its supervisor."""
        for child_id in self._named(target):
            found = self._tree.find(child_id)
            assert found is not None  # it was named by the tree
            tree, _ = found
            yield tree, child_id
            if below := tree.branch(child_id):
                for each in below.child_ids():
                    if place := below.find(each):
                        yield place[0], each

    def _processes(self, target: str) -> Iterator[tuple[Tree, str]]:
        for tree, child_id in self._places(target):
            found = tree.find(child_id)
            if found and isinstance(found[1], ChildSpec):
                yield tree, child_id

    def _named(self, target: str) -> tuple[str, ...]:
        if not target:
            return self._tree.order
        if self._tree.find(target) is None:
            raise SupervisionError(
                f"there is no group, runner or process {target!r} here; there are: {', '.join(self._tree.child_ids())}"
            )
        return (target,)


async def _names_in_fresh_process(path: str) -> dict[str, str]:
    """The names of the agents by their references, as a process sees them that imports them now: this one may have
    imported an older state of the code. Raises `ConfigError` with what that process says."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "factorial.supervisor", path, "--check", "--json",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    )  # fmt: skip
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            out, err = await process.communicate()
    except BaseException as error:
        process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise ConfigError(f"{path}: its agents could not be imported within {_CHECK_SECONDS:g} s") from None
        raise
    if process.returncode:
        lines = err.decode(errors="replace").splitlines() or ["it could not be checked"]
        raise ConfigError(lines[-1].removeprefix("factorial: "))
    runners = json.loads(out)["runners"]
    return {about["agent"]: name for name, about in runners.items()}
