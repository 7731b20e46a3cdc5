"""Simulated children for the tests of the tree. Real: the tree, the event loop. Fake: the processes."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from factorial.supervisor.rules.spec import ChildExit, ChildSpec, Spec, SupervisorFlags, SupervisorSpec
from factorial.supervisor.rules.strategy import classify, signal_name
from factorial.supervisor.tree.tree import Tree
from tests.support import wait_until

__all__ = ["KILLED", "SimulatedChild", "World", "living", "running", "specs", "supervisor"]

KILLED = -signal.SIGKILL


class SimulatedChild:
    """A child that obeys at once, unless a test says otherwise in `World`."""

    def __init__(self, world: "World", id: str, number: int) -> None:
        self.process, self.pid, self.failure = f"{id}-{number}", number, ""
        self.id, self._world = id, world
        self._ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._exit: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._asked_with: signal.Signals | None = None

    async def ready(self) -> bool:
        return await asyncio.shield(self._ready)

    async def exited(self) -> ChildExit:
        code = await asyncio.shield(self._exit)
        reason = classify(code, self._asked_with)
        asked = self._asked_with is not None
        return ChildExit(self.id, self.process, self.pid, code, signal_name(code), reason, asked)

    def report(self) -> dict[str, Any]:
        return {"tasks": self.pid}

    def become_ready(self) -> None:
        self._ready.set_result(True)

    def end(self, exitcode: int | None) -> None:
        if not self._ready.done():
            self._ready.set_result(False)
        if not self._exit.done():
            self._exit.set_result(exitcode)

    @property
    def is_draining(self) -> bool:
        return self._asked_with is signal.SIGTERM

    def drain(self) -> None:
        self._asked_with = signal.SIGTERM
        self._world.log.append(f"drain {self.process}")
        if self.id not in self._world.stubborn:
            self.end(0)

    def leave(self) -> None:
        self._world.log.append(f"leave {self.process}")
        if self.id not in self._world.deaf:
            self.end(0)

    def kill(self, why: str = "") -> None:
        self._asked_with = self._asked_with or (None if why else signal.SIGKILL)
        self._world.log.append(f"kill {self.process}")
        self.end(KILLED)


class World:
    """Starts simulated children, and keeps a log of what was done to them."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.exits: list[ChildExit] = []
        self.children: dict[str, SimulatedChild] = {}
        self.never_ready: set[str] = set()
        self.failing: set[str] = set()
        self.stubborn: set[str] = set()
        self.deaf: set[str] = set()
        self.stop, self.now = asyncio.Event(), asyncio.Event()
        self._started = 0

    def launch(self, spec: ChildSpec) -> SimulatedChild:
        self._started += 1
        child = SimulatedChild(self, spec.id, self._started)
        self.log.append(f"start {child.process}")
        self.children[spec.id] = child
        if spec.id in self.failing:
            child.failure = "ValueError: no such luck"
            child.end(1)
        elif spec.id not in self.never_ready:
            child.become_ready()
        return child

    async def on_exit(self, exit: ChildExit) -> None:
        self.exits.append(exit)

    async def has(self, *lines: str) -> None:
        """Wait for these lines, assert that the log holds no others, and clear it."""
        await wait_until(lambda: len(self.log) >= len(lines), timeout=10, message=f"{lines} in {self.log}")
        assert self.log == list(lines)
        self.log.clear()


def specs(*ids: str, **changes: Any) -> list[ChildSpec]:
    return [ChildSpec(id=id, target="m:f", **changes) for id in ids]


def supervisor(id: str, *children: Spec, restart: Any = "permanent", **flags: Any) -> SupervisorSpec:
    """A supervisor of `children`."""
    flags = {"intensity": 10, **flags}
    return SupervisorSpec(id=id, flags=SupervisorFlags(**flags), children=children, restart=restart)


@asynccontextmanager
async def living(world: World, spec: SupervisorSpec) -> AsyncIterator[tuple[Tree, "asyncio.Task[None]"]]:
    """A running tree, and the asyncio task that runs it."""
    tree = Tree(spec, launch=world.launch, on_exit=world.on_exit)
    task = asyncio.create_task(tree.run(world.stop, world.now))
    try:
        yield tree, task
    finally:
        world.stop.set()
        await asyncio.wait({task}, timeout=10)
        assert task.done()


@asynccontextmanager
async def running(world: World, children: list[ChildSpec], **flags: Any) -> AsyncIterator["asyncio.Task[None]"]:
    async with living(world, supervisor("root", *children, **flags)) as (_, task):
        yield task
