"""The design card: a system of supervised processes from a file, that exchange messages through Redis (D01 to D08).

Real: the supervisor's command, worker processes, signals, Valkey, HTTP, the openai client. Fake: the language model.
tests/chaos hurts the same systems more.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from factorial import Agent
from factorial.testing import call
from tests.harness import System
from tests.spec.program import AGENTS, ROOT, Program
from tests.spec.provider import Provider, texts
from tests.support import wait_until

SYSTEM = """
[redis]
url = "{url}"
namespace = "{namespace}"

[supervisor]
grace = 20.0

[[runner]]
agent = "my_agents:planner"
processes = 2
worker = {{ workers = 2, batch_size = 2, heartbeat_interval = 0.3, missed_heartbeats = 2 }}
maintenance = {{ interval = 0.2 }}

[[runner]]
agent = "my_agents:writer"
"""

COMMAND = ("-m", "factorial.supervisor", "system.toml")

planner, writer = Agent(name="planner"), Agent(name="writer")


@pytest.fixture
async def running(program: Program, redis_url: str, namespace: str, provider: Provider) -> Program:
    """The system of the file, with its three worker processes."""
    (program.directory / "system.toml").write_text(SYSTEM.format(url=redis_url, namespace=namespace))
    await program.start(*COMMAND, children=3)
    return program


async def whereabouts(system: System, task_id: str) -> dict[str, Any]:
    """What the agent's tool returned about the process that executed it."""
    data = await system.ended(task_id, timeout=30)
    assert data["status"] == "completed", data
    [answer] = [message["content"] for message in data["payload"]["messages"] if message["role"] == "tool"]
    return dict(json.loads(answer))


async def test_spec_D01_a_file_is_a_whole_system(running: Program, system: System, provider: Provider) -> None:
    provider.replies = [call("whereabouts"), "done"]
    for agent in (planner, writer):
        where = await whereabouts(system, await system.submit(agent))
        assert where["process"].startswith(f"{agent.name}.")
    assert await running.stop() == 0
    assert "Traceback" not in running.log


async def test_spec_D02_each_runner_has_processes_and_each_process_workers(
    running: Program, system: System, provider: Provider
) -> None:
    """Three processes that the supervisor has started with aiomultiprocess; eight planner tasks at once in two."""
    pids = dict(running.ready())
    task_ids = [await system.submit(planner) for _ in range(10)]
    under_way = [await provider.called(30) for _ in range(8)]
    assert provider.at_once == 8  # 2 processes x 2 workers x 2 slots
    provider.replies = [call("whereabouts"), "done"]
    for request in under_way:
        request.answer(call("whereabouts"))
    seen = [await whereabouts(system, task_id) for task_id in task_ids]
    seen.append(await whereabouts(system, await system.submit(writer)))
    assert running.process is not None
    assert {where["pid"] for where in seen} == set(pids.values())
    for where in seen:
        assert where["pid"] == pids[where["process"]]
        assert where["parent"] == running.process.pid
        assert where["aiomultiprocess"] is True
    assert await running.stop() == 0


async def test_spec_D03_actors_exchange_messages_through_redis(
    running: Program, system: System, provider: Provider
) -> None:
    """This process and the worker's have nothing in common but Redis, and there the mailbox can be seen."""
    task_id = await system.submit(planner, "hello")
    under_way = await provider.called(30)
    await system.orchestrator.steer_task(task_id, [{"role": "user", "content": "be brief"}])
    mail = f"{(await system.mailbox()).keys.prefix}mail:{task_id}"
    assert [json.loads(each) for each in await system.execute("LRANGE", mail, 0, -1)] == [
        {"role": "user", "content": "be brief"}
    ]
    under_way.answer("hello")
    second = await provider.called(30)
    assert texts(second.messages)[1:] == ["user: hello", "assistant: hello", "user: be brief"]
    assert await system.execute("EXISTS", mail) == 0
    await system.orchestrator.cancel_task(task_id)
    await second.abandoned()
    assert (await system.ended(task_id, timeout=30))["status"] == "cancelled"


async def test_spec_D04_a_crashed_process_is_replaced(running: Program, system: System, provider: Provider) -> None:
    """Its task goes on in the other one at once, and a new process takes its place."""
    task_id = await system.submit(planner, "hello")
    lost = await provider.called(30)
    victim = (await system.data(task_id))["process"]
    os.kill(dict(running.ready())[victim], signal.SIGKILL)
    again = await provider.called(30)
    assert again.messages == lost.messages
    assert (await system.data(task_id))["process"] not in (None, victim)
    again.answer("done")
    data = await system.ended(task_id)
    assert (data["payload"]["output"], data["retries"], data["pickups"]) == ("done", 0, 2)
    await running.has_ready(4)
    newest, _ = running.ready()[-1]
    assert newest != victim and newest.rpartition("-")[0] == victim.rpartition("-")[0]
    assert re.search(rf"{victim}.* ended by SIGKILL", running.log)
    assert await running.stop() == 0


async def test_spec_D05_the_task_of_a_process_without_heartbeat_is_reclaimed(
    running: Program, system: System, provider: Provider
) -> None:
    """It has not ended, so only its missing heartbeats show it. When it continues, it cannot change anything."""
    task_id = await system.submit(planner, "hello")
    await provider.called(30)
    holder = (await system.data(task_id))["process"]
    frozen = psutil.Process(dict(running.ready())[holder])
    frozen.suspend()
    try:
        again = await provider.called(60)
        reclaimed = await system.event(task_id, "task_reclaimed")
        assert reclaimed["data"]
        assert (await system.data(task_id))["process"] not in (None, holder)
    finally:
        frozen.resume()
    again.answer("done")
    data = await system.ended(task_id)
    assert (data["status"], data["payload"]["output"], data["retries"]) == ("completed", "done", 0)

    def has_given_it_up() -> bool:
        lines = [line for line in running.log.splitlines() if holder in line and task_id in line]
        return any("superseded" in line or "abandoned" in line for line in lines)

    await wait_until(has_given_it_up, 20)
    assert (await system.types(task_id)).count("run_completed") == 1


GUARDED = """
import os, sys, threading

def forbid(event, args):
    if event.startswith(("socket.", "subprocess.", "os.fork", "os.posix_spawn", "os.exec", "os.putenv", "signal.")):
        raise RuntimeError(f"the import did this: {event} {args!r}")
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        raise RuntimeError(f"the import wrote: {args!r}")

sys.dont_write_bytecode = True
sys.addaudithook(forbid)
MODULE
assert threading.active_count() == 1
print(sorted({"openai", "redis", "hiredis", "aiomultiprocess", "fastapi"} & set(sys.modules)))
"""


@pytest.mark.parametrize("module", ["agents", "factorial.agent.agent", "factorial.orchestrator", "system"])
def test_spec_D06_an_agent_module_imports_without_side_effects(tmp_path: Path, module: str) -> None:
    """No connection, process, thread, file or key: agents may be defined and imported anywhere."""
    (tmp_path / "my_agents.py").write_text(AGENTS)
    statement = {
        "agents": "import my_agents",
        "system": "import my_agents, factorial\n"
        "orchestrator = factorial.Orchestrator(redis_host='nowhere.invalid')\n"
        "orchestrator.register_runner(agent=my_agents.planner)",
    }.get(module, f"import {module}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "REDIS_"))}
    done = subprocess.run(
        [sys.executable, "-c", GUARDED.replace("MODULE", statement)], cwd=tmp_path,
        env=kept | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if module in ("agents", "factorial.agent.agent"):
        assert done.stdout == "[]\n"


async def test_spec_D07_a_signal_ends_the_system_gracefully(
    running: Program, system: System, provider: Provider
) -> None:
    """Model calls in flight finish, tasks are released without a retry, and no process is left."""
    task_ids = [await system.submit(planner, f"question {number}") for number in range(3)]
    under_way = [await provider.called(30) for _ in task_ids]
    assert running.process is not None
    running.process.send_signal(signal.SIGTERM)
    await running.drains(3)
    for request in under_way:
        assert not request.has_gone.is_set()
        request.answer(call("whereabouts"))
    assert await asyncio.wait_for(running.process.wait(), 60) == 0
    await wait_until(lambda: not running.members(), 20, "no process left")
    for task_id in task_ids:
        data = await system.data(task_id)
        assert (data["status"], data["retries"], data["process"]) == ("queued", 0, None)
    assert len(provider.calls) == 3
    provider.replies = [call("whereabouts"), "done"]
    await running.start(*COMMAND, children=3)
    for task_id in task_ids:
        await whereabouts(system, task_id)
    assert len(provider.calls) == 6  # no answer was asked for twice
    assert await running.stop(signal.SIGINT) == 0


@pytest.mark.checkout
def test_spec_D08_the_tree() -> None:
    for name in ("pyproject.toml", "README.md"):
        assert (ROOT / name).is_file()
    for name in ("factorial", "supervisors", "examples", "tests"):
        assert any((ROOT / name).iterdir())
