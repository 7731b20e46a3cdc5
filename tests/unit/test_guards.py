"""Guards see each step before and after it is taken. Pure: inline runs and a scripted model, no server."""

from typing import Any

import pytest

from factorial import Agent, AgentContext, AgentWorkerConfig, ExecutionContext, FatalAgentError, RetryableError
from factorial.agent.lifecycle.guard import Guard, StepCall, StepKind
from factorial.errors import ConfigError
from factorial.testing import ScriptedModel, call, say
from factorial.tools import FunctionToolActionResult

QUICK = AgentWorkerConfig(retry_delay=0.001, max_retry_delay=0.001)


class Budget(Guard):
    """Allows so many model calls."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    async def before(self, call: StepCall) -> None:
        if call.kind is StepKind.COMPLETION:
            self.left -= 1
            if self.left < 0:
                raise FatalAgentError("the budget of model calls is spent")


class Spans(Guard):
    """Records when each step begins and ends."""

    def __init__(self) -> None:
        self.spans: list[str] = []

    async def before(self, call: StepCall) -> None:
        self.spans.append(f"begin {call.key}")

    async def after(self, call: StepCall) -> None:
        self.spans.append(f"end {call.key}" if call.error is None else f"error {call.key}: {call.error}")


def weather(city: str) -> str:
    """Say how the weather is."""
    return f"sunny in {city}"


def agent_with(*guards: Guard, tools: Any = (weather,), **options: Any) -> Agent:
    script = ScriptedModel([call("weather", city="Oslo"), say("Sunny.")])
    agent = Agent(name="guarded", tools=list(tools), model=script, **options)
    agent.guards = guards
    return agent


async def test_a_budget_is_a_guard_of_a_few_lines() -> None:
    enough, too_little = Budget(2), Budget(1)
    completion = await agent_with(enough).run_inline(AgentContext(query="go"))
    assert (completion.output, enough.left) == ("Sunny.", 0)
    with pytest.raises(FatalAgentError, match="the budget of model calls is spent"):
        await agent_with(too_little).run_inline(AgentContext(query="go"))


async def test_a_span_recorder_is_a_guard_of_a_few_lines() -> None:
    async def greet(agent_ctx: AgentContext, execution_ctx: ExecutionContext) -> None:
        await execution_ctx.step("greet", lambda: "hello")

    spans = Spans()
    await agent_with(spans, on_run_start=greet).run_inline(AgentContext(query="go"))
    tool = next(span for span in spans.spans if "tool:" in span).removeprefix("begin ")
    assert spans.spans == [
        "begin run_start", "begin run_start/step:greet", "end run_start/step:greet", "end run_start",
        "begin completion", "end completion", f"begin {tool}", f"end {tool}", "begin completion", "end completion",
    ]  # fmt: skip


async def test_a_guard_sees_an_error_and_later_guards_are_asked_first_when_the_step_is_over() -> None:
    def weather(city: str) -> str:
        """Fail for good."""
        raise FatalAgentError("no instruments")

    order: list[str] = []

    class Named(Guard):
        def __init__(self, name: str) -> None:
            self.name = name

        async def before(self, call: StepCall) -> None:
            if call.kind is StepKind.TOOL_ACTION:
                order.append(f"before {self.name}")

        async def after(self, call: StepCall) -> None:
            if call.kind is StepKind.TOOL_ACTION:
                order.append(f"after {self.name}: {call.error}")

    agent = agent_with(Named("one"), Named("two"), tools=[weather])
    with pytest.raises(FatalAgentError):
        await agent.run_inline(AgentContext(query="go"))
    assert order == ["before one", "before two", "after two: no instruments", "after one: no instruments"]


async def test_a_guard_may_replace_a_step_and_the_call_is_not_made() -> None:
    called = []

    def weather(city: str) -> str:
        """Never called."""
        called.append(city)
        return "called"

    class Canned(Guard):
        async def before(self, call: StepCall) -> None:
            if call.kind is StepKind.TOOL_ACTION:
                call.result = FunctionToolActionResult(output_str="canned", tool_call_id=call.about.id)

    completion = await agent_with(Canned(), tools=[weather]).run_inline(AgentContext(query="go"))
    assert called == []
    assert [message["content"] for message in completion.context.messages if message["role"] == "tool"] == ["canned"]


async def test_a_step_that_is_recalled_is_not_guarded_again() -> None:
    tries = []

    def weather(city: str) -> str:
        """Fail at first."""
        tries.append(city)
        if len(tries) == 1:
            raise RetryableError("fog")
        return "sunny"

    spans = Spans()
    await agent_with(spans, tools=[weather]).run_inline(AgentContext(query="go"), worker_config=QUICK)
    assert spans.spans.count("begin completion") == 2, "one for each turn, none for the second attempt"
    assert [span for span in spans.spans if span.startswith("error")] == [
        f"error {span.removeprefix('begin ')}: fog" for span in spans.spans if "tool:" in span
    ][:1]


async def test_every_guard_is_asked_after_a_step_whatever_another_one_raises() -> None:
    class Lock(Guard):
        held = 0

        async def before(self, call: StepCall) -> None:
            self.held += 1

        async def after(self, call: StepCall) -> None:
            self.held -= 1

    class Broken(Guard):
        async def after(self, call: StepCall) -> None:
            raise FatalAgentError("broken")

    lock = Lock()
    with pytest.raises(FatalAgentError, match="broken"):
        await agent_with(lock, Broken()).run_inline(AgentContext(query="go"))
    assert lock.held == 0


async def test_what_a_guard_puts_in_place_of_a_step_must_be_of_its_type() -> None:
    class Wrong(Guard):
        async def before(self, call: StepCall) -> None:
            call.result = "text"

    with pytest.raises(FatalAgentError, match="completion returned str: return a ChatCompletion"):
        await agent_with(Wrong()).run_inline(AgentContext(query="go"))


@pytest.mark.parametrize("guards", [object(), [object()], Guard, Guard(), None, (guard for guard in [Guard()])])
async def test_what_is_not_a_list_of_guards_is_refused(guards: Any) -> None:
    agent = agent_with()
    agent.guards = guards
    with pytest.raises(ConfigError, match="give a list of objects that extend Guard"):
        await agent.run_inline(AgentContext(query="go"))
