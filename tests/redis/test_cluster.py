"""Redis Cluster: where the namespace's node is found, and found again. Real: the cluster of three Valkey processes, its
moves of slots, the runners. Scripted: the model. Its failovers are in `tests/chaos/test_fault_takeover.py`.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ResponseError

from factorial import Agent
from factorial.config import RedisConfig
from factorial.errors import MailboxRefusedError, MailboxUnavailableError
from factorial.mailbox.transport.blocking import BlockingConnection
from factorial.mailbox.transport.connection import Connection
from factorial.testing import Reply, ScriptedModel, call, say
from tests.chaos.figures import fault, long_or_short
from tests.harness import System
from tests.redis.strangers import is_passed_over
from tests.support import wait_until
from tests.valkey import ValkeyServer, free_port, needs_valkey_9, running
from tests.valkey_cluster import SLOTS, ValkeyCluster, ask

TURNS = 5


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    """Three nodes, shared by the tests of this file."""
    with running(ValkeyCluster(tmp_path_factory.mktemp("cluster"))) as cluster:
        yield cluster


@pytest.fixture
async def system(cluster: ValkeyCluster, namespace: str) -> AsyncIterator[System]:
    """A namespace on the cluster. Asserts the invariants at the end."""
    async with System(cluster.url, namespace) as system:
        yield system


def look(number: int) -> int:
    """A tool."""
    return number


class Looker:
    """A script of some turns with a tool, which counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.agent = Agent(name="looker", model=ScriptedModel(self._reply), tools=[look])

    def _reply(self, messages: Sequence[Mapping[str, Any]]) -> Reply:
        self.asked += 1
        turn = sum(message["role"] == "assistant" for message in messages)
        return call("look", number=turn) if turn < TURNS else say("done")


@pytest.mark.parametrize("named", [0, 1, 2, "all", "in so many words"])
async def test_a_task_lives_on_a_cluster_whichever_node_the_url_names(
    cluster: ValkeyCluster, namespace: str, named: int | str
) -> None:
    """From its acceptance to its end, with its events as they happen, and a client of redis-py for the user."""
    urls = {"all": cluster.url, "in so many words": cluster.url.replace("redis:", "redis+cluster:")}
    url = urls[named] if isinstance(named, str) else cluster.primaries[named].url
    agent = Looker().agent
    async with System(url, namespace) as system:
        await system.start(agent)
        listening = asyncio.create_task(system.updates(lambda heard: heard[-1]["event_type"] == "run_completed"))
        task_id = await system.submit(agent)
        heard = await listening
        assert (await system.data(task_id))["payload"]["output"] == "done"
        assert [event["id"] for event in heard if event["id"]] == [event["id"] for event in await system.events()]
        async with await system.orchestrator.get_redis_client() as client:
            await client.set("mine", "kept")  # on whatever node it is
            assert await client.get("mine") == "kept"


async def test_no_script_may_touch_another_slot(cluster: ValkeyCluster, namespace: str) -> None:
    """The cluster itself refuses it, here or on another node. So whatever runs on a cluster stays within its slot."""
    connection = await Connection.open(RedisConfig(url=cluster.url, namespace=namespace))
    script = "#!lua\nreturn redis.call('GET', ARGV[1])"
    here, there = cluster.serving(namespace), cluster.node_without(namespace)
    try:
        for node, refusal in ((here, "do not hash to the same slot"), (there, "non local key")):
            other = next(f"k{n}" for n in range(SLOTS) if "MOVED" not in reply(node, "EXISTS", f"k{n}"))
            with pytest.raises(ResponseError, match=refusal):
                await connection.execute("EVAL", script, 1, f"{{{namespace}:0}}:", other)
        assert await connection.execute("EVAL", script, 1, f"{{{namespace}:0}}:", f"{{{namespace}:0}}:x") is None
    finally:
        await connection.close()
    scripts = [
        file.read_text() for file in Path(str(files("factorial.mailbox"))).glob("*/*.lua") if file.parent.name != "lib"
    ]
    assert scripts and not [text for text in scripts if not text.startswith("#!lua") or "cross-slot" in text]


def reply(node: ValkeyServer, *command: str) -> str:
    return node.command(*command).decode()


@needs_valkey_9
async def test_work_goes_on_while_its_slot_moves(cluster: ValkeyCluster, system: System, namespace: str) -> None:
    """From node to node: no task fails or is done twice, and subscribers hear of everything once."""
    looker = Looker()
    agent = looker.agent
    await system.start(agent)
    count, moves = long_or_short(2000, 40), 0
    done: set[str] = set()

    async def enqueue() -> None:
        for _ in range(count):
            await system.submit(agent)
            await asyncio.sleep(0.02)

    def is_all(heard: list[dict[str, str]]) -> bool:
        if heard[-1]["event_type"] == "run_completed":
            done.add(heard[-1]["task_id"])
        return len(done) == count

    listening = asyncio.create_task(system.updates(is_all, timeout=120))
    enqueueing = asyncio.create_task(enqueue())
    while not enqueueing.done():
        moves += 1
        to = cluster.primaries[(cluster.primaries.index(cluster.serving(namespace)) + 1) % 3]
        await asyncio.to_thread(cluster.migrate, namespace, to)
        await asyncio.sleep(0.2)
    await enqueueing
    heard = [event["id"] for event in await listening if event["id"]]
    assert heard == [event["id"] for event in await system.events()]
    assert looker.asked == count * (TURNS + 1)
    fault(
        "cluster: the namespace's slot moved from node to node",
        moves=moves, tasks=count, lost=count - len(done), repeated_model_calls=looker.asked - count * (TURNS + 1),
        reconnections=system.processes[0].mailbox.connection.stats.reconnects,
    )  # fmt: skip
    assert moves >= 3


async def test_a_namespace_stands_still_while_it_moves_key_by_key(
    cluster: ValkeyCluster, system: System, namespace: str
) -> None:
    """The older way to move a slot: until its end, half of the keys are there, half here, and nobody may be served."""
    agent = Looker().agent
    tasks = [await system.submit(agent) for _ in range(5)]
    source, target, slot = cluster.serving(namespace), cluster.node_without(namespace), cluster.slot_of(namespace)
    ids = [ask(node, "CLUSTER", "MYID") for node in (source, target)]
    ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
    ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
    mailbox = await system.mailbox()
    starting = asyncio.create_task(system.start(agent))
    submitting = asyncio.create_task(system.submit(agent))
    prefix = mailbox.keys.prefix
    keys = reply(source, "KEYS", f"{prefix}*").split("\r\n")[2::2]
    assert len(keys) > 5
    for key in keys[::2]:
        ask(source, "MIGRATE", "127.0.0.1", target.port, key, 0, 1000)
    asked = mailbox.connection.stats.commands
    probing = asyncio.create_task(mailbox.connection.execute("EVAL", "#!lua\nreturn 1", 1, prefix))
    await wait_until(lambda: mailbox.connection.stats.commands > asked + 2, message="the command to be tried again")
    assert not starting.done() and not submitting.done() and not probing.done()
    for key in keys[1::2]:
        ask(source, "MIGRATE", "127.0.0.1", target.port, key, 0, 1000)
    for node in (target, source):
        ask(node, "CLUSTER", "SETSLOT", slot, "NODE", ids[1])
    assert await probing == 1
    await starting
    for task_id in [*tasks, await submitting]:
        assert (await system.ended(task_id))["payload"]["output"] == "done"


@needs_valkey_9
async def test_waiting_for_work_follows_the_slot(cluster: ValkeyCluster, namespace: str) -> None:
    """When the slot moves, a blocked command returns None. The next one waits on the new node."""
    config = RedisConfig(url=cluster.url, namespace=namespace)
    commands, blocking = await Connection.open(config), await BlockingConnection.open(config)
    key = f"{{{namespace}:0}}:wake:a"
    waiting = asyncio.create_task(blocking.execute("BLPOP", key, 0))
    serving = cluster.serving(namespace)
    await wait_until(lambda: "blocked_clients:1" in reply(serving, "INFO", "clients"))
    await asyncio.to_thread(cluster.migrate, namespace, cluster.node_without(namespace))
    assert await waiting is None
    assert await blocking.execute("BLPOP", key, 0) is None  # it has connected again
    waiting = asyncio.create_task(blocking.execute("BLPOP", key, 0))
    await commands.execute("RPUSH", key, "token")
    assert await waiting == [key.encode(), b"token"]
    await blocking.close()
    await commands.close()


@needs_valkey_9
async def test_subscribers_follow_the_slot(cluster: ValkeyCluster, system: System, namespace: str) -> None:
    """They listen where the events are published, and need no other node to pass them on."""
    agent = Looker().agent
    listening = asyncio.create_task(system.updates(lambda heard: heard[-1]["event_type"] == "run_completed"))
    channel = system.orchestrator.get_updates_channel(owner_id="owner")

    def is_heard_at(node: ValkeyServer) -> bool:
        return reply(node, "PUBSUB", "NUMSUB", channel).endswith(":1\r\n")

    before, after = cluster.serving(namespace), cluster.node_without(namespace)
    await wait_until(lambda: is_heard_at(before))
    await asyncio.to_thread(cluster.migrate, namespace, after)
    await system.submit(agent)
    await wait_until(lambda: is_heard_at(after) and not is_heard_at(before))
    await system.start(agent)
    heard = await listening
    assert [event["id"] for event in heard if event["id"]] == [event["id"] for event in await system.events()]


async def test_a_node_that_is_away_does_not_matter(cluster: ValkeyCluster, namespace: str) -> None:
    """One that answers is enough. If none does, the message names each of them."""
    gone = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    url = f"redis://{gone[0]},127.0.0.1:{cluster.node_without(namespace).port},{gone[1]}"
    connection = await Connection.open(RedisConfig(url=url, namespace=namespace))
    assert f":{cluster.serving(namespace).port}" in connection.endpoint.route.url
    await connection.close()
    with pytest.raises(MailboxUnavailableError, match=f"none of 2 nodes.*{gone[0]}: nothing.*{gone[1]}: nothing"):
        await Connection.open(RedisConfig(url=f"redis://{','.join(gone)}"))


async def test_a_node_that_refuses_does_not_matter(cluster: ValkeyCluster, own_valkey: ValkeyServer) -> None:
    """Its address belongs to another server now, which is not a node of a cluster, or requires a password."""
    await is_passed_over(own_valkey, cluster.url)


async def test_servers_that_are_no_cluster_are_not_taken_for_one(own_valkey: ValkeyServer) -> None:
    """With two of them, tasks would go now here, now there."""
    own_valkey.start()
    url = f"redis://:hunter2@localhost:{own_valkey.port},127.0.0.1:{own_valkey.port}"
    with pytest.raises(MailboxRefusedError, match="password"):
        await Connection.open(RedisConfig(url=url))
    with pytest.raises(MailboxRefusedError, match=r"is not a node of a cluster.*redis\+sentinel://") as raised:
        await Connection.open(RedisConfig(url=url.replace(":hunter2@", "")))
    assert "hunter2" not in str(raised.value)


async def test_a_cluster_has_one_database(cluster: ValkeyCluster) -> None:
    url = cluster.url.replace("redis:", "redis+cluster:").removesuffix("/0")
    with pytest.raises(MailboxRefusedError, match="a cluster has only database 0"):
        await Connection.open(RedisConfig(url=f"{url}/1"))
