"""Runs that wait, their children and their callbacks, where it is easily got wrong: replies that are lost, tools that
kill their process, ids that come twice, ends that come while something is still open.

Real: actors, mailbox, Valkey. Fake: the lifeline, the death of a process (its commands go nowhere from one moment on),
a reply that is lost (the script is called again, as the connection would do it), and the model, which is scripted. The
inline run needs no server.
"""

import asyncio
import logging
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessageToolCall

from factorial import (
    Agent,
    AgentContext,
    ExecutionContext,
    FatalAgentError,
    TurnCompletion,
    deferred_result,
    forking_tool,
)
from factorial.actors.durable_host import DurableHost
from factorial.context import Batch
from factorial.errors import RetryableError
from factorial.events import BaseEvent
from factorial.mailbox.operations import spawn, upkeep
from factorial.mailbox.operations.lease import Cause
from factorial.task import TaskStatus
from factorial.testing import ScriptedModel, call, calls, say
from tests.harness import Process, System, before_the_first_step, quick, texts
from tests.sub_tasks import outputs
from tests.support import wait_until

helper = Agent(name="helper", model=ScriptedModel(lambda messages: say("found " + messages[-1]["content"])))


@deferred_result(timeout=60)
def ask() -> None:
    """Ask a person."""


@forking_tool(timeout=60)
async def fork(execution_ctx: ExecutionContext) -> str:
    """Have a helper look."""
    return await execution_ctx.spawn_child_task(helper, AgentContext(query="it"))


def asking(*replies: Any, **options: Any) -> Agent:
    """An agent that asks somebody outside, and then answers."""
    model = ScriptedModel(list(replies) or [call("ask"), say("done")])
    defaults: dict[str, Any] = {"name": "parent", "tools": [ask], "model": model}
    return Agent(**defaults | options)


class Spelled(Agent):
    """Its first model call makes these tool calls, (id, tool): a provider may choose what ids it likes."""

    def __init__(self, *tool_calls: tuple[str, str], **options: Any) -> None:
        super().__init__(name="parent", model=ScriptedModel([]), **options)
        self.tool_calls = [
            {"id": call_id, "type": "function", "function": {"name": tool, "arguments": "{}"}}
            for call_id, tool in tool_calls
        ]

    async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> ChatCompletion:
        answered = any(message["role"] == "assistant" for message in messages)
        message = {"role": "assistant"} | ({"content": "done"} if answered else {"tool_calls": self.tool_calls})
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return ChatCompletion.model_validate(
            {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        )


async def crash(system: System, process: Process) -> None:
    """The process dies, and its supervisor reclaims it."""
    await process.kill()
    await (await system.mailbox()).reclaim_process(process.name, Cause.CRASHED)


async def is_journaled(system: System, task_id: str, step: str) -> bool:
    """Whether the result of this step is recorded."""
    return bool(await system.execute("HEXISTS", (await system.mailbox()).keys.key("journal", task_id), step))


# -- processes that die or leave in the middle


async def test_a_deferred_tool_that_kills_every_process_ends_as_crash_loop(system: System) -> None:
    """Each process records again that the result is expected. That is not progress."""
    began = []

    @deferred_result(timeout=60)
    async def bomb() -> None:
        """End the process."""
        began.append(1)
        await asyncio.Event().wait()

    agent = asking(call("bomb"), say("done"), tools=[bomb])
    task_id = await system.submit(agent)
    for time in range(3):
        process = await system.start(agent, quick(max_recoveries=3))
        await wait_until(lambda at=time: len(began) > at)
        await crash(system, process)
        await system.make_due(task_id)
    data = await system.ended(task_id)
    assert data["status"] == "failed"
    assert data["error"].startswith("crash_loop: 3 processes died with no other task to blame")


async def test_a_tool_call_id_that_looks_like_the_journals_own_survives_a_crash(system: System) -> None:
    gate = asyncio.Event()
    done: Counter[str] = Counter()

    def add() -> int:
        """Add."""
        done["add"] += 1
        return 5

    async def slow() -> str:
        """Take long."""
        await gate.wait()
        return "at last"

    agent = Spelled(("x/context", "add"), ("other", "slow"), tools=[add, slow])
    process = await system.start(agent)
    task_id = await system.submit(agent)
    await wait_until(lambda: is_journaled(system, task_id, "tool:x%2Fcontext"))
    await crash(system, process)
    gate.set()
    await system.start(agent)
    data = await system.ended(task_id)
    assert data["status"] == "completed", data["error"]
    assert texts(data["payload"]["messages"])[2:] == ["tool: 5", "tool: at last", "assistant: done"]
    assert done == {"add": 1}


async def test_a_deferred_tool_whose_result_cannot_be_copied_is_executed_once(system: System) -> None:
    asked = []

    @deferred_result(timeout=60)
    def lock() -> Any:
        """Ask, and return what nobody can use."""
        asked.append(1)
        return threading.Lock()

    agent = asking(call("lock"), say("done"), tools=[lock])
    await system.start(agent)
    task_id = await system.submit(agent)
    data = await system.reaches(task_id, "pending_tool_results", "failed")
    assert (data["status"], len(asked)) == ("pending_tool_results", 1), data["error"]
    assert await system.orchestrator.complete_deferred_tool(task_id, "call_0_0", "yes")
    assert (await system.ended(task_id))["payload"]["output"] == "done"
    assert len(asked) == 1


@pytest.mark.parametrize("fails_first", [False, True])
async def test_of_two_deferred_calls_with_one_id_one_is_refused_and_the_other_gets_its_answer(
    system: System, fails_first: bool
) -> None:
    """Results are delivered by the id of the call. Also when the turn is taken again."""
    asked: list[str] = []

    @deferred_result(timeout=60)
    def ask(question: str) -> None:
        """Ask."""
        asked.append(question)

    class Twins(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            if agent_ctx.messages[-1]["role"] == "tool":
                return await super().run_turn(agent_ctx)
            made = [
                ChatCompletionMessageToolCall.model_validate(
                    {
                        "id": "ask",
                        "type": "function",
                        "function": {"name": "ask", "arguments": f'{{"question": "{q}"}}'},
                    }
                )
                for q in ("How old?", "What name?")
            ]
            agent_ctx.messages.append({"role": "assistant", "tool_calls": [one.model_dump() for one in made]})
            results = await asyncio.gather(*(self.tool_action(one, agent_ctx) for one in made))
            if fails_first and ExecutionContext.current().retries == 0:
                raise RetryableError("once more")
            pending = [result.tool_call_id for result in results if result.is_pending]
            return TurnCompletion(
                is_done=False,
                context=agent_ctx,
                tool_call_results=list(zip(made, results, strict=True)),
                pending_tool_call_ids=pending,
            )

    agent = Twins(name="twins", tools=[ask], model=ScriptedModel(lambda messages: say("done")))
    await system.start(agent)
    task_id = await system.submit(agent)
    await system.reaches(task_id, "pending_tool_results")
    assert asked == ["How old?"]
    assert await system.orchestrator.complete_deferred_tool(task_id, "ask", "42")
    assert not await system.orchestrator.complete_deferred_tool(task_id, "ask", "Ada")
    data = await system.ended(task_id)
    answers = [message["content"] for message in data["payload"]["messages"] if message["role"] == "tool"]
    assert answers[0] == "42" and "another call of this answer has the id 'ask' too" in answers[1]
    assert (data["payload"]["output"], len(asked)) == ("done", 1)


# -- callbacks


@pytest.mark.parametrize("name", ["on_pending_tool_call", "on_run_end"])
async def test_sys_exit_in_a_callback_is_logged_and_ends_no_process(
    system: System, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    def leave(*told: Any) -> None:
        sys.exit(3)

    agent = asking(**{name: leave})
    with caplog.at_level(logging.WARNING, "factorial"):
        process = await system.start(agent)
        for _ in range(2):
            task_id = await system.submit(agent)
            await system.reaches(task_id, "pending_tool_results")
            assert await system.orchestrator.complete_deferred_tool(task_id, "call_0_0", "yes")
            assert (await system.ended(task_id))["status"] == "completed"
        await process.drain()  # and with it the callbacks after the end
    told = [record for record in caplog.records if "callback leave failed" in record.getMessage()]
    assert [record.exc_info[0] for record in told if record.exc_info] == [SystemExit, SystemExit]


async def test_children_of_the_callbacks_of_a_turn_and_of_the_turn_itself_are_different_tasks(system: System) -> None:
    spawned: list[tuple[str, str]] = []

    async def child_of(place: str, execution: ExecutionContext) -> None:
        spawned.append((place, await execution.spawn_child_task(helper, AgentContext(query=place))))

    class Spawning(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> Any:
            await child_of("run_turn", ExecutionContext.current())
            return await super().run_turn(agent_ctx)

    agent = Spawning(
        name="parent",
        tools=[ask],
        model=ScriptedModel([call("ask"), say("done")]),
        on_run_start=lambda ctx, execution: child_of("run_start", execution),
        on_turn_start=lambda ctx, execution: child_of("turn_start", execution),
        on_pending_tool_results=lambda ctx, execution, results: child_of("results", execution),
    )
    await system.start(agent)
    task_id = await system.submit(agent)
    await system.reaches(task_id, "pending_tool_results")
    await system.orchestrator.complete_deferred_tool(task_id, "call_0_0", "yes")
    await system.ended(task_id)
    assert [place for place, _ in spawned] == [
        "run_start", "turn_start", "run_turn", "results", "turn_start", "run_turn",
    ]  # fmt: skip
    for place, child in spawned:
        assert (await system.data(child))["payload"]["query"] == place


class Troubled(Agent):
    """Its first model call fails, or never ends. Notes the tenant that each call sees, and how often the run began."""

    def __init__(self, trouble: str) -> None:
        super().__init__(name="parent", model=ScriptedModel([say("done")]), on_run_start=self.begin)
        self.trouble = trouble
        self.begun = 0
        self.seen: list[Any] = []

    def begin(self, agent_ctx: AgentContext, execution: ExecutionContext) -> None:
        self.begun += 1
        agent_ctx.tenant = "acme"  # type: ignore[attr-defined]

    async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
        self.seen.append(getattr(agent_ctx, "tenant", None))
        if len(self.seen) == 1:
            if self.trouble == "fails":
                raise RetryableError("rate limit")
            await asyncio.Event().wait()
        return await super().completion(agent_ctx, messages)


@pytest.mark.parametrize("trouble", ["fails", "is released"])
async def test_what_on_run_start_changes_is_kept_when_the_first_turn_does_not_finish(
    system: System, trouble: str
) -> None:
    agent = Troubled(trouble)
    process = await system.start(agent, grace=3.0)
    task_id = await system.submit(agent)
    if trouble == "is released":
        await wait_until(lambda: agent.seen)
        await process.drain()
        await system.start(agent)
    data = await system.ended(task_id)
    assert data["payload"]["tenant"] == "acme"
    assert (agent.begun, agent.seen) == (1, ["acme", "acme"])


async def test_on_run_start_of_a_run_that_is_released_before_it_is_called_later(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    before_the_first_step(monkeypatch, DurableHost.release)
    agent = Agent(
        name="parent",
        model=ScriptedModel([say("done")]),
        on_run_start=lambda ctx, execution: told.append(f"pickup {execution.pickups}"),
    )
    await system.start(agent)
    await system.ended(await system.submit(agent))
    assert told == ["pickup 2"]


async def test_a_handler_that_fails_on_an_inline_runs_cancellation_does_not_hide_it() -> None:
    begun = asyncio.Event()

    async def hang() -> None:
        """Never end."""
        begun.set()
        await asyncio.Event().wait()

    def handler(event: BaseEvent) -> None:
        if event.event_type == "run_cancelled":
            raise ValueError("the handler is closed")

    agent = Agent(name="parent", tools=[hang], model=ScriptedModel([call("hang")]))
    run = asyncio.create_task(agent.run_inline(AgentContext(query="go"), handler))
    await begun.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


# -- children


@pytest.mark.parametrize("parts", [0, 1, 3])
async def test_a_batch_expires_when_its_parent_is_cancelled(
    system: System, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    """Five children, stored two at a time. The parent is cancelled after so many of the three parts."""
    monkeypatch.setattr(spawn, "_AT_ONCE", 2)
    sent = 0

    @forking_tool(timeout=60)
    async def fan_out(execution_ctx: ExecutionContext) -> Batch:
        """Have five look, and be cancelled before or after."""
        children = [AgentContext(query=str(number)) for number in range(5)]
        batch = await execution_ctx.spawn_child_tasks(helper, children)
        await system.orchestrator.cancel_task(execution_ctx.task_id)
        return batch

    agent = asking(call("fan_out"), say("done"), tools=[fan_out])
    process = await system.start(agent)
    mailbox = await system.mailbox()
    run = process.mailbox.scripts.run

    async def cancelled_meanwhile(name: str, *args: Any) -> Any:
        nonlocal sent
        if name == "spawn":
            if sent == parts:  # the process does not know it yet
                await system.execute("HSET", mailbox.keys.run(args[0]), "cancel_requested", "1")
            sent += 1
        return await run(name, *args)

    monkeypatch.setattr(process.mailbox.scripts, "run", cancelled_meanwhile)
    task_id = await system.submit(agent)
    assert (await system.ended(task_id))["status"] == "cancelled"

    async def everything_has_ended() -> bool:
        return bool(await system.execute("HGET", mailbox.keys.owner("owner"), "active") == b"0")

    await wait_until(everything_has_ended)
    assert len(await system.execute("KEYS", mailbox.keys.run("*"))) == 1 + min(2 * parts, 5)
    batches = await system.execute("KEYS", mailbox.keys.batch("*"))
    assert len(batches) == (parts > 0)
    for batch in batches:
        assert await system.execute("PTTL", batch) > 0
    told = [event["event_type"] for event in await system.events(task_id) if event["event_type"].startswith("batch_")]
    assert told[-1:] == ["batch_cancelled"] * (parts > 0) and told.count("batch_cancelled") == (parts > 0)


async def test_a_repeated_spawn_that_creates_nothing_does_not_restore_an_expired_batch(system: System) -> None:
    """The batch has expired when the step that spawned it is executed again."""
    batches: list[Batch] = []

    @forking_tool(timeout=60)
    async def fan_out(execution_ctx: ExecutionContext) -> Batch:
        """Have two look, and stumble at first."""
        batch = await execution_ctx.spawn_child_tasks(helper, [AgentContext(query="it"), AgentContext(query="that")])
        batches.append(batch)
        if len(batches) == 1:
            for child in batch.task_ids:
                await system.ended(child)
            assert await system.execute("PEXPIRE", (await system.mailbox()).keys.batch(batch.id), 0)
            raise RetryableError("stumbled")
        return batch

    agent = asking(call("fan_out"), say("done"), tools=[fan_out])
    await system.start(agent)
    await system.start(helper)
    data = await system.ended(await system.submit(agent))
    assert data["payload"]["output"] == "done"
    assert batches[0] == batches[1]
    assert await system.orchestrator.get_batch_data(batches[0].id) is None


async def test_a_task_id_that_is_used_again_has_children_of_its_own(system: System) -> None:
    """The first run has expired when the id is enqueued again. Its child, which failed, is still stored."""
    weather = "bad"

    def reply(messages: Any) -> Any:
        if weather == "bad":
            raise FatalAgentError("bad day")
        return say("fine")

    child = Agent(name="child", model=ScriptedModel(reply))

    @forking_tool(timeout=60)
    async def look(execution_ctx: ExecutionContext) -> str:
        """Have a child look."""
        return await execution_ctx.spawn_child_task(child, AgentContext(query="how is it?"))

    agent = asking(call("look"), say("done"), tools=[look])
    await system.start(agent)
    await system.start(child)

    async def result() -> str:
        task = agent.create_task("owner", AgentContext(query="go"), task_id="order-42")
        await system.orchestrator.enqueue_task(agent, task=task)
        return str((await system.ended("order-42"))["payload"]["messages"][2]["content"])

    assert "bad day" in await result()
    scripts = (await system.mailbox()).scripts
    assert await upkeep.expire(scripts, agent="parent", status=TaskStatus.COMPLETED, ttl=0, most=10) == 1
    weather = "fine"
    assert "> fine </sub_task_result>" in await result()


async def test_the_end_of_a_batch_is_published_when_its_parent_has_ended_and_is_removed(system: System) -> None:
    """The parent does not await its children, and is removed before they end."""
    batches: list[Batch] = []

    async def send(execution_ctx: ExecutionContext) -> str:
        """Send two helpers, and do not wait for them."""
        batches.append(await execution_ctx.spawn_child_tasks(helper, [AgentContext(query=what) for what in "ab"]))
        return "sent"

    agent = asking(call("send"), say("done"), tools=[send])
    await system.start(agent)
    task_id = await system.submit(agent)
    await system.ended(task_id)
    scripts = (await system.mailbox()).scripts
    assert await upkeep.expire(scripts, agent="parent", status=TaskStatus.COMPLETED, ttl=0, most=10) == 1
    await system.start(helper)
    for child in batches[0].task_ids:
        await system.ended(child)
    told = [event for event in await system.events(task_id) if event["event_type"].startswith("batch_")]
    assert [(event["event_type"], event["completed_tasks"], event["status"]) for event in told] == [
        ("batch_progress", 1, "active"),
        ("batch_progress", 2, "completed"),
        ("batch_completed", 2, "completed"),
    ]
    assert {(event["batch_id"], event["agent_name"], event["owner_id"]) for event in told} == {
        (batches[0].id, "parent", "owner")
    }


async def test_a_child_that_has_ended_is_kept_until_its_parent_has_ended(system: System) -> None:
    gate = asyncio.Event()
    children: list[str] = []

    @forking_tool(timeout=60)
    async def fork_one(execution_ctx: ExecutionContext) -> str:
        """Have a helper look."""
        children.append(await execution_ctx.spawn_child_task(helper, AgentContext(query="it")))
        return children[-1]

    async def slow() -> str:
        """Take long."""
        await gate.wait()
        return "at last"

    agent = asking(calls(call("fork_one"), call("slow")), say("done"), tools=[fork_one, slow])
    await system.start(agent)
    await system.start(helper)
    task_id = await system.submit(agent)
    await wait_until(lambda: children)
    await system.ended(children[0])
    scripts = (await system.mailbox()).scripts

    async def removed() -> int:
        return await upkeep.expire(scripts, agent="helper", status=TaskStatus.COMPLETED, ttl=0, most=10)

    assert await removed() == 0
    gate.set()
    assert "> found it </sub_task_result>" in (await system.ended(task_id))["payload"]["messages"][2]["content"]
    assert await removed() == 1
    assert await system.orchestrator.get_task_data(children[0]) is None


async def test_a_forking_tool_may_return_a_text_and_the_id_of_a_child(system: System) -> None:
    @forking_tool(timeout=60)
    async def announce(execution_ctx: ExecutionContext) -> tuple[str, str]:
        """Have a helper look, and say so."""
        return "Somebody looks.", await execution_ctx.spawn_child_task(helper, AgentContext(query="it"))

    agent = asking(call("announce"), say("done"), tools=[announce])
    await system.start(agent)
    await system.start(helper)
    data = await system.ended(await system.submit(agent))
    text, _, listing = data["payload"]["messages"][2]["content"].partition("\n")
    assert text == "Somebody looks."
    assert outputs(listing) == ["found it"]


# -- results, deadlines and ends


async def test_a_result_whose_reply_was_lost_is_accepted_and_a_second_one_is_not(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = asking(calls(call("ask"), call("ask")), say("done"))
    await system.start(agent)
    task_id = await system.submit(agent)
    await system.reaches(task_id, "pending_tool_results")
    scripts = (await system.orchestrator._namespace()).scripts
    run = scripts.run

    async def sent_twice(name: str, *args: Any) -> Any:
        await run(name, *args)
        return await run(name, *args)

    give = system.orchestrator.complete_deferred_tool
    with monkeypatch.context() as patch:
        patch.setattr(scripts, "run", sent_twice)
        assert await give(task_id, "call_0_0", "yes")
        assert not await give(task_id, "call_0_0", "no")
        assert await give(task_id, "call_0_1", "indeed")  # the run may continue between the two
    assert texts((await system.ended(task_id))["payload"]["messages"])[2:4] == ["tool: yes", "tool: indeed"]


async def test_a_deferred_call_that_shares_its_id_with_an_ordinary_one_gets_its_result(system: System) -> None:
    accepted = []

    @deferred_result(timeout=60)
    async def ask_quickly(execution_ctx: ExecutionContext) -> None:
        """Ask somebody who answers at once."""
        give = system.orchestrator.complete_deferred_tool
        accepted.append(await give(execution_ctx.task_id, execution_ctx.tool_call_id, "early"))

    def add() -> int:
        """Add."""
        return 5

    agent = Spelled(("same", "add"), ("same", "ask_quickly"), tools=[add, ask_quickly])
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert accepted == [True]
    assert texts(data["payload"]["messages"])[2:] == ["tool: 5", "tool: early", "assistant: done"]


async def test_a_timeout_of_less_than_a_millisecond_is_one(system: System) -> None:
    @deferred_result(timeout=0.0004)
    def ask_in_vain() -> None:
        """Ask, and do not wait."""

    agent = asking(call("ask_in_vain"), say("done"), tools=[ask_in_vain])
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert "no result came within 0.0004 seconds" in data["payload"]["messages"][2]["content"]


@pytest.mark.parametrize("patience", [60, 0.05])
async def test_a_run_awaits_child_tasks_as_soon_as_no_result_is_open(system: System, patience: float) -> None:
    """The result has arrived, or its deadline has passed. The child has not started."""

    @deferred_result(timeout=patience)
    def ask_for_a_while() -> None:
        """Ask a person."""

    agent = asking(calls(call("ask_for_a_while"), call("fork")), say("done"), tools=[ask_for_a_while, fork])
    await system.start(agent)
    task_id = await system.submit(agent)
    if patience == 60:
        await system.reaches(task_id, "pending_tool_results")
        assert await system.orchestrator.complete_deferred_tool(task_id, "call_0_0", "yes")
        assert await system.orchestrator.get_task_status(task_id) == "pending_child_tasks"
    await system.reaches(task_id, "pending_child_tasks")
    await system.start(helper)
    shown = texts((await system.ended(task_id))["payload"]["messages"])
    assert shown[2] == ("tool: yes" if patience == 60 else "tool: Error: no result came within 0.05 seconds")
    assert "> found it </sub_task_result>" in shown[3]


async def test_a_turn_that_ends_the_run_with_an_open_call_leaves_a_conversation_that_can_continue(
    system: System,
) -> None:
    """A steer continues it. Each call in the next request has its answer, and the steer comes after them."""
    requests: list[list[dict[str, Any]]] = []

    def reply(messages: Sequence[Mapping[str, Any]]) -> Any:
        requests.append([dict(message) for message in messages])
        return call("ask") if len(requests) == 1 else say("done")

    class Hasty(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> Any:
            completion = await super().run_turn(agent_ctx)
            if completion.pending_tool_call_ids:
                completion.is_done, completion.output = True, "enough"
                task_id = ExecutionContext.current().task_id
                await system.orchestrator.steer_task(task_id, [{"role": "user", "content": "go on"}])
            return completion

    agent = Hasty(name="parent", tools=[ask], model=ScriptedModel(reply))
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert data["payload"]["output"] == "done"
    assert [message["role"] for message in requests[1]] == ["user", "assistant", "tool", "user"]
    assert requests[1][2]["tool_call_id"] == "call_0_0"


async def test_a_turn_that_does_not_wait_leaves_no_call_without_an_answer(system: System) -> None:
    class Impatient(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> Any:
            completion = await super().run_turn(agent_ctx)
            completion.pending_tool_call_ids = []
            return completion

    agent = Impatient(name="parent", tools=[ask], model=ScriptedModel([call("ask"), say("done")]))
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert [message["role"] for message in data["payload"]["messages"]] == ["user", "assistant", "tool", "assistant"]


async def test_a_run_that_fails_at_max_turns_has_no_call_without_an_answer(system: System) -> None:
    agent = asking(calls(call("ask"), call("fork")), say("done"), tools=[ask, fork], max_turns=1)
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert data["status"] == "failed" and "max_turns=1" in data["error"]
    answers = data["payload"]["messages"][2:]
    assert [answer["tool_call_id"] for answer in answers] == ["call_0_0", "call_0_1"]
    assert {answer["content"] for answer in answers} == {"Error: the run has ended without this result"}
