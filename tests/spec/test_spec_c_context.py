"""Chapter C of PROMISES.md: the agent's context, and the execution's.

Real: Valkey, HTTP, the openai client, the actors. Fake: the language model, and the lifelines of the worker processes,
which live side by side in the test's process.
"""
# ruff: noqa: RUF012  # pydantic gives each context a copy of a default

import asyncio
import importlib.util
import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any
from uuid import UUID

import pytest
from llmock.pytest_plugin import LLMock
from pydantic import BaseModel, Field

from factorial import (
    Agent,
    AgentContext,
    BaseAgent,
    ExecutionContext,
    FactorialError,
    RetryableError,
    TurnCompletion,
    deferred_result,
    gpt_41,
)
from factorial.testing import call, calls
from tests.harness import System, quick, texts
from tests.spec.provider import Provider


def offered(llmock: LLMock) -> dict[str, Any]:
    """The parameters of each tool, as the last request described them to the model."""
    return {tool["function"]["name"]: tool["function"]["parameters"] for tool in llmock.last_request.body["tools"]}


# -- C01: AgentContext


async def test_spec_C01_the_base_fields_have_defaults_and_the_output_comes_with_the_end(
    system: System, llmock: LLMock
) -> None:
    context = AgentContext(query="Tell me a joke")
    assert (context.messages, context.turn, context.output) == ([], 0, None)
    llmock.reply("A neutron walks into a bar.")
    agent = Agent(name="comedian", model=gpt_41)
    await system.start(agent)
    payload = (await system.ended(await system.submit(agent, context)))["payload"]
    assert (payload["query"], payload["turn"]) == ("Tell me a joke", 1)
    assert payload["output"] == "A neutron walks into a bar."
    assert texts(payload["messages"]) == ["user: Tell me a joke", "assistant: A neutron walks into a bar."]


async def test_spec_C01_the_conversation_so_far_goes_before_the_query(system: System, llmock: LLMock) -> None:
    llmock.reply("Sixteen.")
    agent = Agent(name="adder", instructions="Add.", model=gpt_41)
    await system.start(agent)
    so_far = [{"role": "user", "content": "What is 4 + 4?"}, {"role": "assistant", "content": "Eight."}]
    await system.ended(await system.submit(agent, AgentContext(query="And twice that?", messages=so_far, turn=0)))
    assert texts(llmock.last_request.body["messages"]) == [
        "system: Add.",
        "user: What is 4 + 4?",
        "assistant: Eight.",
        "user: And twice that?",
    ]


async def test_spec_C01_extra_fields_are_kept(system: System, llmock: LLMock) -> None:
    seen: list[Any] = []

    def look(agent_ctx: AgentContext) -> str:
        """Look at what the client sent along."""
        seen.append(agent_ctx.tenant)  # type: ignore[attr-defined]
        agent_ctx.tenant["plan"] = "large"  # type: ignore[attr-defined]
        return "ok"

    llmock.call_tool("look", {}).reply("Done.")
    agent = Agent(name="clerk", tools=[look], model=gpt_41)
    await system.start(agent)
    context = AgentContext(query="?", tenant={"id": 7, "plan": "small"})  # type: ignore[call-arg]
    payload = (await system.ended(await system.submit(agent, context)))["payload"]
    assert seen == [{"id": 7, "plan": "large"}]  # the same object, changed by then
    assert payload["tenant"] == {"id": 7, "plan": "large"}


def test_spec_C01_a_context_goes_to_json_and_back() -> None:
    context = Expedition(query="?", leader=Person(name="Ada", born=date(1815, 12, 10)))
    assert Expedition.from_json(context.to_json()) == context
    assert Expedition.from_dict(json.loads(json.dumps(context.to_dict()))) == context


# -- C02: custom contexts


class Colour(Enum):
    RED = 1
    BLUE = 2


class Mood(StrEnum):
    CALM = "calm"
    WILD = "wild"


class Person(BaseModel):
    name: str
    born: date
    moods: set[Mood] = set()


class Expedition(AgentContext):
    leader: Person
    crew: dict[str, Person] = {}
    log: list[dict[str, Any]] = []
    started: datetime = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    lasting: timedelta = timedelta(days=3, microseconds=7)
    colours: set[Colour] = set()
    badges: frozenset[str] = frozenset()
    position: tuple[float, float] = (0.0, 0.0)
    budget: Decimal = Decimal("0.10")
    ident: UUID = UUID(int=1)
    parcel: bytes = b""
    next: Person | None = None


def an_expedition() -> Expedition:
    """A context with a value of every kind."""
    return Expedition(
        query="Where are we?",
        leader=Person(name="Ada", born=date(1815, 12, 10), moods={Mood.CALM, Mood.WILD}),
        crew={"cook": Person(name="Émile 🍲", born=date(1900, 2, 28))},
        colours={Colour.RED, Colour.BLUE},
        badges=frozenset({"ice", "sea"}),
        position=(69.65, float("inf")),
        budget=Decimal("12.340"),
        parcel=b"tea",
    )


async def test_spec_C02_every_field_keeps_its_type_through_redis(system: System, llmock: LLMock) -> None:
    """A process that was not there when the context was made finds it equal, types included."""
    arrived: list[Expedition] = []

    def inspect(agent_ctx: Expedition) -> str:
        """Inspect the expedition."""
        arrived.append(agent_ctx.model_copy(deep=True))
        return "seen"

    llmock.call_tool("inspect", {}).reply("At sea.")
    agent = BaseAgent[Expedition](name="scout", tools=[inspect], model=gpt_41, context_class=Expedition)
    task_id = await system.submit(agent, an_expedition())
    await system.start(agent)
    data = await system.ended(task_id)
    [there] = arrived
    assert there.model_dump(exclude={"messages"}) == an_expedition().model_dump(exclude={"messages"})
    assert [type(there.leader), type(there.crew["cook"]), type(there.started)] == [Person, Person, datetime]
    assert there.leader.moods == {Mood.CALM, Mood.WILD}
    assert [type(there.colours), type(there.badges), type(there.position)] == [set, frozenset, tuple]
    again = Expedition.from_dict(data["payload"])
    assert (again.leader, again.budget, again.ident, again.parcel) == (there.leader, there.budget, there.ident, b"tea")


async def test_spec_C02_a_changed_field_is_written_and_no_other(system: System, llmock: LLMock) -> None:
    """While a turn is under way, the test marks a field in Redis that the turn does not change: the mark stays."""
    at_work, go_on = asyncio.Event(), asyncio.Event()

    async def sail(agent_ctx: Expedition) -> str:
        """Sail on."""
        agent_ctx.leader.moods.discard(Mood.WILD)  # deep within a field
        agent_ctx.next = Person(name="Mary", born=date(1912, 6, 23))
        agent_ctx.log.append({"day": 1})
        at_work.set()
        await go_on.wait()
        return "sailed"

    llmock.call_tool("sail", {}).reply("Further on.")
    agent = BaseAgent[Expedition](name="sailor", tools=[sail], model=gpt_41, context_class=Expedition)
    task_id = await system.submit(agent, an_expedition())
    key = f"{(await system.mailbox()).keys.prefix}fields:{task_id}"
    badges = json.loads(await system.execute("HGET", key, "badges"))
    await system.execute("HSET", key, "badges", json.dumps(badges[::-1]))  # as a client with other hashes writes it
    await system.start(agent)
    await asyncio.wait_for(at_work.wait(), 20)
    before = pairs(await system.execute("HGETALL", key))
    await system.execute("HSET", key, "crew", '"untouched"', "colours", '"untouched"', "query", '"untouched"')
    go_on.set()
    await system.reaches(task_id, "completed", timeout=20)
    after = pairs(await system.execute("HGETALL", key))

    assert [after[name] for name in ("crew", "colours", "query")] == ["untouched"] * 3
    assert after["badges"] == badges[::-1] != badges
    changed = {name for name in after if after[name] != before[name]} - {"crew", "colours", "query"}
    assert changed == {"leader", "next", "log", "turn", "output"}
    assert (after["leader"]["moods"], after["next"]["name"], after["log"]) == (["calm"], "Mary", [{"day": 1}])


def pairs(answer: list[bytes]) -> dict[str, Any]:
    """What HGETALL answers, with the values read as JSON."""
    return {name.decode(): json.loads(value) for name, value in zip(answer[::2], answer[1::2], strict=True)}


async def test_spec_C02_two_lists_of_messages_side_by_side(system: System, llmock: LLMock) -> None:
    """The document's example: an agent that keeps two conversations of its own."""

    class DualAgentContext(AgentContext):
        agent_a_messages: list[dict[str, Any]] = []
        agent_b_messages: list[dict[str, Any]] = []

    class Dual(BaseAgent[DualAgentContext]):
        async def run_turn(self, agent_ctx: DualAgentContext) -> TurnCompletion[DualAgentContext]:
            for conversation in (agent_ctx.agent_a_messages, agent_ctx.agent_b_messages):
                conversation.append({"role": "user", "content": agent_ctx.query})
                response = await self.completion(agent_ctx, conversation)
                conversation.append({"role": "assistant", "content": response.choices[0].message.content})
            return TurnCompletion(is_done=agent_ctx.turn == 1, context=agent_ctx, output="two answers")

    for answer in ("A1", "B1", "A2", "B2"):
        llmock.reply(answer)
    agent = Dual(name="dual", model=gpt_41, context_class=DualAgentContext)
    await system.start(agent)
    payload = (await system.ended(await system.submit(agent, DualAgentContext(query="Q"))))["payload"]
    assert [message["content"] for message in payload["agent_a_messages"]] == ["Q", "A1", "Q", "A2"]
    assert [message["content"] for message in payload["agent_b_messages"]] == ["Q", "B1", "Q", "B2"]


def drop_the_first(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    del messages[0]
    return messages


def reword(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    messages[0]["content"] = "In short?"
    return messages


def insert(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    messages.insert(0, {"role": "developer", "content": "Be kind."})
    return messages


def mark_within(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    messages[1]["tool_calls"][0]["function"]["arguments"] = '{"note": "hidden"}'
    return messages


def replace_all(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "Start anew."}]


def swap(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    messages.insert(0, {"role": "user", "content": "second"})
    messages.insert(0, {"role": "user", "content": "first"})
    messages[0], messages[1] = messages[1], messages[0]
    return messages


def append_two(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    messages += [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    return messages


def empty(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    messages.clear()
    return messages


EDITS = [drop_the_first, reword, insert, mark_within, replace_all, swap, append_two, empty]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
async def test_spec_C02_a_message_list_that_was_edited_is_stored_as_it_is(
    system: System, llmock: LLMock, edit: Any
) -> None:
    """Edited after the first turn; another process, which reads it from Redis, goes on with just that."""
    meant: list[dict[str, Any]] = []

    class Editor(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            if agent_ctx.turn == 0:
                completion = await super().run_turn(agent_ctx)
                agent_ctx.messages = edit(agent_ctx.messages)
                meant[:] = json.loads(json.dumps(agent_ctx.messages))
                edited.set()
                await leaving.wait()
                return completion
            assert self.get_execution_context().process == "second"
            return TurnCompletion(is_done=True, context=agent_ctx, output=json.dumps(agent_ctx.messages))

    def remember(note: str) -> str:
        """Remember a note."""
        return "noted"

    edited, leaving = asyncio.Event(), asyncio.Event()
    llmock.call_tool("remember", {"note": "milk"})
    agent = Editor(name="editor", tools=[remember], model=gpt_41)
    first = await system.start(agent, process="first")
    task_id = await system.submit(agent, "What shall I buy?")
    await asyncio.wait_for(edited.wait(), 20)
    first.lifeline.draining.set()  # it gives the task back when the turn is done
    leaving.set()
    await first.drain()
    await system.start(agent, process="second")
    payload = (await system.ended(task_id, timeout=20))["payload"]
    assert payload["messages"] == meant
    assert json.loads(payload["output"]) == meant


@pytest.mark.parametrize("waits", [False, True], ids=["in an ordinary turn", "in a turn that is parked"])
async def test_spec_C02_C05_a_message_list_that_a_tool_edits_is_stored_as_it_is(
    system: System, provider: Provider, waits: bool
) -> None:
    """A tool that puts a summary in the place of what is older than its own call."""

    def summarise(agent_ctx: AgentContext) -> str:
        """Make the conversation shorter."""
        agent_ctx.messages[:-1] = [{"role": "user", "content": "In short: hello."}]
        return "shorter"

    @deferred_result(timeout=60)
    def ask() -> None:
        """Ask."""

    provider.replies = lambda messages: (
        "Done."
        if messages[-1]["role"] == "tool"
        else calls(call("summarise"), *([call("ask")] if waits else []), call("summarise"))
    )
    agent = Agent(name="worker", model=gpt_41, tools=[summarise, ask])
    await system.start(agent)
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    task_id = await system.submit(agent, AgentContext(query="Shorten this", messages=history))
    if waits:
        data = await system.reaches(task_id, "pending_tool_results")
        assert [message["role"] for message in data["payload"]["messages"]] == ["user", "assistant"]
        call_id = data["awaits"][0].removeprefix("tool:")
        assert await system.orchestrator.complete_deferred_tool(task_id, call_id, "yes")
    payload = (await system.ended(task_id))["payload"]
    sent = provider.calls[-1].messages
    assert sent[0] == {"role": "user", "content": "In short: hello."}
    assert [message["role"] for message in sent[1:]] == ["assistant", *["tool"] * (3 if waits else 2)]
    assert payload["messages"] == [*sent, {"role": "assistant", "content": "Done."}]


# -- C03: classes of agents


async def test_spec_C03_an_agent_class_over_a_context_of_its_own(system: System, llmock: LLMock) -> None:
    class ResearchContext(AgentContext):
        research_topic: str = ""
        sources_found: list[str] = []
        confidence_level: float = 0.0

    def search(words: str, agent_ctx: ResearchContext) -> str:
        """Search the library."""
        agent_ctx.sources_found.append(words)
        return "found"

    class ResearchAgent(BaseAgent[ResearchContext]):
        def __init__(self) -> None:
            super().__init__(
                description="Research specialist",
                instructions=lambda ctx: f"You research {ctx.research_topic}.",
                tools=[search],
                model=gpt_41,
                context_class=ResearchContext,
            )

        async def run_turn(self, agent_ctx: ResearchContext) -> TurnCompletion[ResearchContext]:
            agent_ctx.confidence_level += 0.5
            return await super().run_turn(agent_ctx)

    llmock.call_tool("search", {"words": "schools"}).reply("A summary.")
    agent = ResearchAgent()
    assert (agent.name, agent.description) == ("research_agent", "Research specialist")
    await system.start(agent)
    context = ResearchContext(query="What does AI change?", research_topic="AI in schools", messages=[], turn=0)
    task = agent.create_task(owner_id="owner", payload=context)
    await system.orchestrator.enqueue_task(agent=agent, task=task)
    payload = (await system.ended(task.id))["payload"]
    assert llmock.last_request.body["messages"][0] == {"role": "system", "content": "You research AI in schools."}
    assert (payload["sources_found"], payload["confidence_level"]) == (["schools"], 1.0)


# -- C04: ExecutionContext


async def test_spec_C04_the_execution_is_known_within_a_turn_and_nowhere_else(system: System, llmock: LLMock) -> None:
    met: list[ExecutionContext] = []
    failures = [RetryableError("not yet")]

    class Watcher(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            execution_ctx = self.get_execution_context()
            assert execution_ctx is ExecutionContext.current()
            met.append(execution_ctx)
            numbers.append((execution_ctx.retries, execution_ctx.iterations, execution_ctx.pickups))
            if agent_ctx.turn == 1 and failures:
                raise failures.pop()
            return await super().run_turn(agent_ctx)

    def step() -> str:
        """Take a step."""
        return "stepped"

    numbers: list[tuple[int, int, int]] = []
    llmock.call_tool("step", {}).reply("There.")
    agent = Watcher(name="watcher", tools=[step], model=gpt_41)
    await system.start(agent, process="here")
    task_id = await system.submit(agent, "Go", owner_id="user-456")
    await system.ended(task_id)
    assert {(one.task_id, one.owner_id, one.agent_name, one.process) for one in met} == {
        (task_id, "user-456", "watcher", "here")
    }
    assert numbers == [(0, 1, 1), (0, 2, 1), (1, 1, 2)]  # retries, turns since the task was taken up, times of that
    with pytest.raises(FactorialError, match="works only while an agent takes a turn"):
        ExecutionContext.current()


async def test_spec_C04_events_are_published_through_it(system: System, llmock: LLMock) -> None:
    from factorial import AgentEvent

    class Herald(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            here = self.get_execution_context()
            event = AgentEvent(event_type="herald_sings", task_id=here.task_id, owner_id=here.owner_id, data={"n": 1})
            await here.events.publish_event(event)
            return await super().run_turn(agent_ctx)

    llmock.reply("Sung.")
    agent = Herald(name="herald", model=gpt_41)
    await system.start(agent)
    task_id = await system.submit(agent)
    await system.ended(task_id)
    assert (await system.event(task_id, "herald_sings"))["data"] == {"n": 1}


# -- C05: contexts in tools


class ShopContext(AgentContext):
    basket: list[str] = []


class MyExecution(ExecutionContext):
    """No object of it exists; a tool may still declare a parameter of it."""


def by_name(item: str, agent_ctx, execution_ctx) -> str:  # type: ignore[no-untyped-def]
    """Both by their names alone."""
    agent_ctx.basket.append(f"{item} by_name {execution_ctx.owner_id}")
    return "ok"


def by_annotation(item: str, mine: AgentContext, here: ExecutionContext) -> str:
    """Both by their types, under other names."""
    mine.basket.append(f"{item} by_annotation {here.owner_id}")  # type: ignore[attr-defined]
    return "ok"


async def by_subclass(item: str, shop: ShopContext, here: MyExecution) -> str:
    """By subclasses of them."""
    shop.basket.append(f"{item} by_subclass {here.owner_id}")
    return "ok"


def by_annotated(
    item: Annotated[str, Field(description="what to buy")],
    shop: Annotated[ShopContext, "filled in"],
    here: Annotated[ExecutionContext | None, "filled in, too"] = None,
) -> str:
    """Within Annotated and Optional."""
    assert here is not None
    shop.basket.append(f"{item} by_annotated {here.owner_id}")
    return "ok"


def neither(item: str) -> str:
    """Without any."""
    return "ok"


POSTPONED = '''
from __future__ import annotations

from typing import Annotated, TYPE_CHECKING

from factorial import AgentContext, ExecutionContext

if TYPE_CHECKING:
    from nowhere import Unknown


class LateContext(AgentContext):
    basket: list[str] = []


def postponed(item: str, late: LateContext, here: Annotated[ExecutionContext, "x"], agent_ctx: Unknown) -> str:
    """Annotations that are text, one of which cannot be resolved."""
    assert agent_ctx is late
    late.basket.append(f"{item} postponed {here.owner_id}")
    return "ok"
'''


def module_of(source: str, folder: Path) -> ModuleType:
    """A module of its own, from a file."""
    file = folder / "a_module.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location("a_module", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("tool", [by_name, by_annotation, by_subclass, by_annotated], ids=lambda tool: tool.__name__)
async def test_spec_C05_a_tool_gets_the_contexts_that_it_declares(system: System, llmock: LLMock, tool: Any) -> None:
    llmock.call_tool(tool.__name__, {"item": "tea"}).reply("Bought.")
    agent = BaseAgent[ShopContext](name="shop", tools=[tool, neither], model=gpt_41, context_class=ShopContext)
    await system.start(agent)
    payload = (await system.ended(await system.submit(agent, ShopContext(query="Buy tea"), owner_id="zoe")))["payload"]
    assert payload["basket"] == [f"tea {tool.__name__} zoe"]  # what the tool changed is stored
    for parameters in offered(llmock).values():  # and the model sees the item alone
        assert list(parameters["properties"]) == parameters["required"] == ["item"]


async def test_spec_C05_with_postponed_annotations(system: System, llmock: LLMock, tmp_path: Path) -> None:
    module = module_of(POSTPONED, tmp_path)
    llmock.call_tool("postponed", {"item": "tea"}).reply("Bought.")
    agent: BaseAgent[Any] = BaseAgent(
        name="shop", tools=[module.postponed], model=gpt_41, context_class=module.LateContext
    )
    await system.start(agent)
    context = module.LateContext(query="Buy tea")
    payload = (await system.ended(await system.submit(agent, context, owner_id="zoe")))["payload"]
    assert payload["basket"] == ["tea postponed zoe"]
    assert list(offered(llmock)["postponed"]["properties"]) == ["item"]


async def test_spec_C05_the_model_cannot_fill_in_a_context(system: System, llmock: LLMock) -> None:
    """A model that sends one gets the error that there is no such parameter, and nothing is overwritten."""
    llmock.call_tool("by_annotation", {"item": "tea", "mine": {"query": "mine!"}}).reply("Sorry.")
    agent = BaseAgent[ShopContext](name="shop", tools=[by_annotation], model=gpt_41, context_class=ShopContext)
    await system.start(agent)
    payload = (await system.ended(await system.submit(agent, ShopContext(query="Buy tea"))))["payload"]
    assert payload["basket"] == [] and payload["query"] == "Buy tea"
    assert "'mine' is not a parameter" in payload["messages"][2]["content"]


async def test_spec_C05_what_a_tool_changes_is_there_when_another_process_takes_the_turn_again(
    system: System, llmock: LLMock
) -> None:
    """One of two tools has finished when its process is killed: its change is kept, and made once."""
    waiting = asyncio.Event()

    def fill(agent_ctx: ShopContext) -> str:
        """Fill the basket."""
        agent_ctx.basket.append("filled")
        return "ok"

    async def wait_once(agent_ctx: ShopContext) -> str:
        """Wait, the first time."""
        agent_ctx.basket.append("waited")
        if not waiting.is_set():
            waiting.set()
            await asyncio.Event().wait()
        return "ok"

    from llmock.scenarios import Reply, ToolCall

    llmock.add(Reply(tool_calls=(ToolCall("fill", {}), ToolCall("wait_once", {})))).reply("Done.")
    agent = BaseAgent[ShopContext](name="shop", tools=[fill, wait_once], model=gpt_41, context_class=ShopContext)
    first = await system.start(agent)
    task_id = await system.submit(agent, ShopContext(query="Fill it"))
    await asyncio.wait_for(waiting.wait(), 20)
    await system.event(task_id, "progress_update_tool_action_completed", timeout=20)
    await first.kill()
    await system.start(agent)
    payload = (await system.ended(task_id, timeout=40))["payload"]
    assert payload["basket"].count("filled") == 1 and payload["basket"][-1] == "waited"


# -- C06: agents are stateless


async def test_spec_C06_two_processes_take_turns(system: System, llmock: LLMock) -> None:
    """One turn each, alternately: what one leaves off, the other goes on with, from what is in Redis alone."""

    class Relay(AgentContext):
        runners: list[str] = []
        when: list[datetime] = []

    running, go_on = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def run_a_leg(agent_ctx: Relay, execution_ctx: ExecutionContext) -> str:
        """Run one leg of the race."""
        running.release()
        await go_on.acquire()
        agent_ctx.runners.append(execution_ctx.process)
        agent_ctx.when.append(datetime.now(UTC))
        return f"leg {len(agent_ctx.runners)}"

    legs = ["left", "right", "left", "right"]
    llmock.call_tool("run_a_leg", {}, times=len(legs)).reply("Finished.")

    def new_agent() -> BaseAgent[Relay]:
        return BaseAgent[Relay](name="relay", tools=[run_a_leg], model=gpt_41, context_class=Relay)

    agent = new_agent()
    task_id = await system.submit(agent, Relay(query="Run"))
    process = await system.start(agent, process=legs[0])
    for successor in [*legs[1:], "left"]:
        await asyncio.wait_for(running.acquire(), 20)
        process.lifeline.draining.set()  # it gives the task back when the step is done
        go_on.release()
        await process.drain()
        process = await system.start(new_agent(), process=successor)
    payload = (await system.ended(task_id, timeout=20))["payload"]
    assert payload["runners"] == legs
    assert payload["turn"] == len(legs) + 1
    results = [message["content"] for message in payload["messages"] if message["role"] == "tool"]
    assert results == ["leg 1", "leg 2", "leg 3", "leg 4"]
    assert len(llmock.requests) == len(legs) + 1  # no model call was made twice


# -- a turn that is taken again


@pytest.mark.parametrize("where", ["worker", "inline"])
async def test_spec_C05_what_a_turn_changes_before_its_steps_is_not_changed_twice(
    system: System, provider: Provider, where: str
) -> None:
    """The turn is tried three times; one of its tools has finished in the first try. The same context as without."""

    class Tally(AgentContext):
        turns_begun: int = 0
        looked: int = 0

    class Tallying(BaseAgent[Tally]):
        async def run_turn(self, agent_ctx: Tally) -> TurnCompletion[Tally]:
            agent_ctx.turns_begun += 1
            return await super().run_turn(agent_ctx)

    failures = [RetryableError("not yet")] * 2
    has_looked = asyncio.Event()

    async def look(agent_ctx: Tally) -> str:
        """Look."""
        agent_ctx.looked += 1
        has_looked.set()
        return "seen"

    async def stumble() -> str:
        """Stumble twice."""
        await has_looked.wait()
        if failures:
            raise failures.pop()
        return "stumbled"

    provider.replies = [calls(call("look"), call("stumble")), "Done."]
    agent = Tallying(name="tallying", tools=[look, stumble], model=gpt_41, context_class=Tally)
    if where == "worker":
        await system.start(agent)
        payload = (await system.ended(await system.submit(agent, Tally(query="?"))))["payload"]
    else:
        payload = (await agent.run_inline(Tally(query="?"), worker_config=quick())).context.model_dump()
    assert (payload["turn"], payload["turns_begun"], payload["looked"]) == (2, 2, 1)


async def test_spec_C05_a_message_that_a_tool_adds_comes_behind_the_answers(system: System, provider: Provider) -> None:
    """No provider takes a conversation in which something stands between a tool call and its answer."""

    def note(agent_ctx: AgentContext) -> str:
        """Take a note."""
        agent_ctx.messages.append({"role": "user", "content": "Note: hurry."})
        return "noted"

    provider.replies = [calls(call("note"), call("note")), "Done."]
    agent = Agent(name="worker", tools=[note], model=gpt_41)
    await system.start(agent)
    data = await system.ended(await system.submit(agent, "hello"))
    assert data["payload"]["output"] == "Done."
    roles = [message["role"] for message in provider.calls[-1].messages]
    assert roles == ["user", "assistant", "tool", "tool", "user", "user"]
