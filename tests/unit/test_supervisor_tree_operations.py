"""What an operator may do to a running tree. The children are simulated, the event loop is real."""

import asyncio
from dataclasses import replace

import pytest

from factorial.errors import SupervisionError
from tests.support import wait_until
from tests.unit.simulated import KILLED, World, living, specs, supervisor


async def test_a_successor_is_ready_before_its_predecessor_is_drained() -> None:
    world = World()
    async with living(world, supervisor("root", *specs("a", "b"))) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        world.log.clear()
        world.never_ready.add("a")
        replacing = asyncio.create_task(root.replace("a"))
        await world.has("start a-3")
        world.children["a"].become_ready()
        await world.has("drain a-1")
        await replacing
        assert root.report()["restarts"] == 0
        assert [member.child.pid for member in root.workers()] == [3, 2]


async def test_a_successor_that_does_not_get_ready_leaves_its_predecessor_alone() -> None:
    world = World()
    async with living(world, supervisor("root", *specs("a"))) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        world.log.clear()
        world.failing.add("a")
        with pytest.raises(SupervisionError, match="no such luck"):
            await root.replace("a")
        assert [member.child.pid for member in root.workers()] == [1]
        world.failing.clear()
        next(root.workers()).child.kill("a test")
        await world.has("start a-2", "kill a-1", "start a-3")


async def test_a_predecessor_that_dies_meanwhile_is_not_started_again() -> None:
    world = World()
    async with living(world, supervisor("root", *specs("a"))) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        first = world.children["a"]
        world.never_ready.add("a")
        replacing = asyncio.create_task(root.replace("a"))
        await wait_until(lambda: world.children["a"].pid == 2)
        first.end(KILLED)
        await wait_until(lambda: root.report()["restarts"] == 1)
        world.children["a"].become_ready()
        await replacing
        await asyncio.sleep(0.05)
        assert [member.child.pid for member in root.workers()] == [2]
        assert world.log == ["start a-1", "start a-2"]


async def test_a_suspended_child_rests_until_it_is_resumed() -> None:
    world = World()
    async with living(world, supervisor("root", *specs("a", "b"), strategy="one_for_all")) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        world.log.clear()
        await root.suspend("a")
        await world.has("drain a-1")
        world.children["b"].end(KILLED)
        await world.has("start b-3")  # without its sibling
        assert [node["state"] for node in root.report()["children"]] == ["suspended", "running"]
        await root.resume("a")
        await root.resume("a")
        await world.has("start a-4")
        assert [node["state"] for node in root.report()["children"]] == ["running", "running"]


async def test_a_crash_loop_can_be_suspended_in_its_pause() -> None:
    world = World()
    async with living(world, supervisor("root", *specs("a"), backoff=0.2, period=60)) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        world.children["a"].end(KILLED)
        await wait_until(lambda: world.children["a"].pid == 2)
        world.children["a"].end(KILLED)
        await wait_until(lambda: root.report()["restarts"] == 2)
        await root.suspend("a")
        await asyncio.sleep(0.3)
        assert root.report()["children"][0]["state"] == "suspended"
        assert not list(root.workers())


async def test_a_child_that_cannot_be_resumed_stays_suspended() -> None:
    world = World()
    async with living(world, supervisor("root", *specs("a"))) as (root, task):
        await asyncio.wait_for(root.started.wait(), 2)
        await root.suspend("a")
        world.failing.add("a")
        with pytest.raises(SupervisionError, match="no such luck"):
            await root.resume("a")
        assert root.report()["children"][0]["state"] == "suspended"
        assert not task.done()


async def test_a_nested_supervisor_that_has_given_up_can_be_resumed() -> None:
    world = World()
    tree = supervisor("root", supervisor("first", *specs("a"), intensity=0, restart="transient"))
    async with living(world, tree) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        world.children["a"].end(KILLED)
        await wait_until(lambda: root.report()["children"][0]["state"] == "ended")
        await root.resume("first")
        assert [member.child.pid for member in root.workers()] == [2]


async def test_apply_does_what_has_changed_and_leaves_the_rest() -> None:
    world = World()
    a, b, c = specs("a", "b", "c")
    async with living(world, supervisor("root", supervisor("first", a, b), supervisor("second", c))) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        world.log.clear()
        wanted = supervisor("root", supervisor("third", *specs("d")), supervisor("first", a, replace(b, shutdown=9)))
        await root.apply(wanted, roll=False)
        await world.has("drain c-3", "start d-4", "start b-5", "drain b-2")
        assert root.order == ("third", "first")
        await root.apply(wanted, roll=False)
        assert not world.log
        await root.apply(supervisor("root", *wanted.children, intensity=77), roll=True)
        assert world.log == ["start d-6", "drain d-4", "start a-7", "drain a-1", "start b-8", "drain b-5"]
        assert root.report()["intensity"] == 77


async def test_apply_that_fails_half_way_loses_nothing_that_ran() -> None:
    world = World()
    async with living(world, supervisor("root", *specs("a", "b"))) as (root, task):
        await asyncio.wait_for(root.started.wait(), 2)
        world.failing.add("b")
        with pytest.raises(SupervisionError, match="no such luck"):
            await root.apply(supervisor("root", *specs("a", "b")), roll=True)
        assert [member.child.pid for member in root.workers()] == [3, 2]
        assert not task.done()


async def test_what_a_reload_has_changed_holds_for_later_restarts() -> None:
    world = World()
    a, b = specs("a", "b")
    async with living(world, supervisor("root", supervisor("first", a), intensity=5)) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        await root.apply(supervisor("root", supervisor("first", a, b, intensity=0), intensity=5), roll=False)
        world.log.clear()
        world.children["a"].end(KILLED)
        await world.has("drain b-2", "start a-3", "start b-4")  # it gave up at once, and came back with both


async def test_stop_ends_a_replacement_half_way() -> None:
    world = World()
    async with living(world, supervisor("root", *specs("a", "b"))) as (root, task):
        await asyncio.wait_for(root.started.wait(), 2)
        world.never_ready.add("a")
        replacing = asyncio.create_task(root.replace("a"))
        await wait_until(lambda: world.children["a"].pid == 3)
        world.log.clear()
        world.stop.set()
        await asyncio.wait_for(task, 2)
        assert world.log == ["drain a-3", "drain b-2", "drain a-1"]
        with pytest.raises(SupervisionError):
            await replacing
        with pytest.raises(SupervisionError, match="shutting down"):
            await root.replace("b")


async def test_a_report_tells_of_every_node() -> None:
    world = World()
    async with living(world, supervisor("root", supervisor("first", *specs("a")), *specs("b"))) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        world.children["a"].end(KILLED)
        await wait_until(lambda: world.children["a"].pid == 3)
        report = root.report()
        first, b = report["children"]
        assert (report["id"], report["state"], first["id"], first["restarts"]) == ("root", "running", "first", 1)
        (a,) = first["children"]
        assert (a["process"], a["pid"], a["tasks"], a["restarts"], a["last_exit"]) == ("a-3", 3, 3, 1, "SIGKILL")
        assert (b["last_exit"], b["restarts"], b["state"]) == (None, 0, "running")
        assert list(root.child_ids()) == ["first", "a", "b"]
