"""The scripted model, called like any model. Nothing else is fake."""

import json
from dataclasses import replace
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from factorial import Agent, AgentContext, BaseEvent
from factorial.errors import ConfigError, ModelRefusedError
from factorial.models import ModelRequest, assistant_message, complete
from factorial.testing import ScriptedModel, call, calls, say

USER = {"role": "user", "content": "hi"}
ASKED = ModelRequest([USER])


def after(*answers: dict[str, Any]) -> ModelRequest:
    return ModelRequest([USER, *answers])


async def test_the_reply_is_chosen_by_the_conversation() -> None:
    """The model has no state: the same conversation gets the same reply, in any process and any number of times."""
    model = ScriptedModel([call("search", query="cats"), "Cats sleep."])
    first = await complete(model, ASKED)
    assert isinstance(first, ChatCompletion)
    assert first.choices[0].finish_reason == "tool_calls"
    message = assistant_message(first)
    assert message == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_0_0", "type": "function", "function": {"name": "search", "arguments": '{"query":"cats"}'}}
        ],
    }
    assert assistant_message(await complete(model, ASKED)) == message
    second = await complete(model, after(message, {"role": "tool", "tool_call_id": "call_0_0", "content": "purr"}))
    assert assistant_message(second) == {"role": "assistant", "content": "Cats sleep."}
    assert second.choices[0].finish_reason == "stop"


async def test_several_calls_and_text_in_one_reply() -> None:
    model = ScriptedModel([calls(say("Looking."), call("a"), call("b", name="x", tool=1))])
    message = assistant_message(await complete(model, ASKED))
    assert message["content"] == "Looking."
    assert [(each["id"], each["function"]["name"]) for each in message["tool_calls"]] == [
        ("call_0_0", "a"),
        ("call_0_1", "b"),
    ]
    assert json.loads(message["tool_calls"][1]["function"]["arguments"]) == {"name": "x", "tool": 1}


async def test_a_function_of_the_messages() -> None:
    model = ScriptedModel(lambda messages: say(f"You said {messages[-1]['content']}."))
    assert (await complete(model, ASKED)).choices[0].message.content == "You said hi."


async def test_answers_that_a_request_leaves_out_count() -> None:
    """Otherwise the script would start again whenever its answers leave the window, and never end."""
    asked: list[int] = []

    def read_page(number: int) -> str:
        """Read a page."""
        asked.append(number)
        return "word " * 1000

    script = ScriptedModel([*(call("read_page", number=number) for number in range(6)), say("end")])
    agent = Agent(name="reader", tools=[read_page], model=script, context_window_limit=3000, max_turns=20)
    left_out: list[int] = []

    def note(event: BaseEvent) -> None:
        if event.event_type == "context_window_trimmed":
            left_out.append(event.to_dict()["data"]["messages_left_out"])

    completion = await agent.run_inline(AgentContext(query="Read."), note)
    answers = [message for message in completion.context.messages if message["role"] == "assistant"]
    ids = [one["id"] for message in answers for one in message.get("tool_calls", ())]
    assert (completion.output, asked, len(answers)) == ("end", [0, 1, 2, 3, 4, 5], 7)
    assert len(set(ids)) == 6
    assert left_out and left_out[-1] >= 6


async def test_chunks_add_up() -> None:
    chunks: list[ChatCompletionChunk] = []

    async def keep(chunk: ChatCompletionChunk) -> None:
        chunks.append(chunk)

    model = ScriptedModel([calls(say("One two  three"), call("a", x="y z"))])
    streamed = await complete(model, replace(ASKED, stream=True), keep)
    assert assistant_message(streamed) == assistant_message(await complete(model, ASKED))
    assert streamed.choices[0].message.content == "One two  three"
    assert len(chunks) > 5 and {chunk.id for chunk in chunks} == {"chatcmpl-scripted-0"}
    assert isinstance(chunks[0].choices[0].delta.role, str)


async def test_a_script_without_further_replies_is_an_error() -> None:
    with pytest.raises(ModelRefusedError, match="the script has 1 replies, and the conversation asks for number 2"):
        await complete(ScriptedModel(["one"]), after({"role": "assistant", "content": "one"}))


@pytest.mark.parametrize("wrong", ["hello", say("hello"), None, 3])
def test_what_is_not_a_script_is_rejected(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="is not a script"):
        ScriptedModel(wrong)


def test_it_says_that_it_is_not_a_language_model() -> None:
    assert "not a language model" in repr(ScriptedModel([])) and "not a language model" in (ScriptedModel.__doc__ or "")
    assert ScriptedModel(["a"]) != ScriptedModel(["a"])


@pytest.mark.parametrize("wrong", [None, 5, ["say"], {"text": "x"}])
def test_an_element_that_cannot_be_played_is_rejected_when_the_model_is_made(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="ScriptedModel: element 1 is "):
        ScriptedModel(["fine", wrong])


async def test_an_element_may_be_a_function_of_the_messages() -> None:
    def fail(messages: Any) -> str:
        raise ModelRefusedError("not today")

    agent = Agent(name="a", model=ScriptedModel([lambda messages: say(f"{len(messages)} heard"), fail]))
    completion = await agent.run_inline(AgentContext(query="go"))
    assert completion.output == "1 heard"
    with pytest.raises(ModelRefusedError, match="not today"):
        await agent.run_inline(AgentContext(query="again", messages=completion.context.messages))


async def test_a_function_that_returns_no_reply_is_an_error() -> None:
    agent = Agent(name="a", model=ScriptedModel(lambda messages: None))  # type: ignore[arg-type,return-value]
    with pytest.raises(ModelRefusedError, match="returned None: return a Reply or a str"):
        await agent.run_inline(AgentContext(query="go"))
