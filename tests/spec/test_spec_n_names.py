"""Chapter N of PROMISES.md: the names of nfactorial 0.1.31. Real: Valkey, HTTP, the openai client. Fake: the language
model, and in the tests of `agent.client` the client."""

import importlib
import inspect
import json
from dataclasses import replace
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

import factorial
from factorial import (
    Agent,
    AgentContext,
    AgentEvent,
    BaseAgent,
    MultiClient,
    Provider,
    Task,
    TaskStatus,
    TurnCompletion,
    ai_gateway,
    claude_45_sonnet,
    fallback_models,
    fireworks_kimi_k2,
    gpt_41,
    gpt_41_mini,
    retry,
)
from factorial.errors import ConfigError, FactorialError, RetryableError
from factorial.exceptions import InvalidLLMResponseError
from factorial.models import check_model
from factorial.queue.task import TaskMetadata
from factorial.testing import ScriptedModel, say
from tests.harness import System
from tests.spec.provider import Provider as ModelServer

NAMES = {
    "factorial": """ai_gateway gpt_52 claude_45_opus claude_45_sonnet claude_45_haiku grok_4 fireworks_kimi_k2
        fireworks_qwen_3_235b fireworks_qwen_3_coder_480b fallback_models MODELS Provider AgentTool AgentToolAction
        AgentToolActionResult tool deferred_tool forking_tool""",
    "factorial.tools": "AgentTool AgentToolAction AgentToolActionResult tool deferred_tool forking_tool",
    "factorial.llms": """Model MultiClient Provider MODELS fallback_models ai_gateway gpt_5 gpt_5_mini gpt_5_nano gpt_52
        gpt_41 gpt_41_mini gpt_41_nano o3 o4_mini grok_4 grok_3 grok_3_mini claude_45_opus claude_45_sonnet
        claude_45_haiku claude_4_opus claude_4_sonnet claude_37_sonnet claude_35_sonnet claude_35_haiku
        fireworks_kimi_k2 fireworks_qwen_3_235b fireworks_qwen_3_coder_480b""",
    "factorial.exceptions": """TaskNotFoundError InvalidTaskIdError InactiveTaskError CorruptedTaskDataError
        BatchNotFoundError RetryableError RateLimitError InvalidLLMResponseError FatalAgentError""",
}


@pytest.mark.parametrize("module", NAMES)
def test_spec_N12_every_name_can_be_imported(module: str) -> None:
    found = importlib.import_module(module)
    assert [name for name in NAMES[module].split() if not hasattr(found, name)] == []
    if module in ("factorial", "factorial.tools", "factorial.llms"):
        assert set(NAMES[module].split()) <= set(found.__all__)


def test_spec_N12_the_tools_have_two_names() -> None:
    assert factorial.AgentTool is factorial.FunctionTool
    assert factorial.AgentToolAction is factorial.FunctionToolAction
    assert factorial.AgentToolActionResult is factorial.FunctionToolActionResult


def test_spec_N12_a_model_has_its_dashed_name() -> None:
    shown = {
        "gpt_41": "gpt-4.1", "gpt_41_nano": "gpt-4.1-nano", "gpt_52": "gpt-5.2", "o4_mini": "o4-mini",
        "claude_45_sonnet": "claude-4.5-sonnet", "claude_4_opus": "claude-4-opus",
        "claude_35_haiku": "claude-3.5-haiku", "grok_3_mini": "grok-3-mini",
        "fireworks_kimi_k2": "kimi-k2-instruct", "fireworks_qwen_3_235b": "qwen-3-235b",
    }  # fmt: skip
    for identifier, name in shown.items():
        model = getattr(factorial, identifier)
        assert model.name == name and factorial.MODELS[name] is model
        assert factorial.find_model(name) is factorial.find_model(identifier) is model
    values = {"OPENAI": "openai", "ANTHROPIC": "anthropic", "XAI": "xai", "FIREWORKS": "fireworks"}
    for member, value in (values | {"AI_GATEWAY": "ai_gateway"}).items():
        assert getattr(Provider, member).value == value
    assert gpt_41.provider == Provider.OPENAI and fireworks_kimi_k2.provider == Provider.FIREWORKS


async def test_spec_N12_the_gateway_is_asked_for_provider_and_model(
    system: System, provider: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = ai_gateway(claude_45_sonnet)
    assert (through.provider, through.context_window) == (Provider.AI_GATEWAY, claude_45_sonnet.context_window)
    assert through.provider.url == "https://ai-gateway.vercel.sh/v1" and ai_gateway(through) is through
    with pytest.raises(ConfigError, match="ai_gateway: 'gpt-5' is not a Model"):
        ai_gateway("gpt-5")  # type: ignore[arg-type]
    monkeypatch.delenv("AI_GATEWAY_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="AI_GATEWAY_API_KEY"):
        check_model(through)
    client = MultiClient(ai_gateway_api_key="key-of-the-gateway", fireworks_api_key="key-of-fireworks")
    check_model(client.with_keys(through))
    check_model(client.with_keys(fireworks_kimi_k2))
    monkeypatch.setenv("AI_GATEWAY_API_KEY", "key-of-the-gateway")
    here = replace(through, provider=replace(through.provider, base_url=provider.url))
    provider.replies = ["hello"]
    agent = Agent(name="a", model=here)
    await system.start(agent)
    assert (await system.ended(await system.submit(agent)))["payload"]["output"] == "hello"
    [request] = provider.calls
    assert request.body["model"] == f"anthropic/{claude_45_sonnet.provider_model_id}"
    assert "authorization: bearer key-of-the-gateway" in request.head


def test_spec_N12_statuses_and_metadata() -> None:
    words = """queued processing active completed failed paused cancelled pending_tool_results pending_child_tasks
        backoff"""
    assert {status.value for status in TaskStatus} == set(words.split())
    assert all(TaskStatus[word.upper()].value == word for word in words.split())
    metadata = TaskMetadata(owner_id="ann", max_turns=7)
    assert TaskMetadata.from_dict(metadata.to_dict()) == TaskMetadata.from_json(metadata.to_json()) == metadata
    assert json.loads(metadata.to_json())["max_turns"] == 7
    task = Task.create(owner_id="ann", agent="a", payload=AgentContext(query="?"), max_turns=10)
    assert task.metadata.max_turns == 10
    assert Task.from_json(task.to_json(), AgentContext).metadata == task.metadata


async def test_spec_N12_a_context_says_which_attempt_this_is(system: System) -> None:
    """A function of the context may choose another model for each attempt. The number is not stored."""
    seen: list[int] = []

    class Unsteady(Agent):
        @retry(max_attempts=2, delay=0.0, jitter=False)
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            seen.append(agent_ctx.attempt)
            if len(seen) < 4:
                raise RetryableError("not yet")
            return TurnCompletion(is_done=True, context=agent_ctx, output=agent_ctx.attempt)

    agent = Unsteady(name="unsteady", model=ScriptedModel([]))
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert (data["status"], seen, data["payload"]["output"]) == ("completed", [0, 1, 1, 2], 2)
    assert "attempt" not in data["payload"] and "attempt" not in AgentContext(query="?", attempt=3).to_dict()


async def test_spec_N12_an_attempt_of_the_users_own_is_a_field_like_any_other(system: System) -> None:
    class Exam(AgentContext):
        attempt: int = 7

    seen: list[int] = []

    class Examiner(BaseAgent[Exam]):
        async def run_turn(self, agent_ctx: Exam) -> TurnCompletion[Exam]:
            seen.append(agent_ctx.attempt)
            agent_ctx.attempt += 1
            return TurnCompletion(is_done=len(seen) == 2, context=agent_ctx)

    agent = Examiner(name="examiner", model=ScriptedModel([]), context_class=Exam)
    await system.start(agent)
    data = await system.ended(await system.submit(agent, Exam(query="?")))
    assert (seen, data["payload"]["attempt"]) == ([7, 8], 9)


class FakeClient:
    """A client as a test of 0.1.31 has one: it answers from a list."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    async def completion(
        self,
        model: Any,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        temperature: float | None = None,
        max_completion_tokens: int | None = None,
        tool_choice: Any = None,
        parallel_tool_calls: bool | None = None,
    ) -> ChatCompletion:
        """The next answer."""
        self.asked.append({"model": model.name, "messages": messages, "tools": tools, "temperature": temperature})
        message = {"role": "assistant", "content": self.answers.pop(0)}
        return ChatCompletion.model_validate({
            "id": "1", "created": 0, "model": model.name, "object": "chat.completion",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        })  # fmt: skip


async def test_spec_N12_a_client_may_be_any_object_with_completion(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    agent = Agent(name="a", instructions="Be brief.", model=gpt_41, tools=[len_of])
    client = agent.client = FakeClient("hello")
    await system.start(agent)
    assert (await system.ended(await system.submit(agent, "hi")))["payload"]["output"] == "hello"
    [asked] = client.asked
    assert asked["model"] == "gpt-4.1" and asked["tools"][0]["function"]["name"] == "len_of"
    assert [message["content"] for message in asked["messages"]] == ["Be brief.", "hi"]
    by_constructor = Agent(name="b", model=gpt_41_mini, client=FakeClient("again"))
    assert (await by_constructor.run_inline(AgentContext(query="hi"))).output == "again"

    class Logged(MultiClient):
        async def completion(self, *args: Any, **kwargs: Any) -> ChatCompletion:
            return await FakeClient("logged").completion(*args, **kwargs)

    assert (
        await Agent(name="c", model=gpt_41, client=Logged()).run_inline(AgentContext(query="hi"))
    ).output == "logged"


def len_of(text: str) -> int:
    """The length of a text."""
    return len(text)


async def test_spec_N12_steering_with_no_message_does_nothing(system: System) -> None:
    agent = Agent(name="a", model=ScriptedModel([say("hello")]))
    task_id = await system.submit(agent)
    before = await system.events()
    await system.orchestrator.steer_task(task_id, [])
    assert await system.events() == before


async def test_spec_N12_an_event_handler_may_be_annotated_with_agent_events() -> None:
    heard: list[tuple[str, int | None]] = []

    async def handle(event: AgentEvent) -> None:
        heard.append((event.event_type, event.turn))
        assert event.error is None or isinstance(event.error, str)

    attempts: list[int] = []

    def reply(messages: Any) -> Any:
        attempts.append(1)
        if len(attempts) == 1:
            raise RetryableError("once more")
        return say("hello")

    agent = Agent(name="a", model=ScriptedModel(reply))
    policy = factorial.AgentWorkerConfig(retry_delay=0.01)
    assert (await agent.run_inline(AgentContext(query="hi"), handle, worker_config=policy)).output == "hello"
    assert {"task_failed", "task_retried", "agent_output"} <= {event_type for event_type, _ in heard}


def test_spec_N12_errors_are_in_the_tree() -> None:
    from factorial.exceptions import BatchNotFoundError

    assert issubclass(InvalidLLMResponseError, RetryableError) and issubclass(BatchNotFoundError, FactorialError)
    assert BatchNotFoundError("b1").batch_id == "b1" and "'b1'" in str(BatchNotFoundError("b1"))
    names = list(inspect.signature(MultiClient.__init__).parameters)[1:6]
    assert names == [
        "openai_api_key", "xai_api_key", "anthropic_api_key", "fireworks_api_key", "ai_gateway_api_key",
    ]  # fmt: skip
    assert fallback_models(gpt_41, claude_45_sonnet).models == (gpt_41, claude_45_sonnet)
