"""The operator's verbs on a tree. Real: the tree. Fake: the processes, and the configuration that a reload reads."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from factorial.config import GroupConfig, RunnerConfig, RunnerSupervisorConfig, SupervisorConfig, SystemConfig
from factorial.config.bounds import Restart
from factorial.errors import ConfigError, SupervisionError
from factorial.mailbox.operations.lease import Cause
from factorial.supervisor.operate.operations import Operator, Source
from factorial.supervisor.process.signals import StopRequests
from factorial.supervisor.rules.spec import ChildExit, ExitReason
from factorial.supervisor.rules.strategy import ChildState
from factorial.supervisor.service.system import cause_of
from factorial.supervisor.tree.plan import MOST_PROCESSES, Runners, tree_spec
from factorial.supervisor.tree.tree import Tree
from tests.support import wait_until
from tests.unit.simulated import KILLED, World


class Site:
    """A running system of simulated processes, and its operator."""

    def __init__(self, world: World, group: str = "", restart: Restart = "permanent", **sizes: int) -> None:
        self.world = world
        self.runners: Runners = {
            name: RunnerConfig(
                agent=f"agents:{name}",
                processes=size,
                supervisor=RunnerSupervisorConfig(intensity=0),
                group=group or None,
                restart=restart,
            )
            for name, size in sizes.items()
        }
        self.config = SystemConfig(
            supervisor=SupervisorConfig(backoff=0.5),
            group=(GroupConfig(name=group, intensity=1),) if group else (),
            runner=tuple(self.runners.values()),
        )
        self.tree = Tree(tree_spec(self.config, self.runners), launch=world.launch, on_exit=world.on_exit)
        self.requests = StopRequests(world.stop, world.now)
        self.operator = Operator("s-1", Source(self.config, "f.toml"), self.tree, self.requests, asyncio.Event())

    def states(self) -> dict[str, str]:
        """What `status` shows of each process."""
        runners = self.operator.report()["tree"]["children"]
        return {child["id"]: child["state"] for runner in runners for child in runner["children"]}

    def running(self) -> dict[str, int]:
        return {each.spec.id: each.child.pid for each in self.tree.processes()}


@asynccontextmanager
async def site(group: str = "", restart: Restart = "permanent", **sizes: int) -> AsyncIterator[Site]:
    world = World()
    one = Site(world, group, restart, **sizes)
    life = asyncio.create_task(one.tree.run(world.stop, world.now))
    try:
        await asyncio.wait_for(one.tree.started.wait(), 2)
        world.log.clear()
        yield one
    finally:
        world.stubborn.clear()
        world.stop.set()
        await asyncio.wait({life}, timeout=2)
        assert life.done()


async def test_drain_and_resume_a_process_a_runner_or_everything() -> None:
    async with site(a=2, b=1) as one:
        assert await one.operator.drain("a.1") == "drained a.1"
        assert await one.operator.drain("a") == "drained a.1, a.2"
        assert one.states() == {"a.1": "drained", "a.2": "drained", "b.1": "running"}
        assert await one.operator.drain("system") == "drained a.1, a.2, b.1"
        assert await one.operator.drain("") == "drained a.1, a.2, b.1"
        assert await one.operator.resume("a") == "resumed a.1, a.2"
        assert await one.operator.resume("") == "resumed b.1"
        assert await one.operator.resume("") == "nothing to resume: nothing is drained or has given up"
        assert set(one.states().values()) == {"running"}


async def test_a_restart_replaces_what_runs_and_rejects_what_is_drained() -> None:
    async with site(a=2, b=1) as one:
        before = one.running()
        await one.operator.drain("a.1")
        assert (await one.operator.restart("")).startswith("replaced a.2, b.1; skipped (drained, or given up) a.1; in ")
        assert one.states()["a.1"] == "drained"
        assert before["a.2"] != one.running()["a.2"]
        with pytest.raises(SupervisionError, match=r"drained: a\.1\. There is nothing to restart; resume it first"):
            await one.operator.restart("a.1")


async def test_scale() -> None:
    async with site(a=2, b=1) as one:
        b = one.running()["b.1"]
        assert await one.operator.scale("a", 4) == "scaled a from 2 to 4"
        assert await one.operator.scale("a", 1) == "scaled a from 4 to 1"
        assert one.running().keys() == {"a.1", "b.1"}
        assert one.running()["b.1"] == b
        await one.operator.drain("a")
        with pytest.raises(SupervisionError, match="a is drained, or has given up: resume it before you scale it"):
            await one.operator.scale("a", 2)
        for count in (0, -1, MOST_PROCESSES + 1):
            with pytest.raises(ConfigError, match=f"use 1 to {MOST_PROCESSES}"):
                await one.operator.scale("b", count)


async def test_a_size_is_kept_when_the_runners_group_is_restarted() -> None:
    async with site("desk", a=1) as one:
        assert await one.operator.scale("a", 3) == "scaled a from 1 to 3"
        for _ in range(2):  # the runner gives up, then its group, which allows only one restart
            before = one.running()
            one.world.children["a.1"].end(KILLED)
            await wait_until(lambda before=before: len(one.running()) == 3 and one.running()["a.1"] != before["a.1"])
        assert one.operator.report()["tree"]["restarts"] == 1


async def test_the_error_about_an_unknown_target_names_the_known_ones() -> None:
    async with site(a=1) as one:
        for operation in (one.operator.drain, one.operator.resume, one.operator.restart):
            with pytest.raises(ConfigError, match=r"no group, runner or process 'x' here; there are: a, a\.1"):
                await operation("x")
        with pytest.raises(ConfigError, match="there is no runner 'x' here; there are: a"):
            await one.operator.scale("x", 2)


async def give_up(one: Site, process: str) -> None:
    """Have the runner of this process give up for good."""
    runner = process.partition(".")[0]
    one.world.children[process].end(KILLED)
    await wait_until(lambda: [each.state for each in one.tree.walk() if each.child_id == runner] == [ChildState.ENDED])


async def test_scale_names_the_process_that_is_drained() -> None:
    async with site(a=3, b=1) as one:
        await one.operator.drain("a.2")
        with pytest.raises(SupervisionError, match=r"^a\.2 is drained: resume it before you scale a$"):
            await one.operator.scale("a", 4)
        await one.operator.drain("a.3")
        with pytest.raises(SupervisionError, match=r"^a\.2, a\.3 are drained: resume them before you scale a$"):
            await one.operator.scale("a", 4)
        await one.operator.resume("a.2")
        await one.operator.resume("a.3")
        assert await one.operator.scale("a", 4) == "scaled a from 3 to 4"


async def test_a_runner_that_is_being_restarted_is_not_called_drained() -> None:
    async with site(a=1, b=1) as one:
        for restarts in (1, 2):
            one.world.children["a.1"].end(KILLED)
            await wait_until(lambda restarts=restarts: one.operator.report()["tree"]["restarts"] == restarts)
            if restarts == 1:
                await wait_until(lambda: "a.1" in one.running())
        with pytest.raises(SupervisionError, match=r"^a is being restarted: scale it when it runs$"):
            await one.operator.scale("a", 2)
        with pytest.raises(SupervisionError, match=r"^a\.1 does not run: a is being restarted; try again$"):
            await one.operator.drain("a.1")


async def test_what_is_below_a_runner_that_has_given_up_is_named_with_it() -> None:
    async with site(restart="transient", a=2, b=1) as one:
        await give_up(one, "a.1")
        for operation in (one.operator.drain, one.operator.resume, one.operator.restart):
            with pytest.raises(SupervisionError, match=r"^a\.2 does not run: a has given up; resume it first$"):
                await operation("a.2")
        with pytest.raises(SupervisionError, match=r"^a has given up: there is nothing to drain$"):
            await one.operator.drain("a")
        assert await one.operator.drain("") == "drained b.1"


async def test_drain_names_what_has_given_up_below_its_target() -> None:
    async with site("desk", restart="transient", a=1, b=1) as one:
        await give_up(one, "a.1")
        await give_up(one, "b.1")
        with pytest.raises(SupervisionError, match=r"^there is nothing to drain: a, b have given up$"):
            await one.operator.drain("desk")


async def test_an_agent_in_the_supervisors_own_process_is_named_as_such() -> None:
    async with site(a=1) as one:
        guests: Any = lambda: [{"id": "desk.here"}]  # noqa: E731
        operator = Operator("s-1", Source(one.config, None), one.tree, one.requests, asyncio.Event(), guests)
        for call in (operator.scale("desk", 2), operator.drain("desk"), operator.drain("desk.here")):
            with pytest.raises(SupervisionError, match=r"^desk(\.here)? runs in the process of the supervisor itself"):
                await call


async def test_a_failed_reload_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    async with site(a=1, b=1) as one:
        new = {name: RunnerConfig(agent=f"agents:{name}", processes=2) for name in ("a", "b")}
        config = SystemConfig(runner=tuple(new.values()))
        read: list[Any] = [config, tree_spec(config, new)]
        monkeypatch.setattr(one.operator, "_reread", lambda: asyncio.sleep(0, read))
        one.world.failing.add("a.1")
        with pytest.raises(SupervisionError, match=r"'a\.1' could not be started: .*; already new: b\.2, b\.1"):
            await one.operator.reload()
        one.world.failing.clear()
        a = one.running()["a.1"]
        assert await one.operator.scale("b", 1) == "scaled b from 2 to 1"
        assert one.running()["a.1"] == a, "an order for one runner does not affect another"
        assert (await one.operator.reload()).startswith("reloaded: started a.2, b.2; replaced a.1, b.1; in ")


async def test_the_monitor_replaces_only_the_incarnation_that_it_found_ill() -> None:
    async with site(a=1) as one:
        ill = one.world.children["a.1"].process
        await one.operator.restart("a")
        healthy = one.running()
        await one.operator.replace("a.1", ill)
        assert one.running() == healthy
        await one.operator.drain("a")
        await one.operator.replace("a.1", one.world.children["a.1"].process)
        assert one.states() == {"a.1": "drained"}


async def test_a_runner_that_is_between_two_starts_can_be_drained() -> None:
    async with site(a=1, b=1) as one:
        for restarts in (1, 2):
            one.world.children["a.1"].end(KILLED)
            await wait_until(lambda restarts=restarts: one.operator.report()["tree"]["restarts"] == restarts)
            if restarts == 1:
                await wait_until(lambda: "a.1" in one.running())
        assert "a.1" not in one.running()  # the pause before the second restart
        assert await one.operator.drain("a") == "drained a.1"
        await wait_until(lambda: one.states().get("a.1") == "drained")


@pytest.mark.parametrize(
    ("exitcode", "signal", "asked", "why", "cause"),
    [
        (0, None, True, "", Cause.LEFT),
        (-9, "SIGKILL", True, "it did not stop within 6 s", Cause.LEFT),
        (-9, "SIGKILL", False, "", Cause.KILLED),
        (-15, "SIGTERM", False, "", Cause.KILLED),
        (None, None, False, "", Cause.KILLED),
        (-9, "SIGKILL", False, "its event loop was blocked for 15.0 s", Cause.CRASHED),
        (-11, "SIGSEGV", False, "", Cause.CRASHED),
        (1, None, False, "", Cause.CRASHED),
        (0, None, False, "", Cause.CRASHED),  # a process that exits normally has released its tasks before
    ],
)
def test_the_cause_that_is_recorded_for_the_tasks_of_an_ended_process(
    exitcode: int | None, signal: str | None, asked: bool, why: str, cause: Cause
) -> None:
    assert cause_of(ChildExit("a.1", "a.1-x", 7, exitcode, signal, ExitReason.ABNORMAL, asked, why)) is cause
