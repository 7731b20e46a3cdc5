"""The answer of every script is lost, and the connection with it: each is sent again, has changed nothing the second
time, and its caller hears what it would have heard.

Real: actors, mailbox, Valkey, TCP. Fake: the lifeline, and the model, which is scripted.
"""

from collections import Counter
from typing import Any

from factorial import Agent, AgentContext, Batch, ExecutionContext, deferred_result, forking_tool
from factorial.mailbox.script import Scripts
from factorial.testing import ScriptedModel, call, calls, say
from tests.chaos.figures import fault, long_or_short
from tests.chaos.lossy import Command, LossyProxy
from tests.harness import System, quick
from tests.valkey import ValkeyServer

FAMILIES = long_or_short(40, 3)
CHILDREN = 3
SCRIPTS = ("enqueue", "claim", "record", "commit", "spawn", "deliver", "steer", "cancel")

executed: Counter[str] = Counter()


async def look(agent_ctx: AgentContext) -> str:
    """Look."""
    executed[f"look {agent_ctx.query}"] += 1
    return "seen"


child = Agent(name="child", tools=[look], model=ScriptedModel([call("look"), say("I have looked")]))


@forking_tool(timeout=300)
async def send(agent_ctx: AgentContext, execution_ctx: ExecutionContext) -> Batch:
    """Send children."""
    executed[f"send {agent_ctx.query}"] += 1
    queries = [AgentContext(query=f"{agent_ctx.query}.{number}") for number in range(CHILDREN)]
    return await execution_ctx.spawn_child_tasks(child, queries)


@deferred_result(timeout=300)
async def ask(agent_ctx: AgentContext) -> None:
    """Ask somebody outside."""
    executed[f"ask {agent_ctx.query}"] += 1


def script(messages: Any) -> Any:
    match sum(message["role"] == "assistant" for message in messages):
        case 0:
            return calls(call("look"), call("look"))
        case 1:
            return call("send")
        case 2:
            return call("ask")
    return say(" ".join(message["content"] for message in messages if message["role"] == "user"))


parent = Agent(name="parent", tools=[look, send, ask], model=ScriptedModel(script))


NOTHING_READY: set[Any] = set()


def heard(name: str, answer: Any) -> Any:
    """What a caller makes of a script's answer: that it is a repetition, it is not told."""
    match name:
        case "enqueue":
            return answer[0] in (b"OK", b"DUP")
        case "steer":
            return (answer[0] in (b"OK", b"DUP"), answer[1] not in (b"completed", b"failed", b"cancelled"))
        case "cancel":
            return answer[0]
        case "claim":  # the token tells which claim of the run it was
            return {(run[0], run[2]) for run in answer[2]}
    return answer


class Losses:
    """Loses the first answer to each call of a script, once it knows the scripts."""

    def __init__(self) -> None:
        self.names: dict[bytes, str] = {}
        self.seen: set[Command] = set()

    def know(self, scripts: Scripts) -> None:
        """Each script is called by its digest; by its text, if the server does not know it."""
        self.names = {part.encode(): name for name in SCRIPTS for part in scripts._load(name)}

    def name(self, command: Command) -> str:
        return self.names.get(command[1], "") if command[0] in (b"EVALSHA", b"EVAL") else ""

    def __call__(self, command: Command) -> bool:
        if not self.name(command) or command in self.seen:
            return False
        self.seen.add(command)
        return True


async def drive(system: System, families: range) -> list[str]:
    """Steered families; each third of them is cancelled while it waits, and the others get their answers. Their ids."""
    task_ids = [await system.submit(parent, f"family {number}") for number in families]
    for number, task_id in zip(families, task_ids, strict=True):
        await system.orchestrator.steer_task(task_id, [{"role": "user", "content": f"and {number}"}])
    processes = [await system.start(agent, quick(batch_size=5, heartbeat_interval=3)) for agent in (parent, child)]
    for number, task_id in zip(families, task_ids, strict=True):
        asked = await system.event(task_id, "task_pending_tool_call_results", 60)
        if is_cancelled(number):
            await system.orchestrator.cancel_task(task_id)
        else:
            [call_id] = asked["data"]["tool_call_ids"]
            assert await system.orchestrator.complete_deferred_tool(task_id, call_id, "yes")
    for number, task_id in zip(families, task_ids, strict=True):
        data = await system.ended(task_id, 60)
        assert data["status"] == ("cancelled" if is_cancelled(number) else "completed")
        assert data["payload"]["output"] == (None if is_cancelled(number) else f"family {number} and {number}")
        assert data["retries"] == 0
    for process in processes:
        await process.drain()
    return task_ids


def is_cancelled(number: int) -> bool:
    return number % 3 == 2


async def told(system: System, task_id: str) -> Counter[str]:
    """How often which event was told of the task. Children may have ended before it could wait for them."""
    types = Counter(await system.types(task_id, progress=True))
    del types["task_pending_child_task_results"]
    return types


async def test_an_answer_that_is_lost_changes_nothing(own_valkey: ValkeyServer, namespace: str) -> None:
    own_valkey.start()
    executed.clear()
    losses = Losses()
    async with LossyProxy(own_valkey.port, losses) as proxy, System(proxy.url, namespace) as system:
        undisturbed = [await told(system, task_id) for task_id in await drive(system, range(1, 3))]
        losses.know((await system.mailbox()).scripts)
        task_ids = await drive(system, range(3, FAMILIES + 3))
        for number, task_id in enumerate(task_ids, 3):
            assert await told(system, task_id) == undisturbed[is_cancelled(number)]  # each event once
    assert set(executed.values()) == {1, 2} and executed.total() == (FAMILIES + 2) * (2 + 1 + 1 + CHILDREN)
    lost = Counter(losses.name(command) for command in losses.seen)
    for command in losses.seen:
        first, *further = [heard(losses.name(command), answer) for answer in proxy.answers[command]]
        if first != NOTHING_READY:  # a claim that has found nothing may find something
            assert further and all(answer == first for answer in further), losses.name(command)
    assert set(lost) == set(SCRIPTS)
    fault("answers lost on their way", **{name: lost[name] for name in SCRIPTS})
