"""The tree carries out what the rules decide. Real: the tree, the event loop. Fake: the processes."""

import asyncio

import pytest

from factorial.errors import SupervisionError
from factorial.supervisor.rules.spec import AutoShutdown, ChildExit, ChildSpec, ExitReason
from tests.support import wait_until
from tests.unit.simulated import KILLED, SimulatedChild, World, running, specs


async def test_starts_in_order_each_ready_before_the_next() -> None:
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


async def test_children_stop_together() -> None:
    world = World()
    world.stubborn.update("ab")
    async with running(world, specs("a", "b")):
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
    """The second child had died before it was to be terminated."""
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


async def test_a_child_that_does_not_stop_in_time_is_killed_and_reported() -> None:
    world = World()
    world.stubborn.add("a")
    async with running(world, specs("a", shutdown=0.01)) as task:
        await world.has("start a-1")
        world.stop.set()
        await task
        await world.has("drain a-1", "kill a-1")
    assert [(exit.signal, exit.reason) for exit in world.exits] == [("SIGKILL", ExitReason.ABNORMAL)]


async def test_leave_now_shortens_the_time_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factorial.supervisor.tree.incarnation.LEAVE_SECONDS", 0.01)
    world = World()
    world.stubborn.update("ab")
    world.deaf.add("a")
    async with running(world, specs("a", "b", shutdown=600)) as task:
        await world.has("start a-1", "start b-2")
        world.stop.set()
        await world.has("drain b-2", "drain a-1")
        world.now.set()
        await task
        assert sorted(world.log) == ["kill a-1", "leave a-1", "leave b-2"]


async def test_auto_shutdown_ends_the_tree_without_an_error() -> None:
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
    assert "the follow-up to the end of a-1 has failed" in caplog.text


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
    """A bug, not a failed start: the error is raised, and the others are stopped."""
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
