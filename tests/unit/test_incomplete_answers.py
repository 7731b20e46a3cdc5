"""Answers that were cut, blocked or refused, and words where a typed output is due. Inline; the model's answers are
written by the test.
"""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from factorial import Agent, AgentContext, AgentWorkerConfig, RunCompletion
from factorial.agent.lifecycle.ending import CORRECTION
from factorial.agent.lifecycle.failure import after_failure
from factorial.agent.lifecycle.outcome import Backoff, Defer
from factorial.errors import ConfigError, FatalAgentError, IncompleteAnswerError, OutputError, RateLimitError
from factorial.events import BaseEvent
from factorial.utils import BaseModel
from tests.provider_rules import breaches

CUT: dict[str, Any] = {"content": "The dose is 10 mg, but never", "finish": "length"}
BLOCKED: dict[str, Any] = {"content": None, "finish": "content_filter"}
REFUSED: dict[str, Any] = {"content": None, "refusal": "I cannot help with that.", "finish": "stop"}
INCOMPLETE = [(CUT, "length"), (BLOCKED, "content_filter"), (REFUSED, "refusal")]


class Weather(BaseModel):
    """A typed output."""

    degrees: int


def calling(name: str, arguments: str, finish: str = "tool_calls") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"content": None, "tool_calls": [{"id": "a", "type": "function", "function": function}], "finish": finish}


class Answering(Agent):
    """Its model gives these answers, and then the last one again."""

    def __init__(self, *answers: dict[str, Any], **options: Any) -> None:
        super().__init__(name="a", **options)
        self.answers = list(answers)
        self.requests: list[list[dict[str, Any]]] = []

    async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> ChatCompletion:
        self.requests.append(list(messages))
        assert len(self.requests) < 50, "it goes on for ever"
        message = dict(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
        finish = message.pop("finish", "stop")
        choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", **message}}
        return ChatCompletion.construct(id="x", object="chat.completion", created=0, model="m", choices=[choice])


async def run(agent: Agent) -> tuple[RunCompletion[AgentContext], list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    hear: Callable[[Any], None] = lambda event: events.append(event.to_dict())  # noqa: E731
    policy = AgentWorkerConfig(max_retries=2, retry_delay=0.01)
    return await agent.run_inline(AgentContext(query="q"), hear, worker_config=policy), events


@pytest.mark.parametrize(("answer", "reason"), INCOMPLETE)
async def test_an_incomplete_answer_ends_the_run_with_an_error(answer: dict[str, Any], reason: str) -> None:
    """It is not retried: the same request would be paid again, and be cut or refused again."""
    agent = Answering(answer)
    with pytest.raises(IncompleteAnswerError, match=f"finish_reason {reason}") as failed:
        await run(agent)
    assert failed.value.finish_reason == reason and len(agent.requests) == 1
    assert failed.value.text == (answer.get("content") or answer.get("refusal") or "")


@pytest.mark.parametrize(("answer", "reason"), INCOMPLETE)
async def test_or_what_there_is_of_it_is_the_output(
    answer: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="factorial.task")
    done, events = await run(Answering(answer, incomplete_answers="mark"))
    assert done.output == (answer.get("content") or answer.get("refusal"))
    assert done.finish_reason == reason
    told = {event["event_type"]: event for event in events}
    assert told["agent_output"]["metadata"]["finish_reason"] == reason
    assert told["run_completed"]["metadata"]["finish_reason"] == reason
    assert told["progress_update_completion_completed"]["data"]["result"]["finish_reason"] == reason
    [line] = [record for record in caplog.records if getattr(record, "event", "") == "completed"]
    assert line.finish_reason == reason  # type: ignore[attr-defined]
    assert f"with an incomplete answer: finish_reason {reason}" in line.getMessage()
    assert done.context.messages[-1]["provider_data"]["finish_reason"] == reason


async def test_a_whole_answer_says_so_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="factorial.task")
    done, events = await run(Answering({"content": "hi"}))
    assert (done.output, done.finish_reason) == ("hi", "stop")
    assert events[-1]["metadata"]["finish_reason"] == "stop"
    assert "incomplete" not in caplog.text


@pytest.mark.parametrize("text", ["", "{}", '{"all": fal'])
async def test_a_call_that_was_cut_is_not_executed_without_its_arguments(text: str) -> None:
    """The model is told, and goes on."""
    deleted = []

    def delete(everything: bool = True) -> str:
        """Delete."""
        deleted.append(everything)
        return "deleted"

    agent = Answering(calling("delete", text, "length"), {"content": "done"}, tools=[delete])
    done, _ = await run(agent)
    assert done.output == "done"
    assert deleted == ([True] if text == "{}" else [])
    assert text == "{}" or "not valid JSON" in done.context.messages[2]["content"]


@pytest.mark.parametrize("broken", ['{"x": NaN}', '{"x": Infinity}', "[1]", "null", "x", '{"x": 1'])
async def test_arguments_that_are_not_a_json_object_are_an_error_for_the_model(broken: str) -> None:
    called = []

    def take(x: float = 0.0) -> str:
        """Take."""
        called.append(x)
        return "taken"

    agent = Answering(calling("take", broken), {"content": "done"}, tools=[take])
    done, _ = await run(agent)
    assert not called and done.context.messages[2]["content"].startswith("Error: the arguments of 'take' are not valid")
    assert breaches([*done.context.messages, {"role": "user", "content": "next"}], echo={"provider_data"}) == []


async def test_an_answer_in_words_is_corrected_in_the_users_role() -> None:
    agent = Answering({"content": "4 degrees"}, calling("final_output", '{"degrees": 4}'), output_type=Weather)
    done, _ = await run(agent)
    assert done.output == Weather(degrees=4)
    assert agent.requests[1][-2:] == [{"role": "assistant", "content": "4 degrees"}, CORRECTION]


@pytest.mark.parametrize("retries", [0, 1, 3])
@pytest.mark.parametrize(
    ("answer", "last"),
    [({"content": "4 degrees"}, "4 degrees"), (calling("final_output", '{"degrees": "warm"}'), "'degrees'")],
)
async def test_a_typed_output_that_never_comes(retries: int, answer: dict[str, Any], last: str) -> None:
    """In words, or in an invalid call."""
    agent = Answering(answer, output_type=Weather, output_retries=retries)
    with pytest.raises(OutputError, match=rf"in {retries + 1} answers? \(output_retries={retries}\).*{last}"):
        await run(agent)
    assert len(agent.requests) == retries + 1
    assert all(request[-1]["role"] != "assistant" for request in agent.requests)


async def test_the_default_is_three_corrections() -> None:
    agent = Answering({"content": "4 degrees"}, output_type=Weather)
    with pytest.raises(OutputError):
        await run(agent)
    assert len(agent.requests) == 4


async def test_other_tool_calls_begin_the_count_again() -> None:
    def look() -> str:
        """Look."""
        return "4 degrees"

    words: dict[str, Any] = {"content": "soon"}
    answers = [words, words, calling("look", "{}"), words, words, calling("final_output", '{"degrees": 4}')]
    done, _ = await run(Answering(*answers, output_type=Weather, tools=[look], output_retries=2))
    assert done.output == Weather(degrees=4)


async def test_a_refusal_where_a_typed_output_is_due() -> None:
    with pytest.raises(IncompleteAnswerError, match="I cannot help"):
        await run(Answering(REFUSED, output_type=Weather))
    agent = Answering(REFUSED, output_type=Weather, incomplete_answers="mark")
    with pytest.raises(OutputError, match="I cannot help"):
        await run(agent)
    assert len(agent.requests) == 4


@pytest.mark.parametrize(
    "options", [{"output_retries": -1}, {"output_retries": True}, {"incomplete_answers": "ignore"}]
)
def test_options_that_cannot_work(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Agent(name="a", **options)


@pytest.mark.parametrize("asked_for", [1e300, float("inf"), 7200.0])
def test_a_provider_cannot_ask_for_more_than_an_hour(asked_for: float) -> None:
    error = RateLimitError("x", retry_after=asked_for)
    for policy, most in ((AgentWorkerConfig(), 3600), (AgentWorkerConfig(max_retry_after=50.0), 50)):
        for deferred_for in (None, 0.0):
            outcome = after_failure(error, 0, deferred_for, policy)
            assert isinstance(outcome, Backoff | Defer) and most <= outcome.delay <= 1.1 * most


@pytest.mark.parametrize("broken_handler", [False, True])
@pytest.mark.parametrize("fails", [True, False])
async def test_what_an_inline_run_leaves_behind_can_be_used_for_the_next_question(
    fails: bool, broken_handler: bool
) -> None:
    """It failed, or was cancelled, within a tool."""
    import asyncio

    began = asyncio.Event()

    async def work() -> str:
        """Work."""
        began.set()
        if fails:
            raise FatalAgentError("no use")
        await asyncio.Event().wait()
        return "never"

    agent = Answering(calling("work", "{}"), tools=[work])
    context = AgentContext(query="q")

    def hear(event: BaseEvent) -> None:
        if broken_handler and event.event_type in ("run_failed", "run_cancelled"):
            raise OSError("nobody listens")

    running = asyncio.create_task(agent.run_inline(context, hear))
    await began.wait()
    if not fails:
        running.cancel()
    with pytest.raises(FatalAgentError if fails else asyncio.CancelledError):
        await running
    assert breaches([*context.messages, {"role": "user", "content": "next"}]) == []
    assert "ended before this call had a result" in context.messages[-1]["content"]


async def test_an_answer_of_nothing_can_be_sent_again() -> None:
    """Some providers take no empty messages."""
    done, _ = await run(Answering({"content": ""}))
    assert done.output == "" and done.context.messages[-1] == {"role": "assistant", "content": "(no answer)"}
