"""A task is deferred, and spends no retry, while its provider is away, or while the deployed code cannot read it.

Real: actors, mailbox, Valkey. Fake: the lifeline, and the model, which is scripted.
"""

import logging
from typing import Any

import pytest

from factorial import Agent, AgentContext, BaseAgent
from factorial.errors import ModelUnavailableError, RateLimitError
from factorial.mailbox.doctor import check_namespace
from factorial.mailbox.views.deferred import Deferred
from factorial.supervisor.operate.remote import Selection, read_status
from factorial.testing import ScriptedModel, call, say
from tests.harness import System, quick
from tests.support import wait_until


class Provider:
    """Away for so many calls."""

    def __init__(self, error: Exception, away: int) -> None:
        self.error = error
        self.away = away
        self.calls = 0

    def reply(self, messages: Any) -> Any:
        """Answers with a tool call, then with text."""
        self.calls += 1
        if self.calls <= self.away:
            raise self.error
        return say("done") if messages[-1]["role"] == "tool" else call("look")


def looking(provider: Provider) -> Agent:
    def look() -> str:
        """Look."""
        return "seen"

    return Agent(name="looking", tools=[look], model=ScriptedModel(provider.reply))


# A pause that is too long to be made within the call: each call is one attempt.
LONG = 60.0


@pytest.mark.parametrize(
    "error", [ModelUnavailableError("no connection", retry_after=LONG), RateLimitError("too many", retry_after=LONG)]
)
async def test_an_outage_spends_no_retry_and_is_announced_once(
    system: System, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten attempts in vain, in virtual time: each pause is cut short."""
    provider = Provider(error, away=10)
    agent = looking(provider)
    with caplog.at_level(logging.INFO, "factorial"):
        process = await system.start(agent, quick(max_retries=0, retry_delay=300, max_retry_delay=300))
        task_id = await system.submit(agent)
        for attempt in range(1, 11):
            await wait_until(lambda wanted=attempt: provider.calls >= wanted)
            await system.reaches(task_id, "backoff")
            await wait_until(lambda: not process.holds)
            await system.make_due(task_id)
        data = await system.ended(task_id)
    assert (data["status"], data["retries"], provider.calls) == ("completed", 0, 12)
    types = await system.types(task_id)
    assert types.count("task_deferred") == 1 and "task_failed" not in types and "task_retried" not in types
    progress = [
        event["event_type"]
        for event in await system.events(task_id)
        if event["event_type"].startswith("progress_update_completion")
    ]
    assert progress == [
        "progress_update_completion_started", "progress_update_completion_failed",
        *["progress_update_completion_started", "progress_update_completion_completed"] * 2,
    ]  # fmt: skip
    lines = [record for record in caplog.records if getattr(record, "task_id", "") == task_id]
    assert [record.event for record in lines] == ["started", "deferred", "completed"]  # type: ignore[attr-defined]


async def test_patience_ends_and_then_the_error_is_an_ordinary_one(system: System) -> None:
    provider = Provider(ModelUnavailableError("no connection"), away=1000)
    agent = looking(provider)
    await system.start(agent, quick(max_retries=1, provider_patience=0.5))
    task_id = await system.submit(agent)
    data = await system.ended(task_id)
    assert (data["status"], data["error"]) == ("failed", "no connection")
    types = [type for type in await system.types(task_id) if type.startswith(("task_", "run_"))]
    assert types == [
        "run_enqueued", "run_started", "task_deferred", "task_failed", "task_retried", "task_failed", "run_failed",
    ]  # fmt: skip


async def test_a_second_outage_is_announced_again(system: System) -> None:
    """A finished step between them ends the first one."""
    provider = Provider(ModelUnavailableError("no connection", retry_after=LONG), away=1)
    agent = looking(provider)

    def reply(messages: Any) -> Any:
        if messages[-1]["role"] == "tool" and provider.away == 1:
            provider.away = provider.calls + 1
        return provider.reply(messages)

    agent.model = ScriptedModel(reply)
    await system.start(agent)
    task_id = await system.submit(agent)
    for outage in (1, 2):

        async def is_deferred(times: int = outage) -> bool:
            return (await system.types(task_id)).count("task_deferred") == times

        await wait_until(is_deferred)
        await system.reaches(task_id, "backoff")
        await system.make_due(task_id)
    assert (await system.ended(task_id))["status"] == "completed"
    assert (await system.types(task_id)).count("task_deferred") == 2


async def test_a_deferred_task_can_be_cancelled_and_leaves_nothing(system: System) -> None:
    agent = looking(Provider(ModelUnavailableError("no connection"), away=1000))
    await system.start(agent, quick(retry_delay=300, max_retry_delay=300))
    task_id = await system.submit(agent)
    await system.reaches(task_id, "backoff")
    deferred = (await system.mailbox()).keys.key("deferred", "looking")
    assert await system.execute("HGET", deferred, task_id) == b"no connection"
    assert await system.orchestrator.cancel_task(task_id) == "cancelled"
    assert await system.execute("HLEN", deferred) == 0


class Old(AgentContext):
    """What is stored."""

    name: str = "x"


class New(AgentContext):
    """What the new release wants to read."""

    name: str = "x"
    tenant: str


async def test_a_release_that_cannot_read_a_context_does_not_end_the_task(system: System) -> None:
    """Deployed and rolled back: the old one goes on with it."""
    script = ScriptedModel([say("done")])
    old: BaseAgent[Old] = BaseAgent(name="versioned", model=script, context_class=Old)
    new: BaseAgent[New] = BaseAgent(name="versioned", model=script, context_class=New)
    task_id = await system.submit(old, Old(query="go"))
    process = await system.start(
        new, quick(retry_delay=3.0, max_retry_delay=3.0)
    )  # a pause long enough to look around in
    data = await system.reaches(task_id, "backoff")
    assert data["error"] == "the stored context does not fit New: tenant: Field required"
    event = await system.event(task_id, "task_deferred")
    assert (event["error"], event["data"]["patience"]) == (data["error"], 86_400.0)
    status = await read_status(system.redis, Selection())
    assert status.deferred["versioned"] == Deferred(1, data["error"])
    assert "! versioned: 1 deferred: the stored context does not fit New: tenant: Field required" in status.as_text()
    namespace = await system.mailbox()
    report = await check_namespace(namespace.connection, namespace.keys, still=True)
    assert report.findings == []
    assert any(note.endswith(f"The most frequent reason: {data['error']}.") for note in report.notes)
    await process.drain()
    await system.start(old)
    data = await system.ended(task_id)
    assert (data["status"], data["retries"]) == ("completed", 0)
