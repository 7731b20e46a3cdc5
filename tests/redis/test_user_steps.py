"""`execution_ctx.step` and `execution_ctx.step_sync`: a call that the agent's own code makes once, wherever it is made.

Real: actors, mailbox, Valkey. Fake: the lifeline, the death of a process, and the model, which is scripted. The inline
runs need no server.
"""

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic import BaseModel

from factorial import (
    Agent,
    AgentContext,
    AgentEvent,
    BaseAgent,
    ExecutionContext,
    FactorialError,
    RetryableError,
    TurnCompletion,
)
from factorial.errors import ConfigError, ContextError
from factorial.events import BaseEvent
from factorial.testing import ScriptedModel, call, calls, say
from tests.harness import System, quick, texts
from tests.redis.test_waiting_edges import crash, is_journaled
from tests.support import PATIENCE, wait_until

Finish = Callable[[BaseAgent[Any], AgentContext], Awaitable[dict[str, Any]]]


@pytest.fixture(params=["inline", "in a worker"])
def finish(request: pytest.FixtureRequest) -> Finish:
    """Has a run complete, inline or in a worker, and gives its context as JSON."""
    if request.param == "inline":

        async def inline(agent: BaseAgent[Any], context: AgentContext) -> dict[str, Any]:
            done = await agent.run_inline(context, worker_config=quick())
            context_as_json: dict[str, Any] = done.context.model_dump(mode="json")
            return context_as_json

        return inline
    system: System = request.getfixturevalue("system")

    async def in_a_worker(agent: BaseAgent[Any], context: AgentContext) -> dict[str, Any]:
        await system.start(agent)
        data = await system.ended(await system.submit(agent, context))
        assert data["status"] == "completed", data["error"]
        payload: dict[str, Any] = data["payload"]
        return payload

    return in_a_worker


class Receipt(BaseModel):
    """What a charge comes to."""

    amount: int
    number: str


class Bank:
    """Counts what reaches it, and fails the first time that it is asked to settle."""

    def __init__(self) -> None:
        self.charged: Counter[str] = Counter()
        self.keys: list[str] = []
        self.settled = 0

    def charge(self, account: str, amount: int) -> Receipt:
        self.charged[account] += 1
        self.keys.append(ExecutionContext.current().idempotency_key)
        return Receipt(amount=amount, number=f"{account}-{self.charged[account]}")

    def settle(self) -> str:
        self.settled += 1
        if self.settled == 1:
            raise RetryableError("the bank is closed")
        return "settled"


def paying(pay: Any, **options: Any) -> Agent:
    return Agent(name="paying", tools=[pay], model=ScriptedModel([call("pay"), say("done")]), **options)


def tool_results(payload: dict[str, Any]) -> list[str]:
    return [message["content"] for message in payload["messages"] if message["role"] == "tool"]


async def test_a_step_within_a_tool_is_not_repeated_when_the_turn_is_retried(finish: Finish) -> None:
    bank = Bank()

    async def pay(execution_ctx: ExecutionContext) -> str:
        """Pay, in two steps."""
        receipt = await execution_ctx.step("charge", bank.charge, "ann", amount=5)
        outcome = await execution_ctx.step("settle", bank.settle)
        return f"{receipt.number} {type(receipt).__name__} {outcome}"

    payload = await finish(paying(pay), AgentContext(query="go"))
    assert tool_results(payload) == ["ann-1 Receipt settled"]
    assert bank.charged == {"ann": 1} and bank.settled == 2


async def test_a_plain_tool_takes_steps_in_its_thread(finish: Finish) -> None:
    bank, threads = Bank(), set()

    def charge(account: str) -> int:
        threads.add(threading.current_thread())
        return bank.charge(account, 5).amount

    def pay(execution_ctx: ExecutionContext) -> str:
        """Pay, in two steps."""
        threads.add(threading.current_thread())
        amount = execution_ctx.step_sync("charge", charge, "ann")
        return f"{amount} {execution_ctx.step_sync('settle', bank.settle)}"

    payload = await finish(paying(pay), AgentContext(query="go"))
    assert tool_results(payload) == ["5 settled"]
    assert bank.charged == {"ann": 1} and bank.settled == 2
    assert threading.main_thread() not in threads


async def test_the_same_name_again_is_another_step_and_tools_side_by_side_have_their_own(finish: Finish) -> None:
    bank = Bank()

    async def pay(account: str, execution_ctx: ExecutionContext) -> str:
        """Pay twice, then fail the first time."""
        numbers = [(await execution_ctx.step("charge", bank.charge, account, 5)).number for _ in range(2)]
        if account == "bob":
            await execution_ctx.step("settle", bank.settle)
        return " ".join(numbers)

    model = ScriptedModel([calls(call("pay", account="ann"), call("pay", account="bob")), say("done")])
    payload = await finish(Agent(name="paying", tools=[pay], model=model), AgentContext(query="go"))
    assert tool_results(payload) == ["ann-1 ann-2", "bob-1 bob-2"]
    assert bank.charged == {"ann": 2, "bob": 2}
    assert len(set(bank.keys)) == 4, "each step has an idempotency key of its own"


async def test_steps_in_run_turn_and_in_callbacks(finish: Finish) -> None:
    bank = Bank()

    async def begin(agent_ctx: AgentContext, execution_ctx: ExecutionContext) -> None:
        await execution_ctx.step("charge", bank.charge, "start", 1)

    class Teller(Agent):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            execution_ctx = self.get_execution_context()
            receipt = await execution_ctx.step("charge", bank.charge, "turn", 2)
            await execution_ctx.step("settle", bank.settle)
            return TurnCompletion(is_done=True, context=agent_ctx, output=receipt.number)

    payload = await finish(Teller(name="teller", on_run_start=begin, on_turn_start=begin), AgentContext(query="go"))
    assert payload["output"] == "turn-1"
    assert bank.charged == {"start": 2, "turn": 1}, "once for each of the two callbacks"


async def test_a_process_that_dies_within_a_tool_repeats_only_the_step_in_flight(system: System) -> None:
    bank, gate = Bank(), asyncio.Event()

    async def pay(execution_ctx: ExecutionContext) -> str:
        """Pay, and wait in the middle."""
        receipt = await execution_ctx.step("charge", bank.charge, "ann", 5)
        await gate.wait()
        return receipt.number

    agent = paying(pay)
    process = await system.start(agent)
    task_id = await system.submit(agent, "go")
    await wait_until(lambda: bank.charged)
    tool = next(step for step in await journal(system, task_id) if step.startswith("tool:"))
    await wait_until(lambda: is_journaled(system, task_id, f"{tool.partition('/')[0]}/step:charge"))
    await crash(system, process)
    gate.set()
    await system.start(agent)
    data = await system.ended(task_id)
    assert data["status"] == "completed", data["error"]
    assert tool_results(data["payload"]) == ["ann-1"] and bank.charged == {"ann": 1}


async def journal(system: System, task_id: str) -> list[str]:
    """The entries of the run's journal, when one is about a tool."""

    async def about_a_tool() -> list[str]:
        key = (await system.mailbox()).keys.key("journal", task_id)
        steps = [step.decode() for step in await system.execute("HKEYS", key)]
        return steps if any(step.startswith("tool:") for step in steps) else []

    steps: list[str] = await wait_until(about_a_tool)
    return steps


async def test_a_steer_is_read_although_a_callback_has_recorded_a_step(system: System) -> None:
    """A callback's step does not make a turn one that has begun: its model has not been asked."""
    seen: list[list[str]] = []
    bank = Bank()

    async def begin(agent_ctx: AgentContext, execution_ctx: ExecutionContext) -> None:
        await execution_ctx.step("charge", bank.charge, "ann", 1)

    def reply(messages: Any) -> Any:
        seen.append(texts(messages))
        if len(seen) == 1:
            raise RetryableError("not now")
        return say("done")

    agent = Agent(name="paying", model=ScriptedModel(reply), on_turn_start=begin)
    await system.start(agent, quick(retry_delay=300, max_retry_delay=300))
    task_id = await system.submit(agent, "go")
    await system.reaches(task_id, "backoff")
    await system.orchestrator.steer_task(task_id, [{"role": "user", "content": "hurry"}])
    await system.make_due(task_id)
    await system.ended(task_id)
    assert seen == [["user: go"], ["user: go", "user: hurry"]]
    assert bank.charged == {"ann": 1}


async def test_a_step_has_events(finish: Finish) -> None:
    heard: list[Any] = []

    async def pay(execution_ctx: ExecutionContext) -> str:
        """Pay, and fail once."""
        with pytest.raises(ZeroDivisionError):
            await execution_ctx.step("fail", lambda: 1 // 0)
        return str(await execution_ctx.step("add", lambda: 1 + 1))

    agent = paying(pay)
    await agent.run_inline(AgentContext(query="go"), event_handler=heard.append)
    events = [event for event in heard if event.event_type.startswith("progress_update_step_")]
    assert [(event.event_type, event.data["args"]) for event in events] == [
        ("progress_update_step_started", ["fail"]),
        ("progress_update_step_failed", ["fail"]),
        ("progress_update_step_started", ["add"]),
        ("progress_update_step_completed", ["add"]),
    ]
    assert isinstance(events[1], AgentEvent) and "ZeroDivisionError" in (events[1].error or "")
    assert events[3].data["result"] == 2


async def test_steps_within_steps_of_a_plain_tool_are_their_own_and_so_are_their_keys(finish: Finish) -> None:
    """What is called by `step_sync` is within that step, as its context says, although the thread is the tool's."""
    keys: list[str] = []
    bank = Bank()

    def outer(name: str) -> str:
        keys.append(ExecutionContext.current().idempotency_key)
        return ExecutionContext.current().step_sync("inner", lambda: f"data of {name}")

    def pay(execution_ctx: ExecutionContext) -> str:
        """Take two steps that contain a step of one name."""
        data = [execution_ctx.step_sync(name, outer, name) for name in ("a", "b")]
        execution_ctx.step_sync("settle", bank.settle)
        return " | ".join(data)

    payload = await finish(paying(pay), AgentContext(query="go"))
    assert tool_results(payload) == ["data of a | data of b"]
    assert len(keys) == len(set(keys)) == 2 and all("/step:" in key for key in keys)


async def test_a_callback_at_the_end_has_steps_of_its_own(finish: Finish) -> None:
    made: list[str] = []

    async def begin(agent_ctx: AgentContext, execution_ctx: ExecutionContext, *completion: Any) -> None:
        name = "end" if completion else "start"
        made.append(await execution_ctx.step("notify", lambda: name))

    agent = Agent(name="teller", model=ScriptedModel([say("done")]), on_turn_start=begin, on_run_end=begin)
    await finish(agent, AgentContext(query="go"))
    await wait_until(lambda: made == ["start", "end"])


async def test_a_typed_result_that_would_come_back_changed_is_refused_at_once() -> None:
    class Rich(Receipt):
        secret: str = "x"

    def charge() -> Receipt:
        return Rich(amount=1, number="1")

    async def pay(execution_ctx: ExecutionContext) -> str:
        """Return more than the annotation says."""
        with pytest.raises(ContextError, match="would not come back as it is: Rich would be a Receipt"):
            await execution_ctx.step("charge", charge)
        return "refused"

    completion = await paying(pay).run_inline(AgentContext(query="go"))
    assert tool_results(completion.context.to_dict()) == ["refused"]


class Counting(AgentContext):
    """A context to count in."""

    count: int = 0


async def test_what_run_turn_changes_between_its_steps_is_not_changed_twice(finish: Finish) -> None:
    """Each recalled step brings what had changed by then, and nothing that comes after it."""
    bank = Bank()

    class Between(BaseAgent[Counting]):
        async def run_turn(self, agent_ctx: Counting) -> TurnCompletion[Counting]:
            execution_ctx = self.get_execution_context()
            await execution_ctx.step("charge", bank.charge, "ann", 1)
            agent_ctx.count += 1
            await self.completion(agent_ctx, agent_ctx.messages)
            agent_ctx.count += 10
            await self.completion(agent_ctx, agent_ctx.messages)
            await execution_ctx.step("settle", bank.settle)
            return TurnCompletion(is_done=True, context=agent_ctx, output=agent_ctx.count)

    model = ScriptedModel(lambda messages: say("fine"))
    payload = await finish(Between(name="between", model=model, context_class=Counting), Counting(query="go"))
    assert (payload["output"], payload["count"], bank.settled) == (11, 11, 2)


# -- mistakes


@pytest.mark.parametrize("name", ["", "with space", "a/b", "x" * 101, 7, None])
async def test_a_name_that_cannot_be_one(name: Any) -> None:
    async def pay(execution_ctx: ExecutionContext) -> str:
        """Take a step of that name."""
        with pytest.raises(ConfigError, match="step name"):
            await execution_ctx.step(name, lambda: 1)
        return "refused"

    completion = await paying(pay).run_inline(AgentContext(query="go"))
    assert tool_results(completion.context.to_dict()) == ["refused"]


async def test_a_result_that_json_cannot_hold() -> None:
    async def pay(execution_ctx: ExecutionContext) -> str:
        """Return an object."""
        with pytest.raises(ContextError, match=r"the result of step 'make' \(object\) cannot be stored as JSON"):
            await execution_ctx.step("make", object)
        return "refused"

    completion = await paying(pay).run_inline(AgentContext(query="go"))
    assert tool_results(completion.context.to_dict()) == ["refused"]


@pytest.mark.parametrize("moment", ["in the pause before the next attempt", "in the next attempt"])
async def test_a_thread_that_outlives_its_turn_records_nothing_any_more(moment: str) -> None:
    """Its result would be recalled as a step of the next attempt."""
    attempts: list[int] = []
    late, refused = threading.Event(), threading.Event()

    def pay(execution_ctx: ExecutionContext) -> str:
        """Hang in the first attempt, and take a step when it is over."""
        attempts.append(execution_ctx.retries)
        if len(attempts) > 1:
            late.set()
            assert refused.wait(PATIENCE)
            return str(execution_ctx.step_sync("charge", lambda: 2))
        assert late.wait(PATIENCE)
        try:
            execution_ctx.step_sync("charge", lambda: 1)
        except FactorialError:
            refused.set()
        return "late"

    def hear(event: BaseEvent) -> None:
        if event.event_type == "task_retried" and moment == "in the pause before the next attempt":
            late.set()

    hasty = quick(turn_timeout=0.3, retry_delay=0.3, max_retry_delay=0.3)
    completion = await paying(pay).run_inline(AgentContext(query="go"), hear, worker_config=hasty)
    assert tool_results(completion.context.to_dict()) == ["2"] and attempts == [0, 1]


async def test_step_sync_on_the_event_loop_is_refused() -> None:
    async def pay(execution_ctx: ExecutionContext) -> str:
        """Block the loop."""
        with pytest.raises(FactorialError, match="step_sync would block the event loop"):
            execution_ctx.step_sync("add", lambda: 1)
        return "refused"

    completion = await paying(pay).run_inline(AgentContext(query="go"))
    assert tool_results(completion.context.to_dict()) == ["refused"]


async def test_a_step_outside_of_a_run_is_refused() -> None:
    kept: list[ExecutionContext] = []

    def pay(execution_ctx: ExecutionContext) -> str:
        """Keep the context."""
        kept.append(execution_ctx)
        return "kept"

    await paying(pay).run_inline(AgentContext(query="go"))
    with pytest.raises(FactorialError, match="only while an agent takes a turn"):
        await kept[0].step("late", lambda: 1)


async def test_a_function_that_raises_is_called_again(finish: Finish) -> None:
    bank = Bank()

    async def pay(execution_ctx: ExecutionContext) -> str:
        """Settle."""
        return await execution_ctx.step("settle", bank.settle)

    payload = await finish(paying(pay), AgentContext(query="go"))
    assert tool_results(payload) == ["settled"] and bank.settled == 2


async def test_a_failed_step_that_is_tried_again_at_once_is_the_same_step(finish: Finish) -> None:
    """So a charge whose answer was lost has the idempotency key that it had, and is not paid twice. What was finished
    within the step is not repeated either."""
    keys: list[str] = []
    drawn: list[int] = []

    def draw() -> int:
        drawn.append(len(drawn))
        return drawn[-1]

    async def charge(account: str, failures: int) -> str:
        execution_ctx = ExecutionContext.current()
        keys.append(execution_ctx.idempotency_key)
        number = await execution_ctx.step("draw", draw)
        if keys.count(keys[-1]) <= failures:
            raise TimeoutError("the answer is lost")
        return f"{account} {number}"

    async def pay(execution_ctx: ExecutionContext) -> str:
        """Pay two accounts, each by trial and error."""
        outcomes = []
        for account, failures in (("ann", 2), ("bob", 0), ("cid", 1)):
            for attempt in range(3):
                try:
                    outcomes.append(await execution_ctx.step("charge", charge, account, failures))
                except TimeoutError:
                    assert attempt < failures
                else:
                    break
        return ", ".join(outcomes)

    payload = await finish(paying(pay), AgentContext(query="go"))
    assert tool_results(payload) == ["ann 0, bob 1, cid 2"]
    ann, bob, cid = (key for key, _ in itertools.groupby(keys))
    assert keys == [ann] * 3 + [bob] + [cid] * 2 and len({ann, bob, cid}) == 3


async def test_a_plain_tool_reports_its_progress_while_it_runs(system: System) -> None:
    released = threading.Event()

    def read(execution_ctx: ExecutionContext) -> str:
        """Read."""
        execution_ctx.progress(0.25, "reading")
        released.wait(20)
        execution_ctx.progress(1.0, "summing up")
        return "read"

    agent = Agent(name="reader", tools=[read], model=ScriptedModel([call("read"), say("done")]))
    await system.start(agent)
    task_id = await system.submit(agent)
    first = await system.event(task_id, "tool_progress")
    assert first["data"] == {"fraction": 0.25, "text": "reading", "tool_call_id": "call_0_0"}
    assert (first["turn"], first["agent_name"], first["owner_id"]) == (0, "reader", "owner")
    assert (await system.data(task_id))["status"] == "processing"
    released.set()
    await system.ended(task_id)
    types = [one["event_type"] for one in await system.events(task_id) if "tool" in one["event_type"]]
    start, end = "progress_update_tool_action_started", "progress_update_tool_action_completed"
    assert types == [start, "tool_progress", "tool_progress", end]
