"""What an operator may do to a running tree. Real: the tree, the event loop. Fake: the processes."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from factorial.errors import SupervisionError
from factorial.supervisor.tree.changes import (
    Changes,
    apply,
    replace_child,
    resume_child,
    suspend_child,
    terminate_child,
)
from factorial.supervisor.tree.report import describe
from tests.support import wait_until
from tests.unit.simulated import KILLED, World, living, specs, supervisor


async def test_a_successor_is_ready_before_its_predecessor_is_drained() -> None:
    world = World()
    async with living(world, supervisor("root", *specs("a", "b"))) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        world.log.clear()
        world.never_ready.add("a")
        replacing = asyncio.create_task(replace_child(root, "a"))
        await world.has("start a-3")
        world.children["a"].become_ready()
        await world.has("drain a-1")
        await replacing
        assert describe(root)["restarts"] == 0
        assert [each.child.pid for each in root.processes()] == [3, 2]


async def test_a_successor_that_does_not_get_ready_leaves_its_predecessor_alone() -> None:
    world = World()
    async with living(world, supervisor("root", *specs("a"))) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        world.log.clear()
        world.failing.add("a")
        with pytest.raises(SupervisionError, match="no such luck"):
            await replace_child(root, "a")
        assert [each.child.pid for each in root.processes()] == [1]
        world.failing.clear()
        next(root.processes()).child.kill("a test")
        await world.has("start a-2", "kill a-1", "start a-3")


async def test_a_predecessor_that_dies_meanwhile_is_not_started_again() -> None:
    world = World()
    async with living(world, supervisor("root", *specs("a"))) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        first = world.children["a"]
        world.never_ready.add("a")
        replacing = asyncio.create_task(replace_child(root, "a"))
        await wait_until(lambda: world.children["a"].pid == 2)
        first.end(KILLED)
        await wait_until(lambda: world.exits)
        world.children["a"].become_ready()
        await replacing
        await asyncio.sleep(0.05)
        assert [each.child.pid for each in root.processes()] == [2]
        assert world.log == ["start a-1", "start a-2"]


async def test_a_suspended_child_rests_until_it_is_resumed() -> None:
    world = World()
    async with living(world, supervisor("root", *specs("a", "b"), strategy="one_for_all")) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        world.log.clear()
        await suspend_child(root, "a")
        await world.has("drain a-1")
        world.children["b"].end(KILLED)
        await world.has("start b-3")  # without its sibling
        assert [node["state"] for node in describe(root)["children"]] == ["drained", "running"]
        await resume_child(root, "a")
        await resume_child(root, "a")
        await world.has("start a-4")
        assert [node["state"] for node in describe(root)["children"]] == ["running", "running"]


async def test_a_crash_loop_can_be_suspended_in_its_pause() -> None:
    world = World()
    async with living(world, supervisor("root", *specs("a"), backoff=0.2, period=60)) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        world.children["a"].end(KILLED)
        await wait_until(lambda: world.children["a"].pid == 2)
        world.children["a"].end(KILLED)
        await wait_until(lambda: describe(root)["restarts"] == 2)
        await suspend_child(root, "a")
        await asyncio.sleep(0.3)
        assert describe(root)["children"][0]["state"] == "drained"
        assert not list(root.processes())


async def test_a_child_that_cannot_be_resumed_stays_suspended() -> None:
    world = World()
    async with living(world, supervisor("root", *specs("a"))) as (root, task):
        await asyncio.wait_for(root.started.wait(), 2)
        await suspend_child(root, "a")
        world.failing.add("a")
        with pytest.raises(SupervisionError, match="no such luck"):
            await resume_child(root, "a")
        assert describe(root)["children"][0]["state"] == "drained"
        assert not task.done()


async def test_a_nested_supervisor_that_has_given_up_can_be_resumed() -> None:
    world = World()
    tree = supervisor("root", supervisor("first", *specs("a"), intensity=0, restart="transient"))
    async with living(world, tree) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        world.children["a"].end(KILLED)
        await wait_until(lambda: describe(root)["children"][0]["state"] == "gave up")
        await resume_child(root, "first")
        assert [each.child.pid for each in root.processes()] == [2]


async def test_apply_does_what_has_changed_and_leaves_the_rest() -> None:
    world = World()
    a, b, c = specs("a", "b", "c")
    async with living(world, supervisor("root", supervisor("first", a, b), supervisor("second", c))) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        world.log.clear()
        wanted = supervisor("root", supervisor("third", *specs("d")), supervisor("first", a, replace(b, shutdown=9)))
        await apply(root, wanted, roll=False)
        await world.has("drain c-3", "start d-4", "start b-5", "drain b-2")
        assert root.order == ("third", "first")
        await apply(root, wanted, roll=False)
        assert not world.log
        await apply(root, supervisor("root", *wanted.children, intensity=77), roll=True)
        assert world.log == ["start d-6", "drain d-4", "start a-7", "drain a-1", "start b-8", "drain b-5"]
        assert describe(root)["intensity"] == 77


async def test_apply_that_fails_half_way_loses_nothing_that_ran() -> None:
    world = World()
    async with living(world, supervisor("root", *specs("a", "b"))) as (root, task):
        await asyncio.wait_for(root.started.wait(), 2)
        world.failing.add("b")
        with pytest.raises(SupervisionError, match="no such luck"):
            await apply(root, supervisor("root", *specs("a", "b")), roll=True)
        assert [each.child.pid for each in root.processes()] == [3, 2]
        assert not task.done()


async def test_the_changes_of_a_reload_apply_to_later_restarts() -> None:
    world = World()
    a, b = specs("a", "b")
    async with living(world, supervisor("root", supervisor("first", a), intensity=5)) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        await apply(root, supervisor("root", supervisor("first", a, b, intensity=0), intensity=5), roll=False)
        world.log.clear()
        world.children["a"].end(KILLED)
        await world.has("drain b-2", "start a-3", "start b-4")  # it gave up at once, and came back with both


async def test_stop_ends_a_replacement_in_the_middle() -> None:
    world = World()
    async with living(world, supervisor("root", *specs("a", "b"))) as (root, task):
        await asyncio.wait_for(root.started.wait(), 2)
        world.never_ready.add("a")
        replacing = asyncio.create_task(replace_child(root, "a"))
        await wait_until(lambda: world.children["a"].pid == 3)
        world.log.clear()
        world.stop.set()
        await asyncio.wait_for(task, 2)
        assert world.log == ["drain a-3", "drain b-2", "drain a-1"]
        with pytest.raises(SupervisionError):
            await replacing
        with pytest.raises(SupervisionError, match="shutting down"):
            await replace_child(root, "b")


async def test_a_report_describes_every_node() -> None:
    world = World()
    async with living(world, supervisor("root", supervisor("first", *specs("a")), *specs("b"))) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        world.children["a"].end(KILLED)
        await wait_until(lambda: world.children["a"].pid == 3)
        report = describe(root)
        first, b = report["children"]
        assert (report["id"], report["state"], first["id"], first["restarts"]) == ("root", "running", "first", 1)
        (a,) = first["children"]
        assert (a["process"], a["pid"], a["tasks"], a["restarts"], a["last_exit"]) == ("a-3", 3, 3, 1, "SIGKILL")
        assert (b["last_exit"], b["restarts"], b["state"]) == (None, 0, "running")
        assert [each.child_id for each in root.walk()] == ["first", "a", "b"]


async def test_a_reload_may_change_what_is_significant() -> None:
    """The new specification is checked as a whole, not child by child against the old siblings."""
    world = World()
    a, b = specs("a", "b", restart="transient", significant=True)
    async with living(world, supervisor("root", a, b, auto_shutdown="any_significant")) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        await apply(root, supervisor("root", replace(a, significant=False), replace(b, significant=False)), roll=False)
        assert [each.child.pid for each in root.processes()] == [3, 4]
        assert len(root.incarnations.alive) == 2


async def test_a_drained_child_stays_drained_when_its_supervisor_is_restarted() -> None:
    world = World()
    async with living(world, supervisor("root", supervisor("first", *specs("a", "b"), intensity=0))) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        first = root.branch("first")
        assert first is not None
        await suspend_child(first, "a")
        world.log.clear()
        world.children["b"].end(KILLED)
        await world.has("start b-3")
        states = [node["state"] for node in describe(root)["children"][0]["children"]]
        assert states == ["drained", "running"]
        first = root.branch("first")
        assert first is not None
        await resume_child(first, "a")
        await world.has("start a-4")


async def test_children_that_a_reload_removes_drain_at_the_same_time() -> None:
    world = World()
    world.stubborn |= {"b", "c"}
    async with living(world, supervisor("root", *specs("a", "b", "c"))) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        world.log.clear()
        applying = asyncio.create_task(apply(root, supervisor("root", *specs("a")), roll=False))
        await world.has("drain c-3", "drain b-2")
        assert [node["state"] for node in describe(root)["children"]] == ["running", "draining", "draining"]
        for name in ("b", "c"):
            world.children[name].end(0)
        assert (await applying).stopped == ["c", "b"]


async def test_a_predecessor_is_reported_while_it_drains() -> None:
    world = World()
    world.stubborn.add("a")
    async with living(world, supervisor("root", *specs("a"))) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        first = world.children["a"]
        replacing = asyncio.create_task(replace_child(root, "a"))
        await wait_until(lambda: first.is_draining)
        [node] = describe(root)["children"]
        assert (node["state"], node["pid"]) == ("running", 2)
        assert [each["pid"] for each in node["predecessors"]] == [1]
        first.end(0)
        await replacing
        assert describe(root)["children"][0]["predecessors"] == []
        world.stubborn.clear()


async def test_a_child_that_is_killed_during_the_shutdown_is_reported() -> None:
    world = World()
    world.stubborn |= {"a", "b"}
    async with living(world, supervisor("root", *specs("a", "b"))) as (root, task):
        await asyncio.wait_for(root.started.wait(), 2)
        world.stop.set()
        await wait_until(lambda: world.children["b"].is_draining)
        world.children["a"].end(KILLED)
        world.children["b"].end(0)
        await asyncio.wait_for(task, 2)
    assert [(exit.child_id, str(exit.reason), exit.asked) for exit in world.exits] == [
        ("a", "abnormal", True), ("b", "shutdown", True),
    ]  # fmt: skip


# -- operations that overlap


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
async def test_a_group_restart_during_a_replacement_leaves_all_children_running(strategy: str) -> None:
    world = World()
    async with living(world, supervisor("root", *specs("a", "b", "c"), strategy=strategy)) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        world.never_ready.add("b")
        replacing = asyncio.create_task(replace_child(root, "b"))
        await wait_until(lambda: world.children["b"].pid == 4)
        world.never_ready.clear()
        world.children["a"].end(KILLED)
        world.children["b"].become_ready()
        await replacing
        await wait_until(lambda: len(list(root.processes())) == 3)
        assert [node["state"] for node in describe(root)["children"]] == ["running"] * 3
        assert len(root.incarnations.alive) == 3


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
async def test_an_outdated_failed_start_starts_no_child_twice(strategy: str) -> None:
    """a dies while b is being restarted. That restarts both, so the failed start of b is outdated."""
    world = World()
    async with living(world, supervisor("root", *specs("a", "b"), strategy=strategy)) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        world.never_ready.add("b")
        world.children["a"].end(KILLED)
        await wait_until(lambda: world.children["b"].pid == 4)
        world.never_ready.clear()
        second = world.children["b"]
        world.children["a"].end(KILLED)
        second.end(1)
        await wait_until(lambda: len(list(root.processes())) == 2)
        await asyncio.sleep(0.1)
        assert len(root.incarnations.alive) == 2
        assert [node["state"] for node in describe(root)["children"]] == ["running"] * 2


async def test_a_stop_during_a_replacement_gives_the_predecessor_its_time() -> None:
    world = World()
    world.stubborn.add("a")
    async with living(world, supervisor("root", *specs("a"))) as (root, task):
        await asyncio.wait_for(root.started.wait(), 2)
        first = world.children["a"]
        world.never_ready.add("a")
        replacing = asyncio.create_task(replace_child(root, "a"))
        await wait_until(lambda: world.children["a"].pid == 2)
        second = world.children["a"]
        world.stop.set()
        await wait_until(lambda: second.is_draining and first.is_draining)
        second.become_ready()  # it became ready before the request to stop arrived
        await asyncio.sleep(0.05)
        assert not task.done()
        second.end(0)
        first.end(0)
        await asyncio.wait_for(task, 2)
        assert not [line for line in world.log if line.startswith("kill")]
        with pytest.raises(SupervisionError):
            await replacing


async def test_children_that_drain_already_do_not_delay_a_stop() -> None:
    world = World()
    world.stubborn |= {"a", "b"}
    async with living(world, supervisor("root", *specs("a", "b"))) as (root, task):
        await asyncio.wait_for(root.started.wait(), 2)
        first = world.children["a"]
        replacing = asyncio.create_task(replace_child(root, "a"))
        await wait_until(lambda: first.is_draining)
        world.stop.set()
        await wait_until(lambda: world.children["b"].is_draining)
        for child in (world.children["b"], first, world.children["a"]):
            child.end(0)
        await asyncio.wait_for(task, 2)
        await replacing


@pytest.mark.parametrize("strategy", ["one_for_one", "rest_for_one"])
@pytest.mark.parametrize("operation", [suspend_child, terminate_child])
async def test_a_child_that_is_removed_during_the_start_is_not_started(strategy: str, operation: Any) -> None:
    world = World()
    world.never_ready.add("a")
    async with living(world, supervisor("root", *specs("a", "b"), strategy=strategy)) as (root, task):
        await wait_until(lambda: "a" in world.children)
        taking = asyncio.create_task(operation(root, "b"))
        await asyncio.sleep(0.02)
        world.children["a"].become_ready()
        await taking
        await asyncio.wait_for(root.started.wait(), 2)
        assert [each.spec.id for each in root.processes()] == ["a"]
        assert [each.spec.id for each in root.incarnations.alive] == ["a"]
        assert not task.done()


async def test_the_processes_of_a_runner_that_was_suspended_between_starts_are_drained() -> None:
    world = World()
    first = supervisor("first", *specs("a", "b"), intensity=0)
    async with living(world, supervisor("root", first, backoff=0.2, period=60)) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        for count in (1, 2):
            victim = world.children["a"]
            victim.end(KILLED)
            await wait_until(lambda count=count: describe(root)["restarts"] == count)
            if count == 1:  # its successor is the next victim
                await wait_until(lambda old=victim: root.branch("first") is not None and world.children["a"] is not old)
        await suspend_child(root, "first")  # it pauses before its second restart
        await wait_until(lambda: root.branch("first") is not None)
        assert [node["state"] for node in describe(root)["children"][0]["children"]] == ["drained", "drained"]


async def test_a_failure_in_one_supervisor_does_not_prevent_the_reload_of_the_others() -> None:
    world = World()
    spec = supervisor("root", supervisor("first", *specs("a")), supervisor("second", *specs("b")))
    async with living(world, spec) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        world.failing.add("a")
        changes = Changes()
        with pytest.raises(SupervisionError, match="'a' could not be started"):
            await apply(root, spec, roll=True, changes=changes)
        assert changes.replaced == ["b"]
        assert sorted(each.child.pid for each in root.processes()) == [1, 4]


@pytest.mark.parametrize("operation", [suspend_child, replace_child, terminate_child])
@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
async def test_an_interrupted_group_restart_is_finished_without_the_child_that_failed(
    strategy: str, operation: Any
) -> None:
    """An operation waits for the group while the restart of its first child fails. It runs before the next attempt."""
    world = World()
    async with living(world, supervisor("root", *specs("a", "b", "c"), strategy=strategy)) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        world.never_ready.add("a")
        world.children["a"].end(KILLED)
        await wait_until(lambda: world.children["a"].pid == 4)
        waiting = asyncio.create_task(operation(root, "a"))
        await asyncio.sleep(0.02)
        world.never_ready.clear()
        world.children["a"].end(1)
        await waiting
        await wait_until(lambda: {"b", "c"} <= {each.spec.id for each in root.processes()})
        assert len(root.incarnations.alive) == (3 if operation is replace_child else 2)


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
async def test_a_process_that_cannot_be_forked_is_a_failed_start(strategy: str) -> None:
    world = World()
    refusals = 2
    launch = world.launch

    def scarce(spec: Any) -> Any:
        nonlocal refusals
        if world.log.count("start b-2") and spec.id == "b" and refusals:
            refusals -= 1
            raise SupervisionError("child 'b' could not be started: Resource temporarily unavailable")
        return launch(spec)

    world.launch = scarce  # type: ignore[method-assign]
    async with living(world, supervisor("root", *specs("a", "b"), strategy=strategy, backoff=0.01)) as (root, task):
        await asyncio.wait_for(root.started.wait(), 2)
        world.children["b"].end(KILLED)
        await wait_until(lambda: refusals == 0 and len(list(root.processes())) == 2)
        assert describe(root)["restarts"] == 3
        assert not task.done()


async def test_the_drain_of_a_child_does_not_prevent_the_restart_of_its_group() -> None:
    world = World()
    world.stubborn |= {"a", "c"}
    async with living(world, supervisor("root", *specs("a", "b", "c"), strategy="rest_for_one")) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        resting = [asyncio.create_task(suspend_child(root, child_id)) for child_id in ("a", "c")]
        await wait_until(lambda: world.children["a"].is_draining and world.children["c"].is_draining)
        assert [node["state"] for node in describe(root)["children"]] == ["draining", "running", "draining"]
        assert [node["pid"] for node in describe(root)["children"]] == [1, 2, 3]
        world.children["b"].end(KILLED)
        await wait_until(lambda: world.children["b"].pid == 4)
        for child_id in ("a", "c"):
            world.children[child_id].end(0)
        await asyncio.gather(*resting)
        assert [node["state"] for node in describe(root)["children"]] == ["drained", "running", "drained"]


async def test_a_strategy_that_changes_during_a_restart_leaves_one_incarnation_of_each_child() -> None:
    world = World()
    spec = supervisor("root", *specs("a", "b"))
    async with living(world, spec) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        world.never_ready.add("a")
        world.children["a"].end(KILLED)
        await wait_until(lambda: world.children["a"].pid == 3)
        applying = asyncio.create_task(
            apply(root, supervisor("root", *spec.children, strategy="one_for_all"), roll=False)
        )
        await asyncio.sleep(0.02)
        world.children["b"].end(KILLED)
        await asyncio.sleep(0.02)
        world.never_ready.clear()
        world.children["a"].become_ready()
        await applying
        await wait_until(lambda: len(list(root.processes())) == 2)
        await asyncio.sleep(0.05)
        assert len(root.incarnations.alive) == 2
        assert set(root.incarnations.alive) == set(root.current.values())


async def test_a_runner_that_has_ended_stays_ended_when_it_cannot_be_resumed() -> None:
    world = World()
    tree = supervisor("root", supervisor("first", *specs("a"), intensity=0, restart="transient"))
    async with living(world, tree) as (root, task):
        await asyncio.wait_for(root.started.wait(), 2)
        world.children["a"].end(KILLED)
        await wait_until(lambda: describe(root)["children"][0]["state"] == "gave up")
        world.failing.add("a")
        with pytest.raises(SupervisionError, match="no such luck"):
            await resume_child(root, "first")
        assert describe(root)["children"][0]["state"] in ("gave up", "ended")
        assert not task.done()


async def test_a_new_supervisor_that_cannot_start_does_not_prevent_the_reload_of_the_others() -> None:
    world = World()
    world.failing.add("x")
    async with living(world, supervisor("root", supervisor("second", *specs("b")))) as (root, _):
        await asyncio.wait_for(root.started.wait(), 2)
        changes = Changes()
        wanted = supervisor("root", supervisor("first", *specs("x")), supervisor("second", *specs("b")))
        with pytest.raises(SupervisionError, match="'x' could not be started"):
            await apply(root, wanted, roll=True, changes=changes)
        assert changes.replaced == ["b"]
