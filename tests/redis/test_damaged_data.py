"""Keys of one run, or of one owner, are damaged by hand: the scripts must not affect the others. A real Valkey,
whose scripts are called one by one. Whole systems meet more of it in tests/chaos/test_fault_payloads.py.
"""

from collections.abc import AsyncIterator

import pytest

from factorial.mailbox import Namespace
from factorial.mailbox.operations import lease, upkeep
from factorial.mailbox.operations.cancel import cancel, cascade
from factorial.mailbox.operations.claim import Claim, ClaimedRun, ClaimRequest, claim
from factorial.mailbox.operations.commit import Action, Commit, Committed, commit
from factorial.mailbox.operations.enqueue import enqueue
from factorial.mailbox.operations.lease import Cause
from factorial.mailbox.operations.spawn import ChildBatch, NewRun, spawn
from factorial.mailbox.views.read import read_status
from factorial.task import TaskStatus


@pytest.fixture(autouse=True)
async def tidied(mailbox: Namespace) -> AsyncIterator[None]:
    """Remove the damaged keys before the invariants are checked."""
    yield
    keys = await mailbox.connection.execute("KEYS", f"{mailbox.keys.prefix}*")
    await mailbox.connection.execute("DEL", *keys)


async def put(mailbox: Namespace, *names: str, owner: str = "o") -> None:
    for name in names:
        await enqueue(mailbox.scripts, task_id=name, agent="a", owner_id=owner, conversation=[], fields={})


async def take(mailbox: Namespace, limit: int = 0) -> list[ClaimedRun]:
    await lease.register(mailbox.scripts, process="p", agent="a", lease=60, patience=0, about={})
    answer = await claim(
        mailbox.scripts, ClaimRequest(process="p", worker="w", agent="a", count=9, recovery_limit=3, owner_limit=limit)
    )
    assert isinstance(answer, Claim)
    return list(answer.runs)


async def damage(mailbox: Namespace, key: str) -> None:
    await mailbox.connection.execute("DEL", key)
    await mailbox.connection.execute("SET", key, "damaged")


async def complete(mailbox: Namespace, *runs: ClaimedRun) -> None:
    for run in runs:
        done = Commit(Action.COMPLETE, turn_done=True)
        answer = await commit(mailbox.scripts, task_id=run.task_id, process="p", token=run.token, work=done)
        assert isinstance(answer, Committed)


async def test_runs_of_an_owner_with_a_damaged_stream_are_executed(mailbox: Namespace) -> None:
    await put(mailbox, "t1", "t2")
    await damage(mailbox, mailbox.keys.events("o"))
    await complete(mailbox, *await take(mailbox))
    assert [await read_status(mailbox.scripts, name) for name in ("t1", "t2")] == ["completed"] * 2


async def test_runs_of_a_dead_process_are_reclaimed_in_spite_of_a_damaged_stream(
    mailbox: Namespace,
) -> None:
    await put(mailbox, "t1")
    await put(mailbox, "t2", owner="other")
    assert len(await take(mailbox)) == 2
    await damage(mailbox, mailbox.keys.events("o"))
    assert len((await lease.reclaim_process(mailbox.scripts, process="p", cause=Cause.KILLED)).go_on) == 2
    assert {run.task_id for run in await take(mailbox)} == {"t1", "t2"}


async def test_ended_runs_are_removed_in_spite_of_a_damaged_one(mailbox: Namespace) -> None:
    await put(mailbox, "t1", "t2")
    await complete(mailbox, *await take(mailbox))
    await damage(mailbox, mailbox.keys.run("t1"))
    assert await upkeep.expire(mailbox.scripts, agent="a", status=TaskStatus.COMPLETED, ttl=-1, most=9) == 2
    assert await read_status(mailbox.scripts, "t2") is None


async def test_doomed_runs_are_cancelled_in_spite_of_a_damaged_one(mailbox: Namespace) -> None:
    await put(mailbox, "t1", "t2")
    await damage(mailbox, mailbox.keys.key("children", "t1"))
    await mailbox.connection.execute("RPUSH", mailbox.keys.key("doomed"), "t1", "t2")
    await cascade(mailbox.scripts)
    assert await read_status(mailbox.scripts, "t2") == "cancelled"


@pytest.mark.parametrize("limit", [0, 1])
async def test_runs_are_claimed_and_end_in_spite_of_a_damaged_count_of_held_runs(
    mailbox: Namespace, limit: int
) -> None:
    """Without the count, no owner is limited: a run is worth more than a count."""
    await put(mailbox, "t1", "t2")
    await damage(mailbox, mailbox.keys.key("running", "a"))
    taken = await take(mailbox, limit)
    assert {run.task_id for run in taken} == {"t1", "t2"} == await lease.held(mailbox.scripts, process="p")
    await complete(mailbox, taken[0])
    assert (await lease.reclaim_process(mailbox.scripts, process="p", cause=Cause.KILLED)).go_on == [taken[1].task_id]
    await complete(mailbox, *await take(mailbox, limit))
    assert [await read_status(mailbox.scripts, name) for name in ("t1", "t2")] == ["completed"] * 2


async def test_runs_are_claimed_in_spite_of_damaged_throttled_runs(mailbox: Namespace) -> None:
    await put(mailbox, "t1")
    await damage(mailbox, mailbox.keys.key("throttled", "a:o"))
    await complete(mailbox, *await take(mailbox, limit=1))
    await put(mailbox, "t2")
    await cancel(mailbox.scripts, task_id="t2")
    assert await read_status(mailbox.scripts, "t2") == "cancelled"


@pytest.mark.parametrize("kind", ["timeline", "bucket", "owner", "batch", "children"])
async def test_a_parent_is_notified_of_its_child_in_spite_of_damaged_counts(mailbox: Namespace, kind: str) -> None:
    await put(mailbox, "parent")
    [parent] = await take(mailbox)
    child = NewRun("child", "a", [], {})
    await spawn(
        mailbox.scripts, parent="parent", token=parent.token, batch=ChildBatch("b"), children=[child]
    )  # fmt: skip
    park = Commit(Action.PARK, turn_done=False, plan=b"[]", awaits={"child:child": 0.0})
    await commit(mailbox.scripts, task_id="parent", process="p", token=parent.token, work=park)
    [run] = await take(mailbox)
    key = {
        "timeline": mailbox.keys.key("timeline"), "owner": mailbox.keys.owner("o"), "batch": mailbox.keys.batch("b"),
        "children": mailbox.keys.key("children", "parent"),
        "bucket": (await mailbox.connection.execute("KEYS", mailbox.keys.key("bucket", "*")))[0],
    }[kind]  # fmt: skip
    await damage(mailbox, key)
    await complete(mailbox, run)
    assert await read_status(mailbox.scripts, "parent") == "queued"


async def test_a_task_that_is_enqueued_again_is_stored_once_in_spite_of_a_damaged_owner(mailbox: Namespace) -> None:
    await damage(mailbox, mailbox.keys.owner("o"))
    for _ in range(2):
        await enqueue(mailbox.scripts, task_id="t", agent="a", owner_id="o", conversation=[b"1"], fields={})
    assert await mailbox.connection.execute("LRANGE", mailbox.keys.conversation("t"), 0, -1) == [b"1"]


async def test_runs_are_released_in_spite_of_a_damaged_one(mailbox: Namespace) -> None:
    await put(mailbox, "t1", "t2")
    await take(mailbox)
    await cancel(mailbox.scripts, task_id="t1")
    await damage(mailbox, mailbox.keys.key("children", "t1"))
    assert list(await lease.release(mailbox.scripts, process="p", task_ids=["t1", "t2"])) == ["t2"]
    assert await lease.held(mailbox.scripts, process="p") == set()
