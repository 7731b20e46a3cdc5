"""Chapter A of PROMISES.md, A11 (with O04 and E07): what is retried, by whom, and what is final. Real: Valkey, HTTP,
the openai client. Fake: the language model.

    by the model call    rate limits, time-outs and server errors: twice more, after a short pause or `Retry-After`
    by the task          what is left of these, broken answers, `RetryableError`: `max_retries` times in a row
    not at all           a wrong key, a bad request, no quota, `FatalAgentError`
"""

import asyncio
import time
from itertools import pairwise
from typing import Any

import pytest
from llmock.pytest_plugin import LLMock
from llmock.scenarios import Reply, ToolCall

from factorial import Agent, AgentContext, BaseAgent, FatalAgentError, RetryableError, TurnCompletion, gpt_41, retry
from tests.harness import System, quick
from tests.support import wait_until


async def run(system: System, agent: BaseAgent[Any], **worker: Any) -> tuple[str, dict[str, Any]]:
    """Have the agent run one task: its id, and what is stored of it."""
    await system.start(agent, quick(**worker))
    task_id = await system.submit(agent)
    return task_id, await system.ended(task_id, 60)


def pauses(llmock: LLMock) -> list[float]:
    """Seconds between the end of a request and the beginning of the next."""
    requests = llmock.requests
    return [later.started_at - earlier.ended_at for earlier, later in pairwise(requests)]


def streaming(**options: Any) -> Agent:
    """An agent whose model may break off: such an answer is not asked for again by the call, but by the task."""
    return Agent(name="streaming", model=gpt_41, stream=True, **options)


# -- what the model call itself tries again


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
async def test_spec_A11_what_may_pass_is_tried_again_within_the_call(
    system: System, llmock: LLMock, status: int
) -> None:
    llmock.fail(status).reply("Back.")
    task_id, data = await run(system, Agent(name="a", model=gpt_41))
    assert data["payload"]["output"] == "Back."
    assert [request.status for request in llmock.requests] == [status, 200]
    assert "task_failed" not in await system.types(task_id), "the turn has not failed"


async def test_spec_A11_retry_after_is_honoured(system: System, llmock: LLMock) -> None:
    llmock.rate_limit(retry_after=1.5).reply("Back.")
    _, data = await run(system, Agent(name="a", model=gpt_41))
    assert data["payload"]["output"] == "Back."
    assert pauses(llmock)[0] >= 1.5
    llmock.assert_resilient(strict=True)


async def test_spec_A11_the_pauses_of_a_call_grow(system: System, llmock: LLMock) -> None:
    llmock.fail(503, times=2).reply("Back.")
    await run(system, Agent(name="a", model=gpt_41))
    first, second = pauses(llmock)
    assert first >= 0.25 and second >= 0.5


# -- what the task tries again


async def test_spec_A11_a_long_retry_after_is_left_to_the_task_which_holds_no_worker(
    system: System, llmock: LLMock
) -> None:
    llmock.rate_limit(retry_after=40, times=None)
    agent = Agent(name="a", model=gpt_41)
    process = await system.start(agent)
    task_id = await system.submit(agent)
    await system.reaches(task_id, "backoff")
    deferred = await system.event(task_id, "task_deferred")
    assert deferred["data"]["delay"] == pytest.approx(42, abs=2) and "HTTP 429" in deferred["error"]
    assert len(llmock.requests) == 1
    await wait_until(lambda: not process.holds)


async def test_spec_E07_an_outage_without_patience_spends_the_tasks_retries_and_ends_the_run(
    system: System, llmock: LLMock
) -> None:
    llmock.outage()
    task_id, data = await run(system, Agent(name="a", model=gpt_41), max_retries=1, provider_patience=0.0)
    assert data["status"] == "failed" and "HTTP 503" in data["error"]
    assert len(llmock.requests) == 2 * 3, "three in each of two tries"
    assert await system.types(task_id) == [
        "run_enqueued", "run_started", "task_failed", "task_retried", "task_failed", "run_failed",
    ]  # fmt: skip
    explanation = (await system.event(task_id, "run_failed"))["error"]
    assert explanation.startswith(f"Agent a failed to complete task {task_id} due to max retries (1): gpt-4.1 at")


@pytest.mark.parametrize("fault", ["disconnect", "truncate", "corrupt"])
async def test_spec_A11_half_an_answer_is_no_answer(system: System, llmock: LLMock, fault: str) -> None:
    getattr(llmock, fault)(after_chunks=2)
    llmock.reply("The answer is not forty.").reply("The answer is forty-two.")
    task_id, data = await run(system, streaming())
    assert data["payload"]["output"] == "The answer is forty-two."
    assert [message["role"] for message in data["payload"]["messages"]] == ["user", "assistant"]
    assert (await system.types(task_id)).count("task_retried") == 1


async def test_spec_O04_max_retries_counts_failures_in_a_row(system: System, llmock: LLMock) -> None:
    """One retry is allowed, and three turns fail once each: attempts start afresh after progress."""

    def look(page: int) -> str:
        """Look at a page."""
        return f"page {page}"

    class Unlucky(Agent):
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
            llmock.truncate()  # the next answer breaks off
            tried[agent_ctx.turn] = tried.get(agent_ctx.turn, 0) + 1
            if tried[agent_ctx.turn] == 2:
                llmock.reset()
                llmock.reply("Seen.") if agent_ctx.turn == 2 else llmock.call_tool("look", {"page": agent_ctx.turn})
            return await super().completion(agent_ctx, messages)

    tried: dict[int, int] = {}
    agent = Unlucky(name="unlucky", model=gpt_41, stream=True, tools=[look])
    task_id, data = await run(system, agent, max_retries=1)
    assert (data["status"], data["payload"]["output"]) == ("completed", "Seen.")
    assert tried == {0: 2, 1: 2, 2: 2}
    assert (await system.types(task_id)).count("task_retried") == 3


async def test_spec_A11_the_tasks_backoff_grows_with_jitter_up_to_its_bound(system: System, llmock: LLMock) -> None:
    llmock.truncate(times=None)
    task_id, _ = await run(system, streaming(), max_retries=5, retry_delay=0.02, max_retry_delay=0.1)
    delays = [event["data"]["delay"] for event in await system.events(task_id) if event["event_type"] == "task_retried"]
    for delay, most in zip(delays, [0.02, 0.04, 0.08, 0.1, 0.1], strict=True):
        assert most / 2 - 0.001 <= delay <= most + 0.001
    shares = {delay / most for delay, most in zip(delays, [0.02, 0.04, 0.08, 0.1, 0.1], strict=True)}
    assert len(shares) > 1, "tasks that failed together do not come back together"


async def test_spec_A11_a_finished_tool_call_is_not_repeated_when_its_turn_is(system: System, llmock: LLMock) -> None:
    booked: list[str] = []
    stumbled: list[str] = []

    def book(seat: str) -> str:
        """Book a seat."""
        booked.append(seat)
        return f"{seat} booked"

    async def pay() -> str:
        """Pay."""
        while not booked:  # noqa: ASYNC110  # a thread appends to it
            await asyncio.sleep(0.001)
        if not stumbled:
            stumbled.append("once")
            raise RetryableError("the bank is closed")
        return "paid"

    llmock.add(Reply(tool_calls=(ToolCall("book", {"seat": "7a"}), ToolCall("pay")))).reply("Have a good trip.")
    _, data = await run(system, Agent(name="a", tools=[book, pay], model=gpt_41))
    assert data["payload"]["output"] == "Have a good trip."
    assert booked == ["7a"] and len(llmock.requests) == 2


# -- what is final


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
async def test_spec_A11_a_refusal_is_final(system: System, llmock: LLMock, status: int) -> None:
    llmock.fail(status, times=None)
    task_id, data = await run(system, Agent(name="a", model=gpt_41), max_retries=5)
    assert data["status"] == "failed" and f"(HTTP {status})" in data["error"]
    assert len(llmock.requests) == 1
    assert await system.types(task_id) == ["run_enqueued", "run_started", "task_failed", "run_failed"]
    assert "max retries" not in (await system.event(task_id, "run_failed"))["error"]


async def test_spec_A11_a_wrong_key_is_named_by_its_variable_and_not_shown(
    system: System, llmock: LLMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-0123456789")
    llmock.fail(401, message="Incorrect API key provided: sk-very-secret-0123456789", times=None)
    task_id, data = await run(system, Agent(name="a", model=gpt_41))
    assert "Check OPENAI_API_KEY" in data["error"]
    assert "very-secret" not in str(data) + str(await system.events(task_id))


@pytest.mark.parametrize(("status", "code"), [(429, "insufficient_quota"), (400, "context_length_exceeded")])
async def test_spec_A11_what_waiting_does_not_mend_is_final(
    system: System, llmock: LLMock, status: int, code: str
) -> None:
    llmock.fail(status, code=code, times=None)
    _, data = await run(system, Agent(name="a", model=gpt_41))
    assert data["status"] == "failed" and len(llmock.requests) == 1


# -- @retry on an agent's methods


class Scraper(BaseAgent[AgentContext]):
    """The document's agent, with shorter pauses. Each failure is the next of `failures`."""

    def __init__(self, *failures: Exception) -> None:
        super().__init__(name="scraper", model=gpt_41)
        self.failures = list(failures)
        self.calls = 0

    @retry(max_attempts=5, delay=0.02, exponential_base=1.5)
    async def custom_method(self, data: str) -> str:
        """This method will retry up to 5 times on failure."""
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return f"processed {data}"

    async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
        """Process, and end."""
        return TurnCompletion(is_done=True, context=agent_ctx, output=await self.custom_method("some data"))


async def test_spec_A11_retry_hides_failures_that_pass(system: System) -> None:
    agent = Scraper(*(OSError("no route") for _ in range(4)))
    task_id, data = await run(system, agent)
    assert (data["payload"]["output"], agent.calls) == ("processed some data", 5)
    assert "task_failed" not in await system.types(task_id)


async def test_spec_A11_the_pauses_of_retry_are_those_that_its_parameters_say(system: System) -> None:
    """`delay` seconds, then `exponential_base` times as long, and so on; with jitter, half of that at the least."""

    class Patient(BaseAgent[AgentContext]):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            await (self.even() if agent_ctx.query == "even" else self.jittered())
            return TurnCompletion(is_done=True, context=agent_ctx, output="done")

        @retry(max_attempts=4, delay=0.05, exponential_base=3.0, jitter=False)
        async def even(self) -> None:
            self.try_it()

        @retry(max_attempts=4, delay=0.1, exponential_base=3.0)
        async def jittered(self) -> None:
            self.try_it()

        def try_it(self) -> None:
            tried.append(time.monotonic())
            if len(tried) < 4:
                raise OSError("no route")

    agent = Patient(name="patient")
    await system.start(agent)
    tried: list[float] = []
    for query in ("even", "jittered"):
        tried.clear()
        await system.ended(await system.submit(agent, query))
        pauses = [later - earlier for earlier, later in pairwise(tried)]
        assert all(pause >= least for pause, least in zip(pauses, (0.05, 0.15, 0.45), strict=True)), pauses


async def test_spec_A11_when_the_attempts_are_spent_the_task_takes_over(system: System) -> None:
    agent = Scraper(*(OSError("no route") for _ in range(5)))
    task_id, data = await run(system, agent)
    assert (data["payload"]["output"], agent.calls) == ("processed some data", 6)
    assert (await system.event(task_id, "task_failed"))["error"] == "OSError: no route"


async def test_spec_A11_retry_does_not_repeat_what_is_final(system: System) -> None:
    agent = Scraper(FatalAgentError("no way"))
    _, data = await run(system, agent)
    assert (data["status"], data["error"], agent.calls) == ("failed", "no way", 1)


async def test_spec_A11_bare_retry_on_an_overridden_completion(system: System, llmock: LLMock) -> None:
    """The step is what the decorated method makes of it: one answer, journaled once."""

    class Careful(Agent):
        @retry
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
            return await super().completion(agent_ctx, messages)

    llmock.truncate().reply("Half.").reply("Whole.")
    task_id, data = await run(system, Careful(name="careful", model=gpt_41, stream=True))
    assert data["payload"]["output"] == "Whole."
    types = await system.types(task_id, progress=True)
    assert "task_failed" not in types and types.count("progress_update_completion_completed") == 1
    assert len(llmock.requests) == 2
