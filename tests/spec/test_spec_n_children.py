"""Chapter N of PROMISES.md: what a parent's model reads of its children, and what a payload may be. Real: Valkey, HTTP,
the openai client. Fake: the language model."""

import asyncio
from typing import Any

import pytest
from pydantic import Field

from factorial import (
    Agent,
    AgentContext,
    BaseAgent,
    Batch,
    ExecutionContext,
    FatalAgentError,
    Task,
    TurnCompletion,
    forking_tool,
    gpt_41,
)
from factorial.errors import ContextError, TaskError
from factorial.testing import ScriptedModel, call, say
from factorial.utils import BaseModel
from tests.harness import System
from tests.spec.provider import Provider
from tests.support import wait_until


class Findings(BaseModel):
    """A child's structured output."""

    findings: list[str]


def reply(messages: Any) -> Any:
    """What a child says: it depends on what it is asked."""
    match messages[-1]["content"]:
        case "fail":
            raise FatalAgentError("no <such> thing")
        case "hang":
            return call("wait")
    return say("cats & dogs <b>sleep</b>")


async def wait() -> None:
    """Wait for ever."""
    await asyncio.Event().wait()


talker = Agent(name="talker", model=ScriptedModel(reply), tools=[wait])
structured = Agent(
    name="structured", model=ScriptedModel([call("final_output", findings=["a < b", "c"])]), output_type=Findings
)


class Research:
    """The forking tool of the page *subagents*."""

    def __init__(self, message: str = "", timeout: float = 60) -> None:
        self.batches: list[Batch] = []

        @forking_tool(timeout=timeout)
        async def research(queries: list[str], execution_ctx: ExecutionContext) -> Any:
            """Spawn a subagent for each query, and wait for the results."""
            payloads = [AgentContext(query=query) for query in queries]
            batch = await execution_ctx.spawn_child_tasks(talker, payloads)
            one = await execution_ctx.spawn_child_task(structured, AgentContext(query="?"))
            self.batches.append(Batch(batch.id, [*batch.task_ids, one]))
            return (message, self.batches[-1]) if message else self.batches[-1]

        self.tool = research

    @property
    def ids(self) -> list[str]:
        """The children, in the order of spawning."""
        return self.batches[0].task_ids


async def started(system: System, *agents: BaseAgent[Any]) -> None:
    """Start a process for each."""
    for agent in (talker, structured, *agents):
        await system.start(agent)


@pytest.mark.parametrize("message", ["", "I have asked <them>."])
async def test_spec_N04_the_children_are_shown_as_text(system: System, provider: Provider, message: str) -> None:
    provider.replies = [call("research", queries=["cats", "fail", "hang", "hang"]), "Done."]
    research = Research(message, timeout=4)
    agent = Agent(name="parent", tools=[research.tool], model=gpt_41)
    await started(system, agent)
    task_id = await system.submit(agent)
    await wait_until(lambda: research.batches)
    await system.reaches(research.ids[3], "processing")
    await system.orchestrator.cancel_task(research.ids[3])
    data = await system.ended(task_id)
    cats, fail, late, cancelled, typed = research.ids
    assert (
        data["payload"]["messages"][2]["content"]
        == (f"{message}\n" if message else "")
        + f"""\
<sub_task_results>
<sub_task_result sub_task_id="{cats}"> cats &amp; dogs &lt;b&gt;sleep&lt;/b&gt; </sub_task_result>
<sub_task_error sub_task_id="{fail}"> no &lt;such&gt; thing </sub_task_error>
<sub_task_error sub_task_id="{late}"> the task had not ended within 4 seconds, and was cancelled </sub_task_error>
<sub_task_error sub_task_id="{cancelled}"> the task was cancelled </sub_task_error>
<sub_task_result sub_task_id="{typed}"> {{"findings":["a &lt; b","c"]}} </sub_task_result>
</sub_task_results>"""
    )
    [_, second] = provider.calls
    assert [message["role"] for message in second.messages] == ["user", "assistant", "tool"]


async def test_spec_N04_two_forking_calls_are_answered_each_with_its_own_children(
    system: System, provider: Provider
) -> None:
    from factorial.testing import calls

    provider.replies = [calls(call("research", queries=["x"]), call("research", queries=[])), "Done."]
    research = Research()
    agent = Agent(name="parent", tools=[research.tool], model=gpt_41)
    await started(system, agent)
    messages = (await system.ended(await system.submit(agent)))["payload"]["messages"]
    for position, batch in zip((2, 3), sorted(research.batches, key=lambda batch: -len(batch.task_ids)), strict=True):
        assert [f'sub_task_id="{child}"' in messages[position]["content"] for child in batch.task_ids]
        assert messages[position]["content"].count("sub_task_id=") == len(batch.task_ids)


async def test_spec_N04_the_method_may_be_overridden_to_return_the_text(system: System, provider: Provider) -> None:
    seen: list[Any] = []

    class Parent(Agent):
        async def process_child_task_results(self, agent_ctx: AgentContext, child_task_results: list[Any]) -> str:
            seen.extend(child_task_results)
            agent_ctx.counted = len(child_task_results)  # type: ignore[attr-defined]
            return f"{len(child_task_results)} have ended"

    provider.replies = [call("research", queries=["cats", "fail"]), "Done."]
    research = Research("asked")
    agent = Parent(name="parent", tools=[research.tool], model=gpt_41)
    await started(system, agent)
    payload = (await system.ended(await system.submit(agent)))["payload"]
    assert (payload["messages"][2]["content"], payload["counted"]) == ("asked\n3 have ended", 3)
    assert [task_id for task_id, _ in seen] == research.ids
    output, error, typed = (end for _, end in seen)
    assert (output, typed) == ("cats & dogs <b>sleep</b>", {"findings": ["a < b", "c"]})
    assert isinstance(error, TaskError) and (error.task_id, str(error)) == (research.ids[1], "no <such> thing")


async def test_spec_N04_an_override_may_change_what_the_original_has_added(system: System, provider: Provider) -> None:
    """As programs of 0.1.31 do it: a plain method that ends with the context."""

    class Parent(Agent):
        def process_child_task_results(
            self, agent_ctx: AgentContext, child_task_results: list[Any]
        ) -> TurnCompletion[AgentContext]:
            completion = super().process_child_task_results(agent_ctx, child_task_results)
            assert isinstance(completion, TurnCompletion) and not completion.is_done
            completion.context.messages[-1]["content"] += "\nBe brief."
            return completion

    provider.replies = [call("research", queries=[]), "Done."]
    research = Research()
    agent = Parent(name="parent", tools=[research.tool], model=gpt_41)
    await started(system, agent)
    messages = (await system.ended(await system.submit(agent)))["payload"]["messages"]
    assert messages[2]["content"].endswith("</sub_task_results>\nBe brief.") and len(messages) == 4


async def test_spec_N04_an_override_that_returns_something_else_fails_the_run(
    system: System, provider: Provider
) -> None:
    class Parent(Agent):
        def process_child_task_results(self, agent_ctx: AgentContext, child_task_results: list[Any]) -> Any:
            return None

    provider.replies = [call("research", queries=[])]
    agent = Parent(name="parent", tools=[Research().tool], model=gpt_41)
    await started(system, agent)
    data = await system.ended(await system.submit(agent))
    assert data["status"] == "failed" and data["retries"] == 0
    assert "Parent.process_child_task_results returned NoneType: return the text" in data["error"]


# -- N08: payloads


class Code(AgentContext):
    """The context of an agent that works on a file."""

    code: str = "pass"
    edits: list[str] = Field(default_factory=list)
    priority: int = Field(default=1, ge=0)


class Strict(AgentContext):
    """A context that cannot be made without its file."""

    file: str


coder = BaseAgent[Code](name="coder", model=ScriptedModel([say("done")]), context_class=Code)
strict = BaseAgent[Strict](name="strict", model=ScriptedModel([say("done")]), context_class=Strict)
PLAIN: dict[str, Any] = {
    "query": "fix it",
    "messages": [{"role": "user", "content": "hello"}],
    "code": "x = 1",
    "colour": "red",
}


async def test_spec_N08_a_plain_payload_becomes_one_of_the_agents_class(system: System) -> None:
    plain: Any = AgentContext(**PLAIN)
    task = coder.create_task(owner_id="owner", payload=plain)
    assert (type(task.payload), task.payload.code, task.payload.edits) == (Code, "x = 1", [])
    await system.start(coder)
    made = Task.create(owner_id="owner", agent="coder", payload=plain)
    stored = [
        await system.orchestrator.enqueue_task(agent=coder, task=task),
        await system.orchestrator.enqueue_task(agent=coder, owner_id="owner", payload=plain),
        await system.orchestrator.enqueue_task(agent=coder, task=made),
    ]
    assert stored[2].id == made.id
    for one in stored:
        payload = (await system.ended(one.id))["payload"]
        assert (payload["code"], payload["edits"], payload["priority"], payload["colour"]) == ("x = 1", [], 1, "red")
        assert [message["content"] for message in payload["messages"]] == ["hello", "fix it", "done"]
    inline = await coder.run_inline(plain)
    assert (type(inline.context), inline.context.code) == (Code, "x = 1")


@pytest.mark.parametrize(
    ("agent", "payload", "named"),
    [
        (strict, AgentContext(query="?"), "Strict, which cannot be made of an AgentContext: file: Field required"),
        (
            coder,
            AgentContext.from_dict({"query": "?", "priority": -1}),
            "priority: Input should be greater than or equal to 0",
        ),
        (coder, Strict(query="?", file="f"), "works on Code, and the payload is a Strict"),
        (coder, {"query": "?"}, "works on Code, and the payload is a dict"),
    ],
)
async def test_spec_N08_what_cannot_become_one_is_refused_with_the_field(
    system: System, agent: BaseAgent[Any], payload: Any, named: str
) -> None:
    with pytest.raises(ContextError, match=named):
        await system.orchestrator.enqueue_task(agent=agent, owner_id="owner", payload=payload)
    if isinstance(payload, AgentContext):
        made = Task.create(owner_id="owner", agent=agent.name, payload=payload)
        with pytest.raises(ContextError, match=named):
            await system.orchestrator.enqueue_task(agent=agent, task=made)
    assert await system.events() == []


async def test_spec_N08_the_same_holds_for_children(system: System, provider: Provider) -> None:
    spawned: list[str] = []

    @forking_tool(timeout=60)
    async def fix(execution_ctx: ExecutionContext) -> list[str]:
        """Fix it."""
        payloads: list[Any] = [AgentContext(**PLAIN), Code(query="b")]
        batch = await execution_ctx.spawn_child_tasks(coder, payloads)
        spawned.extend(batch.task_ids)
        return batch.task_ids

    provider.replies = [call("fix"), "Done."]
    agent = Agent(name="parent", tools=[fix], model=gpt_41)
    await system.start(agent)
    await system.start(coder)
    await system.ended(await system.submit(agent))
    assert [(await system.data(child))["payload"]["code"] for child in spawned] == ["x = 1", "pass"]
