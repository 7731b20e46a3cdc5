"""The scripts on a second implementation of the protocol. Real: the scripts. Fake: the server, which is fakeredis.

What needs blocking commands, pub/sub or restarts is tested on a real Valkey in tests/redis.
"""

import pytest

from factorial._core.json import load_json
from factorial.mailbox.keys import Keys
from factorial.mailbox.operations import lease, upkeep
from factorial.mailbox.operations.cancel import cancel
from factorial.mailbox.operations.claim import Claim, ClaimRequest, claim
from factorial.mailbox.operations.commit import Action, Commit, Committed, commit
from factorial.mailbox.operations.enqueue import enqueue
from factorial.mailbox.operations.lease import Cause
from factorial.mailbox.operations.record import Accepted, Superseded, record
from factorial.mailbox.operations.steer import steer
from factorial.mailbox.script import Scripts
from factorial.mailbox.views.read import read_run
from factorial.task import TaskStatus
from tests.model.servers import FakeServer
from tests.redis.doctor import assert_invariants


@pytest.fixture
def scripts() -> Scripts:
    """A namespace on a new server."""
    constants = {"EVENTS_MAX": 1000, "EVENTS_TTL_MS": 60_000, "METRICS_BUCKET": 60, "METRICS_RETENTION": 7200}
    return Scripts(FakeServer(), Keys("ns"), constants)


async def test_a_run_from_end_to_end(scripts: Scripts) -> None:
    """Enqueue, claim, step, a failed turn, another claim, steering, completion, removal."""
    await lease.register(scripts, process="p", agent="a", lease=60, patience=0, about={})
    for name in ("t1", "t2"):
        await enqueue(scripts, task_id=name, agent="a", owner_id="o", conversation=[b"{}"], fields={"query": b'"q"'})
    assert (await cancel(scripts, task_id="t2")).ended_here
    answer = await claim(scripts, ClaimRequest(process="p", worker="w", agent="a", count=5, recovery_limit=3))
    assert isinstance(answer, Claim)
    [first] = answer.runs
    noted = await record(
        scripts, task_id="t1", token=first.token, message_number=1, entries={"completion": b"{}"}, events=[]
    )
    assert noted == Accepted(cancelled=False)
    failed = Commit(Action.BACKOFF, turn_done=False, error="oh")
    await commit(scripts, task_id="t1", process="p", token=first.token, work=failed)
    await assert_invariants(scripts.commands, "ns", quiet=True, end_events=False)
    assert await upkeep.promote(scripts, agent="a") == 1

    answer = await claim(scripts, ClaimRequest(process="p", worker="w", agent="a", count=5, recovery_limit=3))
    assert isinstance(answer, Claim)
    [second] = answer.runs
    assert (second.journal, second.retries) == ({"completion": b"{}"}, 1)
    await steer(scripts, task_id="t1", message_id="m", messages=[b"{}"])
    done = Commit(Action.COMPLETE, turn_done=True, final_fields={"output": b'"x"'})
    late = await commit(scripts, task_id="t1", process="p", token=first.token.next(), work=done)
    assert isinstance(late, Superseded)
    for token, action in ((second.token, Action.CONTINUE), (second.token.next(), Action.COMPLETE)):
        for _ in range(2):
            answered = await commit(scripts, task_id="t1", process="p", token=token, work=done)
            assert isinstance(answered, Committed) and answered.action is action
    stored = await read_run(scripts, "t1")
    assert stored is not None and (stored.status, load_json(stored.fields["output"])) == ("completed", "x")
    await assert_invariants(scripts.commands, "ns", quiet=True, end_events=False)
    for status in (TaskStatus.COMPLETED, TaskStatus.CANCELLED):
        assert await upkeep.expire(scripts, agent="a", status=status, ttl=0, most=10) == 1
    await assert_invariants(scripts.commands, "ns", quiet=True, end_events=False)


async def test_dead_processes(scripts: Scripts) -> None:
    """Two runs whose process crashes twice are suspects; one of them is cancelled, the other crashes until it ends."""
    for name in ("t1", "t2"):
        await enqueue(scripts, task_id=name, agent="a", owner_id="o", conversation=[], fields={})
    for held in (2, 2, 1, 1, 1):
        await lease.register(scripts, process="p", agent="a", lease=60, patience=0, about={})
        if held == 1:
            await cancel(scripts, task_id="t2")
        answer = await claim(scripts, ClaimRequest(process="p", worker="w", agent="a", count=9, recovery_limit=3))
        assert isinstance(answer, Claim) and len(answer.runs) == held
        taken = await lease.reclaim_process(scripts, process="p", cause=Cause.CRASHED)
        assert len(taken.go_on) + len(taken.given_up) == held
        await assert_invariants(scripts.commands, "ns", quiet=True, end_events=False)
        for name in ("t1", "t2"):
            await scripts.commands.execute("ZADD", f"{scripts.keys.prefix}due:a", "XX", 1, name)
        await upkeep.promote(scripts, agent="a")
    stored = await read_run(scripts, "t1")
    assert stored is not None and stored.error.startswith("crash_loop: 3 processes")
    await assert_invariants(scripts.commands, "ns", quiet=True, end_events=False)
