"""`run_inline`: the lifecycle and the events of a worker, without Redis. Real: all but the model, which is scripted."""

import asyncio
import json
from typing import Any

import pytest
from pydantic import BaseModel, Field

from factorial import (
    Agent,
    AgentContext,
    AgentEvent,
    AgentWorkerConfig,
    BaseAgent,
    BaseEvent,
    ExecutionContext,
    FatalAgentError,
    RetryableError,
    TurnCompletion,
)
from factorial.errors import ContextError, FactorialError, MaxTurnsError, ModelRefusedError, TurnTimeoutError
from factorial.testing import ScriptedModel, call, calls, say

QUICK = AgentWorkerConfig(retry_delay=0.001, max_retry_delay=0.002)


def lookup(city: str) -> str:
    """Look a city up."""
    return f"{city} is sunny"


WEATHER = Agent(name="weather", tools=[lookup], model=ScriptedModel([call("lookup", city="Rome"), say("Sunny")]))


async def types(agent: BaseAgent[Any], context: AgentContext, **options: Any) -> list[str]:
    heard: list[BaseEvent] = []
    await agent.run_inline(context, event_handler=heard.append, **options)
    return [event.event_type for event in heard]


async def test_the_completion_has_the_output_and_the_context() -> None:
    context = AgentContext(query="How is Rome?")
    completion = await WEATHER.run_inline(context)
    assert completion.output == "Sunny"
    assert completion.context is context and context.output == "Sunny"
    assert context.turn == 2
    assert [message["role"] for message in context.messages] == ["user", "assistant", "tool", "assistant"]
    assert completion.duration >= 0 and completion.started_at.tzinfo is not None


async def test_a_used_context_with_a_new_query_sends_it() -> None:
    agent = Agent(name="chatty", model=ScriptedModel(["one", "two", "three"]))
    context = AgentContext(query="first")
    await agent.run_inline(context)
    context.query = "second"
    assert (await agent.run_inline(context)).output == "two"
    said = [(message["role"], message["content"]) for message in context.messages]
    assert said == [("user", "first"), ("assistant", "one"), ("user", "second"), ("assistant", "two")]
    await agent.run_inline(context)  # the same query is not asked twice
    assert [message["content"] for message in context.messages if message["role"] == "user"] == ["first", "second"]


async def test_an_empty_query_is_refused() -> None:
    agent = Agent(name="chatty", model=ScriptedModel(["one"]))
    with pytest.raises(ContextError, match="'chatty': the query is empty"):
        await agent.run_inline(AgentContext(query=""))
    with pytest.raises(ContextError, match="the query is empty"):
        agent.create_task("owner", AgentContext(query="", messages=[{"role": "user", "content": "hello"}]))


async def test_the_events_are_those_of_a_worker() -> None:
    turn = ["progress_update_run_turn_started", "progress_update_completion_started"]
    turn.append("progress_update_completion_completed")
    tool = ["progress_update_tool_action_started", "progress_update_tool_action_completed"]
    over = ["progress_update_run_turn_completed"]
    assert await types(WEATHER, AgentContext(query="q")) == [
        "run_started", *turn, *tool, *over, *turn, *over, "agent_output", "run_completed",
    ]  # fmt: skip


async def test_an_async_handler_finds_the_tool_and_its_arguments() -> None:
    called = []

    async def handle(event: BaseEvent) -> None:
        await asyncio.sleep(0)
        if event.event_type == "progress_update_tool_action_started":
            function = event.data["args"][0]["function"]  # type: ignore[attr-defined]
            called.append((function["name"], json.loads(function["arguments"])))

    await WEATHER.run_inline(AgentContext(query="q"), event_handler=handle)
    assert called == [("lookup", {"city": "Rome"})]


async def test_events_have_the_parts_of_a_call_and_the_text() -> None:
    heard: list[BaseEvent] = []
    script = ScriptedModel([call("lookup", city="Rome"), say("Sunny in Rome")])
    agent = Agent(name="weather", tools=[lookup], stream=True, model=script)
    await agent.run_inline(AgentContext(query="q"), event_handler=heard.append)
    data = [(event.event_type, event.data) for event in heard if isinstance(event, AgentEvent)]
    called = [shown for kind, shown in data if kind.startswith("progress_update_tool_action")]
    assert [(one["tool_name"], one["tool_call_id"], one["arguments"]) for one in called] == [
        ("lookup", "call_0_0", {"city": "Rome"})
    ] * 2
    texts = [shown["text"] for kind, shown in data if kind == "progress_update_completion_completed"]
    assert texts == ["", "Sunny in Rome"]
    pieces = [shown["text"] for kind, shown in data if kind == "progress_update_completion_chunk"]
    assert "".join(pieces) == "Sunny in Rome"


async def test_a_failure_is_published_with_its_error() -> None:
    class Failing(Agent):
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
            raise FatalAgentError("no way")

    heard: list[BaseEvent] = []
    with pytest.raises(FatalAgentError, match="no way"):
        await Failing(name="failing").run_inline(AgentContext(query="q"), event_handler=heard.append)
    errors = {event.event_type: event.error for event in heard if getattr(event, "error", None)}  # type: ignore[attr-defined]
    assert errors["progress_update_completion_failed"] == "no way"
    assert errors["run_failed"].startswith("Agent failing failed to complete task ")
    assert heard[-1].event_type == "run_failed"


async def test_a_tool_may_run_another_agent() -> None:
    inner = Agent(name="inner", tools=[lookup], model=ScriptedModel([call("lookup", city="Oslo"), say("cold")]))
    owners: list[str | None] = []

    async def ask(execution_ctx: ExecutionContext) -> str:
        """Ask the other agent."""
        completion = await inner.run_inline(AgentContext(query="q"), lambda event: owners.append(event.agent_name))
        assert ExecutionContext.current().agent_name == "outer"
        return str(completion.output)

    outer = Agent(name="outer", tools=[ask], model=ScriptedModel([call("ask"), say("done")]))
    completion = await outer.run_inline(AgentContext(query="q"))
    assert completion.context.messages[2]["content"] == "cold"
    assert set(owners) == {"inner"}


async def test_a_failed_turn_is_retried_from_its_start_and_its_finished_steps_are_kept() -> None:
    counted = {"tool": 0, "bad": 0, "completion": 0}

    class Notes(AgentContext):
        notes: list[str] = Field(default_factory=list)

    def tool(agent_ctx: Notes) -> str:
        """Work."""
        counted["tool"] += 1
        return "x"

    async def bad() -> str:
        """Fail twice."""
        counted["bad"] += 1
        if counted["bad"] < 3:
            raise RetryableError("not yet")
        return "y"

    class Counted(BaseAgent[Notes]):
        async def completion(self, agent_ctx: Notes, messages: list[dict[str, Any]]) -> Any:
            counted["completion"] += 1
            return await super().completion(agent_ctx, messages)

    model = ScriptedModel([calls(call("tool"), call("bad")), say("done")])
    agent = Counted(name="counted", context_class=Notes, tools=[tool, bad], model=model)
    completion = await agent.run_inline(Notes(query="q"), worker_config=QUICK)
    assert completion.output == "done"
    assert counted == {"tool": 1, "bad": 3, "completion": 2}
    assert [message["role"] for message in completion.context.messages] == [
        "user", "assistant", "tool", "tool", "assistant",
    ]  # fmt: skip


async def test_changes_by_a_finished_tool_are_kept_in_the_next_attempt() -> None:
    tries = []

    class Notes(AgentContext):
        notes: list[str] = Field(default_factory=list)

    def good(agent_ctx: Notes) -> str:
        """Note."""
        agent_ctx.notes.append("noted")
        return "x"

    async def bad(agent_ctx: Notes) -> str:
        """Fail at first."""
        await asyncio.sleep(0.02)
        tries.append(list(agent_ctx.notes))
        if len(tries) == 1:
            raise RetryableError("not yet")
        return "y"

    model = ScriptedModel([calls(call("good"), call("bad")), say("done")])
    agent: BaseAgent[Notes] = BaseAgent(name="n", context_class=Notes, tools=[good, bad], model=model)
    completion = await agent.run_inline(Notes(query="q"), worker_config=QUICK)
    assert tries == [["noted"], ["noted"]]
    assert completion.context.notes == ["noted"]


async def test_the_retries_are_bounded_and_a_finished_turn_resets_their_count() -> None:
    tries: dict[int, int] = {}

    class Stumbling(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            tries[agent_ctx.turn] = tries.get(agent_ctx.turn, 0) + 1
            if tries[agent_ctx.turn] <= 2:
                raise RuntimeError("stumbled")
            return TurnCompletion(is_done=agent_ctx.turn == 2, context=agent_ctx, output="there")

    policy = AgentWorkerConfig(max_retries=2, retry_delay=0.001, max_retry_delay=0.001)
    assert (await Stumbling(name="s").run_inline(AgentContext(query="q"), worker_config=policy)).output == "there"
    tries.clear()
    strict = AgentWorkerConfig(max_retries=1, retry_delay=0.001, max_retry_delay=0.001)
    with pytest.raises(RuntimeError, match="stumbled"):
        await Stumbling(name="s").run_inline(AgentContext(query="q"), worker_config=strict)


async def test_the_time_limit_of_a_turn() -> None:
    slow = Agent(name="slow", model=ScriptedModel(["never"], delay=30))
    policy = AgentWorkerConfig(turn_timeout=0.02, max_retries=1, retry_delay=0.001)
    with pytest.raises(TurnTimeoutError, match=r"turn_timeout=0\.02"):
        await slow.run_inline(AgentContext(query="q"), worker_config=policy)


async def test_max_turns() -> None:
    endless = Agent(name="e", tools=[lookup], model=ScriptedModel(lambda m: call("lookup", city="x")), max_turns=2)
    context = AgentContext(query="q")
    with pytest.raises(MaxTurnsError, match="max_turns=2"):
        await endless.run_inline(context)
    assert context.turn == 2


async def test_a_cancelled_run_publishes_an_event_and_raises() -> None:
    heard: list[str] = []
    started = asyncio.Event()

    def handle(event: BaseEvent) -> None:
        heard.append(event.event_type)
        if event.event_type == "progress_update_completion_started":
            started.set()

    slow = Agent(name="slow", model=ScriptedModel(["never"], delay=30))
    running = asyncio.create_task(slow.run_inline(AgentContext(query="q"), event_handler=handle))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert heard[-1] == "run_cancelled"


async def test_a_cancelled_run_is_cancelled_whatever_its_callback_raises(caplog: pytest.LogCaptureFixture) -> None:
    started = asyncio.Event()

    async def wait() -> str:
        """Wait."""
        started.set()
        await asyncio.Event().wait()
        return "never"

    def refuse(agent_ctx: AgentContext, execution_ctx: ExecutionContext) -> None:
        raise FatalAgentError("not with me")

    agent = Agent(name="a", tools=[wait], model=ScriptedModel([call("wait")]), on_run_cancelled=refuse)
    running = asyncio.create_task(agent.run_inline(AgentContext(query="q")))
    await asyncio.wait_for(started.wait(), 20)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert "a callback failed after the run's end: not with me" in caplog.text


async def test_a_cancelled_error_that_the_agent_raises_is_a_failed_turn() -> None:
    tries = []

    class Strange(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            tries.append(1)
            if len(tries) == 1:
                raise asyncio.CancelledError
            return TurnCompletion(is_done=True, context=agent_ctx, output="well")

    assert (await Strange(name="s").run_inline(AgentContext(query="q"), worker_config=QUICK)).output == "well"


async def test_two_runs_of_one_agent_at_the_same_time_do_not_mix() -> None:
    """The agent holds no state of a run."""

    async def echo(text: str, agent_ctx: AgentContext, execution_ctx: ExecutionContext) -> str:
        """Echo."""
        await asyncio.sleep(0.001)
        assert ExecutionContext.current().task_id == execution_ctx.task_id
        return f"{text} {agent_ctx.query}"

    def reply(messages: Any) -> Any:
        last = messages[-1]
        return say(last["content"]) if last["role"] == "tool" else call("echo", text=last["content"])

    agent = Agent(name="echoing", tools=[echo], model=ScriptedModel(reply))
    done = await asyncio.gather(*(agent.run_inline(AgentContext(query=str(n))) for n in range(30)))
    assert [completion.output for completion in done] == [f"{n} {n}" for n in range(30)]


async def test_the_context_has_to_fit_and_the_model_to_have_a_script() -> None:
    class Special(AgentContext):
        pass

    class Other(AgentContext):
        pass

    agent: BaseAgent[Special] = BaseAgent(name="s", context_class=Special, model=ScriptedModel([]))
    with pytest.raises(ContextError, match="works on Special, and the payload is an Other"):
        await agent.run_inline(Other(query="q"))  # type: ignore[arg-type]
    with pytest.raises(ModelRefusedError, match="the script has 0 replies"):
        await agent.run_inline(Special(query="q"))


async def test_a_conversation_that_is_continued() -> None:
    """The context's messages come first, and the query follows them."""
    agent = Agent(name="a", instructions="Be brief.", model=ScriptedModel(lambda m: say(f"{len(m)} messages")))
    history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    completion = await agent.run_inline(AgentContext(query="and now?", messages=history))
    assert completion.output == "4 messages"  # the instructions, two old ones, the question
    assert completion.context.messages[2] == {"role": "user", "content": "and now?"}


class Answer(BaseModel):
    """An answer."""

    text: str
    score: int


async def test_the_output_is_validated_and_corrected() -> None:
    model = ScriptedModel([call("final_output", text="x"), call("final_output", text="x", score="3")])
    agent = Agent(name="typed", output_type=Answer, model=model)
    completion = await agent.run_inline(AgentContext(query="q"))
    assert completion.output == Answer(text="x", score=3)
    assert "'score' is missing" in completion.context.messages[2]["content"]


async def test_there_is_no_execution_context_outside_of_a_turn() -> None:
    with pytest.raises(FactorialError, match="works only while an agent takes a turn"):
        ExecutionContext.current()
    await WEATHER.run_inline(AgentContext(query="q"))
    assert ExecutionContext.get() is None


async def test_prepare_messages_is_asked_once_a_turn_with_the_runs_own_context() -> None:
    asked = []

    class Own(Agent):
        def prepare_messages(self, agent_ctx: AgentContext) -> list[dict[str, Any]]:
            asked.append((agent_ctx.turn, len(agent_ctx.messages)))
            return super().prepare_messages(agent_ctx)

    def look() -> str:
        """Look."""
        return "seen"

    agent = Own(name="own", tools=[look], model=ScriptedModel([call("look"), say("done")]))
    await agent.run_inline(AgentContext(query="go"))
    assert asked == [(0, 1), (1, 3)]


async def test_an_event_without_ids_gets_those_of_its_task() -> None:
    """One object may be published for several tasks, and keeps what it says itself."""
    note, signed = AgentEvent("note"), AgentEvent("note", owner_id="ada", agent_name="b")

    async def look(execution_ctx: ExecutionContext) -> str:
        """Look."""
        await execution_ctx.events.publish_event(note)
        await execution_ctx.events.publish_event(signed)
        return execution_ctx.task_id

    agent = Agent(name="a", tools=[look], model=ScriptedModel([call("look"), say("done")]))
    heard: list[BaseEvent] = []
    contexts = [AgentContext(query="q"), AgentContext(query="q")]
    for context in contexts:
        await agent.run_inline(context, event_handler=heard.append)
    task_ids = [context.messages[2]["content"] for context in contexts]
    notes = [(one.task_id, one.owner_id, one.agent_name) for one in heard if one.event_type == "note"]
    assert notes == [ids for task_id in task_ids for ids in ((task_id, "inline", "a"), (task_id, "ada", "b"))]
    assert note.task_id is None and task_ids[0] != task_ids[1]


def test_an_agent_says_its_name() -> None:
    assert repr(Agent(name="shop", model=ScriptedModel(["one"]))) == "Agent(name='shop')"
