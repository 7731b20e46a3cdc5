"""Programs written for nfactorial 0.1.x run: the names that they import, what they call them with, and whole programs
(`tests/spec/dropin/`, copied into a folder of their own and started as their users would).

Real: Valkey, HTTP, the openai client, the programs' processes and their supervisor, uvicorn, WebSocket clients; in
the smaller programs the actors, in the test's process. Fake: the language model.
"""
# ruff: noqa: RUF012  # pydantic gives each context a copy of a default

import importlib
import inspect
import json
import os
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from llmock.pytest_plugin import LLMock
from pydantic import BaseModel

import factorial
from factorial import (
    Agent,
    AgentContext,
    AgentEvent,
    AgentWorkerConfig,
    BaseAgent,
    BaseEvent,
    ExecutionContext,
    FatalAgentError,
    FunctionTool,
    FunctionToolActionResult,
    ModelSettings,
    MultiClient,
    Orchestrator,
    QueueEvent,
    RunCompletion,
    Task,
    TaskStatus,
    TurnCompletion,
    claude_4_sonnet,
    deferred_result,
    fallback_models,
    forking_tool,
    function_tool,
    gpt_41,
    gpt_41_mini,
    grok_3,
    publish_progress,
)
from factorial.errors import ConfigError, ContextError
from factorial.models import check_model
from factorial.testing import ScriptedModel, call, say
from tests.harness import System
from tests.spec.folder import UVICORN, address_of, are_ready, copied, environment_of, get, started
from tests.spec.provider import Provider
from tests.spec.web import hear, post, socket
from tests.support import wait_until
from tests.valkey import ValkeyServer

OLD_NAMES = {
    "factorial": """
        BaseAgent Agent AgentContext ExecutionContext ModelSettings ResolvedModelSettings TurnCompletion FunctionTool
        FunctionToolAction FunctionToolActionResult function_tool publish_progress retry Orchestrator AgentWorkerConfig
        MaintenanceWorkerConfig TaskTTLConfig ObservabilityConfig MetricsTimelineConfig ContextType Task TaskStatus
        AgentEvent QueueEvent EventPublisher Model MultiClient o3 o4_mini grok_3 grok_3_mini gpt_41 gpt_41_mini
        gpt_41_nano claude_4_opus claude_4_sonnet claude_37_sonnet claude_35_sonnet claude_35_haiku deferred_result""",
    "factorial.tools": "FunctionTool FunctionToolAction FunctionToolActionResult function_tool deferred_result "
    "forking_tool",
    "factorial.context": "AgentContext ExecutionContext ContextType execution_context",
    "factorial.events": "BaseEvent QueueEvent AgentEvent BatchEvent EventPublisher",
    "factorial.utils": "BaseModel to_snake_case serialize_data decode is_valid_task_id",
    "factorial.agent": "BaseAgent Agent ModelSettings ResolvedModelSettings TurnCompletion RunCompletion retry "
    "publish_progress AgentContext ContextType ExecutionContext FunctionTool FunctionToolActionResult function_tool "
    "serialize_data",
    "factorial.orchestrator": "Orchestrator AgentWorkerConfig MaintenanceWorkerConfig TaskTTLConfig "
    "ObservabilityConfig MetricsTimelineConfig",
    "factorial.llms": "Model MultiClient Provider o3 o4_mini grok_3 grok_3_mini gpt_41 gpt_41_mini gpt_41_nano "
    "claude_4_opus claude_4_sonnet claude_37_sonnet claude_35_sonnet claude_35_haiku",
    "factorial.exceptions": "TaskNotFoundError InvalidTaskIdError InactiveTaskError CorruptedTaskDataError "
    "BatchNotFoundError RetryableError RateLimitError FatalAgentError RETRYABLE_EXCEPTIONS OpenAIRateLimitError "
    "OpenAIInternalServerError OpenAITimeoutError OpenAIConnectionError",
    "factorial.queue": "Task TaskStatus",
    "factorial.queue.task": "Task TaskStatus TaskMetadata Batch",
    "factorial.logging": "get_logger",
}


@pytest.mark.parametrize("module", OLD_NAMES)
def test_spec_dropin_every_old_name_can_be_imported(module: str) -> None:
    found = importlib.import_module(module)
    assert [name for name in OLD_NAMES[module].split() if not hasattr(found, name)] == []


def test_spec_dropin_what_factorial_exported_it_exports() -> None:
    assert set(OLD_NAMES["factorial"].split()) <= set(factorial.__all__)


def test_spec_dropin_a_function_of_the_queue_says_what_to_use() -> None:
    with pytest.raises(ImportError, match=r"factorial\.queue\.enqueue_task is gone: use orchestrator\.enqueue_task; "):
        from factorial.queue import enqueue_task  # noqa: F401
    import factorial.queue

    gone = """worker_loop maintenance_loop enqueue_task cancel_task steer_task complete_deferred_tool get_task_status
        get_task_data get_task_agent get_task_steering_messages"""
    for name in gone.split():
        with pytest.raises(ImportError, match=f"{name} is gone: use orchestrator"):
            getattr(factorial.queue, name)
    assert not hasattr(factorial.queue, "enqueue_tusk")


# -- what they are called with


def test_spec_dropin_the_parameters_of_an_agent_come_in_the_old_order() -> None:
    names = list(inspect.signature(BaseAgent.__init__).parameters)[1:]
    assert names[:15] == [
        "name", "instructions", "description", "tools", "model", "model_settings", "stream", "context_window_limit",
        "max_turns", "http_client", "client", "request_timeout", "parse_tool_args", "context_class", "output_type",
    ]  # fmt: skip
    assert names[15:22] == [
        "on_run_start", "on_run_end", "on_turn_start", "on_turn_end", "on_pending_tool_call",
        "on_pending_tool_results", "on_run_cancelled",
    ]  # fmt: skip
    agent = Agent("MyWriter", "Write.", "Writes", None, gpt_41, ModelSettings(temperature=0.5), False, None, 7)
    assert (agent.name, agent.instructions, agent.description, agent.tools) == ("my_writer", "Write.", "Writes", {})
    assert (agent.model, agent.max_turns) == (gpt_41, 7) and isinstance(agent.client, MultiClient)


def test_spec_dropin_of_other_things_too() -> None:
    assert [parameter for parameter in inspect.signature(TurnCompletion).parameters][:6] == [
        "is_done", "context", "output", "tool_call_results", "pending_tool_call_ids", "pending_child_task_ids",
    ]  # fmt: skip
    assert {"output", "started_at", "finished_at", "error"} <= set(inspect.signature(RunCompletion).parameters)
    assert isinstance(RunCompletion.duration, property) and isinstance(RunCompletion.succeeded, property)
    assert AgentEvent("mine", task_id="t", data={"a": 1}).to_dict()["event_type"] == "mine"
    event = QueueEvent("mine", worker_id="w", batch_id="b", error="e").to_dict()
    assert (event["worker_id"], event["batch_id"], event["error"]) == ("w", "b", "e")
    assert AgentWorkerConfig(missed_heartbeats_threshold=5, missed_heartbeats_grace_period=5).lease == 30.0
    assert TaskStatus.QUEUED not in (TaskStatus.ACTIVE, TaskStatus.PAUSED)
    assert {"pending_tool_results", "pending_child_tasks", "backoff"} <= {status.value for status in TaskStatus}
    annotated: list[FunctionTool[AgentContext]] = []
    assert annotated == []


def test_spec_dropin_a_task_is_made_and_shown_as_before() -> None:
    class Notes(AgentContext):
        notes: list[str] = []

    task = Task.create(owner_id="ann", agent="clerk", payload=Notes(query="?", notes=["a"]))
    shown = task.to_dict()
    assert (shown["status"], shown["agent"], shown["pickups"], shown["retries"]) == ("queued", "clerk", 0, 0)
    assert (shown["metadata"]["owner_id"], shown["payload"]["notes"]) == ("ann", ["a"])
    uuid.UUID(shown["id"])
    for again in (Task.from_dict(shown, Notes), Task.from_json(task.to_json(), Notes)):
        assert (again.payload, again.id, again.metadata) == (task.payload, task.id, task.metadata)
    assert json.loads(task.to_json()) == shown


async def test_spec_dropin_a_context_may_have_a_field_of_any_class_that_is_empty_when_stored(
    system: System, llmock: LLMock
) -> None:
    class Session:
        """A connection to something."""

    class WithSession(AgentContext):
        session: Session | None = None

    def connect(agent_ctx: WithSession) -> str:
        """Connect."""
        agent_ctx.session = Session()
        agent_ctx.session = None
        return "done"

    llmock.call_tool("connect", {}).reply("Connected.")
    agent = BaseAgent[WithSession](name="client", tools=[connect], model=gpt_41, context_class=WithSession)
    await system.start(agent)
    payload = (await system.ended(await system.submit(agent, WithSession(query="?"))))["payload"]
    assert (payload["session"], payload["output"]) == (None, "Connected.")
    with pytest.raises(ContextError, match=r"WithSession\.session \(Session\) cannot be stored as JSON"):
        await system.submit(agent, WithSession(query="?", session=Session()))


def test_spec_dropin_utils_and_exceptions() -> None:
    from factorial.exceptions import RETRYABLE_EXCEPTIONS, OpenAITimeoutError, RetryableError, TaskNotFoundError
    from factorial.utils import decode, is_valid_task_id, serialize_data, to_snake_case

    class Point(BaseModel):
        x: int

    assert to_snake_case("HTTPWeatherAgent") == "http_weather_agent"
    assert decode(b"caf\xc3\xa9") == decode("café") == "café"
    assert is_valid_task_id(str(uuid.uuid4())) and not is_valid_task_id("no id!")
    assert serialize_data({"points": [Point(x=1)], "kinds": {TaskStatus.QUEUED}, "odd": object()})["points"] == [
        {"x": 1}
    ]
    assert {RetryableError, OpenAITimeoutError} <= set(RETRYABLE_EXCEPTIONS)
    assert TaskNotFoundError("t1").task_id == "t1"


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (lambda: Agent(http_client=object()), "request_timeout"),  # type: ignore[arg-type]
        (lambda: MultiClient(http_client=object()), "HTTPS_PROXY"),
        (lambda: Agent(client=object()), "an async method `completion`"),  # type: ignore[arg-type]
        (lambda: Orchestrator(redis_pool=object()), "give redis_url"),
        (lambda: Orchestrator(redis_pool=object(), redis_host="here"), "exclude each other"),
    ],
)
def test_spec_dropin_what_is_not_taken_says_what_to_use(make: Any, advice: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(advice)):
        make()


def test_spec_dropin_a_hook_that_is_not_called_any_more_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    class Old(Agent):
        async def cancel(self, agent_ctx: AgentContext, execution_ctx: ExecutionContext) -> None:
            pass

    assert "Old.cancel" in caplog.text and "on_run_cancelled" in caplog.text


def test_spec_dropin_a_pool_tells_where_redis_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = redis.asyncio.ConnectionPool(host="there", port=7000, db=3, password="p@ss", max_connections=9)
    assert Orchestrator(redis_pool=pool).redis.url == "redis://:p%40ss@there:7000/3"
    pool = redis.asyncio.ConnectionPool.from_url("unix:///tmp/a.sock?db=2")
    assert Orchestrator(redis_pool=pool).redis.url == "unix:///tmp/a.sock?db=2"
    with pytest.raises(ConfigError, match="rediss://"):
        Orchestrator(redis_pool=redis.asyncio.ConnectionPool.from_url("rediss://there"))
    monkeypatch.setenv("REDIS_HOST", "elsewhere")
    assert Orchestrator(redis_db=4, redis_max_connections=50).redis.url == "redis://elsewhere:6379/4"


# -- MultiClient: keys in code


async def test_spec_dropin_the_keys_of_a_client_go_to_their_provider_and_nowhere_else(
    system: System, provider: Provider, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    secret = "sk-given-in-code-0123456789"
    client = MultiClient(openai_api_key=secret, xai_api_key="xai-other-key")
    agent = Agent(name="writer", model=gpt_41, client=client)
    agent.check_ready()
    environment = dict(os.environ)
    await system.start(agent)
    task_id = await system.submit(agent)
    first = await provider.called()
    assert f"authorization: bearer {secret}" in first.head
    first.refuse(401, f"the key {secret} is wrong")
    data = await system.ended(task_id, timeout=20)
    assert data["status"] == "failed"
    published = f"{data}{await system.events()}{caplog.text}{client!r}{client.with_keys(gpt_41)!r}"
    assert secret not in published and "***" in published
    for key in await system.execute("KEYS", "*"):
        assert secret.encode() not in (await system.execute("DUMP", key))
    assert dict(os.environ) == environment


def test_spec_dropin_a_client_with_a_key_makes_its_models_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "XAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    client = MultiClient(anthropic_api_key="key-a", xai_api_key="key-x")
    check_model(client.with_keys(claude_4_sonnet))
    check_model(client.with_keys(fallback_models(gpt_41, grok_3)))
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        check_model(client.with_keys(gpt_41))
    assert client.with_keys(ScriptedModel([])).provider.key is None  # type: ignore[union-attr]


async def test_spec_dropin_an_own_completion_asks_through_the_client(system: System, llmock: LLMock) -> None:
    class Careful(Agent):
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
            return await self.client.completion(
                model=gpt_41_mini, messages=messages, tools=None, temperature=0.25, max_completion_tokens=50, seed=7
            )

    llmock.reply("Carefully.")
    agent = Careful(name="careful", model=gpt_41)
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert data["payload"]["output"] == "Carefully."
    body = llmock.last_request.body
    assert (body["model"], body["temperature"], body["max_completion_tokens"], body["seed"]) == (
        "gpt-4.1-mini", 0.25, 50, 7,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="stream=True"):
        await agent.client.completion(model=gpt_41, messages=[], stream=True)


# -- tools made by hand


async def test_spec_dropin_a_tool_with_a_schema_of_its_own(system: System, llmock: LLMock) -> None:
    """A tool by hand, as for the tools of another server."""
    got: list[dict[str, Any]] = []

    async def forward(agent_ctx: AgentContext, **arguments: Any) -> FunctionToolActionResult:
        got.append(arguments)
        agent_ctx.forwarded = True  # type: ignore[attr-defined]
        return FunctionToolActionResult(output_str="forwarded", output_data=arguments)

    schema = {
        "type": "object",
        "properties": {"to": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["to", "n"],
    }
    tool = FunctionTool(
        name="forward", description="Forward it", params_json_schema=schema, on_invoke_tool=forward,
        strict_json_schema=True, is_enabled=lambda agent_ctx: agent_ctx.turn == 0,
    )  # fmt: skip
    llmock.call_tool("forward", {"to": "Rome", "n": 2}).reply("Done.")
    agent = Agent(name="relay", tools=[tool], model=gpt_41)
    assert agent.tool_actions == {"forward": forward} and tool.to_openai_tool_schema()["function"]["strict"] is True
    await system.start(agent)
    payload = (await system.ended(await system.submit(agent)))["payload"]
    assert got == [{"to": "Rome", "n": 2}] and payload["forwarded"] is True
    assert llmock.requests[0].body["tools"][0]["function"] == {
        "name": "forward", "description": "Forward it", "strict": True,
        "parameters": schema | {"additionalProperties": False},
    }  # fmt: skip
    assert "tools" not in llmock.requests[1].body


async def test_spec_dropin_what_events_carry_is_what_the_guide_says() -> None:
    """MIGRATION.md has a table of the payloads that are not those of 0.1.x."""

    def look(x: int) -> tuple[str, dict[str, int]]:
        """Look."""
        return "seen", {"x": x}

    heard: dict[str, dict[str, Any]] = {}
    agent = Agent(name="My Agent.one", tools=[look], model=ScriptedModel([call("look", x=1), say("end")]))

    def note(event: BaseEvent) -> None:
        heard.setdefault(event.event_type, event.to_dict())

    await agent.run_inline(AgentContext(query="?"), note)
    published = {
        name.removeprefix("progress_update_"): event["data"] for name, event in heard.items() if event.get("data")
    }
    assert published["run_turn_started"]["context"] == {"query": "?", "turn": 0, "messages": 1}
    assert (published["run_turn_completed"]["args"], "result" in published["run_turn_completed"]) == ([], False)
    assert (published["completion_started"]["args"], published["completion_started"]["kwargs"]) == ([], {"messages": 1})
    shown = {"model", "content", "tool_calls", "finish_reason", "usage"}
    assert published["completion_completed"]["result"].keys() == shown
    assert published["completion_completed"]["result"]["tool_calls"] == ["look"]
    [tool_call] = published["tool_action_started"]["args"]
    assert tool_call["function"] == {"name": "look", "arguments": '{"x":1}'}
    assert published["tool_action_completed"]["result"] == {
        "tool_call": tool_call, "output_str": "seen", "output_data": {"x": 1},
    }  # fmt: skip
    assert published["agent_output"] == "end"
    assert not {"turn", "data"} & heard["run_completed"].keys() and heard["run_completed"]["metadata"]["turn"] == 1
    assert {event["agent_name"] for event in heard.values()} == {"my_agent_one"}


async def test_spec_dropin_an_own_tool_action_needs_no_call_id(system: System, llmock: LLMock) -> None:
    class Strict(Agent):
        async def tool_action(self, tool_call: Any, agent_ctx: AgentContext) -> FunctionToolActionResult:
            if tool_call.function.name == "forbidden":
                return FunctionToolActionResult(output_str="No.", output_data=None, error=ValueError("not allowed"))  # type: ignore[arg-type]
            return FunctionToolActionResult(output_str="Fine.", output_data=1, tool_call=tool_call)

    def forbidden() -> str:
        """Not to be done."""
        return "done"

    @function_tool(strict_json_schema=True)
    def allowed() -> str:
        """To be done."""
        return "done"

    llmock.call_tool("forbidden", {}).call_tool("allowed", {}).reply("As you say.")
    agent = Strict(name="strict", tools=[forbidden, allowed], model=gpt_41)
    await system.start(agent)
    messages = (await system.ended(await system.submit(agent)))["payload"]["messages"]
    ids = [message["tool_calls"][0]["id"] for message in messages if message.get("tool_calls")]
    answers = [(message["tool_call_id"], message["content"]) for message in messages if message["role"] == "tool"]
    assert answers == list(zip(ids, ["No.", "Fine."], strict=True))


async def test_spec_dropin_only_a_deferred_tool_is_waited_for(system: System, llmock: LLMock) -> None:
    """As in 0.1.x, what an ordinary tool says of that does not count."""

    def hasty() -> FunctionToolActionResult:
        """Return at once."""
        return FunctionToolActionResult(
            output_str="done", output_data=None, pending_result=True, pending_child_task_ids=["t1"]
        )

    llmock.call_tool("hasty", {}).reply("Done.")
    agent = Agent(name="hasty", tools=[hasty], model=gpt_41)
    await system.start(agent)
    assert (await system.ended(await system.submit(agent)))["payload"]["output"] == "Done."


async def test_spec_dropin_tools_that_are_resolved_to_json_are_told_of(system: System) -> None:
    class Old(Agent):
        def resolve_tools(self, agent_ctx: AgentContext) -> list[Any]:
            return [{"type": "function", "function": {"name": "look", "parameters": {}}}]

    agent = Old(name="old", model=ScriptedModel([say("never asked")]))
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert (data["status"], data["retries"]) == ("failed", 0)
    assert "Old.resolve_tools returned a dict: return FunctionTools" in data["error"]


async def test_spec_dropin_progress_tells_what_is_to_be_told(system: System) -> None:
    class Shy(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            await self.quietly("secret", n=1)
            await self.openly("word", n=1)
            return TurnCompletion(is_done=True, context=agent_ctx, output="done")

        @publish_progress(func_name="quiet", include_context=False, include_args=False, include_result=False)
        async def quietly(self, word: str, n: int) -> str:
            return word

        @publish_progress
        async def openly(self, word: str, n: int) -> str:
            return word

    agent = Shy(name="shy", model=ScriptedModel([]))
    await system.start(agent)
    task_id = await system.submit(agent)
    await system.ended(task_id)
    data = {event["event_type"]: event.get("data") for event in await system.events(task_id)}
    assert data["progress_update_quiet_started"] == data["progress_update_quiet_completed"] == {}
    assert data["progress_update_openly_started"].keys() == {"args", "kwargs", "context"}  # type: ignore[union-attr]
    assert data["progress_update_openly_completed"]["result"] == "word"  # type: ignore[index]


async def test_spec_dropin_prepare_messages_that_makes_the_opening(system: System, llmock: LLMock) -> None:
    """In the first turn the whole conversation, later what there is: the model gets the opening every time."""

    class FileContext(AgentContext):
        file: str

    class Editor(BaseAgent[FileContext]):
        def prepare_messages(self, agent_ctx: FileContext) -> list[dict[str, Any]]:
            if agent_ctx.turn == 0:
                messages = [{"role": "system", "content": self.instructions}]
                messages.extend([message for message in agent_ctx.messages if message["content"]])
                messages.append({"role": "user", "content": f"{agent_ctx.file}\n---\n{agent_ctx.query}"})
            else:
                messages = agent_ctx.messages
            return messages

    def edit(find: str, replace: str, agent_ctx: FileContext) -> str:
        """Edit the file."""
        agent_ctx.file = agent_ctx.file.replace(find, replace)
        return "edited"

    opening = [
        {"role": "system", "content": "You edit."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "a = 1\n---\nMake it 2"},
    ]
    llmock.call_tool("edit", {"find": "1", "replace": "2"}).reply("It is 2 now.")
    agent = Editor(name="editor", instructions="You edit.", tools=[edit], model=gpt_41, context_class=FileContext)
    await system.start(agent)
    context = FileContext(query="Make it 2", file="a = 1", messages=opening[1:3])
    payload = (await system.ended(await system.submit(agent, context)))["payload"]
    first, second = (request.body["messages"] for request in llmock.requests)
    assert first == opening
    assert second[:4] == opening and [message["role"] for message in second[4:]] == ["assistant", "tool"]
    assert payload["messages"][:4] == opening and len(payload["messages"]) == 7
    assert (payload["file"], payload["output"]) == ("a = 2", "It is 2 now.")


async def test_spec_dropin_prepare_messages_that_adds_to_the_default_is_asked_for_each_turn(
    system: System, llmock: LLMock
) -> None:
    class Reminded(Agent):
        def prepare_messages(self, agent_ctx: AgentContext) -> list[dict[str, Any]]:
            reminder = {"role": "user", "content": f"Turn {agent_ctx.turn}."}
            return [*super().prepare_messages(agent_ctx), reminder]

    def wait() -> str:
        """Wait."""
        return "waited"

    llmock.call_tool("wait", {}).reply("Done.")
    agent = Reminded(name="reminded", instructions="Be quick.", tools=[wait], model=gpt_41)
    await system.start(agent)
    payload = (await system.ended(await system.submit(agent, "Go")))["payload"]
    first, second = ([message["content"] for message in request.body["messages"]] for request in llmock.requests)
    assert first == ["Be quick.", "Go", "Turn 0."]
    assert [second[0], second[1], second[-1]] == ["Be quick.", "Go", "Turn 1."] and len(second) == 5
    assert [message["role"] for message in payload["messages"]] == ["user", "assistant", "tool", "assistant"]


# -- deferred tools, children and callbacks, as 0.1.x wrote them


async def test_spec_dropin_deferred_forking_and_callbacks(system: System, llmock: LLMock) -> None:
    happened: list[str] = []

    @deferred_result(timeout=60.0)
    async def ask_human(question: str, execution_ctx: ExecutionContext) -> None:
        """Ask a human."""

    @forking_tool(timeout=60.0)
    async def research(topics: list[str], execution_ctx: ExecutionContext) -> tuple[str, list[str]]:
        """Research several topics."""
        batch = await execution_ctx.spawn_child_tasks(helper, [AgentContext(query=topic) for topic in topics])
        one = await execution_ctx.spawn_child_task(helper, AgentContext(query="more"))
        return "begun", [*batch.task_ids, one]

    async def on_run_start(agent_ctx: AgentContext, execution_ctx: ExecutionContext) -> None:
        happened.append("start")

    def on_pending_tool_call(agent_ctx: AgentContext, execution_ctx: ExecutionContext, tool_call: Any) -> None:
        happened.append(f"pending {tool_call.function.name}")
        pending.append(tool_call.id)

    def on_turn_end(agent_ctx: AgentContext, execution_ctx: ExecutionContext, completion: TurnCompletion[Any]) -> None:
        happened.append("done" if completion.is_done else "turn")

    async def on_run_end(agent_ctx: AgentContext, execution_ctx: ExecutionContext, end: RunCompletion[Any]) -> None:
        happened.append(f"end {end.output} {end.succeeded} {end.duration >= 0}")

    pending: list[str] = []
    helper = Agent(name="helper", model=ScriptedModel([say("found")]))
    boss = Agent(
        name="boss",
        tools=[ask_human, research],
        model=ScriptedModel([call("ask_human", question="Why?"), call("research", topics=["a", "b"]), say("So.")]),
        on_run_start=on_run_start,
        on_turn_end=on_turn_end,
        on_run_end=on_run_end,
        on_pending_tool_call=on_pending_tool_call,
    )
    await system.start(helper)
    await system.start(boss)
    task_id = await system.submit(boss, "Think")
    await system.reaches(task_id, "pending_tool_results", timeout=20)
    assert await system.orchestrator.complete_deferred_tool(task_id=task_id, tool_call_id=pending[0], result="Because.")
    payload = (await system.ended(task_id, timeout=30))["payload"]
    answers = [message["content"] for message in payload["messages"] if message["role"] == "tool"]
    assert "Because." in answers[0] and answers[1].count("found") == 3
    await wait_until(lambda: happened[-1].startswith("end"))
    assert [happened[0], happened[1], happened[-1]] == ["start", "pending ask_human", "end So. True True"]


async def test_spec_dropin_a_fatal_error_by_its_old_path(system: System) -> None:
    from factorial.exceptions import FatalAgentError as OldError

    def break_it() -> str:
        """Break it."""
        raise OldError("broken for good")

    agent = Agent(name="breaker", tools=[break_it], model=ScriptedModel([call("break_it")]))
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert data["status"] == "failed" and "broken for good" in data["error"] and OldError is FatalAgentError


# -- a whole program


@pytest.fixture
def newsroom(tmp_path: Path) -> Path:
    """The folder of the program."""
    return copied(".", tmp_path)


async def test_spec_dropin_a_newsroom_with_workers_web_backend_and_websockets(
    newsroom: Path, own_valkey: ValkeyServer, provider: Provider
) -> None:
    """`python newsroom.py` and `uvicorn server:app`; browsers enqueue, watch in two ways, ask, steer and cancel."""
    own_valkey.start()
    secret = "sk-of-the-newsroom-0123456789"
    environment = environment_of(own_valkey, provider) | {"NEWSROOM_OPENAI_KEY": secret}
    with (
        started(newsroom, environment, "newsroom.py") as workers,
        started(newsroom, environment, *UVICORN) as web,
    ):
        await are_ready(workers)
        address = await address_of(web)

        async with socket(address, "/ws/ann") as subscriber, socket(address, "/ws/ann/channel") as listener:
            await hear(listener, lambda heard: bool(heard))
            asked = {"user_id": "ann", "query": "An article, please", "topic": "whales"}
            task_id = (await post(address, "/api/enqueue", asked))["task_id"]

            first = await provider.called(60)
            assert f"authorization: bearer {secret}" in first.head
            assert first.messages == [
                {"role": "system", "content": "You write about whales for ann."},
                {"role": "user", "content": "An article, please"},
            ]
            assert (first.body["model"], first.body["temperature"]) == ("gpt-4.1", 0.0)
            assert offered(first.body) == ["search", "check", "final_output"]
            first.answer(call("search", words="whales", sources=[{"title": "Moby-Dick", "year": 1851}]))

            second = await provider.called()
            assert (second.body["model"], second.body["temperature"]) == ("gpt-4.1-mini", 1.0)
            assert second.messages[-1]["content"] == "1 sources on whales"
            await post(address, f"/api/steer/{task_id}", [{"role": "user", "content": "Be brief."}])  # type: ignore[arg-type]
            second.answer(call("check", fact="Whales sing."))

            third = await provider.called()
            assert [message["content"] for message in third.messages[-2:]] == ["It is true.", "Be brief."]
            assert offered(third.body) == ["search", "check", "print_it", "final_output"]
            third.answer(call("final_output", headline="They sing", words=300))

            heard = await hear(subscriber, is_over(task_id), 60)
            raw = await hear(listener, is_over(task_id), 60)
        types = [update["event_type"] for update in heard]
        assert types == [update["event_type"] for update in raw]
        assert types.count("desk_at_work") == 3 and "run_steering_applied" in types
        archive = [update for update in heard if update["event_type"].startswith("progress_update_archive")]
        assert [update["event_type"].rsplit("_")[-1] for update in archive] == ["started", "completed"]
        assert archive[1]["data"] == {"args": ["whales"], "kwargs": {}, "result": "WHALES"}
        [output] = [update for update in heard if update["event_type"] == "agent_output"]
        assert output["data"] == {"headline": "They sing", "words": 300}

        assert await get(address, f"/api/tasks/{task_id}") == {
            "status": "completed", "done": True, "active": False, "agent": "desk", "known": True, "owner": "ann",
            "output": {"headline": "They sing", "words": 300}, "sources": ["Moby-Dick"], "retries": 0,
        }  # fmt: skip

        async with socket(address, "/ws/bob") as subscriber:
            other = (await post(address, "/api/enqueue", asked | {"user_id": "bob"}))["task_id"]
            abandoned = await provider.called()
            assert await post(address, f"/api/cancel/{other}", {}) == {"success": True}
            await abandoned.abandoned()
            assert (await hear(subscriber, is_over(other), 60))[-1]["event_type"] == "run_cancelled"
        assert (await post(address, f"/api/cancel/{task_id}", {}))["success"] is False
        async with redis.asyncio.Redis.from_url(own_valkey.url) as server:
            for key in await server.keys("*"):
                assert secret.encode() not in (await server.dump(key) or b"")
    assert secret not in workers.read_text() + web.read_text()


def offered(body: dict[str, Any]) -> list[str]:
    """The names of the tools that the model may call."""
    return [tool["function"]["name"] for tool in body["tools"]]


def is_over(task_id: str) -> Any:
    """Whether the last update is the end of the task."""
    ends = ("run_completed", "run_failed", "run_cancelled")
    return lambda heard: bool(heard) and heard[-1].get("task_id") == task_id and heard[-1]["event_type"] in ends
