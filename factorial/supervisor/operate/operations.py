"""The operations on a running system, requested by an order or by a signal, and carried out on its tree.

A target is the id of a group, a runner or a process. An empty target, or the id of the root, means everything. Changes
of the tree are made one at a time, so that a scaling never meets a rolling restart half-way: a caller of `drain`,
`resume`, `restart` or `scale` holds `turn`. An operation that has nothing to do raises `SupervisionError`. One that
names an unknown target raises `ConfigError`.
"""

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from factorial._core.text import listed
from factorial._core.version import __version__
from factorial.config import SystemConfig
from factorial.errors import ConfigError, SupervisionError
from factorial.supervisor.process.signals import StopRequests
from factorial.supervisor.rules.spec import ChildSpec, Spec, SupervisorSpec
from factorial.supervisor.rules.strategy import ChildState
from factorial.supervisor.tree.changes import Changes, apply, replace_child, resume_child, suspend_child
from factorial.supervisor.tree.plan import MOST_PROCESSES, tree_spec
from factorial.supervisor.tree.report import describe
from factorial.supervisor.tree.tree import ChildRef, Tree

__all__ = ["Operator", "Source"]

_CHECK_SECONDS = 60.0

_STOPPED = (ChildState.SUSPENDED, ChildState.ENDED)


@dataclass(frozen=True, slots=True)
class Source:
    """A configuration, and the file that it was read from."""

    config: SystemConfig
    path: str | None
    """None for the system of a program, which has no file."""


class Operator:
    """Carries out operations on the tree of one supervisor.

    `changed` is set whenever `report` returns something else. `guests` returns the report nodes of agents that run in
    the supervisor's own process.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        tree: Tree,
        requests: StopRequests,
        changed: asyncio.Event,
        guests: Callable[[], Sequence[Mapping[str, Any]]] = tuple,
    ) -> None:
        self.name = name
        self.changed = changed
        self.turn: asyncio.Lock = asyncio.Lock()
        """Held by the task that changes the tree."""
        self._config = source.config
        self._path = source.path
        self._tree = tree
        self._requests = requests
        self._guests = guests
        self._is_reloading = False
        self._started_at = time.time()

    def report(self) -> dict[str, Any]:
        """The state of the supervisor and of its tree, as plain data (`tree/nodes.py`)."""
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
        """Drain the processes. They stay away until `resume`."""
        children = self._children(target)
        if all(child.state is ChildState.ENDED for child in children):
            raise SupervisionError(f"{target or 'everything'} has given up: there is nothing to drain")
        # More than once: a runner may have been restarted with new processes meanwhile.
        while active := [child for child in self._children(target) if _is_active(child)]:
            await asyncio.gather(*(suspend_child(child.tree, child.child_id) for child in active))
        drained = sorted(self._tree.suspended.intersection(self._process_ids(target)))
        if not drained:
            ended = [child for child in children if child.state is ChildState.ENDED]
            raise SupervisionError(f"there is nothing to drain: {_conditions(ended)}")
        return f"drained {listed(drained)}"

    async def resume(self, target: str) -> str:
        """Start what was drained, and what has given up."""
        stopped = [child for child in self._children(target) if child.state in _STOPPED]
        # Each after its supervisor: a runner that has given up starts its processes itself.
        for child in stopped:
            await resume_child(child.tree, child.child_id)
        return f"resumed {_names(stopped)}" if stopped else "nothing to resume: nothing is drained or has given up"

    async def restart(self, target: str) -> str:
        """Replace the processes one by one: each successor is ready before its predecessor is drained. Start what has
        given up."""
        began = time.monotonic()
        changes = Changes()
        for child in self._children(target):
            if child.state is ChildState.ENDED:
                await resume_child(child.tree, child.child_id)
                changes.started.append(child.child_id)
            elif child.state is ChildState.SUSPENDED:
                changes.skipped.append(child.child_id)
            elif child.tree.branch(child.child_id) is None:
                await replace_child(child.tree, child.child_id)
                changes.replaced.append(child.child_id)
        if not (changes.started or changes.replaced):
            raise SupervisionError(f"drained: {listed(changes.skipped)}. There is nothing to restart; resume it first")
        return _summary(changes, began)

    async def scale(self, runner: str, processes: int) -> str:
        """Set the number of processes of a runner, until the configuration is reloaded."""
        runners = [spec.id for spec in _specs(self._tree.spec) if _is_runner(spec)]
        if runner not in runners:
            self._check_is_no_guest(runner)
            raise ConfigError(f"there is no runner {runner!r} here; there are: {', '.join(runners)}")
        if not 1 <= processes <= MOST_PROCESSES:
            raise ConfigError(f"{processes} processes of {runner}: use 1 to {MOST_PROCESSES}; to have none, drain it")
        [child, *below] = self._children(runner)
        if child.tree.branch(runner) is None and child.state is not ChildState.ENDED:
            raise SupervisionError(f"{_conditions([child])}: scale it when it runs")
        stopped = [each for each in below if each.state in _STOPPED]
        if len(stopped) == len(below):
            raise SupervisionError(f"{runner} is drained, or has given up: resume it before you scale it")
        if stopped:
            them = "it" if len(stopped) == 1 else "them"
            raise SupervisionError(f"{_conditions(stopped)}: resume {them} before you scale {runner}")
        await apply(self._tree, _scaled(self._tree.spec, runner, processes), roll=False)
        self._forget_removed()
        return f"scaled {runner} from {len(below)} to {processes}"

    async def stop(self, now: bool) -> str:
        """Stop the whole system: gracefully, or as fast as possible without losing anything."""
        self._requests.graceful.set()
        if now:
            self._requests.now.set()
        return "stopping now" if now else "stopping: tasks are released at their next step"

    async def reload(self) -> str:
        """Read the configuration again, apply what has changed, and replace all processes one by one. What is drained
        or has given up stays so.

        Raises `ConfigError`, and changes nothing, if the file or an agent cannot be used. Raises `SupervisionError` if
        a new process cannot be started: processes that were not replaced by then go on unchanged.
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
                raise SupervisionError(f"{failed}" + (f"; already new: {done}" if done else "")) from failed
            finally:
                self._is_reloading = False
            self._config = config
            self._forget_removed()
            return f"reloaded: {_summary(changes, began)}"

    async def replace(self, child_id: str, process: str) -> None:
        """Replace `process`, an incarnation of the child, if it still runs when its turn comes. For its health.

        Raises `SupervisionError` if the successor does not get ready.
        """
        async with self.turn:
            for child in self._tree.walk():
                current = child.tree.current.get(child_id) if child.child_id == child_id else None
                if current and current.is_running and current.child.process == process:
                    await replace_child(child.tree, child_id)
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

    def _forget_removed(self) -> None:
        """Keep only those suspended ids that still exist: a later child with the same id starts normally."""
        self._tree.suspended.intersection_update(self._process_ids(""))

    def _process_ids(self, target: str) -> list[str]:
        """The ids of the target's processes, also of those whose supervisor is not running."""
        ids = []
        for child in self._children(target):
            processes = child.spec.processes if isinstance(child.spec, SupervisorSpec) else (child.spec,)
            ids += [process.id for process in processes]
        return ids

    def _children(self, target: str) -> list[ChildRef]:
        """The target and all children below it. Raises `ConfigError` if there is no such child."""
        children = list(self._tree.walk())
        if target in ("", self._tree.id):
            return children
        for child in children:
            if child.child_id == target:
                below = child.tree.branch(target)
                return [child, *(below.walk() if below else ())]
        for child in children:
            if child.tree.branch(child.child_id) is None and target in [spec.id for spec in _specs(child.spec)]:
                advice = "resume it first" if child.state in _STOPPED else "try again"
                raise SupervisionError(f"{target} does not run: {_conditions([child])}; {advice}")
        self._check_is_no_guest(target)
        known = ", ".join(child.child_id for child in children)
        raise ConfigError(f"there is no group, runner or process {target!r} here; there are: {known}")

    def _check_is_no_guest(self, target: str) -> None:
        """Raise `SupervisionError` if `target` is an agent that runs in the supervisor's own process."""
        guests = [guest["id"] for guest in self._guests()]
        if target in guests or f"{target}.here" in guests:
            raise SupervisionError(
                f"{target} runs in the process of the supervisor itself, and cannot be drained or scaled alone: make "
                "the agent an attribute of a module, so that other processes can import it"
            )


async def _names_in_fresh_process(path: str) -> dict[str, str]:
    """The names of the agents, by their references, as a new process imports them: this process may have imported an
    older version of the code. Raises `ConfigError` with the message of that process."""
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
    # The last line: modules may print while they are imported.
    runners = json.loads(out.splitlines()[-1])["runners"]
    return {about["agent"]: name for name, about in runners.items()}


def _scaled(spec: SupervisorSpec, runner: str, processes: int) -> SupervisorSpec:
    """The tree with so many processes of the runner, all specified like its first one."""
    if spec.id == runner:
        numbers = range(1, processes + 1)
        return replace(spec, children=tuple(replace(spec.children[0], id=f"{runner}.{number}") for number in numbers))
    children = (
        _scaled(child, runner, processes) if isinstance(child, SupervisorSpec) else child for child in spec.children
    )
    return replace(spec, children=tuple(children))


def _specs(spec: Spec) -> Iterator[Spec]:
    """The specifications below `spec`, at any depth."""
    for child in spec.children if isinstance(spec, SupervisorSpec) else ():
        yield child
        yield from _specs(child)


def _is_runner(spec: Spec) -> bool:
    return isinstance(spec, SupervisorSpec) and any(isinstance(one, ChildSpec) for one in spec.children)


def _conditions(children: Sequence[ChildRef]) -> str:
    """Why these children do not run, each by its name."""
    named: dict[tuple[str, str], list[str]] = {}
    for child in children:
        named.setdefault(_condition(child), []).append(child.child_id)
    return "; ".join(f"{listed(names)} {words[len(names) > 1]}" for words, names in named.items())


def _condition(child: ChildRef) -> tuple[str, str]:
    """Why the child does not run: for one child, and for several."""
    match child.state:
        case ChildState.SUSPENDED:
            return "is drained", "are drained"
        case ChildState.ENDED if isinstance(child.spec, ChildSpec):
            return "has ended", "have ended"
        case ChildState.ENDED:
            return "has given up", "have given up"
    return "is being restarted", "are being restarted"


def _is_active(child: ChildRef) -> bool:
    """Whether there is something to drain: a process, or a supervisor that will be restarted with some."""
    if isinstance(child.spec, ChildSpec):
        return child.state is not ChildState.SUSPENDED
    processes = {process.id for process in child.spec.processes}
    will_restart = child.tree.branch(child.child_id) is None and child.state is not ChildState.ENDED
    return will_restart and not processes <= child.tree.suspended


def _names(children: Sequence[ChildRef]) -> str:
    return listed([child.child_id for child in children])


def _summary(changes: Changes, began: float) -> str:
    parts = {
        "stopped": changes.stopped,
        "started": changes.started,
        "replaced": changes.replaced,
        "skipped (drained, or given up)": changes.skipped,
    }
    done = "; ".join(f"{what} {listed(names)}" for what, names in parts.items() if names)
    return f"{done or 'nothing to do'}; in {time.monotonic() - began:.1f} s"
