"""What `status` says of tasks that nobody serves, and of a server that is full. Real: actors, mailbox, Valkey."""

import pytest

from factorial import Agent
from factorial.config import RedisConfig
from factorial.mailbox.views.server_memory import Memory
from factorial.supervisor.operate.remote import Selection, read_status
from factorial.testing import ScriptedModel
from tests.harness import System
from tests.valkey import ValkeyServer


async def test_tasks_that_no_runner_serves_are_shown(system: System) -> None:
    served = Agent(name="served", model=ScriptedModel(["done"]))
    forgotten = Agent(name="forgotten", model=ScriptedModel(["done"]))
    await system.start(served)
    await system.submit(served)
    for _ in range(3):
        await system.submit(forgotten)
    status = await read_status(system.redis, Selection())
    assert status.unserved == ["forgotten"]
    assert status.queues["forgotten"]["ready"] == 3
    assert "! forgotten: tasks wait, and no runner serves this agent: start one" in status.as_text()
    assert status.as_json()["unserved"] == ["forgotten"]
    await system.start(forgotten)
    assert (await read_status(system.redis, Selection())).unserved == []


@pytest.mark.parametrize(
    ("used", "warning"),
    [
        (50, ""),
        (95, "is nearly full (95.0 of 100.0 MiB): when it is full, it accepts no new task"),
        (101, "is full (101.0 of 100.0 MiB): it accepts no new task"),
    ],
)
def test_a_server_without_room(used: int, warning: str) -> None:
    assert Memory(used * 2**20, 100 * 2**20).warning.partition(". Raise")[0] == warning
    assert Memory(used * 2**20, 0).warning == ""


async def test_a_full_server_is_shown(own_valkey: ValkeyServer) -> None:
    own_valkey.start()
    redis = RedisConfig(url=own_valkey.url)
    assert "the server" not in (await read_status(redis, Selection())).as_text()
    own_valkey.command("CONFIG", "SET", "maxmemory", "1mb")
    status = await read_status(redis, Selection())
    assert "! the server: is full (" in status.as_text()
    assert status.as_json()["memory"]["limit"] == 2**20
