"""Chapter I of PROMISES.md: what the introduction promises. (I10 and I12 have files of their own; I11 is with T.)

Real: Valkey, HTTP, the openai client; in the tests with a `farm`, the workers' processes and their supervisors, in the
others the actors. Fake: the language model, and the lifelines of worker processes that live in the test's own.
"""

import asyncio
import dataclasses
import inspect
import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from llmock.pytest_plugin import LLMock

import factorial
from factorial import (
    Agent,
    AgentContext,
    AgentWorkerConfig,
    MaintenanceWorkerConfig,
    Orchestrator,
    RetryableError,
    config,
)
from factorial.models import DEFAULT_MODEL
from factorial.testing import Reply, call, say
from tests.harness import System, quick
from tests.spec.provider import Call, Provider
from tests.support import kill_session, wait_until
from tests.valkey import ValkeyServer

ROOT = Path(__file__).resolve().parents[2]


def get_weather(city: str) -> str:
    """Get weather for a city"""
    return f"The weather in {city} is sunny and 72°F"


def a_weather_agent() -> Agent:
    """The introduction's."""
    return Agent(
        description="Weather Assistant",
        instructions="You help users get weather information.",
        tools=[get_weather],
    )


# -- I01: the distribution and the package


@pytest.mark.checkout
def test_spec_I01_the_distribution_is_nfactorial_and_the_package_factorial() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["name"] == "nfactorial"
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["factorial"] and (ROOT / "factorial" / "__init__.py").is_file()
    assert project["tool"]["hatch"]["version"]["path"] == "factorial/_core/version.py"


@pytest.mark.checkout
def test_spec_I01_a_wheel_installs_and_imports(tmp_path: Path) -> None:
    """Built here, installed by pip into a new environment, without network: its dependencies are borrowed."""
    pytest.importorskip("hatchling", reason="builds the wheel; `pip install .` would download it")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    [wheel] = tmp_path.glob("nfactorial-*.whl")
    home = tmp_path / "home"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    [site] = home.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    code = """
import importlib.metadata, importlib.resources, factorial
from factorial import Agent, Orchestrator
print(factorial.__file__)
print(importlib.metadata.version("nfactorial"), factorial.__version__)
print(importlib.resources.files("factorial").joinpath("mailbox", "operations", "commit.lua").is_file())
"""
    outcome = subprocess.run([python, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 0, outcome.stderr
    version = factorial.__version__
    assert outcome.stdout.splitlines() == [str(site / "factorial" / "__init__.py"), f"{version} {version}", "True"]


# -- I02, I05, I06: the quick example


async def test_spec_I02_a_plain_typed_function_is_a_tool(system: System, llmock: LLMock) -> None:
    llmock.call_tool("get_weather", {"city": "San Francisco"}).reply("Sunny, 72 degrees.")
    agent = a_weather_agent()
    await system.start(agent)
    data = await system.ended(await system.submit(agent, "What's the weather in San Francisco?"))
    first, second = (request.body for request in llmock.requests)
    assert first == {
        "model": DEFAULT_MODEL.provider_model_id,
        "messages": [
            {"role": "system", "content": "You help users get weather information."},
            {"role": "user", "content": "What's the weather in San Francisco?"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "get_weather",
                    "description": "Get weather for a city",
                    "parameters": {
                        "type": "object",
                        "properties": {"city": {"type": "string"}},
                        "required": ["city"],
                        "additionalProperties": False,
                    },
                },
            }
        ],
    }
    assert second["messages"][-1]["content"] == "The weather in San Francisco is sunny and 72°F"
    assert data["payload"]["output"] == "Sunny, 72 degrees."


@pytest.mark.parametrize("named_by", ["REDIS_URL", "REDIS_HOST"])
async def test_spec_I03_an_orchestrator_without_arguments_finds_redis(
    own_valkey: ValkeyServer, llmock: LLMock, monkeypatch: pytest.MonkeyPatch, named_by: str
) -> None:
    own_valkey.start()
    for name in ("REDIS_URL", "REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    if named_by == "REDIS_URL":
        monkeypatch.setenv("REDIS_URL", own_valkey.url)
    else:
        monkeypatch.setenv("REDIS_HOST", "127.0.0.1")
        monkeypatch.setenv("REDIS_PORT", str(own_valkey.port))
    llmock.reply("Sunny.")
    agent = a_weather_agent()
    system = System(own_valkey.url, "factorial")
    try:
        async with Orchestrator() as orchestrator:
            task = await orchestrator.enqueue_task(agent=agent, owner_id="owner", payload=AgentContext(query="?"))
            await system.start(agent)
            await system.ended(task.id)
    finally:
        await system.close()


def test_spec_I03_and_otherwise_asks_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    assert Orchestrator().redis.resolved_url == "redis://localhost:6379/0"


async def test_spec_I05_a_task_is_created_and_then_enqueued(system: System, llmock: LLMock) -> None:
    agent = a_weather_agent()
    task = agent.create_task(
        owner_id="user123",
        payload=AgentContext(query="What's the weather in San Francisco?"),
    )
    assert (task.owner_id, task.agent, task.status) == ("user123", "agent", "queued")
    assert await system.orchestrator.get_task_data(task.id) is None  # nothing is stored until it is enqueued
    enqueued = await system.orchestrator.enqueue_task(agent=agent, task=task)
    assert enqueued is task
    assert await system.orchestrator.get_task_status(task.id) == "queued"
    await system.orchestrator.enqueue_task(agent=agent, task=task)
    assert await system.execute("LLEN", (await system.mailbox()).keys.ready(agent.name)) == 1  # and queued once


async def quick_example(orchestrator: Orchestrator, owner_id: str) -> Any:
    """The end of the introduction's example, as it stands there: subscribe to results."""
    async for update in orchestrator.subscribe_to_updates(owner_id=owner_id):
        assert isinstance(update, dict)
        if update["event_type"] == "agent_output":
            return update["data"]


@pytest.mark.parametrize("subscribed_by", ["the one that enqueued", "another one"])
async def test_spec_I06_who_subscribes_after_the_run_has_ended_still_gets_the_output(
    system: System, llmock: LLMock, redis_url: str, namespace: str, subscribed_by: str
) -> None:
    llmock.reply("Sunny.")
    agent = a_weather_agent()
    await system.start(agent)
    task = agent.create_task(owner_id="user123", payload=AgentContext(query="?"))
    await system.orchestrator.enqueue_task(agent=agent, task=task)
    assert (await system.ended(task.id))["status"] == "completed"
    async with Orchestrator(redis_url=redis_url, namespace=namespace) as other:
        chosen = other if subscribed_by == "another one" else system.orchestrator
        assert await asyncio.wait_for(quick_example(chosen, "user123"), 20) == "Sunny."


async def test_spec_I06_who_subscribes_before_or_while_it_runs_gets_it_too(system: System, provider: Provider) -> None:
    agent = a_weather_agent()
    early = asyncio.create_task(quick_example(system.orchestrator, "owner"))
    await system.start(agent)
    await system.submit(agent, "?")
    request = await provider.called()
    meanwhile = asyncio.create_task(quick_example(system.orchestrator, "owner"))
    await asyncio.sleep(0)
    request.answer("Rainy.")
    assert list(await asyncio.wait_for(asyncio.gather(early, meanwhile), 20)) == ["Rainy.", "Rainy."]


# -- I04, I07, I08: workers in processes of their own


class Farm:
    """A program that registers a runner and runs it, started as often as a test likes: each is a machine to itself."""

    PROGRAM = """
import os
from factorial import Agent, AgentContext, AgentWorkerConfig, ExecutionContext, MaintenanceWorkerConfig, Orchestrator

def where(execution_ctx: ExecutionContext) -> str:
    "Tell where the work is done."
    return execution_ctx.process

where_agent = Agent(name="where", instructions="Find out where.", tools=[where])

orchestrator = Orchestrator()
orchestrator.register_runner(
    agent=where_agent,
    agent_worker_config=AgentWorkerConfig(workers=2, batch_size=10, heartbeat_interval=0.5),
    maintenance_worker_config=MaintenanceWorkerConfig(interval=0.5),
)

if __name__ == "__main__":
    orchestrator.run()
"""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.folder = folder
        self.machines: list[subprocess.Popen[bytes]] = []
        self._redis_url = redis_url
        (folder / "machine.py").write_text(self.PROGRAM)

    async def start(self) -> subprocess.Popen[bytes]:
        """One more machine. Returns when it works."""
        log = self.folder / f"log-{len(self.machines)}"
        machine = self._launch(log)
        self.machines.append(machine)
        await wait_until(
            lambda: "is ready" in log.read_text() or machine.poll() is not None, 60, f"{log.name} says that it is ready"
        )
        assert machine.poll() is None, log.read_text()
        return machine

    def _launch(self, log: Path) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "PYTEST_"))}
        with log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "machine.py"],
                cwd=self.folder,
                env=environment | {"PYTHONPATH": str(ROOT), "REDIS_URL": self._redis_url},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def holder(self, machine: subprocess.Popen[bytes], process: str) -> bool:
        """Whether the worker process of that name is this machine's."""
        return process in (self.folder / f"log-{self.machines.index(machine)}").read_text()

    def close(self) -> None:
        """End all that is left of them."""
        for machine in self.machines:
            kill_session(machine.pid)
            machine.wait(timeout=30)


@pytest.fixture
def farm(own_valkey: ValkeyServer, tmp_path: Path, provider: Provider) -> Iterator[Farm]:
    """Machines that share a Redis, and the test's provider."""
    own_valkey.start()
    farm = Farm(tmp_path, own_valkey.url)
    try:
        yield farm
    finally:
        farm.close()


def ask_where(messages: list[dict[str, Any]]) -> Reply:
    """A model that asks the tool and repeats what it said."""
    return say(messages[-1]["content"]) if messages[-1]["role"] == "tool" else call("where")


async def test_spec_I04_a_runner_has_so_many_workers_with_so_many_tasks_each(
    farm: Farm, own_valkey: ValkeyServer, provider: Provider
) -> None:
    """`AgentWorkerConfig(workers=2, batch_size=10)`: of 25 tasks, 20 are under way at once, and then the rest."""
    agent = Agent(name="where")
    async with Orchestrator(redis_url=own_valkey.url) as orchestrator:
        for number in range(25):
            await orchestrator.enqueue_task(agent, owner_id="owner", payload=AgentContext(query=str(number)))
        await farm.start()
        requests: list[Call] = [await provider.called(60) for _ in range(20)]
        assert await statuses(orchestrator, own_valkey) == {"processing": 20, "queued": 5}
        for request in requests:
            request.answer("done")
        for _ in range(5):
            (await provider.called(60)).answer("done")

        async def all_completed() -> bool:
            return await statuses(orchestrator, own_valkey) == {"completed": 25}

        await wait_until(all_completed, 60, "all tasks have completed")
    assert provider.most_at_once == 20


async def statuses(orchestrator: Orchestrator, server: ValkeyServer) -> Counter[str]:
    """How many tasks of the namespace have each status."""
    client = await orchestrator.get_redis_client()
    async with client:
        return Counter([str(await client.hget(key, "status")) async for key in client.scan_iter("{factorial:0}:run:*")])


async def test_spec_I07_several_machines_share_the_work_through_redis_alone(
    farm: Farm, own_valkey: ValkeyServer, provider: Provider
) -> None:
    agent = Agent(name="where")
    provider.replies = ask_where
    one, two = [await farm.start() for _ in range(2)]
    async with Orchestrator(redis_url=own_valkey.url) as orchestrator:
        places: Counter[int] = Counter()
        while len(places) < 2:  # a free machine takes a task: soon each has had one
            tasks = [
                await orchestrator.enqueue_task(agent, owner_id="owner", payload=AgentContext(query="Where?"))
                for _ in range(20)
            ]
            async with asyncio.timeout(60):
                for task in tasks:
                    process = await output_of(orchestrator, task.id)
                    assert farm.holder(one, process) != farm.holder(two, process)
                    places[1 if farm.holder(one, process) else 2] += 1
        assert set(places) == {1, 2}


async def output_of(orchestrator: Orchestrator, task_id: str) -> Any:
    """The output of the task, when there is one."""
    async for update in orchestrator.subscribe_to_updates(owner_id="owner", task_ids=[task_id]):
        if update["event_type"] == "agent_output":
            return update["data"]


async def test_spec_I08_what_a_lost_machine_had_begun_another_one_goes_on_with(
    farm: Farm, own_valkey: ValkeyServer, provider: Provider
) -> None:
    """A machine is lost (SIGKILL for all its processes) while the model thinks about the tool's result."""
    agent = Agent(name="where")
    one, two = [await farm.start() for _ in range(2)]
    async with Orchestrator(redis_url=own_valkey.url) as orchestrator:
        task = await orchestrator.enqueue_task(agent, owner_id="owner", payload=AgentContext(query="Where?"))
        (await provider.called(60)).answer(call("where"))
        asked = await provider.called(60)
        process = asked.messages[-1]["content"]
        lost = one if farm.holder(one, process) else two
        kill_session(lost.pid)
        again = await provider.called(60)
        assert again.messages == asked.messages  # the turn that was done is not taken again
        again.answer("Here.")
        assert await asyncio.wait_for(output_of(orchestrator, task.id), 60) == "Here."
        data = await orchestrator.get_task_data(task.id)
    assert data is not None and (data["status"], data["retries"], data["pickups"]) == ("completed", 0, 2)
    assert len(provider.calls) == 3
    assert psutil.pid_exists(lost.pid) is False or lost.poll() is not None


async def test_spec_I08_a_failed_turn_is_retried_with_growing_pauses(system: System, provider: Provider) -> None:
    """The tool's failures pass by themselves; the model is not asked again for what it has answered."""
    failures = [RetryableError("the service is busy")] * 3

    def book(seat: str) -> str:
        """Book a seat."""
        if failures:
            raise failures.pop()
        return f"booked {seat}"

    provider.replies = [call("book", seat="12A"), say("Booked.")]
    agent = Agent(name="booking", tools=[book])
    await system.start(agent, quick(retry_delay=0.1, max_retry_delay=10.0, max_retries=3))
    task_id = await system.submit(agent, "A seat, please")
    data = await system.ended(task_id, timeout=30)
    assert (data["status"], data["payload"]["output"]) == ("completed", "Booked.")
    delays = [one["data"]["delay"] for one in await system.events(task_id) if one["event_type"] == "task_retried"]
    assert len(delays) == 3
    for delay, longest in zip(delays, (0.1, 0.2, 0.4), strict=True):  # with jitter: from half of it on
        assert longest / 2 - 0.001 <= delay <= longest + 0.001
    assert len(provider.calls) == 2


# -- I09: while it runs


async def test_spec_I09_a_running_task_is_monitored_steered_and_cancelled(system: System, provider: Provider) -> None:
    agent = a_weather_agent()
    await system.start(agent)
    task_id = await system.submit(agent, "What's the weather?")
    first = await provider.called()
    assert await system.orchestrator.get_task_status(task_id) == "processing"
    data = await system.data(task_id)
    assert (data["process"], data["payload"]["turn"]) == ("p1", 0)

    await system.orchestrator.steer_task(task_id, [{"role": "user", "content": "In Celsius, please"}])
    first.answer(call("get_weather", city="Rome"))
    second = await provider.called()
    assert second.messages[-1] == {"role": "user", "content": "In Celsius, please"}
    assert (await system.data(task_id))["payload"]["turn"] == 1

    await system.orchestrator.cancel_task(task_id)
    await second.abandoned()
    assert (await system.ended(task_id))["status"] == "cancelled"
    published = await system.types(task_id)
    assert published == ["run_enqueued", "run_started", "run_steering_applied", "run_cancelled"]


# -- I13: sensible defaults


CONFIGURATIONS = [
    value
    for name in factorial.__all__
    if inspect.isclass(value := getattr(factorial, name)) and (name.endswith("Config") or name == "ModelSettings")
]


@pytest.mark.parametrize("kind", CONFIGURATIONS, ids=lambda kind: kind.__name__)
def test_spec_I13_every_configuration_object_has_a_default_for_every_field(kind: Any) -> None:
    made = kind()
    assert made == kind()
    for one in dataclasses.fields(kind):
        assert one.default is not dataclasses.MISSING or one.default_factory is not dataclasses.MISSING, one.name


def test_spec_I13_the_configurations_are_all_there() -> None:
    names = {kind.__name__ for kind in CONFIGURATIONS}
    assert {
        "AgentWorkerConfig", "MaintenanceWorkerConfig", "MetricsTimelineConfig", "ModelSettings", "ObservabilityConfig",
        "TaskTTLConfig",
    } <= names  # fmt: skip
    public = {name for name in config.__all__ if name not in ("GroupConfig", "RunnerConfig", "SystemConfig")}
    assert public <= names  # the three are tables of a system's file; two of them need a name


async def test_spec_I13_a_system_of_defaults_works(system: System, llmock: LLMock) -> None:
    """An agent of defaults, in a process with the workers' and the maintenance actors' defaults."""
    llmock.reply("Hello.")
    agent = Agent()
    await system.start(agent, AgentWorkerConfig(), MaintenanceWorkerConfig())
    data = await system.ended(await system.submit(agent, "Hello?"))
    assert data["payload"]["output"] == "Hello."
    assert llmock.last_request.body["messages"] == [{"role": "user", "content": "Hello?"}]
    assert json.dumps(data)
