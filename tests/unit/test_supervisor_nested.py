"""Supervisors below supervisors. Real: the tree, the event loop. Fake: the processes."""

import asyncio
import signal

import pytest

from factorial.errors import SupervisionError
from factorial.supervisor.rules.spec import ExitReason
from factorial.supervisor.tree.report import describe
from tests.support import wait_until
from tests.unit.simulated import KILLED, World, living, specs, supervisor


async def test_a_nested_supervisor_is_ready_when_its_children_are() -> None:
    world = World()
    world.never_ready.add("b")
    tree = supervisor("root", supervisor("first", *specs("a", "b")), *specs("c"))
    async with living(world, tree) as (root, task):
        await world.has("start a-1", "start b-2")
        assert not root.started.is_set()
        world.children["b"].become_ready()
        await world.has("start c-3")
        await asyncio.wait_for(root.started.wait(), 10)
        world.stop.set()
        await task
        await world.has("drain c-3", "drain b-2", "drain a-1")


async def test_a_child_that_cannot_be_started_fails_all_levels_and_leaves_nothing() -> None:
    world = World()
    world.failing.add("b")
    async with living(world, supervisor("root", *specs("z"), supervisor("first", *specs("a", "b")))) as (_, task):
        with pytest.raises(SupervisionError, match=r"child 'b' could not be started: ValueError: no such luck"):
            await task
        assert sorted(world.log) == ["drain a-2", "drain z-1", "start a-2", "start b-3", "start z-1"]


async def test_restarts_below_do_not_count_above() -> None:
    world = World()
    tree = supervisor("root", supervisor("first", *specs("a", "b"), intensity=3), intensity=0)
    async with living(world, tree) as (root, task):
        await asyncio.wait_for(root.started.wait(), 10)
        for number in (3, 4):
            world.children["a"].end(KILLED)
            await wait_until(lambda number=number: world.children["a"].pid == number)
        below = root.branch("first")
        assert below is not None
        assert describe(below)["restarts"] == 2
        assert describe(root)["restarts"] == 0
        assert not task.done()


@pytest.mark.parametrize(("restart", "again"), [("permanent", True), ("transient", False), ("temporary", False)])
async def test_a_nested_supervisor_that_gives_up_ends_with_shutdown_and_its_parent_decides(
    restart: str, again: bool
) -> None:
    """OTP: it terminates its children, and exits with the reason `shutdown`."""
    world = World()
    flaky = supervisor("flaky", *specs("a", "b"), restart=restart, intensity=0)
    async with living(world, supervisor("root", flaky, supervisor("steady", *specs("c")))) as (root, task):
        await asyncio.wait_for(root.started.wait(), 10)
        world.log.clear()
        world.children["a"].end(KILLED)
        await world.has("drain b-2", *(["start a-4", "start b-5"] if again else []))
        if again:
            await wait_until(lambda: describe(root)["restarts"] == 1)
            assert describe(root)["children"][0]["state"] == "running"
        elif restart == "transient":
            await wait_until(lambda: describe(root)["children"][0]["state"] == "gave up")
            assert describe(root)["children"][0]["last_exit"] == "gave up: SIGKILL; 1 restarts within 5 s"
        else:
            await wait_until(lambda: root.order == ("steady",))
        assert world.children["c"].pid == 3
        assert not task.done()


async def test_the_root_gives_up_when_a_nested_supervisor_gives_up_too_often() -> None:
    world = World()
    flaky = supervisor("flaky", *specs("a"), intensity=1)
    async with living(world, supervisor("root", *specs("z"), flaky, intensity=1)) as (_, task):
        for number in (2, 3, 4, 5):
            await wait_until(lambda number=number: "a" in world.children and world.children["a"].pid == number)
            await asyncio.sleep(0)
            world.children["a"].end(KILLED)
        with pytest.raises(SupervisionError) as gave_up:
            await asyncio.wait_for(task, 10)
        assert str(gave_up.value).startswith("supervisor 'root' has given up: 2 restarts within 5 s, where")
        assert "supervisor 'flaky' has given up" in str(gave_up.value)
        assert "SIGKILL" in str(gave_up.value)
        assert world.log[-1] == "drain z-1"


async def test_strategies_hold_between_nested_supervisors() -> None:
    """rest_for_one: when one gives up, those that were started after it are restarted with it."""
    world = World()
    tree = supervisor(
        "root", *specs("a"), supervisor("second", *specs("b"), intensity=0), supervisor("third", *specs("c")),
        strategy="rest_for_one",
    )  # fmt: skip
    async with living(world, tree) as (root, _):
        await asyncio.wait_for(root.started.wait(), 10)
        world.log.clear()
        world.children["b"].end(KILLED)
        await world.has("drain c-3", "start b-4", "start c-5")
        assert world.children["a"].pid == 1


async def test_leave_now_reaches_all_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factorial.supervisor.tree.incarnation.LEAVE_SECONDS", 0.1)
    world = World()
    world.stubborn |= {"a", "b"}
    world.deaf.add("b")
    async with living(world, supervisor("root", supervisor("first", *specs("a", "b")))) as (root, task):
        await asyncio.wait_for(root.started.wait(), 10)
        world.log.clear()
        world.stop.set()
        await world.has("drain b-2", "drain a-1")
        world.now.set()
        await asyncio.wait_for(task, 10)
        assert sorted(world.log) == ["kill b-2", "leave a-1", "leave b-2"]


async def test_a_nested_supervisor_that_fails_is_an_abnormal_end(caplog: pytest.LogCaptureFixture) -> None:
    """A bug in one branch is logged, and restarts only that branch."""
    world = World()
    async with living(world, supervisor("root", supervisor("first", *specs("a")), *specs("z"))) as (root, task):
        await asyncio.wait_for(root.started.wait(), 10)
        world.log.clear()
        branch = root.branch("first")
        assert branch is not None
        branch._events.put_nowait(RuntimeError("a mistake"))
        await world.has("drain a-1", "start a-3")
        assert "the supervisor first has failed" in caplog.text
        assert not task.done()


async def test_exits_of_processes_are_reported_and_those_of_supervisors_are_not() -> None:
    world = World()
    async with living(world, supervisor("root", supervisor("first", *specs("a"), intensity=0))) as (root, _):
        await asyncio.wait_for(root.started.wait(), 10)
        world.children["a"].end(-signal.SIGSEGV)
        await wait_until(lambda: world.children["a"].pid == 2)
    assert [(exit.child_id, exit.reason) for exit in world.exits] == [
        ("a", ExitReason.ABNORMAL), ("a", ExitReason.SHUTDOWN),
    ]  # fmt: skip
