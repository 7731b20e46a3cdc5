"""What may be asked of a running system, by an order through Redis or by a signal: the verbs, carried out on the tree.

A target is the id of a group, a runner or a process; empty, or the root's, it is everything. What changes the tree is
done one after the other, so that a scaling never meets a rolling restart in the middle: whoever calls `drain`,
`resume`, `restart` or `scale` holds `turn`. An order that has nothing to do raises `SupervisionError`, one that names
what is not there `ConfigError`.
"""

import asyncio
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from factorial._core.text import listed
from factorial._core.version import __version__
from factorial.config import SystemConfig
from factorial.errors import ConfigError, SupervisionError
from factorial.supervisor.changes import Changes, apply, replace_child, resume_child, suspend_child
from factorial.supervisor.plan import MOST_PROCESSES, tree_spec
from factorial.supervisor.report import describe
from factorial.supervisor.signals import StopRequests
from factorial.supervisor.spec import ChildSpec, SupervisorSpec
from factorial.supervisor.strategy import ChildState
from factorial.supervisor.tree import Place, Tree

__all__ = ["Operator"]

log = logging.getLogger(__name__)

_CHECK_SECONDS = 60.0

_RESTING = (ChildState.SUSPENDED, ChildState.ENDED)


class Operator:
    """Carries out orders on the tree of one supervisor. `guests`: nodes of agents that run in its own process."""

    def __init__(
        self,
        name: str,
        config: SystemConfig,
        tree: Tree,
        requests: StopRequests,
        path: str | None,
        changed: asyncio.Event,
        guests: Callable[[], Sequence[Mapping[str, Any]]] = tuple,
    ) -> None:
        self.name = name
        self.changed = changed
        """The tree is not as it was when this was last cleared."""
        self.turn = asyncio.Lock()
        """Who holds it may change the tree."""
        self._config = config
        self._tree = tree
        self._requests = requests
        self._path = path
        self._guests = guests
        self._is_reloading = False
        self._started_at = time.time()

    def report(self) -> dict[str, Any]:
        """The whole supervisor, as plain data."""
        stopping = self._requests.graceful.is_set()
        tree = describe(self._tree)
        tree["children"] += self._guests()
        return {
            "supervisor": self.name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "config": self._path,
            "started_at": self._started_at,
            "uptime": round(time.time() - self._started_at, 1),
            "state": "stopping" if stopping else "reloading" if self._is_reloading else "running",
            "tree": tree,
        }

    async def drain(self, target: str) -> str:
        """Have the processes give their tasks back and end; they stay away until `resume`."""
        if all(place.state is ChildState.ENDED for place in self._places(target)):
            raise SupervisionError(f"{target or 'everything'} has given up: there is nothing to drain")
        # Again, if a runner has come back with new processes meanwhile.
        while active := [place for place in self._places(target) if _is_active(place)]:
            await asyncio.gather(*(suspend_child(place.tree, place.child_id) for place in active))
        return f"drained {listed(sorted(self._tree.resting.intersection(self._ids(target))))}"

    async def resume(self, target: str) -> str:
        """Start what was drained, and what has given up."""
        resting = [place for place in self._places(target) if place.state in _RESTING]
        # Children after their supervisors: a runner that has given up comes with its processes.
        for place in resting:
            await resume_child(place.tree, place.child_id)
        return f"resumed {_names(resting)}" if resting else "nothing was drained here, and nothing has given up"

    async def restart(self, target: str) -> str:
        """Replace the processes, one by one: each successor is ready before its predecessor is drained. What has given
        up is started again."""
        began = time.monotonic()
        changes = Changes()
        for place in self._places(target):
            if place.state is ChildState.ENDED:
                await resume_child(place.tree, place.child_id)
                changes.started.append(place.child_id)
            elif place.state is ChildState.SUSPENDED:
                changes.resting.append(place.child_id)
            elif place.tree.branch(place.child_id) is None:
                await replace_child(place.tree, place.child_id)
                changes.replaced.append(place.child_id)
        if not (changes.started or changes.replaced):
            raise SupervisionError(f"{listed(changes.resting)}: drained, so there is nothing to restart; resume it")
        return _told(changes, began)

    async def scale(self, runner: str, processes: int) -> str:
        """Have so many processes of a runner, until the configuration is reloaded."""
        runners = [place.child_id for place in self._tree.places() if _is_runner(place)]
        if runner not in runners:
            raise ConfigError(f"there is no runner {runner!r} here; there are: {', '.join(runners)}")
        if not 1 <= processes <= MOST_PROCESSES:
            raise ConfigError(f"{processes} processes of {runner}: use 1 to {MOST_PROCESSES}; to have none, drain it")
        [place, *below] = self._places(runner)
        if place.tree.branch(runner) is None or any(each.state in _RESTING for each in below):
            raise SupervisionError(f"{runner} is drained, or has given up: resume it before it is scaled")
        await apply(self._tree, _scaled(self._tree.spec, runner, processes), roll=False)
        self._tree.resting.intersection_update(self._ids(""))
        return f"{runner} has {processes} processes now, {len(below)} before"

    async def stop(self, now: bool) -> str:
        """End the whole system: gracefully, or as fast as can be without losing anything."""
        self._requests.graceful.set()
        if now:
            self._requests.now.set()
        return "stopping now" if now else "stopping: tasks are given back at their next step"

    async def reload(self) -> str:
        """Read the configuration again, do what has changed, and replace all processes one by one. What is drained or
        has given up is left so.

        Raises `ConfigError` and changes nothing if the file or an agent is not usable, and `SupervisionError` if a new
        process cannot be started: those that have not been replaced go on as they were.
        """
        async with self.turn:
            began = time.monotonic()
            self._is_reloading = True
            changes = Changes()
            try:
                config, spec = await self._reread()
                await apply(self._tree, spec, roll=True, changes=changes)
            except SupervisionError as failed:
                done = listed([*changes.started, *changes.replaced])
                raise SupervisionError(f"{failed}" + (f"; new already: {done}" if done else "")) from failed
            finally:
                self._is_reloading = False
            self._config = config
            self._tree.resting.intersection_update(self._ids(""))
            return f"reloaded: {_told(changes, began)}"

    async def replace(self, child_id: str, process: str) -> None:
        """Replace a process, for its health, if it is still there and at work when its turn comes.

        Raises `SupervisionError` if the successor does not get ready.
        """
        async with self.turn:
            for place in self._tree.places():
                member = place.tree.current.get(child_id) if place.child_id == child_id else None
                if member and member.is_running and member.child.process == process:
                    await replace_child(place.tree, child_id)
                    return

    async def _reread(self) -> tuple[SystemConfig, SupervisorSpec]:
        if self._path is None:
            return self._config, self._tree.spec
        config = SystemConfig.from_toml(self._path)
        for table in ("redis", "events", "logging"):
            if getattr(config, table) != getattr(self._config, table):
                raise ConfigError(f"{self._path}: a change in [{table}] needs a restart of the supervisor")
        names = await _names_in_fresh_process(self._path)
        if missing := [runner.agent for runner in config.runner if runner.agent not in names]:
            raise ConfigError(f"{self._path}: it was changed while it was read ({missing[0]}): reload it again")
        return config, tree_spec(config, {names[runner.agent]: runner for runner in config.runner})

    def _ids(self, target: str) -> list[str]:
        """The ids of the processes that the target names, also of those whose supervisor is away."""
        ids = []
        for place in self._places(target):
            processes = place.spec.processes if isinstance(place.spec, SupervisorSpec) else (place.spec,)
            ids += [process.id for process in processes]
        return ids

    def _places(self, target: str) -> list[Place]:
        """The child that the target names, and all below it. Raises `ConfigError` if there is no such child."""
        places = list(self._tree.places())
        if target in ("", self._tree.id):
            return places
        for place in places:
            if place.child_id == target:
                below = place.tree.branch(target)
                return [place, *(below.places() if below else ())]
        known = ", ".join(place.child_id for place in places)
        raise ConfigError(f"there is no group, runner or process {target!r} here; there are: {known}")


async def _names_in_fresh_process(path: str) -> dict[str, str]:
    """The names of the agents by their references, as a process sees them that imports them now: this one may have
    imported an older state of the code. Raises `ConfigError` with what that process says."""
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "factorial.supervisor", path, "--check", "--json",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        )  # fmt: skip
    except OSError as refused:
        raise ConfigError(f"{path}: it could not be checked: {refused}") from refused
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
    # The last line: modules may print when they are imported.
    runners = json.loads(out.splitlines()[-1])["runners"]
    return {about["agent"]: name for name, about in runners.items()}


def _scaled(spec: SupervisorSpec, runner: str, processes: int) -> SupervisorSpec:
    """The tree with so many processes of the runner, all like its first one."""
    if spec.id == runner:
        numbers = range(1, processes + 1)
        return replace(spec, children=tuple(replace(spec.children[0], id=f"{runner}.{number}") for number in numbers))
    children = (
        _scaled(child, runner, processes) if isinstance(child, SupervisorSpec) else child for child in spec.children
    )
    return replace(spec, children=tuple(children))


def _is_runner(place: Place) -> bool:
    return isinstance(place.spec, SupervisorSpec) and any(isinstance(one, ChildSpec) for one in place.spec.children)


def _is_active(place: Place) -> bool:
    """Whether there is something to drain: a process, or a supervisor that is about to come back with some."""
    if isinstance(place.spec, ChildSpec):
        return place.state is not ChildState.SUSPENDED
    processes = {process.id for process in place.spec.processes}
    is_away = place.tree.branch(place.child_id) is None and place.state is not ChildState.ENDED
    return is_away and not processes <= place.tree.resting


def _names(places: Sequence[Place]) -> str:
    return listed([place.child_id for place in places])


def _told(changes: Changes, began: float) -> str:
    parts = {
        "stopped": changes.stopped,
        "started": changes.started,
        "replaced": changes.replaced,
        "left alone, being drained or having given up,": changes.resting,
    }
    done = "; ".join(f"{what} {listed(names)}" for what, names in parts.items() if names)
    return f"{done or 'nothing to do'}; in {time.monotonic() - began:.1f} s"
