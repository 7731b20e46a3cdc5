"""A finished model or tool call is not repeated, whatever happens to the turn; and what is stored is what was there.

Real: actors, mailbox, Valkey. Fake: the lifeline, the death of a process (its commands go nowhere from one moment on),
and the model, which is scripted.
"""

import asyncio
from collections import Counter
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel, Field, computed_field

from factorial import (
    Agent,
    AgentContext,
    BaseAgent,
    ExecutionContext,
    FunctionToolActionResult,
    RetryableError,
    TurnCompletion,
)
from factorial.mailbox.operations.lease import Cause
from factorial.mailbox.transport.commands import Commands
from factorial.testing import ScriptedModel, call, calls, say
from tests.harness import System, quick, texts
from tests.support import PATIENCE, wait_until


class Notes(AgentContext):
    """A context that tools write to."""

    notes: list[str] = Field(default_factory=list)
    count: int = 0


class Counted(BaseAgent[Notes]):
    """Counts its model calls."""

    def __init__(self, *replies: Any, **options: Any) -> None:
        defaults: dict[str, Any] = {"name": "counted", "context_class": Notes}
        super().__init__(model=ScriptedModel(list(replies)), **defaults | options)
        self.done: Counter[str] = Counter()

    async def completion(self, agent_ctx: Notes, messages: list[dict[str, Any]]) -> Any:
        self.done["completion"] += 1
        return await super().completion(agent_ctx, messages)


async def test_a_turn_that_fails_after_one_of_two_tools_repeats_neither_model_call_nor_tool(system: System) -> None:
    """And what the finished tool changed in the context is there in the next try."""
    done: Counter[str] = Counter()
    seen = []

    def good(agent_ctx: Notes) -> str:
        """Work."""
        done["good"] += 1
        agent_ctx.notes.append("good was here")
        agent_ctx.count = 1
        return "good result"

    async def bad(agent_ctx: Notes) -> str:
        """Fail at first."""
        done["bad"] += 1
        if done["bad"] == 1:
            await wait_until(lambda: done["good"])
            raise RetryableError("not yet")
        seen.append((agent_ctx.notes.copy(), agent_ctx.count))
        agent_ctx.notes.append("bad was here")
        return "bad result"

    agent = Counted(calls(call("good"), call("bad")), say("done"), tools=[good, bad])
    await system.start(agent)
    task_id = await system.submit(agent, Notes(query="go"))
    data = await system.ended(task_id)
    assert data["payload"]["output"] == "done"
    assert done == {"good": 1, "bad": 2}
    assert agent.done == {"completion": 2}
    assert seen == [(["good was here"], 1)]
    assert data["payload"]["notes"] == ["good was here", "bad was here"]
    assert texts(data["payload"]["messages"]) == [
        "user: go", "assistant: None", "tool: good result", "tool: bad result", "assistant: done",
    ]  # fmt: skip
    types = await system.types(task_id, progress=True)
    assert types.count("progress_update_completion_completed") == 2


async def test_a_change_that_a_later_tool_takes_back_stays_taken_back(system: System) -> None:
    tried = []

    def set_it(agent_ctx: Notes) -> str:
        """Change."""
        agent_ctx.count = 5
        return "set"

    async def reset_it(agent_ctx: Notes) -> str:
        """Change back."""
        await wait_until(lambda: agent_ctx.count == 5)
        await asyncio.sleep(0.01)  # the other tool's step is journaled, with the change
        agent_ctx.count = 0
        return "reset"

    async def fail(agent_ctx: Notes) -> str:
        """Fail at first."""
        await asyncio.sleep(0.05)
        tried.append(agent_ctx.count)
        if len(tried) == 1:
            raise RetryableError("not yet")
        return "ok"

    agent = Counted(calls(call("set_it"), call("reset_it"), call("fail")), say("done"), tools=[set_it, reset_it, fail])
    await system.start(agent)
    data = await system.ended(await system.submit(agent, Notes(query="go")))
    assert tried == [0, 0]
    assert data["payload"]["count"] == 0


async def test_a_process_that_dies_between_two_tools_costs_the_step_in_flight_and_no_more(system: System) -> None:
    done: Counter[str] = Counter()
    keys = []
    stuck = asyncio.Event()

    def first(agent_ctx: Notes) -> str:
        """Work."""
        done["first"] += 1
        agent_ctx.notes.append("first")
        return "1"

    async def second(agent_ctx: Notes, execution_ctx: ExecutionContext) -> str:
        """Work that never ends, the first time."""
        done["second"] += 1
        keys.append(execution_ctx.idempotency_key)
        if done["second"] == 1:
            stuck.set()
            await asyncio.Event().wait()
        agent_ctx.notes.append("second")
        return "2"

    agent = Counted(
        call("first"), calls(call("first"), call("second")), call("first"), say("done"), tools=[first, second]
    )
    victim = await system.start(agent)
    task_id = await system.submit(agent, Notes(query="go"))
    await asyncio.wait_for(stuck.wait(), PATIENCE)
    await wait_until(lambda: done["first"] == 2)
    mailbox = await system.mailbox()
    journal = f"{mailbox.keys.prefix}journal:{task_id}"
    await wait_until(lambda: _length(system, journal, 4))
    await victim.kill()
    await mailbox.reclaim_process(victim.name, Cause.CRASHED)  # what the supervisor does when it sees the process die
    await system.start(agent)
    data = await system.ended(task_id)
    assert data["payload"]["output"] == "done"
    assert done == {"first": 3, "second": 2}
    assert agent.done == {"completion": 4}
    assert data["payload"]["notes"] == ["first", "first", "second", "first"]
    assert keys[0] == keys[1] and keys[0].startswith(task_id)
    assert (data["pickups"], data["payload"]["turn"]) == (2, 4)
    tries = [
        (event["metadata"]["attempt"], event["metadata"]["pickups"])
        for event in await system.events(task_id)
        if event["event_type"] == "progress_update_run_turn_started"
    ]
    assert tries == [(1, 1), (1, 1), (1, 2), (1, 2), (1, 2)]


async def _length(system: System, key: str, least: int) -> bool:
    return bool(await system.execute("HLEN", key) >= least)


async def test_an_overridden_completion_is_journaled(system: System) -> None:
    """Counted overrides it; here the override makes its answer without a model at all."""
    made = []

    class HandMade(Agent):
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
            from openai.types.chat import ChatCompletion

            made.append(1)
            return ChatCompletion.model_validate(
                {
                    "id": "x", "object": "chat.completion", "created": 0, "model": "none",
                    "choices": [
                        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "by hand"}}
                    ],
                }
            )  # fmt: skip

        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            finished = await super().run_turn(agent_ctx)
            if self.get_execution_context().retries < 2:
                raise RetryableError("once more")
            return finished

    agent = HandMade(name="handmade")
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert data["payload"]["output"] == "by hand"
    assert made == [1]


async def test_an_overridden_tool_action_is_journaled(system: System) -> None:
    acted = []

    class Acting(Agent):
        async def tool_action(self, tool_call: Any, agent_ctx: AgentContext) -> FunctionToolActionResult:
            acted.append(tool_call.function.name)
            return FunctionToolActionResult(tool_call_id=tool_call.id, output_str="acted", output_data={"n": 1})

        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            finished = await super().run_turn(agent_ctx)
            results = [result for _, result in finished.tool_call_results]
            if self.get_execution_context().retries < 2 and results:
                raise RetryableError("once more")
            if results:
                assert results[0].output_data == {"n": 1}
            return finished

    def tool() -> str:
        """Never called."""
        raise AssertionError

    agent = Acting(name="acting", tools=[tool], model=ScriptedModel([call("tool"), say("done")]))
    await system.start(agent, quick(max_retries=3))
    data = await system.ended(await system.submit(agent))
    assert data["payload"]["output"] == "done"
    assert acted == ["tool"]


async def test_an_overridden_run_turn_that_asks_twice_has_both_answers_journaled(system: System) -> None:
    """A draft and a critique in one turn: after a failure neither is asked for again, and they are not mixed up."""
    asked = []

    class Critic(Agent):
        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
            asked.append(messages[-1]["content"])
            return await super().completion(agent_ctx, messages)

        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            draft = await self.completion(agent_ctx, [{"role": "user", "content": "draft"}])
            critique = await self.completion(agent_ctx, [{"role": "user", "content": "criticise"}])
            if self.get_execution_context().retries == 0:
                raise RetryableError("once more")
            output = [draft.choices[0].message.content, critique.choices[0].message.content]
            return TurnCompletion(is_done=True, context=agent_ctx, output=output)

    agent = Critic(name="critic", model=ScriptedModel(lambda messages: say(f"{messages[-1]['content']} it is")))
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert data["payload"]["output"] == ["draft it is", "criticise it is"]
    assert asked == ["draft", "criticise"]


# -- what is stored is what was there


async def test_an_edited_conversation_is_stored_as_it_is(system: System) -> None:
    """A tool that shortens the conversation, or changes a message within it."""

    def forget(agent_ctx: AgentContext) -> str:
        """Drop the oldest messages."""
        del agent_ctx.messages[0]
        agent_ctx.messages[0]["content"] = "edited"
        return "forgotten"

    model = ScriptedModel(lambda messages: say("done") if messages[-1]["role"] == "tool" else call("forget"))
    agent = Agent(name="forgetful", tools=[forget], model=model)
    await system.start(agent)
    payload = AgentContext(query="q", messages=[user("old"), user("older")])
    data = await system.ended(await system.submit(agent, payload))
    assert texts(data["payload"]["messages"]) == [
        "user: edited", "user: q", "assistant: None", "tool: forgotten", "assistant: done",
    ]  # fmt: skip


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


async def test_an_edit_survives_a_process_that_takes_the_next_turn(system: System) -> None:
    class Summarising(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            finished = await super().run_turn(agent_ctx)
            agent_ctx.messages[:] = [user(f"summary {agent_ctx.turn}")]
            if agent_ctx.turn == 1 and self.get_execution_context().pickups == 1:
                raise RetryableError("once more")
            return finished

    def tool() -> str:
        """Work."""
        return "x"

    seen = []

    def reply(messages: Any) -> Any:
        seen.append(texts(messages))
        return call("tool") if len(seen) < 3 else say("done")

    agent = Summarising(name="summarising", tools=[tool], model=ScriptedModel(reply))
    await system.start(agent)
    data = await system.ended(await system.submit(agent, "hello"))
    assert seen == [["user: hello"], ["user: summary 0"], ["user: summary 1"]]
    assert texts(data["payload"]["messages"]) == ["user: summary 2"]


async def test_a_turn_writes_its_new_messages_and_changed_fields_only(system: System) -> None:
    """Counted in the commits themselves: nothing grows with the conversation."""
    from factorial.actors import durable_host as module

    works = []
    real = module.commit  # type: ignore[attr-defined]

    async def noting(*args: Any, work: Any, **more: Any) -> Any:
        works.append(work)
        return await real(*args, work=work, **more)

    def tool(agent_ctx: Notes) -> str:
        """Note."""
        if agent_ctx.turn == 3:
            agent_ctx.notes.append("x" * 100)
        return "y" * 2000

    replies = [*(call("tool") for _ in range(8)), say("done")]
    agent = Counted(*replies, tools=[tool])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "commit", noting)
        await system.start(agent)
        await system.ended(await system.submit(agent, Notes(query="q", big="z" * 5000)))  # type: ignore[call-arg]
    assert [sorted(work.fields) for work in works] == [["turn"]] * 3 + [["notes", "turn"]] + [["turn"]] * 5
    assert [len(work.messages) for work in works] == [2] * 8 + [1]
    assert not any(work.rewrite for work in works)
    sizes = [sum(map(len, work.messages)) for work in works]
    assert max(sizes[1:-1]) - min(sizes[1:-1]) <= 2


class Colour(Enum):
    RED = "red"


class Part(BaseModel):
    name: str
    made: datetime


class Rich(AgentContext):
    """Fields of many types."""

    colour: Colour = Colour.RED
    tags: set[str] = Field(default_factory=set)
    parts: list[Part] = Field(default_factory=list)
    pair: tuple[int, str] = (1, "a")
    ratio: float = 0.0
    raw: bytes = b""
    renamed: int = Field(default=0, alias="otherName")
    hidden: Any = Field(default=None, exclude=True)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def size(self) -> int:
        """How many parts."""
        return len(self.parts)


async def test_a_context_keeps_its_types_on_the_way_through_redis(system: System) -> None:
    seen = []

    def look(agent_ctx: Rich) -> str:
        """Look."""
        seen.append(agent_ctx.model_copy(deep=True))
        agent_ctx.tags.add("seen")
        agent_ctx.parts.append(Part(name="bolt", made=datetime(2026, 1, 2, tzinfo=UTC)))
        return "looked"

    agent: BaseAgent[Rich] = BaseAgent(
        name="rich", context_class=Rich, tools=[look], model=ScriptedModel([call("look"), call("look"), say("done")])
    )
    await system.start(agent)
    payload = Rich(  # type: ignore[call-arg]
        query="q", tags={"a"}, parts=[Part(name="nut", made=datetime(2026, 1, 1, tzinfo=UTC))], pair=(2, "b"),
        ratio=float("inf"), raw=b"\x00abc", otherName=7, hidden=object(), extra={"kept": [1, None]},
    )  # fmt: skip
    data = await system.ended(await system.submit(agent, payload))
    assert data["status"] == "completed"
    first, second = seen
    assert (first.colour, first.tags, first.pair, first.ratio) == (Colour.RED, {"a"}, (2, "b"), float("inf"))
    assert (first.raw, first.renamed, first.hidden, first.size) == (b"\x00abc", 7, None, 1)
    assert first.parts == payload.parts
    assert first.model_extra is not None
    assert first.model_extra["extra"] == {"kept": [1, None]}
    assert second.tags == {"a", "seen"} and second.size == 2
    assert set(data["payload"]["tags"]) == {"a", "seen"}


async def test_a_strict_context_class_with_a_computed_field(system: System) -> None:
    class Strict(AgentContext, extra="forbid"):
        @computed_field  # type: ignore[prop-decorator]
        @property
        def double(self) -> int:
            return 2 * self.turn

    agent: BaseAgent[Strict] = BaseAgent(name="strict", context_class=Strict, model=ScriptedModel(["done"]))
    await system.start(agent)
    data = await system.ended(await system.submit(agent, Strict(query="q")))
    assert (data["error"], data["payload"]["double"]) == (None, 2)


async def test_not_a_number_survives(system: System) -> None:
    class Measured(AgentContext):
        value: float = 0.0

    agent: BaseAgent[Measured] = BaseAgent(name="m", context_class=Measured, model=ScriptedModel(["done"]))
    await system.start(agent)
    data = await system.ended(await system.submit(agent, Measured(query="q", value=float("nan"))))
    assert data["status"] == "completed"


# -- output types, parallel tools


class Answer(BaseModel):
    """The answer."""

    text: str
    score: int


async def test_an_invalid_final_output_goes_back_to_the_model_and_is_corrected(system: System) -> None:
    agent = Agent(
        name="typed",
        output_type=Answer,
        model=ScriptedModel([
            call("final_output", text="hm", score="many"), say("words alone do not end it"),
            call("final_output", text="ok", score=3),
        ]),
    )  # fmt: skip
    await system.start(agent)
    task_id = await system.submit(agent)
    data = await system.ended(task_id)
    assert data["payload"]["output"] == {"text": "ok", "score": 3}
    assert (await system.event(task_id, "agent_output"))["data"] == {"text": "ok", "score": 3}
    first_result = next(message for message in data["payload"]["messages"] if message["role"] == "tool")
    assert first_result["content"].startswith("Error: the arguments of 'final_output' are not valid: 'score'")
    assert data["payload"]["turn"] == 3


async def test_tools_of_one_answer_run_at_the_same_time_and_keep_their_order(system: System) -> None:
    running: list[str] = []
    both = asyncio.Event()

    async def meet(name: str) -> str:
        """Wait for the other."""
        running.append(name)
        if len(running) == 2:
            both.set()
        await asyncio.wait_for(both.wait(), PATIENCE)
        await asyncio.sleep(0.02 if name == "a" else 0)
        return f"met {name}"

    model = ScriptedModel([calls(call("meet", name="a"), call("meet", name="b")), say("done")])
    agent = Agent(name="meeting", tools=[meet], model=model)
    await system.start(agent)
    data = await system.ended(await system.submit(agent))
    assert [m["content"] for m in data["payload"]["messages"] if m["role"] == "tool"] == ["met a", "met b"]


class Slow:
    """Lets commands through to the real server, takes its time with the answers to those that hold `word`, and
    remembers which commands told of a completed turn."""

    def __init__(self, commands: Commands, word: bytes) -> None:
        self.commands = commands
        self.word = word
        self.telling: list[tuple[Any, ...]] = []

    async def execute(self, *args: Any) -> Any:
        """The answer, a moment later perhaps."""
        if any(isinstance(word, bytes) and b"run_turn_completed" in word for word in args):
            self.telling.append(args)
        answer = await self.commands.execute(*args)
        if any(isinstance(word, bytes) and self.word in word for word in args):
            await asyncio.sleep(0.2)
        return answer


@pytest.mark.parametrize("callback", [False, True])
async def test_a_turn_is_told_of_as_completed_by_its_commit_alone(system: System, callback: bool) -> None:
    """Told before, it would be told again by whoever takes the turn again, should the process die in between."""

    async def linger(*args: Any) -> None:
        await asyncio.sleep(0.1)

    agent = Agent(name="a", model=ScriptedModel(["done"], delay=0.15), on_turn_end=linger if callback else None)
    process = await system.start(agent)
    scripts = process.mailbox.scripts
    commits = scripts._load("commit")
    between = scripts.commands = Slow(scripts.commands, b"run_turn_started")
    task_id = await system.submit(agent)
    assert (await system.ended(task_id))["status"] == "completed"
    assert {args[1] in commits for args in between.telling} == {True}


async def test_a_turn_whose_output_cannot_be_stored_is_not_told_of_as_completed(system: System) -> None:
    class Odd(BaseAgent[AgentContext]):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            return TurnCompletion(is_done=True, context=agent_ctx, output=object())

    agent = Odd(name="odd", model=ScriptedModel(["x"]))
    await system.start(agent)
    task_id = await system.submit(agent)
    assert (await system.ended(task_id))["status"] == "failed"
    types = await system.types(task_id, progress=True)
    assert "progress_update_run_turn_started" in types
    assert "progress_update_run_turn_completed" not in types
