"""Callbacks where they are easily got wrong: the turn that is retried after them, the run that has ended before them,
and what they spawn, ask, publish and change.

Real: actors, mailbox, Valkey. Fake: the lifeline, and the model, which is scripted. The inline runs need no server.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import pytest
from pydantic import ConfigDict, Field, model_validator

from factorial import Agent, AgentContext, AgentEvent, ExecutionContext
from factorial.actors.durable_host import DurableHost
from factorial.errors import RetryableError
from factorial.testing import ScriptedModel, call, calls, say
from tests.harness import System, before_the_first_step, quick, texts
from tests.support import wait_until

helper = Agent(name="helper", model=ScriptedModel([say("found")]))

Finish = Callable[[Agent, AgentContext], Awaitable[dict[str, Any]]]


@pytest.fixture(params=["inline", "in a worker"])
def finish(request: pytest.FixtureRequest) -> Finish:
    """Has a run complete, inline or in a worker, and gives its context as JSON."""
    if request.param == "inline":

        async def inline(agent: Agent, context: AgentContext) -> dict[str, Any]:
            done = await agent.run_inline(context, worker_config=quick())
            return done.context.model_dump(mode="json")

        return inline
    system: System = request.getfixturevalue("system")

    async def in_a_worker(agent: Agent, context: AgentContext) -> dict[str, Any]:
        await system.start(agent)
        data = await system.ended(await system.submit(agent, context))
        assert data["status"] == "completed", data["error"]
        payload: dict[str, Any] = data["payload"]
        return payload

    return in_a_worker


class Trouble:
    """Fails the first time that it is met."""

    def __init__(self) -> None:
        self.met = 0

    def meet(self) -> None:
        """Raises `RetryableError` the first time."""
        self.met += 1
        if self.met == 1:
            raise RetryableError("rate limit")


class Noted(AgentContext):
    """A context with things to change."""

    count: int = 0
    note: str = ""
    notes: list[str] = Field(default_factory=list)


def stumbling(kind: type[Agent] = Agent, **options: Any) -> Agent:
    """An agent whose turn is retried: one of its tools has changed the context, the other one fails the first time."""
    trouble = Trouble()

    def add(agent_ctx: Noted) -> str:
        """Count."""
        agent_ctx.count += 1
        return "added"

    def stumble() -> str:
        """Fail at first."""
        trouble.meet()
        return "fine"

    model = ScriptedModel([calls(call("add"), call("stumble")), say("done")])
    defaults: dict[str, Any] = {"name": "parent", "tools": [add, stumble], "model": model, "context_class": Noted}
    return kind(**defaults | options)


def troubled(seen: list[list[str]], **options: Any) -> Agent:
    """An agent whose first model call fails. `seen`: what each call was asked."""
    trouble = Trouble()

    def reply(messages: Any) -> Any:
        seen.append(texts(messages))
        trouble.meet()
        return say("done")

    defaults: dict[str, Any] = {"name": "parent", "model": ScriptedModel(reply), "context_class": Noted}
    return Agent(**defaults | options)


# -- a turn that is retried


async def test_a_frozen_field_does_not_keep_a_turn_from_being_retried(finish: Finish) -> None:
    class Signed(Noted):
        user: str = Field(default="nobody", frozen=True)

    context = await finish(stumbling(context_class=Signed), Signed(query="go", user="ann"))
    assert (context["user"], context["count"]) == ("ann", 1)


async def test_an_excluded_field_keeps_its_object_when_the_turn_is_retried(finish: Finish) -> None:
    class Connected(Noted):
        client: Any = Field(default=None, exclude=True)

    opened, used, trouble = [], [], Trouble()

    def connect(agent_ctx: Connected, execution: ExecutionContext) -> None:
        agent_ctx.client = object()
        agent_ctx.count += 1
        opened.append(agent_ctx.client)

    def use(agent_ctx: Connected) -> str:
        """Use the connection, which fails at first."""
        used.append(agent_ctx.client)
        trouble.meet()
        return "used"

    agent = Agent(
        name="parent",
        tools=[use],
        model=ScriptedModel([call("use"), say("done")]),
        context_class=Connected,
        on_turn_start=connect,
    )
    context = await finish(agent, Connected(query="go"))
    assert context["count"] == 2
    assert used == opened[:2] and used[0] is not None


async def test_a_validator_that_looks_at_the_messages_finds_them_when_the_turn_is_retried(finish: Finish) -> None:
    class Checked(Noted):
        @model_validator(mode="after")
        def has_messages(self) -> "Checked":
            if self.turn and not self.messages:
                raise ValueError("a conversation that has begun has messages")
            return self

    conversation = [{"role": "user", "content": "go"}]
    context = await finish(stumbling(context_class=Checked), Checked(query="go", turn=1, messages=conversation))
    assert (context["turn"], context["count"]) == (3, 1)


async def test_an_object_taken_from_the_context_before_the_first_step_is_still_the_contexts(finish: Finish) -> None:
    class Noting(Agent):
        async def run_turn(self, agent_ctx: Any) -> Any:
            notes = agent_ctx.notes
            completion = await super().run_turn(agent_ctx)
            notes.append(f"turn {len(notes)}")
            return completion

    context = await finish(stumbling(Noting), Noted(query="go"))
    assert context["notes"] == ["turn 0", "turn 1"]


# -- on_run_start, and a first turn that is retried


async def test_a_model_call_in_on_run_start_is_not_taken_for_one_of_the_first_turn(finish: Finish) -> None:
    """The answer to it comes back for the callback alone, and the turn has one of its own."""
    titles = []

    def reply(messages: Any) -> Any:
        if messages[-1]["content"] == "make a title":
            titles.append(say("A title"))
            return titles[-1]
        return say("done") if messages[-1]["role"] == "tool" else calls(call("add"), call("stumble"))

    async def entitle(agent_ctx: Noted, execution: ExecutionContext) -> None:
        answer = await agent.completion(agent_ctx, [{"role": "user", "content": "make a title"}])
        agent_ctx.note = str(answer.choices[0].message.content)

    agent = stumbling(model=ScriptedModel(reply), on_run_start=entitle)
    context = await finish(agent, Noted(query="go"))
    assert (context["output"], context["note"], context["count"], len(titles)) == ("done", "A title", 1, 1)


async def test_messages_that_on_run_start_adds_are_in_the_retried_first_turn_and_stored(finish: Finish) -> None:
    def greet(agent_ctx: Noted, execution: ExecutionContext) -> None:
        agent_ctx.messages.append({"role": "user", "content": "be kind"})

    seen: list[list[str]] = []
    context = await finish(troubled(seen, on_run_start=greet), Noted(query="go"))
    assert seen == [["user: go", "user: be kind"]] * 2
    assert texts(context["messages"]) == ["user: go", "user: be kind", "assistant: done"]


@pytest.mark.parametrize("turn", [0, 3])
async def test_what_on_run_start_changes_is_kept_whatever_turn_the_run_begins_with(finish: Finish, turn: int) -> None:
    begun = []

    def begin(agent_ctx: Noted, execution: ExecutionContext) -> None:
        begun.append(agent_ctx.turn)
        agent_ctx.note = "kept"

    conversation = [{"role": "user", "content": "go"}] if turn else []
    agent = troubled([], on_run_start=begin)
    context = await finish(agent, Noted(query="go", turn=turn, messages=conversation))
    assert (context["note"], context["turn"], begun) == ("kept", turn + 1, [turn])


async def test_a_steer_during_the_first_turns_backoff_is_read_by_the_next_model_call(system: System) -> None:
    """That on_run_start is journaled does not make the turn one that has begun."""

    def begin(agent_ctx: Noted, execution: ExecutionContext) -> None:
        agent_ctx.note = "kept"
        agent_ctx.messages.append({"role": "user", "content": "be kind"})

    seen: list[list[str]] = []
    agent = troubled(seen, on_run_start=begin)
    await system.start(agent, quick(retry_delay=300, max_retry_delay=300))
    task_id = await system.submit(agent, Noted(query="go"))
    await system.reaches(task_id, "backoff")
    await system.orchestrator.steer_task(task_id, [{"role": "user", "content": "hurry"}])
    await system.make_due(task_id)
    data = await system.ended(task_id)
    assert seen == [["user: go", "user: be kind"], ["user: go", "user: be kind", "user: hurry"]]
    assert texts(data["payload"]["messages"]) == [*seen[1], "assistant: done"]
    assert data["payload"]["note"] == "kept"


# -- children


async def test_on_turn_end_and_the_next_on_turn_start_spawn_different_children(system: System) -> None:
    spawned: dict[str, str] = {}

    async def child_of(place: str, agent_ctx: AgentContext, execution: ExecutionContext) -> None:
        query = f"{place} {agent_ctx.turn}"
        spawned[query] = await execution.spawn_child_task(helper, AgentContext(query=query))

    agent = stumbling(
        on_turn_start=lambda ctx, execution: child_of("start", ctx, execution),
        on_turn_end=lambda ctx, execution, completion: child_of("end", ctx, execution),
    )
    await system.start(agent)
    await system.ended(await system.submit(agent, Noted(query="go")))
    assert list(spawned) == ["start 0", "end 1", "start 1", "end 2"]
    for query, child in spawned.items():
        assert (await system.data(child))["payload"]["query"] == query


# -- a run that has ended


@pytest.mark.parametrize("ending", ["completed", "cancelled"])
async def test_the_callback_at_a_runs_end_may_publish_an_event_and_goes_on_to_its_own_end(
    system: System, ending: str
) -> None:
    gate, working = asyncio.Event(), asyncio.Event()
    told: list[Any] = []

    async def at_the_end(agent_ctx: AgentContext, execution: ExecutionContext, *completion: Any) -> None:
        answer = await agent.completion(agent_ctx, [{"role": "user", "content": "sum up"}])
        summary = AgentEvent(
            event_type="summary",
            task_id=execution.task_id,
            owner_id=execution.owner_id,
            agent_name=execution.agent_name,
            data=answer.choices[0].message.content,
        )
        await execution.events.publish_event(summary)
        told.append("published")
        await gate.wait()
        told.append("over")

    async def work() -> str:
        """Work, and never end if the run is to be cancelled."""
        working.set()
        if ending == "cancelled":
            await asyncio.Event().wait()
        return "worked"

    def reply(messages: Any) -> Any:
        if messages[-1]["content"] == "sum up":
            return say("all well")
        return say("done") if messages[-1]["role"] == "tool" else call("work")

    agent = Agent(
        name="parent", tools=[work], model=ScriptedModel(reply), on_run_end=at_the_end, on_run_cancelled=at_the_end
    )
    process = await system.start(agent)
    task_id = await system.submit(agent)
    await working.wait()
    if ending == "cancelled":
        await system.orchestrator.cancel_task(task_id)
    assert (await system.ended(task_id))["status"] == ending
    assert (await system.event(task_id, "summary"))["data"] == "all well"
    types = await system.types(task_id)
    assert types.index("summary") > types.index(f"run_{ending}")
    gate.set()
    await process.drain()  # and with it the callback
    assert told == ["published", "over"]


class Aliased(AgentContext):
    """Is spelled differently by those who send it."""

    user_id: str = Field(alias="userId")


class Strict(AgentContext):
    """Takes no text for a moment, but from JSON."""

    model_config = ConfigDict(strict=True)

    user_id: str = "ann"
    at: datetime = datetime(2026, 1, 1)


@pytest.mark.parametrize("context", [Aliased(query="go", userId="ann"), Strict(query="go")], ids=["aliases", "strict"])
async def test_cancel_task_calls_back_with_any_context_that_a_worker_could_read(
    system: System, context: AgentContext
) -> None:
    told: list[Any] = []
    agent = Agent(
        name="parent",
        model=ScriptedModel([say("done")]),
        context_class=type(context),
        on_run_cancelled=lambda ctx, execution: told.append(ctx),
    )
    system.orchestrator.register_runner(agent)
    task_id = await system.submit(agent, context)
    assert await system.orchestrator.cancel_task(task_id) == "cancelled"
    assert [(type(ctx), ctx.user_id) for ctx in told] == [(type(context), "ann")]
    assert texts(told[0].messages) == ["user: go"]


async def test_cancel_task_waits_for_the_callback_no_longer_than_the_runners_turn_timeout(
    system: System, caplog: pytest.LogCaptureFixture
) -> None:
    stopped = asyncio.Event()

    async def hang(agent_ctx: AgentContext, execution: ExecutionContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    agent = Agent(name="parent", model=ScriptedModel([say("done")]), on_run_cancelled=hang)
    system.orchestrator.register_runner(agent, quick(turn_timeout=0.05))
    task_id = await system.submit(agent)
    with caplog.at_level(logging.WARNING, "factorial"):
        async with asyncio.timeout(30):
            assert await system.orchestrator.cancel_task(task_id) == "cancelled"
    assert stopped.is_set()
    assert f"task {task_id} of parent: on_run_cancelled: " in caplog.text


async def test_the_callback_of_cancel_task_knows_its_execution(system: System) -> None:
    told: list[Any] = []
    agent = Agent(
        name="parent",
        model=ScriptedModel([say("done")]),
        on_run_cancelled=lambda ctx, execution: told.append(ExecutionContext.current() is execution),
    )
    system.orchestrator.register_runner(agent)
    await system.orchestrator.cancel_task(await system.submit(agent))
    assert told == [True]


async def test_the_callback_of_a_cancelled_inline_run_knows_its_execution() -> None:
    told, working = [], asyncio.Event()

    async def hang() -> None:
        """Never end."""
        working.set()
        await asyncio.Event().wait()

    agent = Agent(
        name="parent",
        tools=[hang],
        model=ScriptedModel([call("hang")]),
        on_run_cancelled=lambda ctx, execution: told.append(ExecutionContext.current() is execution),
    )
    run = asyncio.create_task(agent.run_inline(AgentContext(query="go")))
    await working.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert told == [True]


async def test_a_cancel_that_comes_before_an_executions_first_step_calls_back(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    before_the_first_step(monkeypatch, DurableHost.cancel)
    agent = Agent(
        name="parent",
        model=ScriptedModel([say("done")]),
        on_run_start=lambda ctx, execution: told.append("start"),
        on_run_cancelled=lambda ctx, execution: told.append(f"cancelled {ExecutionContext.current().task_id}"),
    )
    await system.start(agent)
    task_id = await system.submit(agent)
    assert (await system.ended(task_id))["status"] == "cancelled"
    await wait_until(lambda: told)
    assert told == [f"cancelled {task_id}"]


async def test_events_without_ids_get_those_of_the_task_wherever_they_are_published(system: System) -> None:
    """In a tool, after the end of the run, and by the client that cancels a queued task."""

    async def note(*arguments: Any) -> None:
        await ExecutionContext.current().events.publish_event(AgentEvent("note"))

    async def look() -> str:
        """Look."""
        await note()
        return "seen"

    script = ScriptedModel([call("look"), say("done")])
    agent = Agent(name="parent", tools=[look], model=script, on_run_end=note, on_run_cancelled=note)
    system.orchestrator.register_runner(agent)
    cancelled = await system.submit(agent)
    await system.orchestrator.cancel_task(cancelled)
    await system.start(agent)
    completed = await system.submit(agent)
    await system.ended(completed)

    async def notes(task_id: str) -> list[tuple[str, str]]:
        events = await system.events(task_id)
        return [(one["owner_id"], one["agent_name"]) for one in events if one["event_type"] == "note"]

    async def has_both() -> bool:
        return len(await notes(completed)) == 2

    await wait_until(has_both)
    assert await notes(completed) == [("owner", "parent")] * 2
    assert await notes(cancelled) == [("owner", "parent")]
