"""What is stored of one run, or of one owner, was damaged by hand: the scripts leave the others alone. A real Valkey,
whose scripts are called one by one. Whole systems meet more of it in tests/chaos/test_fault_payloads.py.
"""

from collections.abc import AsyncIterator

import pytest

from factorial.mailbox import Mailbox, lease, tend
from factorial.mailbox.claim import Claim, ClaimedRun, claim
from factorial.mailbox.commit import Action, Commit, Committed, commit
from factorial.mailbox.enqueue import enqueue
from factorial.mailbox.lease import Cause
from factorial.mailbox.read import read_status
from factorial.task import TaskStatus


@pytest.fixture(autouse=True)
async def tidied(mailbox: Mailbox) -> AsyncIterator[None]:
    """The damage is removed, so that the invariants, which do not hold for it, are not asked for."""
    yield
    keys = await mailbox.connection.execute("KEYS", f"{mailbox.keys.prefix}*")
    await mailbox.connection.execute("DEL", *keys)


async def put(mailbox: Mailbox, *names: str, owner: str = "o") -> None:
    for name in names:
        await enqueue(mailbox.scripts, task_id=name, agent="a", owner_id=owner, conversation=[], fields={})


async def take(mailbox: Mailbox) -> list[ClaimedRun]:
    await lease.register(mailbox.scripts, process="p", agent="a", lease=60, patience=0, about={})
    answer = await claim(mailbox.scripts, process="p", worker="w", agent="a", count=9, recovery_limit=3)
    assert isinstance(answer, Claim)
    return list(answer.runs)


async def damage(mailbox: Mailbox, key: str) -> None:
    await mailbox.connection.execute("DEL", key)
    await mailbox.connection.execute("SET", key, "damaged")


async def complete(mailbox: Mailbox, run: ClaimedRun) -> None:
    done = Commit(Action.COMPLETE, turn_done=True)
    answer = await commit(mailbox.scripts, task_id=run.task_id, process="p", token=run.token, work=done)
    assert isinstance(answer, Committed)


async def test_an_owner_whose_events_cannot_be_written_has_its_tasks_executed_all_the_same(mailbox: Mailbox) -> None:
    await put(mailbox, "t1", "t2")
    await damage(mailbox, mailbox.keys.events("o"))
    for run in await take(mailbox):
        await complete(mailbox, run)
    assert [await read_status(mailbox.scripts, name) for name in ("t1", "t2")] == ["completed"] * 2


async def test_what_a_dead_process_held_is_taken_back_past_an_owner_whose_events_cannot_be_written(
    mailbox: Mailbox,
) -> None:
    await put(mailbox, "t1")
    await put(mailbox, "t2", owner="other")
    assert len(await take(mailbox)) == 2
    await damage(mailbox, mailbox.keys.events("o"))
    assert len((await lease.bury(mailbox.scripts, process="p", cause=Cause.KILLED)).go_on) == 2
    assert {run.task_id for run in await take(mailbox)} == {"t1", "t2"}


async def test_ended_runs_are_removed_past_a_damaged_one(mailbox: Mailbox) -> None:
    await put(mailbox, "t1", "t2")
    for run in await take(mailbox):
        await complete(mailbox, run)
    await damage(mailbox, mailbox.keys.run("t1"))
    assert await tend.expire(mailbox.scripts, agent="a", status=TaskStatus.COMPLETED, ttl=-1, most=9) == 2
    assert await read_status(mailbox.scripts, "t2") is None


async def test_doomed_runs_are_cancelled_past_a_damaged_one(mailbox: Mailbox) -> None:
    await put(mailbox, "t1", "t2")
    await damage(mailbox, mailbox.keys.key("children", "t1"))
    await mailbox.connection.execute("RPUSH", mailbox.keys.key("doomed"), "t1", "t2")
    await tend.cascade(mailbox.scripts)
    assert await read_status(mailbox.scripts, "t2") == "cancelled"
