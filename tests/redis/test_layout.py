"""What is stored of a task: what it costs the server to keep, and which layout is accepted.

Server and worker are real; the model plays a script.
"""

import uuid

import pytest

from factorial import Agent
from factorial.config import RedisConfig
from factorial.errors import MailboxRefusedError
from factorial.mailbox import Namespace
from factorial.testing import ScriptedModel, call, say
from tests.harness import System, quick

MOST_BYTES = 1300
"""Of an ended task of two turns and one tool, with its share of the index of ended tasks, without its events."""
TASKS = 1000
"""Enough for the server to store an index of them as a large one."""


async def test_an_ended_task_is_small(system: System) -> None:
    async def weather(city: str) -> str:
        """Look at the sky over a city."""
        return f"sunny in {city}"

    script = [call("weather", city="Rome"), say("Sunny, all day.")]
    agent = Agent(name="weather", tools=[weather], model=ScriptedModel(script))
    await system.start(agent, quick())
    task_id = await system.submit(agent, "How is the weather in Rome?")
    assert (await system.ended(task_id))["status"] == "completed"

    keys = (await system.mailbox()).keys
    stored = await system.execute("KEYS", f"{keys.prefix}*:{task_id}")
    own = sum([await system.execute("MEMORY", "USAGE", key, "SAMPLES", 0) for key in stored])
    index = f"{keys.prefix}an index"
    await system.execute("ZADD", index, *(part for n in range(TASKS) for part in (1.8e12 + n, str(uuid.uuid4()))))
    share = await system.execute("MEMORY", "USAGE", index, "SAMPLES", 0) / TASKS
    await system.execute("DEL", index)

    assert await system.execute("OBJECT", "ENCODING", keys.run(task_id)) == b"listpack"
    assert own + share <= MOST_BYTES, f"{own} bytes in {len(stored)} keys, and {share:.0f} in the index"


async def test_a_namespace_of_layout_1_is_refused(mailbox: Namespace) -> None:
    """Layout 1 kept its version in another key."""
    await mailbox.connection.execute("RENAME", mailbox.keys.layout, mailbox.keys.layout_1)
    await mailbox.connection.execute("HSET", mailbox.keys.layout_1, "version", 1)
    with pytest.raises(MailboxRefusedError, match="has layout 1, but this release of Factorial reads layout 2"):
        await Namespace.open(RedisConfig(url=mailbox.redis.url, namespace=mailbox.redis.namespace))
    await mailbox.connection.execute("DEL", mailbox.keys.layout_1)
