"""A server that goes back to an earlier state under a living process, as after a failover or a restart with an older
file: a real Valkey, whose data the test puts back; real actors in this process.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from factorial import AgentContext, BaseAgent
from factorial.testing import ScriptedModel, call, say
from tests.harness import Process, System, quick

SOON = {"heartbeat_interval": 0.1, "missed_heartbeats": 100}


async def saved(system: System) -> dict[bytes, bytes]:
    """Everything that is stored in the namespace, as the server would save it."""
    prefix = (await system.mailbox()).keys.prefix
    keys = await system.execute("KEYS", f"{prefix}*")
    return {key: await system.execute("DUMP", key) for key in keys}


async def put_back(system: System, then: dict[bytes, bytes], process: Process) -> None:
    """Restore that state at once. The process's registration is kept: it existed then, too."""
    prefix = (await system.mailbox()).keys.prefix
    now = await saved(system)
    stays = [f"{prefix}{name}".encode() for name in ("processes", f"lease:{process.name}", f"claims:{process.name}")]
    commands: list[Any] = [("DEL", key) for key in now if key not in stays]
    commands += [("RESTORE", key, 0, value) for key, value in then.items() if key not in stays]
    for command in [("MULTI",), *commands, ("EXEC",)]:
        await system.execute(*command)


class Watched(BaseAgent[AgentContext]):
    """Calls a tool, then answers. `during` is called with the number of each model call, `work` is the tool's work."""

    def __init__(self) -> None:
        super().__init__(name="a", tools=[self.tool], model=ScriptedModel([call("tool"), say("done")]))
        self.calls = 0
        self.during: Callable[[int], Awaitable[None]] = nothing
        self.work: Callable[[int], Awaitable[None]] = nothing

    async def completion(self, agent_ctx: AgentContext, messages: Any = None) -> Any:
        self.calls += 1
        await self.during(self.calls)
        return await super().completion(agent_ctx, messages)

    async def tool(self) -> str:
        """Work."""
        await self.work(1)
        return "x"


async def nothing(number: int) -> None:
    """Nothing happens meanwhile."""


async def test_a_run_that_a_process_holds_again_after_its_end_goes_on(system: System) -> None:
    """The state before its last turn is restored after its end."""
    agent = Watched()
    before: dict[bytes, bytes] = {}

    async def remember(number: int) -> None:
        if number == 2:
            before.update(await saved(system))

    agent.during = remember
    process = await system.start(agent, quick(**SOON))
    task_id = await system.submit(agent)
    await system.ended(task_id)
    await put_back(system, before, process)
    assert (await system.data(task_id))["status"] == "processing"
    data = await system.ended(task_id)
    assert (data["status"], data["payload"]["output"], data["retries"]) == ("completed", "done", 0)
    assert (await system.types(task_id)).count("task_reclaimed") == 1
    assert agent.calls == 3  # the turn that the server has lost is taken again


async def test_a_run_whose_claim_the_server_has_lost_is_abandoned(system: System) -> None:
    """Its model call is abandoned, and nothing of it is written. The run is claimed again."""
    agent = Watched()
    task_id = await system.submit(agent)
    before = await saved(system)

    async def go_back(number: int) -> None:
        if number == 1:
            await put_back(system, before, system.processes[0])
            await asyncio.Event().wait()

    agent.during = go_back
    await system.start(agent, quick(**SOON))
    data = await system.ended(task_id)
    assert (data["status"], data["pickups"], agent.calls) == ("completed", 1, 3)


async def test_a_journal_entry_that_the_server_has_lost_is_sent_again(system: System) -> None:
    """The worker still has the message: nothing is lost, and no model call is repeated."""
    agent = Watched()

    async def lose(number: int) -> None:
        await system.execute("DEL", (await system.mailbox()).keys.prefix + f"journal:{task_id}")

    agent.work = lose
    task_id = await system.submit(agent)
    await system.start(agent, quick(**SOON))
    data = await system.ended(task_id)
    assert (data["status"], data["retries"], agent.calls) == ("completed", 0, 2)
    assert [message["role"] for message in data["payload"]["messages"]] == ["user", "assistant", "tool", "assistant"]
