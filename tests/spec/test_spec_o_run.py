"""`orchestrator.run()`: a program that starts the system and blocks (O02, O03).

Real: the program, its supervisor and worker processes, signals, Valkey, HTTP, the openai client. Fake: the language
model.
"""

import asyncio
import json
import os
import signal
from typing import Any

import pytest

from factorial import Agent, AgentContext, MaintenanceWorkerConfig, Orchestrator
from factorial.errors import ConfigError
from factorial.testing import call
from tests.harness import System
from tests.spec.program import Program
from tests.spec.provider import Provider
from tests.support import wait_until

SYSTEM = """
from factorial import AgentWorkerConfig, MaintenanceWorkerConfig, Orchestrator, TaskTTLConfig
from my_agents import planner, writer

orchestrator = Orchestrator(redis_url="{url}", namespace="{namespace}")
orchestrator.register_runner(
    agent=planner, agent_worker_config=AgentWorkerConfig(workers=2, batch_size=10, processes=2, heartbeat_interval=0.5),
    maintenance_worker_config=MaintenanceWorkerConfig(interval=0.2),
)
orchestrator.register_runner(
    agent=writer, agent_worker_config=AgentWorkerConfig(workers=1, batch_size=1),
    maintenance_worker_config=MaintenanceWorkerConfig(interval=0.2, task_ttl=TaskTTLConfig(completed_ttl=0.2)),
)

if __name__ == "__main__":
    orchestrator.run()
    print("run() has returned")
"""


@pytest.fixture
def script(program: Program, redis_url: str, namespace: str) -> str:
    """A program with two agents, each with a runner of its own."""
    (program.directory / "my_system.py").write_text(SYSTEM.format(url=redis_url, namespace=namespace))
    return "my_system.py"


async def executed(system: System, task_id: str) -> dict[str, Any]:
    """What the agent's tool returned about its process."""
    data = await system.ended(task_id, timeout=30)
    [answer] = [message["content"] for message in data["payload"]["messages"] if message["role"] == "tool"]
    return dict(json.loads(answer))


async def test_spec_O02_several_agents_have_a_runner_each(
    program: Program, script: str, system: System, provider: Provider
) -> None:
    """Two processes for the one and one for the other, each runner with its own settings."""
    await program.start(script, children=3)
    names = sorted(name.rpartition("-")[0] for name, _ in program.ready())
    assert names == ["planner.1", "planner.2", "writer.1"]
    planner, writer = Agent(name="planner"), Agent(name="writer")
    # One slot of the writer's, 2 x 2 x 10 of the planner's: the provider sees what runs at once.
    plans = [await system.submit(planner) for _ in range(5)]
    texts = [await system.submit(writer) for _ in range(3)]
    under_way = [await provider.called() for _ in range(6)]
    agents = sorted(request.messages[0]["content"] for request in under_way)
    assert agents == ["planner"] * 5 + ["writer"]
    provider.replies = [call("whereabouts"), "done"]
    for request in under_way:
        request.answer(call("whereabouts"))
    pids = {name: pid for name, pid in program.ready()}
    for task_id in plans:
        where = await executed(system, task_id)
        assert where["process"].startswith("planner.") and where["pid"] == pids[where["process"]]
    for task_id in texts:  # a fifth of a second after their end

        async def is_removed(task_id: str = task_id) -> bool:
            return await system.orchestrator.get_task_data(task_id) is None

        await wait_until(is_removed, 30)
    assert await system.orchestrator.get_task_status(plans[0]) == "completed"
    assert await program.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_spec_O03_run_blocks_until_a_signal_ends_it_gracefully(
    program: Program, script: str, system: System, provider: Provider, number: signal.Signals
) -> None:
    """It works, and blocks; a signal lets the model call that is under way come to its end, and gives the task back."""
    provider.replies = [call("whereabouts"), "done"]
    await program.start(script, children=3)
    agent = Agent(name="planner")
    first = await executed(system, await system.submit(agent))
    assert program.process is not None and program.process.returncode is None
    assert first["parent"] == program.process.pid and "run() has returned" not in program.log
    provider.replies = None
    task_id = await system.submit(agent)
    under_way = await provider.called()
    if number == signal.SIGINT:
        os.killpg(program.process.pid, number)  # as a terminal does: to every process of the job
    else:
        program.process.send_signal(number)
    await program.drains(3)
    under_way.answer(call("whereabouts"))
    assert await asyncio.wait_for(program.process.wait(), 60) == 0
    assert "run() has returned" in program.log
    assert "Traceback" not in program.log
    data = await system.data(task_id)
    assert (data["status"], data["retries"], data["process"]) == ("queued", 0, None)
    # What was done is kept: the next start goes on from there.
    provider.replies = [call("whereabouts"), "done"]
    asked = len(provider.calls)
    await program.start(script, children=3)
    data = await system.ended(task_id, timeout=30)
    assert (data["status"], data["payload"]["output"]) == ("completed", "done")
    assert len(provider.calls) == asked + 1
    assert await program.stop(number) == 0


def test_spec_O03_run_without_a_runner_says_what_is_missing(redis_url: str) -> None:
    with pytest.raises(ConfigError, match="no runner is registered: call register_runner"):
        Orchestrator(redis_url=redis_url).run()


def test_spec_O02_a_runner_takes_both_configurations_and_each_agent_once(redis_url: str) -> None:
    orchestrator = Orchestrator(redis_url=redis_url)
    agent = Agent(name="worker")
    orchestrator.register_runner(agent=agent, maintenance_worker_config=MaintenanceWorkerConfig(interval=1))
    with pytest.raises(ConfigError, match="there is a runner for an agent named 'worker' already"):
        orchestrator.register_runner(agent=Agent(name="worker"))
    with pytest.raises(ConfigError, match=r"give an Agent, or an object of your own agent class"):
        orchestrator.register_runner(agent=AgentContext)  # type: ignore[arg-type]
