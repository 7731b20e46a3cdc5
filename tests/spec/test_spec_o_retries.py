"""Failed turns: which are retried, when, how often, and what is published of them (O04, E06, E07).

Real: Valkey, HTTP, the openai client, the actors. Fake: the language model, and the lifeline of a worker process.
An answer that is not a completion is "garbled": the turn fails at once, and the task's next try may do better.
"""

import asyncio
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from factorial import Agent, AgentContext, BaseAgent, FatalAgentError, RetryableError, TurnCompletion, gpt_41
from factorial.testing import call, calls
from tests.harness import System, quick
from tests.spec.provider import Provider, texts
from tests.support import wait_until

KINDS = ("task_failed", "task_retried", "run_failed", "run_completed")


async def story(system: System, task_id: str) -> list[str]:
    """The published events of failures and of the end, in order."""
    return [name for name in await system.types(task_id) if name in KINDS]


@pytest.mark.parametrize("max_retries", [0, 1, 3])
async def test_spec_O04_a_failed_task_is_queued_again_max_retries_times(
    system: System, provider: Provider, max_retries: int
) -> None:
    agent = Agent(name="worker", model=gpt_41)
    await system.start(agent, quick(max_retries=max_retries))
    task_id = await system.submit(agent)
    for _ in range(1 + max_retries):
        (await provider.called()).garble()
    data = await system.ended(task_id)
    assert (data["status"], data["pickups"], len(provider.calls)) == ("failed", 1 + max_retries, 1 + max_retries)
    assert await story(system, task_id) == [*["task_failed", "task_retried"] * max_retries, "task_failed", "run_failed"]
    failed = await system.event(task_id, "run_failed")
    assert failed["error"].startswith(
        f"Agent worker failed to complete task {task_id} due to max retries ({max_retries}): gpt-4.1 at openai: "
    )
    assert data["error"] in failed["error"]
    assert (failed["agent_name"], failed["owner_id"]) == ("worker", "owner")


async def test_spec_E07_each_failure_is_told_of_with_its_error_and_the_pause(
    system: System, provider: Provider
) -> None:
    agent = Agent(name="worker", model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    (await provider.called()).garble()
    (await provider.called()).answer("done")
    data = await system.ended(task_id)
    assert (data["status"], data["payload"]["output"], data["error"]) == ("completed", "done", None)
    assert await story(system, task_id) == ["task_failed", "task_retried", "run_completed"]
    failed, retried = await system.event(task_id, "task_failed"), await system.event(task_id, "task_retried")
    assert "the answer is unusable" in failed["error"]
    assert 0.01 <= retried["data"]["delay"] <= 0.02
    for event in (failed, retried):
        assert (event["task_id"], event["owner_id"], event["agent_name"]) == (task_id, "owner", "worker")
        assert event["metadata"]["turn"] == 0


async def test_spec_E07_the_pause_doubles_up_to_its_limit_with_jitter(system: System, provider: Provider) -> None:
    agent = Agent(name="worker", model=gpt_41)
    await system.start(agent, quick(max_retries=4, retry_delay=0.04, max_retry_delay=0.1))
    task_ids = [await system.submit(agent) for _ in range(4)]
    for _ in range(5 * len(task_ids)):
        (await provider.called()).garble()
    firsts = set()
    for task_id in task_ids:
        await system.ended(task_id)
        events = await system.events(task_id)
        delays = [event["data"]["delay"] for event in events if event["event_type"] == "task_retried"]
        for delay, most in zip(delays, [0.04, 0.08, 0.1, 0.1], strict=True):
            assert most / 2 - 0.001 <= delay <= most + 0.001
        firsts.add(tuple(delays))
    assert len(firsts) > 1  # not all tasks at the same moment


async def test_spec_E07_the_pause_is_kept(system: System, provider: Provider) -> None:
    agent = Agent(name="worker", model=gpt_41)
    process = await system.start(agent, quick(max_retries=2, retry_delay=0.6, max_retry_delay=0.6))
    task_id = await system.submit(agent)
    for _ in range(2):
        (await provider.called()).garble()
        await system.reaches(task_id, "backoff")
        await wait_until(lambda: not process.holds)  # no worker is held meanwhile
    (await provider.called()).answer("done")
    await system.ended(task_id)
    assert all(later.at - earlier.at >= 0.29 for earlier, later in pairwise(provider.calls))


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
async def test_spec_O04_what_may_pass_is_tried_again_when_the_provider_says(
    system: System, provider: Provider, status: int
) -> None:
    """A long `Retry-After` is the task's own backoff, and longer than its settings would make it."""
    agent = Agent(name="worker", model=gpt_41)
    process = await system.start(agent)
    task_id = await system.submit(agent)
    (await provider.called()).refuse(status, retry_after="40")
    await system.reaches(task_id, "backoff")
    await wait_until(lambda: not process.holds)
    deferred = status == 429 or status >= 500  # that is not the task's fault: no retry is spent
    paused = await system.event(task_id, "task_deferred" if deferred else "task_retried")
    assert paused["data"]["delay"] == pytest.approx(42, abs=2)
    assert (await system.data(task_id))["retries"] == (0 if deferred else 1)
    due = await system.execute("ZSCORE", (await system.mailbox()).keys.prefix + "due:worker", task_id)
    seconds, microseconds = map(int, await system.execute("TIME"))
    assert 20 < float(due) / 1000 - (seconds + microseconds / 1e6) <= 44
    failed = paused if deferred else await system.event(task_id, "task_failed")
    assert f"HTTP {status}" in failed["error"]


async def test_spec_O04_a_short_retry_after_is_waited_for_within_the_call(system: System, provider: Provider) -> None:
    """No try of the task is spent."""
    agent = Agent(name="worker", model=gpt_41)
    await system.start(agent, quick(max_retries=0))
    task_id = await system.submit(agent)
    (await provider.called()).refuse(429, retry_after="1.2")
    (await provider.called()).answer("done")
    data = await system.ended(task_id)
    assert (data["status"], data["retries"], data["pickups"]) == ("completed", 0, 1)
    first, second = provider.calls
    assert second.at - first.at >= 1.2
    assert first.body == second.body
    assert await story(system, task_id) == ["run_completed"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
async def test_spec_O04_what_the_provider_would_refuse_again_is_final(
    system: System, provider: Provider, status: int
) -> None:
    """A wrong key, a bad request: one request, and the run has failed. The error says what to look at, and no key."""
    agent = Agent(name="worker", model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    (await provider.called()).refuse(status, message="your key test-key is not good")
    data = await system.ended(task_id)
    assert (data["status"], data["pickups"], len(provider.calls)) == ("failed", 1, 1)
    assert await story(system, task_id) == ["task_failed", "run_failed"]
    error = (await system.event(task_id, "run_failed"))["error"]
    assert error == f"Agent worker failed to complete task {task_id}: {data['error']}"
    assert f"HTTP {status}" in error and "test-key" not in error
    assert ("OPENAI_API_KEY" in error) == (status in (401, 403))


@pytest.mark.parametrize(
    "error", [FatalAgentError("no way"), NotImplementedError("later"), NameError("name 'x' is not defined")]
)
async def test_spec_O04_a_fatal_error_is_final(system: System, provider: Provider, error: Exception) -> None:
    class Failing(Agent):
        tried = 0

        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
            Failing.tried += 1
            raise error

    agent = Failing(name="failing")
    await system.start(agent)
    task_id = await system.submit(agent)
    assert (await system.ended(task_id))["status"] == "failed"
    assert Failing.tried == 1
    assert await story(system, task_id) == ["task_failed", "run_failed"]


@pytest.mark.parametrize(
    "error", [RetryableError("again"), RuntimeError("bad luck"), TimeoutError(), OSError(111, "no")]
)
async def test_spec_O04_any_other_error_is_tried_again(system: System, provider: Provider, error: Exception) -> None:
    class Failing(Agent):
        tried = 0

        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
            Failing.tried += 1
            if Failing.tried == 1:
                raise error
            return await super().completion(agent_ctx, messages)

    provider.replies = ["done"]
    agent = Failing(name="failing", model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    assert (await system.ended(task_id))["payload"]["output"] == "done"
    assert await story(system, task_id) == ["task_failed", "task_retried", "run_completed"]


async def test_spec_O04_a_finished_turn_starts_the_count_afresh(system: System, provider: Provider) -> None:
    """Each of three turns fails twice, and two retries in a row are allowed."""
    executed = []

    async def look() -> str:
        """Look."""
        executed.append(1)
        return "seen"

    agent = Agent(name="worker", model=gpt_41, tools=[look])
    await system.start(agent, quick(max_retries=2))
    task_id = await system.submit(agent, "hello")
    for turn in range(3):
        for _ in range(2):
            (await provider.called()).garble()
        (await provider.called()).answer(call("look") if turn < 2 else "done")
    data = await system.ended(task_id)
    assert (data["status"], data["payload"]["output"], data["retries"]) == ("completed", "done", 0)
    assert len(executed) == 2
    assert await story(system, task_id) == [*["task_failed", "task_retried"] * 6, "run_completed"]
    delays = [one["data"]["delay"] for one in await system.events(task_id) if one["event_type"] == "task_retried"]
    assert all(delay <= 0.021 for delay in delays[::2])  # the pauses start over, too


async def test_spec_O04_a_retried_turn_does_not_repeat_its_finished_steps(system: System, provider: Provider) -> None:
    """The model's answer and the tool that has finished are kept; the one that failed is called again."""
    executed: Counter[str] = Counter()

    async def steady(agent_ctx: AgentContext) -> str:
        """Work."""
        executed["steady"] += 1
        agent_ctx.steady = executed["steady"]  # type: ignore[attr-defined]
        return f"worked {executed['steady']}"

    async def shaky(agent_ctx: AgentContext) -> str:
        """Work at the third attempt."""
        executed["shaky"] += 1
        if executed["shaky"] < 3:
            raise RetryableError("not yet")
        return f"worked {executed['shaky']}"

    agent = Agent(name="worker", model=gpt_41, tools=[steady, shaky])
    await system.start(agent)
    task_id = await system.submit(agent, "hello")
    (await provider.called()).answer(calls(call("steady"), call("shaky")))
    last = await provider.called()
    assert texts(last.messages) == [
        "user: hello", "assistant: steady(), shaky()", "tool: worked 1", "tool: worked 3",
    ]  # fmt: skip
    last.answer("done")
    data = await system.ended(task_id)
    assert executed == {"steady": 1, "shaky": 3}
    assert len(provider.calls) == 2
    assert (data["payload"]["steady"], data["payload"]["turn"], data["pickups"]) == (1, 2, 3)


async def test_spec_O04_a_turn_that_takes_too_long_is_abandoned_and_tried_again(
    system: System, provider: Provider
) -> None:
    agent = Agent(name="worker", model=gpt_41, request_timeout=600)
    await system.start(agent, quick(turn_timeout=0.5))
    task_id = await system.submit(agent)
    await (await provider.called()).abandoned()
    provider.replies = ["done"]
    data = await system.ended(task_id)
    assert (data["status"], data["payload"]["output"]) == ("completed", "done")
    failed = await system.event(task_id, "task_failed")
    assert failed["error"] == "turn 0 took longer than turn_timeout=0.5 seconds"
    assert (await story(system, task_id))[:2] == ["task_failed", "task_retried"]


async def test_spec_O04_turn_timeout_counts_as_a_failure(system: System) -> None:
    """And tools are part of the turn."""
    begun = []

    class Slow(BaseAgent[AgentContext]):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            begun.append(1)
            await asyncio.Event().wait()
            raise AssertionError("unreachable")

    agent = Slow(name="slow", context_class=AgentContext)
    await system.start(agent, quick(turn_timeout=0.05, max_retries=2))
    task_id = await system.submit(agent)
    data = await system.ended(task_id)
    assert (data["status"], len(begun)) == ("failed", 3)
    assert (await system.event(task_id, "run_failed"))["error"] == (
        f"Agent slow failed to complete task {task_id} due to max retries (2): "
        "turn 0 took longer than turn_timeout=0.05 seconds"
    )


async def test_spec_O04_turn_timeout_is_for_one_turn(system: System, provider: Provider) -> None:
    """A run may take longer than that: here, eight turns of a quarter of it each."""

    async def look() -> str:
        """Look for a moment."""
        await asyncio.sleep(0.25)
        return "seen"

    provider.replies = [*[call("look")] * 8, "done"]
    agent = Agent(name="worker", model=gpt_41, tools=[look])
    await system.start(agent, quick(turn_timeout=1.0))
    task_id = await system.submit(agent)
    data = await system.ended(task_id, timeout=60)
    assert (data["status"], data["payload"]["turn"]) == ("completed", 9)


async def test_spec_O04_a_failing_task_holds_up_nobody(system: System, provider: Provider) -> None:
    """One slot: while one task backs off, the others are served."""
    agent = Agent(name="worker", model=gpt_41)
    await system.start(agent, quick(batch_size=1, retry_delay=600, max_retry_delay=600))
    unlucky = await system.submit(agent, "unlucky")
    (await provider.called()).garble()
    await system.reaches(unlucky, "backoff")
    provider.replies = ["done"]
    others = [await system.submit(agent, str(number)) for number in range(5)]
    for task_id in others:
        assert (await system.ended(task_id))["status"] == "completed"
    assert await system.orchestrator.get_task_status(unlucky) == "backoff"
