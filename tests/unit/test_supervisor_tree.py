"""The tree carries out what the rules decide. The children are simulated, the event loop is real."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from factorial.errors import SupervisionError
from factorial.supervisor.spec import AutoShutdown, ChildExit, ChildSpec, ExitReason, SupervisorFlags
from factorial.supervisor.tree import Tree
from tests.support import wait_until

KILLED = -signal.SIGKILL


class SimulatedChild:
    """A child that obeys at once, unless told otherwise."""

    def __init__(self, world: "World", id: str, number: int) -> None:
        self.process, self.pid, self.failure = f"{id}-{number}", number, ""
        self.id, self._world = id, world
        self._ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._exit: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    async def ready(self) -> bool:
        return await asyncio.shield(self._ready)

    async def exited(self) -> int | None:
        return await asyncio.shield(self._exit)

    def become_ready(self) -> None:
        self._ready.set_result(True)

    def end(self, exitcode: int | None) -> None:
        if not self._ready.done():
            self._ready.set_result(False)
        if not self._exit.done():
            self._exit.set_result(exitcode)

    def drain(self) -> None:
        self._world.log.append(f"drain {self.process}")
        if self.id not in self._world.stubborn:
            self.end(0)

    def leave(self) -> None:
        self._world.log.append(f"leave {self.process}")
        if self.id not in self._world.deaf:
            self.end(0)

    def kill(self) -> None:
        self._world.log.append(f"kill {self.process}")
        self.end(KILLED)


class World:
    """Starts simulated children and keeps a log of what was done to them."""

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
        """Wait until the log says this, and nothing else; then begin a new one."""
        await wait_until(lambda: len(self.log) >= len(lines), timeout=2, message=f"{lines} in {self.log}")
        assert self.log == list(lines)
        self.log.clear()


def specs(*ids: str, **changes: Any) -> list[ChildSpec]:
    return [ChildSpec(id=id, target="m:f", **changes) for id in ids]


@asynccontextmanager
async def running(world: World, children: list[ChildSpec], **flags: Any) -> AsyncIterator["asyncio.Task[None]"]:
    tree = Tree(SupervisorFlags(**{"intensity": 10, **flags}), children, launch=world.launch, on_exit=world.on_exit)
    task = asyncio.create_task(tree.run(world.stop, world.now))
    try:
        yield task
    finally:
        world.stop.set()
        await asyncio.wait({task}, timeout=2)
        assert task.done()


async def test_starts_in_order_each_ready_before_the_next_and_stops_in_reverse() -> None:
    world = World()
    world.never_ready.add("b")
    async with running(world, specs("a", "b", "c")) as task:
        await world.has("start a-1", "start b-2")
        world.children["b"].become_ready()
        await world.has("start c-3")
        world.stop.set()
        await task
        await world.has("drain c-3", "drain b-2", "drain a-1")
    assert [exit.reason for exit in world.exits] == [ExitReason.SHUTDOWN] * 3


async def test_reverse_order_waits_for_each_child() -> None:
    world = World()
    world.stubborn.add("b")
    async with running(world, specs("a", "b")):
        await world.has("start a-1", "start b-2")
        world.stop.set()
        await world.has("drain b-2")
        world.children["b"].end(0)
        await world.has("drain a-1")


async def test_children_that_do_not_need_each_other_stop_together() -> None:
    world = World()
    world.stubborn.update("ab")
    async with running(world, specs("a", "b"), stop_together=True):
        await world.has("start a-1", "start b-2")
        world.stop.set()
        await world.has("drain b-2", "drain a-1")
        world.children["a"].end(0)
        world.children["b"].end(0)


async def test_a_failed_start_stops_those_already_started_and_fails_the_tree() -> None:
    world = World()
    world.failing.add("c")
    async with running(world, specs("a", "b", "c", "d")) as task:
        with pytest.raises(SupervisionError, match="'c' could not be started: ValueError: no such luck"):
            await task
        await world.has("start a-1", "start b-2", "start c-3", "drain b-2", "drain a-1")


async def test_a_child_that_is_not_ready_in_time_is_killed_and_is_a_failed_start() -> None:
    world = World()
    world.never_ready.add("a")
    async with running(world, specs("a", start_timeout=0.01)) as task:
        with pytest.raises(SupervisionError, match=r"'a' could not be started: it was not ready within 0\.01 s"):
            await task
        await world.has("start a-1", "kill a-1")


async def test_the_first_restart_is_immediate_and_leaves_the_others_alone() -> None:
    world = World()
    async with running(world, specs("a", "b"), backoff=100.0):
        await world.has("start a-1", "start b-2")
        world.children["a"].end(KILLED)
        await world.has("start a-3")
    assert world.exits[0] == ChildExit("a", "a-1", 1, KILLED, "SIGKILL", ExitReason.ABNORMAL)


async def test_one_childs_pause_does_not_hold_up_another() -> None:
    world = World()
    async with running(world, specs("a", "b"), period=1000, backoff=100.0, max_backoff=100.0):
        await world.has("start a-1", "start b-2")
        world.children["a"].end(KILLED)
        await world.has("start a-3")
        world.children["a"].end(KILLED)
        await wait_until(lambda: len(world.exits) == 2)
        world.children["b"].end(KILLED)
        await world.has("start b-4")


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("one_for_all", ["drain c-3", "drain a-1", "start a-4", "start b-5", "start c-6"]),
        ("rest_for_one", ["drain c-3", "start b-4", "start c-5"]),
    ],
)
async def test_group_restarts(strategy: str, expected: list[str]) -> None:
    world = World()
    async with running(world, specs("a", "b", "c"), strategy=strategy):
        await world.has("start a-1", "start b-2", "start c-3")
        world.children["b"].end(KILLED)
        await world.has(*expected)


async def test_two_deaths_at_once_in_a_group_are_one_restart() -> None:
    """The second one had died before its turn to be terminated came: it was not needed twice."""
    world = World()
    async with running(world, specs("a", "b"), strategy="one_for_all", intensity=1):
        await world.has("start a-1", "start b-2")
        world.children["a"].end(KILLED)
        world.children["b"].end(KILLED)
        await world.has("start a-3", "start b-4")


async def test_a_failed_restart_is_tried_again_until_the_intensity_is_exceeded() -> None:
    world = World()
    async with running(world, specs("a", "b"), intensity=2, backoff=0.001) as task:
        await world.has("start a-1", "start b-2")
        world.failing.add("a")
        world.children["a"].end(KILLED)
        with pytest.raises(SupervisionError, match="given up: 3 restarts within 5 s, where intensity allows 2"):
            await task
        await world.has("start a-3", "start a-4", "drain b-2")


async def test_stop_interrupts_a_pause() -> None:
    world = World()
    async with running(world, specs("a"), period=10_000, backoff=1000.0, max_backoff=1000.0) as task:
        await world.has("start a-1")
        world.children["a"].end(KILLED)
        await world.has("start a-2")
        world.children["a"].end(KILLED)
        await wait_until(lambda: len(world.exits) == 2)
        world.stop.set()
        await asyncio.wait_for(task, 2)
        await world.has()


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all"])
async def test_stop_interrupts_a_restart(strategy: str) -> None:
    world = World()
    async with running(world, specs("a"), strategy=strategy) as task:
        await world.has("start a-1")
        world.never_ready.add("a")
        world.children["a"].end(KILLED)
        await world.has("start a-2")
        world.stop.set()
        await asyncio.wait_for(task, 2)
        await world.has("drain a-2")


async def test_who_does_not_stop_in_time_is_killed_and_reported() -> None:
    world = World()
    world.stubborn.add("a")
    async with running(world, specs("a", shutdown=0.01)) as task:
        await world.has("start a-1")
        world.stop.set()
        await task
        await world.has("drain a-1", "kill a-1")
    assert [(exit.signal, exit.reason) for exit in world.exits] == [("SIGKILL", ExitReason.ABNORMAL)]


@pytest.mark.parametrize(
    ("shutdown", "expected"), [("brutal_kill", ["kill a-1"]), ("infinity", ["drain a-1"]), (100, ["drain a-1"])]
)
async def test_shutdown_types(shutdown: Any, expected: list[str]) -> None:
    world = World()
    async with running(world, specs("a", shutdown=shutdown)) as task:
        await world.has("start a-1")
        world.stop.set()
        await task
        await world.has(*expected)
    assert world.exits[0].reason is ExitReason.SHUTDOWN


async def test_leave_now_cuts_the_time_to_stop_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factorial.supervisor.tree.LEAVE_SECONDS", 0.01)
    world = World()
    world.stubborn.update("ab")
    world.deaf.add("a")
    async with running(world, specs("a", "b", shutdown="infinity")) as task:
        await world.has("start a-1", "start b-2")
        world.stop.set()
        await world.has("drain b-2")
        world.now.set()
        await task
        await world.has("leave b-2", "drain a-1", "leave a-1", "kill a-1")


async def test_auto_shutdown_ends_the_tree_in_peace() -> None:
    world = World()
    children = [*specs("a"), *specs("b", restart="transient", significant=True)]
    async with running(world, children, auto_shutdown=AutoShutdown.ANY_SIGNIFICANT) as task:
        await world.has("start a-1", "start b-2")
        world.children["b"].end(0)
        await task
        await world.has("drain a-1")


@pytest.mark.parametrize("error", [RuntimeError("broken"), SupervisionError("broken")])
async def test_a_failing_on_exit_does_not_stop_supervision(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    world = World()

    async def on_exit(exit: ChildExit) -> None:
        raise error

    world.on_exit = on_exit  # type: ignore[method-assign]
    async with running(world, specs("a")):
        await world.has("start a-1")
        world.children["a"].end(KILLED)
        await world.has("start a-2")
    assert "the end of a-1 has failed" in caplog.text


async def test_a_slow_on_exit_does_not_hold_up_the_restart_and_is_waited_for_at_the_end() -> None:
    world = World()
    release = asyncio.Event()
    done: list[str] = []

    async def on_exit(exit: ChildExit) -> None:
        await release.wait()
        done.append(exit.process)

    world.on_exit = on_exit  # type: ignore[method-assign]
    async with running(world, specs("a")) as task:
        await world.has("start a-1")
        world.children["a"].end(KILLED)
        await world.has("start a-2")
        world.stop.set()
        await world.has("drain a-2")
        assert not task.done()
        release.set()
        await task
    assert done == ["a-1", "a-2"]


async def test_a_cancelled_tree_leaves_no_child() -> None:
    world = World()
    async with running(world, specs("a", "b")) as task:
        await world.has("start a-1", "start b-2")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await world.has("drain b-2", "drain a-1")


async def test_a_tree_that_breaks_in_the_middle_leaves_no_child() -> None:
    """A bug, not a failed start: it is not swallowed, and the others are stopped."""
    world = World()

    def launch(spec: ChildSpec) -> SimulatedChild:
        if len(world.children) == 2:
            raise RuntimeError("a bug")
        return World.launch(world, spec)

    world.launch = launch  # type: ignore[method-assign]
    async with running(world, specs("a", "b")) as task:
        await world.has("start a-1", "start b-2")
        world.children["a"].end(KILLED)
        with pytest.raises(RuntimeError, match="a bug"):
            await task
        await world.has("drain b-2")
