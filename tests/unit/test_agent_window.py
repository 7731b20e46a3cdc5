"""What a request leaves out to stay within `context_window_limit`. Real: all but the models, which play scripts."""

from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factorial import Agent, AgentContext, BaseEvent, ModelSettings, fallback_models
from factorial.agent.lifecycle.window import fit_window
from factorial.errors import ConfigError, ContextWindowError
from factorial.models import count_tokens
from factorial.testing import ScriptedModel, call, say

Message = dict[str, Any]
SYSTEM = {"role": "system", "content": "Be brief."}
QUERY = {"role": "user", "content": "the question"}
LONG = "word " * 50
"""About 50 tokens."""


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, *call_ids: str) -> Message:
    calls = [{"id": one, "type": "function", "function": {"name": "look", "arguments": "{}"}} for one in call_ids]
    return {"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {})


def tool(call_id: str, text: str = LONG) -> Message:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def fit(messages: list[Message], limit: int, **more: Any) -> list[Message]:
    return fit_window(messages, query="the question", limit=limit, **more).messages


def round_of(number: int) -> list[Message]:
    """One answer of the model with a tool call, and its result."""
    return [assistant(f"round {number}", f"c{number}"), tool(f"c{number}")]


def size(*messages: Message) -> int:
    return count_tokens(list(messages))


# -- what is left out, and in which order


def test_a_request_that_fits_is_sent_as_it_is() -> None:
    messages = [SYSTEM, QUERY, *round_of(1)]
    fitted = fit_window(messages, query="the question", limit=10_000)
    assert fitted.messages == messages
    assert fitted.left_out == 0 and size(*messages) - 10 < fitted.tokens < 10_000


def test_the_oldest_answers_are_left_out_first_with_their_tool_results() -> None:
    messages = [SYSTEM, QUERY, *round_of(1), *round_of(2), *round_of(3)]
    assert fit(messages, size(*messages) - 1) == [SYSTEM, QUERY, *round_of(2), *round_of(3)]
    assert fit(messages, size(SYSTEM, QUERY, *round_of(3)) + 5) == [SYSTEM, QUERY, *round_of(3)]


def test_earlier_conversations_are_left_out_before_messages_of_the_run() -> None:
    earlier = [user("hello"), assistant(LONG), user("and then?"), assistant("", "a"), tool("a"), assistant("done")]
    messages = [SYSTEM, *earlier, QUERY, *round_of(1), *round_of(2)]
    assert fit(messages, size(*messages) - 1) == [SYSTEM, *earlier[2:], QUERY, *round_of(1), *round_of(2)]
    assert fit(messages, size(*messages) - 200) == [SYSTEM, QUERY, *round_of(1), *round_of(2)]


def test_steering_messages_are_left_out_last() -> None:
    steering = [user("one: " + LONG), user("two: " + LONG)]
    messages = [SYSTEM, QUERY, *round_of(1), steering[0], *round_of(2), steering[1], *round_of(3)]
    kept = [SYSTEM, QUERY, *steering, *round_of(3)]
    assert fit(messages, size(*kept) + 5) == kept
    assert fit(messages, size(*kept) - 5) == [SYSTEM, QUERY, steering[1], *round_of(3)]


def test_what_came_after_the_newest_answer_stays() -> None:
    messages = [SYSTEM, QUERY, *round_of(1), *round_of(2), user("one"), user("two")]
    assert fit(messages, size(*messages) - 1) == [SYSTEM, QUERY, *round_of(2), user("one"), user("two")]


def test_a_late_result_is_left_out_with_its_call() -> None:
    """A steering message came between a call and its result."""
    messages = [QUERY, assistant("", "a"), user("quick!"), tool("a"), *round_of(2)]
    assert fit(messages, size(*messages) - 1) == [QUERY, user("quick!"), *round_of(2)]


def test_the_query_is_found_by_its_text_or_is_the_first_user_message() -> None:
    asked_twice = [SYSTEM, QUERY, assistant(LONG), QUERY, *round_of(1)]
    assert fit(asked_twice, size(*asked_twice) - 1) == [SYSTEM, QUERY, *round_of(1)]
    rewritten = [SYSTEM, user("in other words"), *round_of(1), *round_of(2)]
    assert fit(rewritten, size(*rewritten) - 1) == [SYSTEM, user("in other words"), *round_of(2)]


def test_requests_of_successive_turns_begin_with_the_same_messages() -> None:
    """If the cut moved in each turn, the provider's prompt cache would never hit."""
    beginnings = []
    messages = [SYSTEM, QUERY]
    for number in range(100):
        messages += round_of(number)
        beginnings.append(fit(messages, 4000)[2]["content"])
    assert beginnings[0] == beginnings[20] == "round 0"
    assert 5 < len(set(beginnings)) < 25


def test_tools_and_the_answer_count_towards_the_limit() -> None:
    messages = [SYSTEM, QUERY, *round_of(1), *round_of(2)]
    limit = size(*messages)
    tools = [{"type": "function", "function": {"name": "look", "description": LONG}}]
    assert fit(messages, limit) == messages
    assert fit(messages, limit, tools=tools) == [SYSTEM, QUERY, *round_of(2)]
    assert fit(messages, limit, answer=50) == [SYSTEM, QUERY, *round_of(2)]
    assert fit(messages, limit + 50, answer=50) == messages


def test_a_request_that_cannot_fit_is_an_error_with_the_reason() -> None:
    messages = [SYSTEM, QUERY, *round_of(1), assistant("", "b"), tool("b", LONG * 20)]
    with pytest.raises(ContextWindowError) as raised:
        fit(messages, 500, answer=100)
    assert "does not fit into 500 tokens" in str(raised.value)
    assert "(the answer 100," in str(raised.value) and "raise context_window_limit" in str(raised.value)


# -- for any conversation

words = st.integers(0, 120).map(lambda count: "word " * count)


@st.composite
def exchange(draw: st.DrawFn) -> list[Message]:
    """A user message, a plain answer, or an answer with one to three tool calls and their results."""
    kind = draw(st.sampled_from(["user", "answer", "tools"]))
    if kind == "user":
        return [user("said " + draw(words))]
    ids = [f"call_{draw(st.integers(0, 10**9))}_{number}" for number in range(draw(st.integers(1, 3)))]
    if kind == "answer":
        ids = []
    return [assistant(draw(words), *ids), *(tool(one, draw(words)) for one in ids)]


@given(
    earlier=st.lists(exchange(), max_size=5),
    run=st.lists(exchange(), max_size=12),
    limit=st.integers(1, 3000),
    answer=st.integers(0, 200),
    instructed=st.booleans(),
)
def test_what_is_sent_is_valid_and_within_the_limit(
    earlier: list[list[Message]], run: list[list[Message]], limit: int, answer: int, instructed: bool
) -> None:
    head = [SYSTEM] if instructed else []
    messages = [*head, *chain(*earlier), QUERY, *chain(*run)]
    newest = max((index for index, part in enumerate(run) if part[0]["role"] == "assistant"), default=0)
    needed = [*head, QUERY, *chain(*run[newest:])]
    try:
        fitted = fit_window(messages, query="the question", limit=limit, answer=answer)
    except ContextWindowError:
        assert size(*needed) + answer > limit
        return
    sent = fitted.messages
    assert fitted.tokens <= limit and size(*sent) + answer <= limit
    assert len(sent) + fitted.left_out == len(messages)
    assert is_part_in_order(sent, messages)
    assert sent[: len(head)] == head and QUERY in sent
    assert all(message in sent for message in needed)
    assert is_valid(sent)
    if size(*messages) + answer <= limit:
        assert sent == messages


def is_part_in_order(part: list[Message], whole: list[Message]) -> bool:
    """Whether `part` is `whole` without some messages, and with none of them changed."""
    rest = iter(whole)
    return all(any(message is other for other in rest) for message in part)


def is_valid(messages: list[Message]) -> bool:
    """Whether each tool call is answered at once, and each tool message answers a call."""
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            if not waiting or message["tool_call_id"] != waiting.pop(0):
                return False
        elif waiting:
            return False
        waiting += [call["id"] for call in message.get("tool_calls", ())]
    return not waiting


# -- the agent


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"context_window_limit": 0}, "context_window_limit=0: use None, or a whole number of at least 1"),
        ({"context_window_limit": "8k"}, "context_window_limit='8k'"),
        ({"context_window_limit": 1e5}, "context_window_limit=100000.0"),
        ({"context_window_limit": True}, "context_window_limit=True"),
        (
            {"context_window_limit": 100, "model_settings": ModelSettings(max_completion_tokens=100)},
            "max_completion_tokens=100 leaves nothing for the request",
        ),
    ],
)
def test_an_invalid_limit_is_rejected_when_the_agent_is_made(options: Message, complaint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Agent(name="a", **options)
    assert complaint in str(raised.value)


async def run_reading_pages(agent: Agent) -> tuple[int, list[Message]]:
    """The number of messages in the final conversation, and the data of the events about trimming."""
    trimmed: list[Message] = []

    def note(event: BaseEvent) -> None:
        if event.event_type == "context_window_trimmed":
            trimmed.append(event.to_dict()["data"])

    completion = await agent.run_inline(AgentContext(query="Read all pages."), note)
    return len(completion.context.messages), trimmed


def read_page(number: int) -> str:
    """Read a page."""
    return f"{LONG * 4} {number}"


PAGES = [*(call("read_page", number=number) for number in range(6)), say("Read.")]


def reader(limit: int | None, **options: Any) -> Agent:
    model = ScriptedModel(PAGES, context_window=options.pop("context_window", 128_000))
    return Agent(name="reader", tools=[read_page], model=model, context_window_limit=limit, **options)


async def test_inline_the_conversation_stays_whole_and_an_event_is_published() -> None:
    stored, trimmed = await run_reading_pages(reader(1000))
    assert stored == 14
    assert trimmed and all(set(one) == {"limit", "tokens", "messages_left_out", "messages_sent"} for one in trimmed)
    assert all(one["limit"] == 1000 and one["tokens"] <= 1000 for one in trimmed)
    assert trimmed[-1]["messages_left_out"] + trimmed[-1]["messages_sent"] == 13  # all except the last answer


async def test_without_a_limit_nothing_is_left_out() -> None:
    assert await run_reading_pages(reader(None, context_window=1000)) == (14, [])


async def test_the_models_window_applies_if_it_is_smaller() -> None:
    _, trimmed = await run_reading_pages(reader(100_000, context_window=1000))
    assert trimmed and trimmed[0]["limit"] == 1000


async def test_of_several_models_the_smallest_window_applies() -> None:
    agent = reader(100_000)
    assert isinstance(agent.model, ScriptedModel)
    agent.model = fallback_models(agent.model, ScriptedModel([say("never asked")], context_window=900))
    _, trimmed = await run_reading_pages(agent)
    assert trimmed and trimmed[0]["limit"] == 900


async def test_a_request_that_cannot_fit_fails_the_run_without_asking_the_model() -> None:
    with pytest.raises(ContextWindowError, match="does not fit into 20 tokens"):
        await run_reading_pages(reader(20))
