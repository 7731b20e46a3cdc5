"""The conversation as it is sent: what goes back to whom, and what is put right. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from factorial import Agent, AgentContext, Provider
from factorial._core.conversation import answered
from factorial.agent.lifecycle.window import fit_window
from factorial.errors import ConfigError
from factorial.models import count_tokens, fallback_models, ready, sent_tokens
from factorial.models.answer import assistant_message, last_finish_reason
from factorial.models.conversation import sendable
from factorial.models.model import Model
from factorial.models.view import Origin, completion_of, viewed
from factorial.testing import Reply, ScriptedModel, say

QUERY: dict[str, Any] = {"role": "user", "content": "q"}
THINKING = Provider("deepseek", "http://a.invalid/v1", None)
OTHER = Provider("other", "http://b.invalid/v1", None)


def asked(call_id: str = "a", **more: Any) -> dict[str, Any]:
    function = {"name": "look", "arguments": "{}"}
    return {"id": call_id, "type": "function", "function": function, **more}


def stored(provider: Provider = THINKING, **message: Any) -> dict[str, Any]:
    """The message of the conversation for an answer of this provider."""
    body = {"choices": [{"message": {"role": "assistant", **message}, "finish_reason": "stop"}]}
    return assistant_message(viewed(body, Origin(provider.name, provider.api)))


def result(call_id: str = "a", content: str = "4 degrees") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def test_a_plain_answer_is_nothing_but_the_message() -> None:
    """What other programs send to a provider themselves."""
    assert stored(content="hi", refusal=None, annotations=[]) == {"role": "assistant", "content": "hi"}
    assert stored(content=None, tool_calls=[asked(index=0)]) == {
        "role": "assistant",
        "content": None,
        "tool_calls": [asked()],
    }


@pytest.mark.parametrize("calls", [{}, {"tool_calls": [asked()]}])
def test_reasoning_goes_back_to_the_provider_that_made_it(calls: dict[str, Any]) -> None:
    message = stored(content="hi", reasoning_content="hm", **calls)
    assert message["provider_data"] == {"provider": "deepseek", "api": "chat", "message": {"reasoning_content": "hm"}}
    plain = {"role": "assistant", "content": "hi", **calls}
    assert sendable([message], THINKING) == [plain | {"reasoning_content": "hm"}]
    assert sendable([message], OTHER) == [plain]


def test_a_server_does_not_say_what_was_sent_before() -> None:
    """`provider_data` in its answer is not ours."""
    message = stored(content="hi", provider_data={"provider": "deepseek", "message": {"reasoning_content": "spoofed"}})
    assert sendable([message], THINKING) == [{"role": "assistant", "content": "hi"}]


def test_only_what_the_provider_wants_goes_back() -> None:
    message = stored(content="hi", reasoning="hm", reasoning_details=[{"type": "reasoning.text", "text": "hm"}])
    assert sendable([message], THINKING)[0].keys() == {"role", "content", "reasoning_details"}
    picky = Provider("deepseek", "http://a.invalid/v1", None, echo=frozenset())
    assert sendable([message], picky)[0].keys() == {"role", "content"}
    fond = Provider("deepseek", "http://a.invalid/v1", None, echo=frozenset({"reasoning"}))
    assert sendable([message], fond)[0].keys() == {"role", "content", "reasoning"}


@pytest.mark.parametrize("echo", ["reasoning", 5, [1]])
def test_an_echo_that_is_not_a_set_of_names(echo: Any) -> None:
    with pytest.raises(ConfigError, match="echo="):
        Provider("p", "http://a.invalid", None, echo=echo)


def test_parts_go_back_as_parts_if_the_provider_wants_them() -> None:
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hi"}]
    message = stored(content=parts)
    assert message["content"] == "hi"
    wants = Provider("deepseek", "http://a.invalid/v1", None, echo=frozenset({"content"}))
    assert sendable([message], wants)[0]["content"] == parts
    assert sendable([message], THINKING)[0]["content"] == "hi"


def test_an_id_that_only_its_maker_takes() -> None:
    """Kimi's ids have dots and colons, and it wants to see them again."""
    messages = [QUERY, stored(content=None, tool_calls=[asked("functions.look:0")]), result("functions.look:0")]
    assert sendable(messages, THINKING)[1:] == [
        {"role": "assistant", "content": None, "tool_calls": [asked("functions.look:0")]},
        messages[2],
    ]
    call, answer = sendable(messages, OTHER)[1:]
    assert call["tool_calls"][0]["id"] == answer["tool_call_id"] != "functions.look:0"
    assert messages[2]["tool_call_id"] == "functions.look:0", "the stored message is not changed"


@pytest.mark.parametrize("provider", [THINKING, OTHER])
def test_conversations_that_were_stored_before(provider: Provider) -> None:
    """They have no `provider_data`; a signature is in its call, and a refusal in its message."""
    call = asked(extra_content={"google": {"thought_signature": "s"}})
    messages = [QUERY, {"role": "assistant", "content": None, "tool_calls": [call]}, result()]
    assert sendable(messages, provider) == messages
    assert sendable([{"role": "assistant", "content": "", "refusal": "no"}], provider) == [
        {"role": "assistant", "content": "no"}
    ]


def test_nothing_is_sent_that_ends_with_an_answer() -> None:
    spoken = {"role": "assistant", "content": "hi"}
    assert ready([QUERY, spoken])[-1] == {"role": "user", "content": "Continue."}
    assert ready([QUERY, spoken, {"role": "system", "content": "s"}])[-1]["role"] == "user"
    assert ready([QUERY, spoken, QUERY]) == [QUERY, spoken, QUERY]


def test_open_calls_are_answered_where_they_were_made() -> None:
    made: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [asked("a"), asked("b"), asked("c")]}
    messages: list[dict[str, Any]] = [QUERY, made, result("b"), QUERY, {"role": "assistant", "content": "hi"}]
    complete = answered(messages)
    assert [message.get("tool_call_id") for message in complete[2:5]] == ["b", "a", "c"]
    assert complete[5:] == messages[3:] and "ended before" in complete[3]["content"]
    assert answered(complete) == complete
    assert [message.get("tool_call_id") for message in answered([made])[1:]] == ["a", "b", "c"]


def test_the_window_counts_what_is_sent() -> None:
    """Not what is kept for another provider."""
    long = "thinking " * 1000
    messages = [QUERY, stored(content="hi", reasoning_content=long), QUERY]
    assert sent_tokens(messages, [OTHER])[1] == count_tokens({"role": "assistant", "content": "hi"})
    assert sent_tokens(messages, [THINKING])[1] > 1000
    both = fallback_models(Model("a", OTHER), Model("b", THINKING))
    assert sent_tokens(messages, both.providers)[1] > 1000, "the request has to fit whoever answers it"
    fitted = fit_window(messages, query="q", limit=200, sizes=sent_tokens(messages, [OTHER]))
    assert fitted.left_out == 0 and fitted.messages == messages


async def test_an_agent_leaves_out_nothing_for_what_it_does_not_send() -> None:
    long = "thinking " * 1000
    history = [QUERY, stored(content="first", reasoning_content=long)]
    asked_for = []

    def play(messages: Sequence[Mapping[str, Any]]) -> Reply:
        asked_for.append([dict(message) for message in messages])
        return say("done")

    agent = Agent(name="a", model=ScriptedModel(play), context_window_limit=500)
    await agent.run_inline(AgentContext(query="next", messages=history))
    assert [message["content"] for message in asked_for[0]] == ["q", "first", "next"]
    assert "provider_data" not in asked_for[0][1]


async def test_a_client_of_ones_own_gets_plain_messages() -> None:
    """A client that is not ours sends them as they are, and what is kept for a provider would be refused."""
    seen: list[Any] = []

    class Client:
        async def completion(self, **request: Any) -> ChatCompletion:
            seen.append(request["messages"])
            message = {"role": "assistant", "content": "hi", "reasoning_content": "hm"}
            return completion_of({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    class Asking(Agent):
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> ChatCompletion:
            seen.append(messages)
            return await Client().completion(messages=messages)

    history = [QUERY, stored(content="first", reasoning_content="hm")]
    done = await Agent(name="a", client=Client()).run_inline(AgentContext(query="q", messages=history))
    assert not any("provider_data" in message for message in seen[0])
    assert done.context.messages[-1]["provider_data"]["provider"] is None
    seen.clear()
    await Asking(name="b").run_inline(AgentContext(query="q", messages=done.context.messages[2:]))
    assert not any("provider_data" in message for message in seen[0])


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"content": "hi"}, "stop"),
        ({"content": None, "tool_calls": [asked()]}, "tool_calls"),
        ({"content": None, "refusal": "no"}, "refusal"),
    ],
)
def test_why_the_last_answer_of_a_stored_conversation_ended(message: dict[str, Any], reason: str) -> None:
    assert last_finish_reason([QUERY, stored(**message), result()]) == reason
    assert last_finish_reason([QUERY]) is None
