"""Processes that die, stop, lose their lease or leave: their tasks go on, and nothing is done twice.

Real: actors, mailbox, Valkey. Fake: the lifeline, the death of a process (its commands go nowhere from one moment on),
and the model, which is scripted.
"""

import asyncio
import time
from collections import Counter
from typing import Any

from factorial import Agent, AgentContext, ModelSettings, TaskTTLConfig
from factorial.errors import MailboxUnavailableError
from factorial.mailbox.operations import upkeep
from factorial.mailbox.operations.lease import Cause
from factorial.mailbox.transport.commands import Commands
from factorial.testing import ScriptedModel, call, say
from tests.harness import Process, System, quick, texts, tidy
from tests.support import PATIENCE, wait_until


class Held(Agent):
    """Its model calls wait at a gate."""

    def __init__(self, *replies: Any, **options: Any) -> None:
        super().__init__(name="held", model=ScriptedModel(list(replies or ["done"])), **options)
        self.begun = asyncio.Semaphore(0)
        self.gate = asyncio.Event()
        self.abandoned = asyncio.Event()
        self.calls = 0

    async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
        self.calls += 1
        self.begun.release()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.abandoned.set()
            raise
        return await super().completion(agent_ctx, messages)

    async def call_begins(self) -> None:
        await asyncio.wait_for(self.begun.acquire(), PATIENCE)


# -- death


async def test_what_a_dead_process_held_is_reclaimed_when_its_lease_is_over(system: System) -> None:
    agent = Held()
    victim = await system.start(agent, quick(heartbeat_interval=0.1))
    task_id = await system.submit(agent)
    await agent.call_begins()
    agent.gate.set()
    agent.gate.clear()
    await victim.kill()
    rescuer = await system.start(agent, quick(heartbeat_interval=0.5), tidy(interval=0.05))
    await agent.call_begins()
    agent.gate.set()
    data = await system.ended(task_id)
    assert (data["status"], data["pickups"]) == ("completed", 2)
    reclaimed = await system.event(task_id, "task_reclaimed")
    assert reclaimed["data"] == {"process": victim.name, "cause": "killed", "recoveries": 1}
    await wait_until(lambda: not rescuer.holds)


async def test_a_process_that_is_known_to_be_dead_is_not_waited_for(system: System) -> None:
    agent = Held()
    victim = await system.start(agent, quick(heartbeat_interval=300))
    task_id = await system.submit(agent)
    await agent.call_begins()
    await victim.kill()
    await system.start(agent)
    died = time.monotonic()
    assert len((await (await system.mailbox()).reclaim_process(victim.name, Cause.CRASHED)).go_on) == 1
    await agent.call_begins()
    assert time.monotonic() - died < 4, "before anybody has looked around unasked"
    agent.gate.set()
    assert (await system.ended(task_id))["status"] == "completed"


async def test_a_task_that_kills_every_process_fails_as_crash_loop(system: System) -> None:
    agent = Held()
    task_id = await system.submit(agent)
    mailbox = await system.mailbox()
    for _ in range(3):
        victim = await system.start(agent, quick(max_recoveries=3))
        await agent.call_begins()
        await victim.kill()
        await mailbox.reclaim_process(victim.name, Cause.CRASHED)
        await system.make_due(task_id)
    data = await system.ended(task_id)
    assert (data["status"], data["pickups"]) == ("failed", 3)
    assert data["error"].startswith("crash_loop: 3 processes died with no other task to blame")
    assert (await system.event(task_id, "run_failed"))["error"].startswith("crash_loop")


async def test_suspects_are_spread_over_the_processes_and_nobody_looks_for_more_in_vain(system: System) -> None:
    """Three tasks whose processes crashed twice, and two processes with room: each takes one, and the third waits for
    the first finished step. Waiting is silent."""
    agent = Held()
    tasks = [await system.submit(agent) for _ in range(3)]
    mailbox = await system.mailbox()
    for _ in range(2):
        victim = await system.start(agent, maintenance=tidy(interval=60))
        for _ in tasks:
            await agent.call_begins()
        await victim.kill()
        await mailbox.reclaim_process(victim.name, Cause.CRASHED)
    second = [await system.start(agent, quick(heartbeat_interval=60), tidy(interval=60)) for _ in range(2)]
    for task_id in tasks:
        await system.make_due(task_id)
    due = time.monotonic()
    await upkeep.promote(mailbox.scripts, agent="held")
    for _ in range(2):
        await agent.call_begins()
    assert sorted(len(process.holds) for process in second) == [1, 1]
    await asyncio.sleep(0.2)  # the events of their beginning are sent
    before = await _scripts_called(system)
    await asyncio.sleep(1.0)
    # One look of each process when the third was due at first, and its looks at the leases, twice a second.
    assert await _scripts_called(system) - before <= 8
    assert agent.begun.locked(), "the third one waits"
    agent.gate.set()
    await agent.call_begins()
    assert time.monotonic() - due < 4, "before anybody has looked around unasked"
    for task_id in tasks:
        assert (await system.ended(task_id))["status"] == "completed"


async def _scripts_called(system: System) -> int:
    stats = (await system.execute("INFO", "commandstats")).decode()
    return int(stats.partition("cmdstat_evalsha:calls=")[2].partition(",")[0])


async def test_a_finished_turn_starts_the_count_of_crashes_afresh(system: System) -> None:
    """Five processes die, one in each turn, and the second in a row would end the task."""

    def tool() -> str:
        """Work."""
        return "x"

    agent = Held(*[call("tool")] * 5, say("done"), tools=[tool])
    task_id = await system.submit(agent)
    mailbox = await system.mailbox()
    for _ in range(5):
        victim = await system.start(agent, quick(max_recoveries=2))
        await agent.call_begins()
        await victim.kill()
        await mailbox.reclaim_process(victim.name, Cause.CRASHED)
        turn = (await system.data(task_id))["payload"]["turn"]
        agent.gate.set()
        worker = await system.start(agent, quick(max_recoveries=2))
        await wait_until(lambda at=turn: _turn_is_over(system, task_id, at))
        agent.gate.clear()
        await worker.drain()
        agent.begun = asyncio.Semaphore(0)
        if (await system.data(task_id))["status"] == "completed":
            break
    agent.gate.set()
    await system.start(agent)
    assert (await system.ended(task_id))["status"] == "completed"


async def _turn_is_over(system: System, task_id: str, turn: int) -> bool:
    return bool((await system.data(task_id))["payload"]["turn"] > turn)


# -- a lease that was lost


class Stopped:
    """The commands of a process that is stopped: they go out when it goes on."""

    def __init__(self, process: Process) -> None:
        self.commands = process.mailbox.scripts.commands
        self.goes_on = asyncio.Event()
        process.mailbox.scripts.commands = self

    async def execute(self, *args: Any) -> Any:
        """Wait for SIGCONT, so to speak."""
        await self.goes_on.wait()
        return await self.commands.execute(*args)


async def test_a_process_that_was_stopped_for_too_long_commits_nothing_and_works_on(system: System) -> None:
    """Its task was taken over meanwhile. It has an answer in hand when it goes on, and may not write it."""
    agent = Held("from the first", "x")
    process = await system.start(agent, quick(heartbeat_interval=0.1))
    task_id = await system.submit(agent)
    await agent.call_begins()
    stopped = Stopped(process)
    agent.gate.set()
    other = Agent(name="held", model=ScriptedModel(["from the second"]))
    second = await system.start(other)
    data = await system.ended(task_id)
    assert data["payload"]["output"] == "from the second"
    stopped.goes_on.set()
    await wait_until(lambda: not process.holds, message="the stopped process lets go of the task")
    await second.drain()
    assert (await system.data(task_id))["payload"] == data["payload"]
    assert (await system.types(task_id)).count("agent_output") == 1
    assert (await system.ended(await system.submit(agent)))["payload"]["output"] == "from the first"


async def test_a_process_that_registers_again_abandons_at_once_what_is_not_its_own_any_more(system: System) -> None:
    """In the middle of a model call: the rest of it would be paid for nothing."""
    agent = Held()
    process = await system.start(agent, quick(heartbeat_interval=0.1, batch_size=1))
    task_id = await system.submit(agent)
    await agent.call_begins()
    await system.event(task_id, "progress_update_completion_started")  # nothing more is sent: no token is refused
    await (await system.mailbox()).reclaim_process(process.name, Cause.KILLED)
    await asyncio.wait_for(agent.abandoned.wait(), 4)  # before it has looked around unasked
    agent.gate.set()
    data = await system.ended(task_id)
    assert (data["status"], data["pickups"]) == ("completed", 2)


async def superseded_in_its_call(system: System, agent: Held) -> str:
    """A task whose run is somebody else's when its model answers. The process has let go of it, and its lease lives."""
    process = await system.start(agent, quick(heartbeat_interval=300))
    task_id = await system.submit(agent)
    await agent.call_begins()
    await system.execute("HSET", (await system.mailbox()).keys.run(task_id), "nonce", "somebody else's")
    agent.gate.set()
    await wait_until(lambda: not process.holds)
    return task_id


async def test_a_superseded_execution_stops_at_its_next_step(system: System) -> None:
    """The lease still lives, and the run is somebody else's: the token tells."""
    agent = Held("mine", "x")
    task_id = await superseded_in_its_call(system, agent)
    assert "agent_output" not in await system.types(task_id)
    assert (await system.data(task_id))["payload"]["turn"] == 0
    await (await system.mailbox()).reclaim_process(system.processes[0].name, Cause.KILLED)
    assert (await system.ended(task_id))["status"] == "completed"


async def test_a_superseded_execution_calls_no_tool(system: System) -> None:
    """The model's answer could not be kept: what it asks for is somebody else's to do."""
    done = []

    def tool() -> str:
        """Work."""
        done.append(1)
        return "x"

    agent = Held(call("tool"), "done", tools=[tool])
    task_id = await superseded_in_its_call(system, agent)
    assert done == []
    await (await system.mailbox()).reclaim_process(system.processes[0].name, Cause.KILLED)
    assert (await system.ended(task_id))["status"] == "completed"


async def test_a_lost_lease_is_taken_anew_and_the_held_tasks_are_kept(system: System) -> None:
    """As after a restart of the server that forgot the short-lived keys: nobody reclaims, nothing is abandoned."""
    agent = Held()
    process = await system.start(agent, quick(heartbeat_interval=0.2))
    task_id = await system.submit(agent)
    await agent.call_begins()
    mailbox = await system.mailbox()
    await mailbox.connection.execute("DEL", mailbox.keys.lease(process.name))
    await wait_until(lambda: _exists(mailbox.connection, mailbox.keys.lease(process.name)))
    assert process.holds == {task_id}
    agent.gate.set()
    data = await system.ended(task_id)
    assert (data["pickups"], agent.calls) == (1, 1)
    assert "task_reclaimed" not in await system.types(task_id)


async def _exists(commands: Commands, key: str) -> bool:
    return bool(await commands.execute("EXISTS", key))


async def test_a_worker_that_finds_its_lease_gone_registers_and_works_at_once(system: System) -> None:
    agent = Agent(name="a", model=ScriptedModel(["done"]))
    process = await system.start(agent, quick(heartbeat_interval=300))
    mailbox = await system.mailbox()
    await mailbox.connection.execute("DEL", mailbox.keys.lease(process.name))
    data = await system.ended(await system.submit(agent), timeout=4)  # before it has looked around unasked
    assert data["status"] == "completed"


# -- commands that are not answered


class Unanswering:
    """Lets commands through to the real server, and loses the answers of those that the test names."""

    def __init__(self, commands: Commands, *, executed: bool) -> None:
        self.commands = commands
        self.executed = executed
        self.lose: list[str] = []
        self.lost: list[str] = []

    async def execute(self, *args: Any) -> Any:
        """The answer, or the error that an outage of `retry_for` seconds ends with."""
        name = next((name for name in self.lose if self._is(args, name)), None)
        if name is None:
            return await self.commands.execute(*args)
        if self.executed:
            await self.commands.execute(*args)
        self.lose.remove(name)
        self.lost.append(name)
        raise MailboxUnavailableError("the connection was lost")

    def _is(self, args: tuple[Any, ...], script: str) -> bool:
        return args[0] in ("EVALSHA", "EVAL") and args[1] in self.texts.get(script, ())

    texts: dict[str, tuple[str, str]]


def unanswering(process: Process, *, executed: bool) -> Unanswering:
    """Put it between the process and the server. The scripts are known from `_load` on."""
    scripts = process.mailbox.scripts
    between = Unanswering(scripts.commands, executed=executed)
    between.texts = {name: scripts._load(name) for name in ("claim", "record", "commit")}
    scripts.commands = between
    return between


async def warm(system: System, agent: Agent) -> None:
    """Have every script known to the server: what is lost then is lost on the first try."""
    await system.ended(await system.submit(agent))


async def test_a_claim_whose_answer_was_lost_is_made_again_and_loses_no_task(system: System) -> None:
    agent = Agent(name="a", model=ScriptedModel(["done"]))
    process = await system.start(agent)
    await warm(system, agent)
    between = unanswering(process, executed=True)
    between.lose = ["claim"]
    task_id = await system.submit(agent)
    await wait_until(lambda: between.lost)
    assert process.runner._control is not None
    process.runner._control.send_for_work()  # else within Control.PATIENCE
    data = await system.ended(task_id)
    assert (data["status"], data["pickups"]) == ("completed", 1)


async def test_a_commit_whose_answer_was_lost_is_sent_again_until_it_is_answered(system: System) -> None:
    """Whether or not it was carried out: the turn is not taken again."""
    for executed in (True, False):
        asked: list[Any] = []

        def reply(messages: Any, asked: list[int] = asked) -> Any:
            asked.append(1)
            return call("tool") if len(messages) == 1 else say("done")

        def tool() -> str:
            """Work."""
            return "x"

        agent = Agent(name=f"a-{executed}".lower(), tools=[tool], model=ScriptedModel(reply))
        process = await system.start(agent)
        await warm(system, agent)
        asked.clear()
        between = unanswering(process, executed=executed)
        between.lose = ["commit"]
        data = await system.ended(await system.submit(agent))
        assert between.lost == ["commit"]
        assert data["payload"]["output"] == "done"
        assert len(asked) == 2
        await process.drain()


async def test_a_step_whose_answer_was_lost_gives_the_task_back_with_what_was_done(system: System) -> None:
    """A mailbox that cannot be written is no reason to go on spending money; and nothing is held for ever."""
    for executed in (True, False):
        asked: list[Any] = []

        def reply(messages: Any, asked: list[int] = asked) -> Any:
            asked.append(1)
            return call("tool") if len(messages) == 1 else say("done")

        def tool() -> str:
            """Work."""
            return "x"

        agent = Agent(name=f"b-{executed}".lower(), tools=[tool], model=ScriptedModel(reply))
        process = await system.start(agent)
        await warm(system, agent)
        asked.clear()
        between = unanswering(process, executed=executed)
        between.lose = ["record"]
        data = await system.ended(await system.submit(agent))
        assert between.lost == ["record"]
        assert (data["payload"]["output"], data["retries"]) == ("done", 0)
        assert len(asked) == 2
        told = Counter((event["event_type"], event.get("turn")) for event in await system.events(data["id"]))
        assert told["progress_update_completion_completed", 0] == told["progress_update_tool_action_completed", 0] == 1
        await process.drain()


async def test_a_task_that_is_cancelled_while_it_is_given_back_ends_as_cancelled(system: System) -> None:
    agent = Held("done", "x")
    process = await system.start(agent)
    task_id = await system.submit(agent)
    await agent.call_begins()
    between = unanswering(process, executed=False)
    between.lose = ["commit", "commit"]
    agent.gate.set()
    await wait_until(lambda: between.lost)
    await system.orchestrator.cancel_task(task_id)
    assert (await system.ended(task_id))["status"] == "cancelled"
    await wait_until(lambda: not process.holds)


# -- leaving


async def test_a_draining_process_finishes_its_model_call_and_gives_the_task_back(system: System) -> None:
    """At the step boundary: the answer is kept, the tool is left to the next process, and no retry is spent."""
    called = []

    def tool() -> str:
        """Work."""
        called.append(1)
        return "result"

    agent = Held(call("tool"), say("done"), tools=[tool])
    leaving = await system.start(agent)
    task_id = await system.submit(agent)
    await agent.call_begins()
    departure = asyncio.create_task(leaving.drain())
    await wait_until(lambda: leaving.runner._workers[0].free_slots == 0)
    await asyncio.sleep(0.05)
    assert not departure.done()
    agent.gate.set()
    await departure
    data = await system.data(task_id)
    assert (data["status"], data["retries"], called) == ("queued", 0, [])
    await system.start(agent)
    data = await system.ended(task_id)
    assert (data["payload"]["output"], data["pickups"], called, agent.calls) == ("done", 2, [1], 2)
    types = await system.types(task_id)
    assert "task_reclaimed" not in types and "task_retried" not in types


async def test_a_draining_process_lets_a_last_turn_complete(system: System) -> None:
    agent = Held("done")
    leaving = await system.start(agent)
    task_id = await system.submit(agent)
    await agent.call_begins()
    departure = asyncio.create_task(leaving.drain())
    agent.gate.set()
    await departure
    assert (await system.data(task_id))["status"] == "completed"


async def test_what_is_not_done_within_the_grace_is_given_back(system: System) -> None:
    agent = Held()
    leaving = await system.start(agent, grace=3.0)
    task_id = await system.submit(agent)
    await agent.call_begins()
    await leaving.drain()
    data = await system.data(task_id)
    assert (data["status"], data["retries"]) == ("queued", 0)
    assert "task_reclaimed" not in await system.types(task_id)


async def test_a_second_signal_gives_everything_back_at_once(system: System) -> None:
    agent = Held()
    leaving = await system.start(agent, quick(batch_size=4), grace=60)
    task_ids = [await system.submit(agent) for _ in range(6)]
    for _ in range(4):
        await agent.call_begins()
    departure = asyncio.create_task(leaving.drain())
    leaving.lifeline.leaving.set()
    await asyncio.wait_for(departure, PATIENCE)
    assert {(await system.data(task_id))["status"] for task_id in task_ids} == {"queued"}
    mailbox = await system.mailbox()
    assert not await _exists(mailbox.connection, mailbox.keys.lease(leaving.name))
    agent.gate.set()
    await system.start(agent)
    for task_id in task_ids:
        assert (await system.ended(task_id))["status"] == "completed"


async def test_an_idle_process_leaves_at_once_and_leaves_nothing(system: System) -> None:
    agent = Agent(name="a", model=ScriptedModel(["done"]))
    process = await system.start(agent, grace=PATIENCE)
    await system.ended(await system.submit(agent))
    await asyncio.wait_for(process.drain(), PATIENCE / 3)
    prefix = (await system.mailbox()).keys.prefix
    left = {key.decode().removeprefix(prefix).partition(":")[0] for key in await system.execute("KEYS", prefix + "*")}
    assert left <= {"run", "conversation", "fields", "ended", "events", "owner", "layout", "bucket", "timeline"}


# -- maintenance, fairness


async def test_ended_tasks_are_removed_when_their_time_is_over(system: System) -> None:
    agent = Agent(name="a", model=ScriptedModel(["done"]))
    kept = TaskTTLConfig(completed_ttl=0.05, failed_ttl=60, cancelled_ttl=60)
    await system.start(agent, maintenance=tidy(task_ttl=kept))
    cancelled = await system.submit(agent)
    await system.orchestrator.cancel_task(cancelled)
    task_id = await system.submit(agent)
    data = system.orchestrator.get_task_data
    await wait_until(lambda: _is_none(data(task_id)))
    assert await data(cancelled) is not None
    keys = await system.execute("KEYS", f"*{task_id}*")
    assert keys == []


async def _is_none(awaitable: Any) -> bool:
    return await awaitable is None


async def test_a_slot_that_frees_is_refilled_and_no_process_takes_more_than_it_can_hold(system: System) -> None:
    running, most, full = 0, 0, asyncio.Event()

    class Measuring(Agent):
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
            nonlocal running, most
            running += 1
            most = max(most, running)
            if running == 6:
                full.set()
            await asyncio.wait_for(full.wait(), PATIENCE)
            await asyncio.sleep(0.002)
            running -= 1
            return await super().completion(agent_ctx, messages)

    agent = Measuring(name="m", model=ScriptedModel(["done"]), model_settings=ModelSettings())
    await system.start(agent, quick(workers=2, batch_size=3))
    task_ids = [await system.submit(agent) for _ in range(60)]
    for task_id in task_ids:
        assert (await system.ended(task_id))["status"] == "completed"
    assert most == 6


async def test_two_processes_share_the_work_and_nothing_is_done_twice(system: System) -> None:
    calls: list[str] = []
    at_work: set[str] = set()
    both = asyncio.Event()

    class Noting(Agent):
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
            calls.append(agent_ctx.query)
            at_work.add(self.get_execution_context().process)
            if len(at_work) == 2:
                both.set()
            await asyncio.wait_for(both.wait(), PATIENCE)
            return await super().completion(agent_ctx, messages)

    agent = Noting(name="n", model=ScriptedModel(["done"]))
    for _ in range(2):
        await system.start(agent, quick(batch_size=4))
    task_ids = [await system.submit(agent, str(number)) for number in range(80)]
    for task_id in task_ids:
        assert texts((await system.ended(task_id))["payload"]["messages"])[-1] == "assistant: done"
    assert sorted(calls, key=int) == [str(number) for number in range(80)]
    processes = {one["metadata"]["process"] for one in await system.events() if one["event_type"] == "run_completed"}
    assert processes == {"p1", "p2"}
