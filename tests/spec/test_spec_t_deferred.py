"""Chapter T of PROMISES.md: tools whose results come from outside. Real: Valkey, HTTP, the openai client. Fake: the
language model."""

import asyncio
from typing import Any

import pytest

from factorial import (
    Agent,
    AgentContext,
    Batch,
    ExecutionContext,
    FatalAgentError,
    Orchestrator,
    deferred_result,
    forking_tool,
    function_tool,
    gpt_41,
)
from factorial.errors import ConfigError, ContextError
from factorial.testing import call, calls, say
from tests.harness import System
from tests.spec.provider import Provider, texts
from tests.sub_tasks import outputs
from tests.support import wait_until

ASKED = calls(call("ask", question="May I?"))
YES = ["user: Ask.", "assistant: ask()", "tool: Yes.", "assistant: She says yes."]


class Desk:
    """Agents whose tool `ask` puts the question on a desk, where the test finds it."""

    def __init__(self, timeout: float = 60) -> None:
        self.questions: list[tuple[str, str, str]] = []
        """Question, task id, tool call id."""

        @deferred_result(timeout=timeout)
        def ask(question: str, execution_ctx: ExecutionContext) -> None:
            """Ask the manager, who answers when there is time."""
            self.questions.append((question, execution_ctx.task_id, execution_ctx.tool_call_id))

        def add(a: int, b: int) -> int:
            """Add two numbers."""
            return a + b

        self.ask = ask
        self.agent = Agent(name="clerk", tools=[ask, add], model=gpt_41)


async def parked(system: System, desk: Desk, query: str = "Ask.") -> str:
    """A task that has asked, and waits."""
    task_id = await system.submit(desk.agent, query)
    await system.reaches(task_id, "pending_tool_results")
    return task_id


async def test_spec_T01_a_task_waits_without_a_worker(system: System, provider: Provider) -> None:
    provider.replies = [ASKED, say("She says yes.")]
    desk = Desk()
    process = await system.start(desk.agent)
    task_id = await parked(system, desk)
    (question,) = desk.questions
    data = await system.data(task_id)
    assert question == ("May I?", task_id, data["payload"]["messages"][-1]["tool_calls"][0]["id"])
    assert data["awaits"] == [f"tool:{question[2]}"] and data["process"] is None
    await wait_until(lambda: not process.holds)
    assert await system.orchestrator.complete_deferred_tool(task_id=task_id, tool_call_id=question[2], result="Yes.")
    data = await system.ended(task_id)
    assert texts(data["payload"]["messages"]) == YES
    assert texts(provider.calls[-1].messages) == YES[:-1]
    assert (data["payload"]["turn"], data["awaits"], len(desk.questions)) == (2, [], 1)


async def test_spec_I11_the_operation_completes_while_no_worker_runs_at_all(system: System, provider: Provider) -> None:
    """The process that asked has left; the answer comes, from a client of its own; another process goes on."""
    provider.replies = [ASKED, "She says yes."]
    desk = Desk()
    first = await system.start(desk.agent)
    task_id = await parked(system, desk)
    await first.drain()
    async with Orchestrator(redis_url=system.redis.url, namespace=system.redis.namespace) as outside:
        assert await outside.complete_deferred_tool(task_id, desk.questions[0][2], "Yes.")
    assert await system.orchestrator.get_task_status(task_id) == "queued"
    await system.start(desk.agent)
    assert texts((await system.ended(task_id))["payload"]["messages"]) == YES


async def test_spec_T01_the_events_of_a_wait(system: System, provider: Provider) -> None:
    provider.replies = [ASKED, "Done."]
    desk = Desk()
    await system.start(desk.agent)
    task_id = await parked(system, desk)
    call_id = desk.questions[0][2]
    await system.orchestrator.complete_deferred_tool(task_id, call_id, ("Yes.", {"signed": True}))
    await system.ended(task_id)
    events = await system.events(task_id)
    assert [event["event_type"] for event in events if "completion" not in event["event_type"]] == [
        "run_enqueued", "run_started", "progress_update_run_turn_started", "progress_update_tool_action_started",
        "progress_update_run_turn_completed", "task_pending_tool_call_results",
        "progress_update_tool_action_completed", "progress_update_run_turn_started",
        "progress_update_run_turn_completed", "agent_output", "run_completed",
    ]  # fmt: skip
    by_type = {event["event_type"]: event for event in events}
    assert by_type["task_pending_tool_call_results"]["data"] == {"tool_call_ids": [call_id]}
    completed = by_type["progress_update_tool_action_completed"]["data"]
    assert (completed["result"]["output_str"], completed["result"]["output_data"]) == ("Yes.", {"signed": True})
    assert completed["args"][0]["function"]["name"] == "ask" == completed["result"]["tool_call"]["function"]["name"]


async def test_spec_T01_several_calls_mixed_with_ordinary_ones_are_answered_in_order(
    system: System, provider: Provider
) -> None:
    first = calls(call("ask", question="one"), call("add", a=1, b=2), call("ask", question="two"), call("nothing"))
    provider.replies = [first, "Done."]
    desk = Desk()
    await system.start(desk.agent)
    task_id = await parked(system, desk)
    ids = {question: call_id for question, _, call_id in desk.questions}
    assert await system.orchestrator.complete_deferred_tool(task_id, ids["two"], "second")
    assert await system.orchestrator.get_task_status(task_id) == "pending_tool_results"
    assert (await system.data(task_id))["awaits"] == [f"tool:{ids['one']}"]
    assert await system.orchestrator.complete_deferred_tool(task_id, ids["one"], {"first": True})
    await system.ended(task_id)
    sent = provider.calls[-1].messages
    assert texts(sent)[2:] == [
        'tool: {"first":true}', "tool: 3", "tool: second",
        "tool: Error: there is no tool 'nothing'; the tools are: ask, add",
    ]  # fmt: skip
    assert [message["tool_call_id"] for message in sent[2:]] == [one["id"] for one in sent[1]["tool_calls"]]


async def test_spec_T02_a_result_that_comes_before_the_park_is_kept(system: System, provider: Provider) -> None:
    answered: list[bool] = []

    @deferred_result(timeout=60)
    async def ask(execution_ctx: ExecutionContext) -> None:
        """Ask a person who knows the answer already."""
        for _ in range(2):
            answered.append(
                await system.orchestrator.complete_deferred_tool(
                    execution_ctx.task_id, execution_ctx.tool_call_id, "Yes."
                )
            )

    provider.replies = [call("ask"), "Done."]
    agent = Agent(name="clerk", tools=[ask], model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    assert texts((await system.ended(task_id))["payload"]["messages"])[2:] == ["tool: Yes.", "assistant: Done."]
    assert answered == [True, False]
    assert "task_pending_tool_call_results" not in await system.types(task_id)


async def test_spec_T02_twice_unknown_or_too_late_is_an_answer(system: System, provider: Provider) -> None:
    provider.replies = [ASKED, "Done."]
    desk = Desk()
    await system.start(desk.agent)
    task_id = await parked(system, desk)
    complete, call_id = system.orchestrator.complete_deferred_tool, desk.questions[0][2]
    assert await complete(task_id, "call_that_nobody_made", "?") is False
    assert await complete("no-such-task", call_id, "?") is False
    answers = await asyncio.gather(*(complete(task_id, call_id, f"answer {number}") for number in range(5)))
    assert answers.count(True) == 1
    data = await system.ended(task_id)
    assert data["payload"]["messages"][2]["content"] == f"answer {answers.index(True)}"
    assert await complete(task_id, call_id, "too late") is False


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ("plain", "plain"), (None, "null"), ([1, 2], "[1,2]"), (("shown", {"kept": 1}), "shown"),
        (ValueError("no seat left"), "Error: ValueError: no seat left"),
    ],
)  # fmt: skip
async def test_spec_T02_a_result_is_what_a_tool_may_return_or_an_exception(
    system: System, provider: Provider, result: Any, shown: str
) -> None:
    provider.replies = [ASKED, "Done."]
    desk = Desk()
    await system.start(desk.agent)
    task_id = await parked(system, desk)
    assert await system.orchestrator.complete_deferred_tool(task_id, desk.questions[0][2], result)
    assert (await system.ended(task_id))["payload"]["messages"][2]["content"] == shown
    ending = "failed" if isinstance(result, Exception) else "completed"
    assert f"progress_update_tool_action_{ending}" in await system.types(task_id, progress=True)


async def test_spec_T02_a_result_that_cannot_be_stored_changes_nothing(system: System, provider: Provider) -> None:
    provider.replies = [ASKED, "Done."]
    desk = Desk()
    await system.start(desk.agent)
    task_id = await parked(system, desk)
    for result in (object(), ("shown", object())):
        with pytest.raises(ContextError, match=desk.questions[0][2]):
            await system.orchestrator.complete_deferred_tool(task_id, desk.questions[0][2], result)
    with pytest.raises(ConfigError, match="tool_call_id"):
        await system.orchestrator.complete_deferred_tool(task_id, "", "?")
    assert await system.orchestrator.complete_deferred_tool(task_id, desk.questions[0][2], "Yes.")


async def test_spec_T02_the_timeout_becomes_an_error_for_the_model(system: System, provider: Provider) -> None:
    provider.replies = [calls(call("ask", question="one"), call("ask", question="two")), "Done."]
    desk = Desk(timeout=3)
    await system.start(desk.agent)
    task_id = await parked(system, desk)
    ids = {question: call_id for question, _, call_id in desk.questions}
    assert await system.orchestrator.complete_deferred_tool(task_id, ids["two"], "in time")
    await system.ended(task_id)
    assert texts(provider.calls[-1].messages)[2:] == [
        "tool: Error: no result came within 3 seconds", "tool: in time",
    ]  # fmt: skip
    failed = await system.event(task_id, "progress_update_tool_action_failed")
    assert failed["error"] == "no result came within 3 seconds"
    assert await system.orchestrator.complete_deferred_tool(task_id, ids["one"], "too late") is False


async def test_spec_T01_what_the_tool_raises_is_an_ordinary_error(system: System, provider: Provider) -> None:
    @deferred_result(timeout=60)
    def ask() -> None:
        """Ask."""
        raise RuntimeError("the manager is out")

    provider.replies = [call("ask"), "Done."]
    agent = Agent(name="clerk", tools=[ask], model=gpt_41)
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert texts(data["payload"]["messages"])[2] == "tool: Error: RuntimeError: the manager is out"


async def test_spec_T01_a_turn_that_was_broken_off_asks_once(system: System, provider: Provider) -> None:
    """The process dies after the tool has asked, and before the task is parked."""
    desk = Desk()
    gate = asyncio.Event()

    async def slow() -> str:
        """Take a while."""
        await gate.wait()
        return "slow"

    provider.replies = [calls(call("ask", question="one"), call("slow")), "Done."]
    agent = Agent(name="clerk", tools=[desk.ask, slow], model=gpt_41)
    first = await system.start(agent)
    task_id = await system.submit(agent)
    await wait_until(lambda: desk.questions)

    async def kept() -> bool:
        mailbox = await system.mailbox()
        return bool(
            await system.execute("HEXISTS", f"{mailbox.keys.prefix}journal:{task_id}", f"tool:{desk.questions[0][2]}")
        )

    await wait_until(kept, message="the question is in the journal")
    assert await system.orchestrator.complete_deferred_tool(task_id, desk.questions[0][2], "Yes.")
    await first.kill()
    await (await system.mailbox()).reclaim_process(first.name)
    gate.set()
    await system.start(agent)
    await system.ended(task_id)
    assert texts(provider.calls[-1].messages)[2:] == ["tool: Yes.", "tool: slow"]
    assert len(desk.questions) == 1 and len(provider.calls) == 2


async def test_spec_T01_the_process_that_resumes_dies(system: System, provider: Provider) -> None:
    """The results have arrived, and the process that continues is killed before the next model call is answered."""
    desk = Desk()
    provider.replies = lambda messages: ASKED if len(messages) == 1 else None
    first = await system.start(desk.agent)
    task_id = await parked(system, desk)
    await system.orchestrator.complete_deferred_tool(task_id, desk.questions[0][2], "Yes.")
    await provider.called()
    await first.kill()
    await (await system.mailbox()).reclaim_process(first.name)
    provider.replies = ["never", "She says yes."]
    await system.start(desk.agent)
    assert texts((await system.ended(task_id))["payload"]["messages"]) == YES


async def test_spec_T01_a_thousand_wait_and_hold_nothing(system: System, provider: Provider) -> None:
    provider.replies = [ASKED, "Done."]
    desk = Desk()
    process = await system.start(desk.agent)
    task_ids = [await system.submit(desk.agent) for _ in range(1000)]
    for task_id in task_ids:
        await system.reaches(task_id, "pending_tool_results", timeout=60)
    await wait_until(lambda: not process.holds)
    for _, task_id, call_id in desk.questions:
        assert await system.orchestrator.complete_deferred_tool(task_id, call_id, "Yes.")
    for task_id in task_ids:
        assert (await system.ended(task_id, timeout=60))["status"] == "completed"
    assert len(desk.questions) == 1000


async def test_spec_T01_context_changes_and_the_last_turn(system: System, provider: Provider) -> None:
    """What the turn changed is kept while it waits, and a turn that waits is one turn."""

    @function_tool(name="ask")
    @deferred_result(timeout=60)
    def ask(agent_ctx: AgentContext) -> None:
        """Ask."""
        agent_ctx.asked = agent_ctx.turn  # type: ignore[attr-defined]

    provider.replies = [call("ask"), "Done."]
    agent = Agent(name="clerk", tools=[ask], model=gpt_41, max_turns=2)
    await system.start(agent)
    task_id = await system.submit(agent)
    data = await system.reaches(task_id, "pending_tool_results")
    assert (data["payload"]["asked"], data["payload"]["turn"]) == (0, 1)
    call_id = data["awaits"][0].removeprefix("tool:")
    await system.orchestrator.complete_deferred_tool(task_id, call_id, "Yes.")
    data = await system.ended(task_id)
    assert (data["status"], data["payload"]["asked"], data["payload"]["turn"]) == ("completed", 0, 2)


async def test_spec_T01_inline_nobody_could_give_the_result(provider: Provider) -> None:
    provider.replies = [ASKED]
    desk = Desk()
    with pytest.raises(FatalAgentError, match=r"'ask' awaits a result from outside.*Orchestrator"):
        await desk.agent.run_inline(AgentContext(query="Ask."))
    assert desk.questions == []


@pytest.mark.parametrize("timeout", [0, -1, "60", True, float("nan"), float("inf")])
def test_spec_T01_a_senseless_timeout_is_refused(timeout: Any) -> None:
    with pytest.raises(ConfigError, match=r"deferred_result\(timeout="):
        deferred_result(timeout=timeout)


async def test_spec_T02_a_final_output_does_not_wait(system: System, provider: Provider) -> None:
    from factorial.utils import BaseModel

    class Answer(BaseModel):
        text: str

    provider.replies = [calls(call("ask", question="?"), call("final_output", text="enough"))]
    desk = Desk()
    agent = Agent(name="clerk", tools=[desk.ask], model=gpt_41, output_type=Answer)
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert (data["status"], data["payload"]["output"]) == ("completed", {"text": "enough"})
    assert texts(data["payload"]["messages"])[2] == "tool: Error: the run has ended without this result"


async def test_spec_T01_steered_while_some_of_the_results_are_there(system: System, provider: Provider) -> None:
    """Neither what is steered nor a part of the results wakes it up: they are read together, the results first."""
    provider.replies = [calls(call("ask", question="one"), call("add", a=1, b=2), call("ask", question="two")), "Done."]
    desk = Desk()
    await system.start(desk.agent)
    task_id = await parked(system, desk)
    ids = {question: call_id for question, _, call_id in desk.questions}
    await system.orchestrator.steer_task(task_id, [{"role": "user", "content": "first"}])
    assert await system.orchestrator.complete_deferred_tool(task_id, ids["two"], "2")
    await system.orchestrator.steer_task(task_id, [{"role": "user", "content": "second"}])
    assert await system.orchestrator.get_task_status(task_id) == "pending_tool_results"
    assert len(provider.calls) == 1
    assert await system.orchestrator.complete_deferred_tool(task_id, ids["one"], "1")
    data = await system.ended(task_id)
    assert texts(provider.calls[-1].messages)[2:] == ["tool: 1", "tool: 3", "tool: 2", "user: first", "user: second"]
    assert (data["pickups"], data["payload"]["turn"], len(provider.calls)) == (2, 2, 2)


async def test_spec_T01_cancelled_while_some_of_the_results_are_there(system: System, provider: Provider) -> None:
    """The other one is too late, and the model is not asked again."""
    provider.replies = [calls(call("ask", question="one"), call("ask", question="two")), "never"]
    desk = Desk()
    await system.start(desk.agent)
    task_id = await parked(system, desk)
    ids = {question: call_id for question, _, call_id in desk.questions}
    assert await system.orchestrator.complete_deferred_tool(task_id, ids["two"], "2")
    assert await system.orchestrator.cancel_task(task_id) == "cancelled"
    assert await system.orchestrator.complete_deferred_tool(task_id, ids["one"], "1") is False
    assert (await system.data(task_id))["status"] == "cancelled"
    assert (await system.types(task_id)).count("run_cancelled") == 1
    assert len(provider.calls) == 1


async def test_spec_T01_T03_results_and_children_are_waited_for_together(system: System, provider: Provider) -> None:
    """A deferred tool, a forking tool and an ordinary one in one turn: resumed once, when all is there."""
    child = Agent(name="child", instructions="child", model=gpt_41)

    @forking_tool(timeout=60)
    async def fork(execution_ctx: ExecutionContext) -> Batch:
        """Have others look"""
        return await execution_ctx.spawn_child_tasks(child, [AgentContext(query=part) for part in "xy"])

    def reply(messages: list[dict[str, Any]]) -> Any:
        if messages[0]["content"] == "child":
            return say(f"found {messages[1]['content']}")
        asking = calls(call("fork"), call("add", a=1, b=2), call("ask", question="?"))
        return asking if len(messages) == 1 else say("Done.")

    provider.replies = reply
    desk = Desk()
    agent = Agent(name="clerk", tools=[fork, *desk.agent.tools.values()], model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    data = await system.reaches(task_id, "pending_tool_results")
    assert [waits.partition(":")[0] for waits in data["awaits"]] == ["tool", "child", "child"]
    assert await system.orchestrator.complete_deferred_tool(task_id, desk.questions[0][2], "Yes.")
    assert all(waits.startswith("child:") for waits in (await system.data(task_id))["awaits"])
    assert await system.orchestrator.get_task_status(task_id) == "pending_child_tasks"
    await system.start(child)
    data = await system.ended(task_id)
    sent = [request.messages for request in provider.calls if request.messages[0]["content"] != "child"][-1]
    assert outputs(sent[2]["content"]) == ["found x", "found y"]
    assert texts(sent)[3:] == ["tool: 3", "tool: Yes."]
    assert (data["pickups"], data["payload"]["turn"]) == (2, 2)
