"""Chapter A of PROMISES.md: agents of one's own classes, A08 to A10, and A12. Real: Valkey, HTTP, the openai client.
Fake: the language model."""

from typing import Any

import pytest
from llmock.pytest_plugin import LLMock
from openai.types.chat import ChatCompletion, ChatCompletionMessageToolCall

from factorial import (
    AgentContext,
    BaseAgent,
    FunctionToolActionResult,
    TurnCompletion,
    gpt_41,
    publish_progress,
    retry,
)
from tests.harness import System


def look_up(word: str) -> str:
    """Look a word up."""
    return f"{word}: a word"


async def run(system: System, agent: BaseAgent[Any], query: str = "question") -> tuple[str, dict[str, Any]]:
    """Have the agent run one task: its id, and what is stored of it."""
    await system.start(agent)
    task_id = await system.submit(agent, query)
    return task_id, await system.ended(task_id, 30)


class CustomAgent(BaseAgent[AgentContext]):
    """The document's example."""

    async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> ChatCompletion:
        """Override to customize LLM completion"""
        print(f"Making completion request for turn {agent_ctx.turn}")
        response = await super().completion(agent_ctx, messages)
        print(f"Received response with {len(response.choices)} choices")
        return response

    async def tool_action(
        self, tool_call: ChatCompletionMessageToolCall, agent_ctx: AgentContext
    ) -> FunctionToolActionResult:
        """Override to customize tool execution"""
        print(f"Executing tool: {tool_call.function.name}")
        return await super().tool_action(tool_call, agent_ctx)

    async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
        """Override to customize turn logic"""
        execution_ctx = self.get_execution_context()
        assert execution_ctx.task_id
        if agent_ctx.turn > 5:
            # Force completion after 5 turns
            return TurnCompletion(is_done=True, context=agent_ctx, output="Conversation limit reached")
        return await super().run_turn(agent_ctx)


async def test_spec_A08_A09_A10_an_agent_of_ones_own_class(
    system: System, llmock: LLMock, capsys: pytest.CaptureFixture[str]
) -> None:
    llmock.call_tool("look_up", {"word": "run"}).reply("It is a word.")
    _, data = await run(system, CustomAgent(tools=[look_up], model=gpt_41))
    assert data["payload"]["output"] == "It is a word."
    printed = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("{")]
    assert printed == [
        "Making completion request for turn 0",
        "Received response with 1 choices",
        "Executing tool: look_up",
        "Making completion request for turn 1",
        "Received response with 1 choices",
    ]


async def test_spec_A10_run_turn_may_end_the_run(system: System, llmock: LLMock) -> None:
    for number in range(6):
        llmock.call_tool("look_up", {"word": f"word {number}"})
    task_id, data = await run(system, CustomAgent(tools=[look_up], model=gpt_41))
    assert (data["status"], data["payload"]["output"]) == ("completed", "Conversation limit reached")
    assert len(llmock.requests) == 6
    output = await system.event(task_id, "agent_output")
    assert (output["turn"], output["data"]) == (6, "Conversation limit reached")


async def test_spec_A08_completion_may_send_other_messages_and_change_the_answer(
    system: System, llmock: LLMock
) -> None:
    class Translating(BaseAgent[AgentContext]):
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> ChatCompletion:
            response = await super().completion(agent_ctx, [*messages, {"role": "system", "content": "In capitals."}])
            answer = response.choices[0].message
            answer.content = (answer.content or "").upper()
            return response

    llmock.reply("quiet")
    _, data = await run(system, Translating(name="translating", model=gpt_41, instructions="Hello."))
    assert [message["content"] for message in llmock.last_request.body["messages"]] == [
        "Hello.", "question", "In capitals.",
    ]  # fmt: skip
    assert data["payload"]["output"] == "QUIET"
    assert data["payload"]["messages"] == [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": "QUIET"},
    ]


async def test_spec_A08_completion_may_ask_nobody(system: System, llmock: LLMock) -> None:
    class Canned(BaseAgent[AgentContext]):
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> ChatCompletion:
            message = {"role": "assistant", "content": f"You said {messages[-1]['content']!r}."}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            return ChatCompletion.model_validate(
                {"id": "1", "object": "chat.completion", "created": 0, "model": "canned", "choices": [choice]}
            )

    _, data = await run(system, Canned(name="canned"), "hello")
    assert data["payload"]["output"] == "You said 'hello'."
    assert not llmock.requests


async def test_spec_A09_tool_action_may_answer_itself(system: System, llmock: LLMock) -> None:
    class Guarded(BaseAgent[AgentContext]):
        async def tool_action(
            self, tool_call: ChatCompletionMessageToolCall, agent_ctx: AgentContext
        ) -> FunctionToolActionResult:
            if "secret" in tool_call.function.arguments:
                return FunctionToolActionResult(
                    tool_call_id=tool_call.id, output_str="That is not for you.", output_data={"refused": True}
                )
            return await super().tool_action(tool_call, agent_ctx)

    llmock.call_tool("look_up", {"word": "secret"}).call_tool("look_up", {"word": "public"}).reply("Fine.")
    task_id, data = await run(system, Guarded(name="guarded", tools=[look_up], model=gpt_41))
    results = [message["content"] for message in data["payload"]["messages"] if message["role"] == "tool"]
    assert results == ["That is not for you.", "public: a word"]
    published = [
        event["data"]["result"]["output_data"]
        for event in await system.events(task_id)
        if event["event_type"] == "progress_update_tool_action_completed"
    ]
    assert published == [{"refused": True}, "public: a word"]


async def test_spec_A10_run_turn_may_be_all_there_is(system: System) -> None:
    """No model: the runs of such an agent are durable all the same, turn by turn."""

    class Counter(AgentContext):
        count: int = 0

    class Counting(BaseAgent[Counter]):
        async def run_turn(self, agent_ctx: Counter) -> TurnCompletion[Counter]:
            agent_ctx.count += 1
            return TurnCompletion(is_done=agent_ctx.count == 3, context=agent_ctx, output=agent_ctx.count)

    agent = Counting(name="counting", context_class=Counter)
    await system.start(agent)
    task_id = await system.submit(agent, Counter(query="count"))
    data = await system.ended(task_id)
    assert (data["payload"]["output"], data["payload"]["count"], data["payload"]["turn"]) == (3, 3, 3)
    turns = [
        event["turn"]
        for event in await system.events(task_id)
        if event["event_type"] == "progress_update_run_turn_completed"
    ]
    assert len(turns) == 3


# -- A12


class RobustAgent(BaseAgent[AgentContext]):
    """The document's example; `fails` makes its method fail."""

    fails = 0

    @retry(max_attempts=5, delay=0.01, exponential_base=1.5)
    async def custom_method(self, data: str) -> str:
        """This method will retry up to 5 times on failure"""
        self.fails -= 1
        if self.fails >= 0:
            raise OSError("no route")
        return f"processed {data}"

    @publish_progress(func_name="data_processing")
    async def process_data(self, agent_ctx: AgentContext) -> str:
        """This method publishes progress events automatically"""
        return await self.custom_method("some data")

    @publish_progress
    async def tidy_up(self, agent_ctx: AgentContext, corner: str) -> None:
        """Published under the method's name."""

    async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
        """Process and tidy."""
        output = await self.process_data(agent_ctx)
        await self.tidy_up(agent_ctx, corner="left")
        return TurnCompletion(is_done=True, context=agent_ctx, output=output)


async def test_spec_A12_publish_progress_publishes_around_a_method(system: System) -> None:
    agent = RobustAgent(name="robust")
    agent.fails = 4
    task_id, data = await run(system, agent)
    assert data["payload"]["output"] == "processed some data"
    assert await system.types(task_id, progress=True) == [
        "run_enqueued",
        "run_started",
        "progress_update_run_turn_started",
        "progress_update_data_processing_started",
        "progress_update_data_processing_completed",
        "progress_update_tidy_up_started",
        "progress_update_tidy_up_completed",
        "progress_update_run_turn_completed",
        "agent_output",
        "run_completed",
    ]
    completed = await system.event(task_id, "progress_update_data_processing_completed")
    assert completed["data"]["result"] == "processed some data"
    assert completed["data"]["context"]["query"] == "question" and "error" not in completed
    started = await system.event(task_id, "progress_update_tidy_up_started")
    assert (started["data"]["args"], started["data"]["kwargs"]) == ([], {"corner": "left"})


async def test_spec_A12_a_failure_is_published_and_goes_on_its_way(system: System) -> None:
    agent = RobustAgent(name="robust")
    agent.fails = 5
    task_id, data = await run(system, agent)
    assert data["status"] == "completed"
    failed = await system.event(task_id, "progress_update_data_processing_failed")
    assert failed["error"] == "OSError: no route"
    assert (await system.event(task_id, "task_failed"))["error"] == "OSError: no route"
