"""Whatever a server answers, the conversation that is sent again is one that every provider accepts.

Random answers go through whole inline runs. Real: the lifecycle, the view, the journal's encoding, the bodies of the
requests. Fake: HTTP; the transport is given the bodies and the chunks that a server would send.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from factorial import Agent, AgentContext, AgentWorkerConfig, Model, Provider
from factorial.agent.lifecycle.calls import _record_completion
from factorial.errors import FactorialError
from factorial.events import BaseEvent
from factorial.models import ModelRequest, OnChunk, assistant_message
from factorial.models.model import Transport
from factorial.models.transports.body import request_body
from factorial.models.transports.received import checked_body
from factorial.models.transports.streaming import read_stream
from factorial.models.view import completion_of, viewed
from factorial.utils import BaseModel
from tests.provider_rules import breaches

ECHO = frozenset({"reasoning_content", "extra_content"})
OWN = Provider("local", "http://local.invalid/v1", None, echo=ECHO)
OTHERS = (Provider("other", "http://other.invalid/v1", None), Provider("mistral", "http://mistral.invalid/v1", None))

texts = st.one_of(st.sampled_from(["", " ", "done", "4 degrees", "\ud83d", "two\nlines"]), st.text(max_size=8))
keys = st.sampled_from(["id", "text", "type", "error", "code", "x\ud83d"])
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
junk = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=2), max_leaves=4
)
parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, texts),
    st.builds(lambda text: {"type": "thinking", "thinking": [{"type": "text", "text": text}]}, texts),
    junk,
)
contents = st.one_of(st.none(), texts, st.lists(parts, max_size=3), junk)
arguments = st.one_of(
    st.sampled_from([
        "", "{}", '{"city": "Oslo"}', '{"city": NaN}', '{"city": "Oslo"', "[1]", "null", "Oslo",
        '"{\\"city\\": \\"x\\"}"', '{"city": "\\ud83d"}', '{"city": 1e999}', "{'city': 'Oslo'}",
    ]),
    st.none(), st.just({"city": "Oslo"}), st.just({"city": float("nan")}), st.just([]), junk,
)  # fmt: skip
names = st.one_of(st.sampled_from(["look", "final_output", " look", "functions.look", "", "x" * 80, "größe"]), junk)
ids = st.one_of(st.sampled_from(["", "a", "b", "call_0", "functions.look:0", "i" * 60, "i" * 200, "é", 7]), junk)


def mapping(required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required, optional=optional)


functions = mapping({}, {"name": names, "arguments": arguments, "note": junk})
well_formed = mapping(
    {
        "id": st.sampled_from(["a", "b", "c", "d"]),
        "type": st.just("function"),
        "function": st.just({"name": "look", "arguments": '{"city": "Oslo"}'}),
    },
    {"index": st.just(0), "extra_content": junk},
)
calls = st.one_of(
    well_formed,
    mapping(
        {"function": functions},
        {
            "id": ids,
            "type": st.sampled_from(["function", "tool", "", None]),
            "index": st.just(0),
            "extra_content": junk,
        },
    ),
    mapping({"name": names, "arguments": arguments}, {"id": ids}),
    mapping({"type": st.just("custom"), "id": ids}, {"custom": junk}),
    junk,
)
messages = mapping(
    {},
    {
        "role": st.one_of(st.just("assistant"), junk),
        "content": contents,
        "tool_calls": st.one_of(st.lists(calls, max_size=3), calls),
        "function_call": st.one_of(functions, junk),
        "refusal": st.one_of(texts, contents),
        "reasoning_content": texts,
        "annotations": junk,
        "provider_data": junk,
    },
)
reasons = st.one_of(
    st.sampled_from(["stop", "tool_calls", "length", "content_filter", "function_call", "end_turn", "error"]), junk
)
bodies = st.one_of(
    mapping(
        {"choices": st.lists(mapping({"message": messages}, {"finish_reason": reasons, "index": junk}), max_size=2)},
        {"id": junk, "model": junk, "created": junk, "usage": junk, "error": junk, "service_tier": junk},
    ),
    junk,
)
chunks = st.one_of(
    mapping(
        {
            "choices": st.lists(
                mapping({"delta": messages}, {"finish_reason": reasons, "index": st.just(0)}), max_size=2
            )
        },
        {"id": junk, "usage": junk},
    ),
    junk.filter(lambda chunk: isinstance(chunk, dict)),
)
END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
answers = st.one_of(
    st.tuples(st.just("whole"), bodies),
    st.tuples(st.just("streamed"), st.lists(chunks, max_size=4)),
    st.tuples(st.just("made"), messages),
)


@dataclass
class Served:
    """The answers that are left, and what was asked for."""

    answers: list[tuple[str, Any]]
    sent: list[list[dict[str, Any]]] = field(default_factory=list)


class Answers(Transport):
    """A transport whose server sends what the test gives it."""

    def __init__(self, served: Served) -> None:
        self._served = served

    async def create(self, model: Model, request: ModelRequest, on_chunk: OnChunk | None) -> Any:
        body = json.loads(request_body(model, request))
        self._served.sent.append(body["messages"])
        kind, answer = self._served.answers.pop(0) if self._served.answers else ("whole", DONE)
        if kind == "whole":
            return viewed(checked_body(model, answer), model.origin, request.call_ids)
        if kind == "made":  # by a transport of the user's, which does not look at the answer
            return completion_of({"choices": [{"index": 0, "message": answer, "finish_reason": "stop"}]})
        return await read_stream(model, each([*answer, END]), on_chunk, request.call_ids)


DONE = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "done"}, "finish_reason": "stop"}]}


async def each(chunks: list[Any]) -> AsyncIterator[Mapping[str, Any]]:
    for chunk in chunks:
        yield chunk


class Answering(Model):
    """A model over such a transport."""

    served: Served

    def __init__(self, served: Served, provider: Provider) -> None:
        super().__init__("m", provider)
        object.__setattr__(self, "served", served)

    def transport(self) -> Transport:
        return Answers(self.served)


class Weather(BaseModel):
    """A typed output."""

    city: str


def look(city: str = "anywhere") -> str:
    """Look."""
    return f"4 degrees in {city}"


def publish(event: BaseEvent) -> None:
    """As a worker does: an event has to be JSON."""
    event.to_json()


async def ask(
    served: Served, provider: Provider, history: list[dict[str, Any]], **options: Any
) -> tuple[AgentContext, str]:
    """One run. Returns what is left of its context, as it would be stored, and how the run ended."""
    agent = Agent(name="a", tools=[look], model=Answering(served, provider), max_turns=6, **options)
    context = AgentContext(query="q", messages=history)
    try:
        await agent.run_inline(context, publish, worker_config=AgentWorkerConfig(max_retries=0))
        end = "completed"
    except FactorialError as error:
        end = type(error).__name__
    return AgentContext.from_json(context.to_json()), end


@settings(max_examples=200, deadline=None)
@given(
    answered=st.lists(answers, max_size=4),
    stream=st.booleans(),
    typed=st.booleans(),
    mark=st.booleans(),
)
def test_every_request_is_one_that_every_provider_accepts(
    answered: list[tuple[str, Any]], stream: bool, typed: bool, mark: bool
) -> None:
    served = Served(list(answered))
    options: dict[str, Any] = {"stream": stream, "incomplete_answers": "mark" if mark else "error"}
    if typed:
        options["output_type"] = Weather

    async def whole_story() -> None:
        context, end = await ask(served, OWN, [], **options)
        event(end)
        made = {call["id"] for message in context.messages for call in message.get("tool_calls") or ()}
        for sent in served.sent:
            ids_sent = {call["id"] for message in sent for call in message.get("tool_calls") or ()}
            assert breaches(sent, own=ids_sent, echo=ECHO) == []
        for other in OTHERS:
            again = Served([])
            await ask(again, other, list(context.messages))
            assert breaches(again.sent[0], nine=other.name == "mistral") == []
        again = Served([])
        await ask(again, OWN, list(context.messages))
        assert breaches(again.sent[0], own=made, echo=ECHO) == []

    asyncio.run(whole_story())


@settings(max_examples=200, deadline=None)
@given(body=bodies)
def test_the_view_of_a_view_is_the_same_also_after_the_journal(body: Any) -> None:
    model = Answering(Served([]), OWN)
    try:
        view = viewed(checked_body(model, body), model.origin, {"a"})
    except FactorialError:
        return
    assert viewed(view, model.origin, {"a"}) == view
    recalled = completion_of(json.loads(_record_completion(view).result))
    assert assistant_message(recalled) == json.loads(json.dumps(assistant_message(recalled)))
    assert viewed(recalled, taken={"a"}) == recalled


@settings(max_examples=200, deadline=None)
@given(message=messages)
def test_what_the_provider_sent_is_kept(message: dict[str, Any]) -> None:
    """Each member is in the message as it was sent, or in `provider_data`, unchanged."""
    message.pop("provider_data", None)
    body = {"choices": [{"message": message, "finish_reason": "stop"}]}
    stored = assistant_message(viewed(body, replace_origin(), ()))
    kept = (stored.get("provider_data") or {}).get("message", {})
    for name, value in message.items():
        if name == "role" or value in (None, "", [], {}) or (isinstance(value, str) and not value.strip()):
            continue
        shown = stored.get(name)
        if name == "tool_calls" and name not in kept:
            shown = [{k: v for k, v in call.items() if k != "index" and v is not None} for call in value]
            assert shown == stored["tool_calls"]
            continue
        assert text(kept.get(name, shown)) == text(value), name


def replace_origin() -> Any:
    return Answering(Served([]), replace(OWN, echo=frozenset())).origin


def text(value: Any) -> str:
    """For comparison: NaN, and halves of characters, are what JSON in UTF-8 makes of them."""
    return (
        json.dumps(value, ensure_ascii=False, sort_keys=True)
        .replace("NaN", "null")
        .replace("-Infinity", "null")
        .replace("Infinity", "null")
        .encode(errors="replace")
        .decode()
    )
