"""The most runs of one owner that are executed at once (`owner_limit`), on a real Valkey: the scripts alone, then a
system of two processes.
"""

import asyncio
import contextlib
from collections import Counter
from typing import Any

from factorial import AgentContext, BaseAgent, ExecutionContext
from factorial.errors import InactiveTaskError
from factorial.mailbox import Namespace
from factorial.mailbox.operations import lease, upkeep
from factorial.mailbox.operations.cancel import cancel
from factorial.mailbox.operations.claim import Claim, ClaimedRun, ClaimRequest, claim
from factorial.mailbox.operations.commit import Action, Commit, Committed, commit
from factorial.mailbox.operations.enqueue import enqueue
from factorial.mailbox.operations.lease import Cause
from factorial.mailbox.views.queues import read_queues
from factorial.testing import ScriptedModel, say
from tests.harness import System, quick


async def put(mailbox: Namespace, *names: str, owner: str = "o") -> None:
    for name in names:
        await enqueue(mailbox.scripts, task_id=name, agent="a", owner_id=owner, conversation=[], fields={})


async def take(mailbox: Namespace, limit: int = 2, count: int = 10, process: str = "p") -> list[ClaimedRun]:
    await lease.register(mailbox.scripts, process=process, agent="a", lease=60, patience=0, about={})
    answer = await claim(
        mailbox.scripts,
        ClaimRequest(process=process, worker="w", agent="a", count=count, recovery_limit=3, owner_limit=limit),
    )
    assert isinstance(answer, Claim)
    return list(answer.runs)


async def end(mailbox: Namespace, run: ClaimedRun, action: Action = Action.COMPLETE, process: str = "p") -> None:
    done = await commit(
        mailbox.scripts, task_id=run.task_id, process=process, token=run.token, work=Commit(action, turn_done=True)
    )
    assert isinstance(done, Committed)


def names(runs: list[ClaimedRun]) -> list[str]:
    return [run.task_id for run in runs]


async def throttled(mailbox: Namespace) -> int:
    return (await read_queues(mailbox.scripts, ["a"]))["a"]["throttled"]


async def test_a_throttled_run_that_is_gone_uses_up_no_place(mailbox: Namespace) -> None:
    await put(mailbox, "t1", "t2", "t3")
    [first] = await take(mailbox, limit=1)
    await mailbox.connection.execute("DEL", mailbox.keys.run("t2"), mailbox.keys.conversation("t2"))
    await end(mailbox, first)
    [third] = await take(mailbox, limit=1)
    assert third.task_id == "t3"
    await end(mailbox, third)
    await mailbox.connection.execute("HINCRBY", mailbox.keys.owner("o"), "active", -1)  # as the invariants have it


async def test_throttled_runs_are_counted_while_none_of_their_owner_is_held(mailbox: Namespace) -> None:
    """The owner's next run is at the end of a long queue. The count is removed with the last of them."""
    await put(mailbox, "t1", "t2", "t3", "t4")
    [first] = await take(mailbox, limit=1)
    await put(mailbox, "u1", owner="other")
    await end(mailbox, first)
    assert names(await take(mailbox, limit=1, count=1)) == ["u1"]
    assert await throttled(mailbox) == 2
    for name in ("t3", "t4", "t2"):
        await cancel(mailbox.scripts, task_id=name)
    assert await throttled(mailbox) == 0
    assert await mailbox.connection.execute("HKEYS", mailbox.keys.key("running", "a")) == [b"other"]


async def test_an_owner_has_no_more_held_runs_than_its_limit_and_others_overtake(mailbox: Namespace) -> None:
    await put(mailbox, "t1", "t2", "t3", "t4")
    await put(mailbox, "u1", owner="other")
    first = await take(mailbox)
    assert names(first) == ["t1", "t2", "u1"]
    assert await throttled(mailbox) == 2
    assert names(await take(mailbox, process="q")) == []
    await end(mailbox, first[0])
    assert names(await take(mailbox)) == ["t3"]
    assert await throttled(mailbox) == 1


async def test_whatever_clears_the_holder_of_a_run_makes_the_next_one_ready(mailbox: Namespace) -> None:
    await put(mailbox, "t1", "t2", "t3")
    [first] = await take(mailbox, limit=1)
    await end(mailbox, first, Action.BACKOFF)
    await upkeep.promote(mailbox.scripts, agent="a")
    assert len(await take(mailbox, limit=1)) == 1
    await lease.reclaim_process(mailbox.scripts, process="p", cause=Cause.LEFT)
    [run] = await take(mailbox, limit=1)
    await lease.release(mailbox.scripts, process="p", task_ids=[run.task_id])
    for _ in range(3):
        [run] = await take(mailbox, limit=1)
        await end(mailbox, run)
    assert await throttled(mailbox) == 0


async def test_an_unthrottled_run_that_is_cancelled_before_its_claim_blocks_no_other(mailbox: Namespace) -> None:
    await put(mailbox, "t1", "t2", "t3", "t4")
    [first] = await take(mailbox, limit=1)
    await cancel(mailbox.scripts, task_id="t4")  # while it is throttled
    assert await throttled(mailbox) == 2
    await end(mailbox, first)
    await cancel(mailbox.scripts, task_id="t2")  # after it was unthrottled
    assert names(await take(mailbox, limit=1)) == ["t3"]


async def test_an_owner_with_many_tasks_does_not_overtake_others(mailbox: Namespace) -> None:
    """Each time one of its runs ends, the next one is queued after what was enqueued meanwhile."""
    await put(mailbox, "t1", "t2", "t3")
    [first] = await take(mailbox, limit=1)
    await put(mailbox, "u1", owner="other")
    await end(mailbox, first)
    assert names(await take(mailbox, limit=1, count=1)) == ["u1"]
    assert names(await take(mailbox, limit=1, count=1)) == ["t2"]


async def test_a_run_that_is_queued_again_goes_before_those_that_have_not_started(mailbox: Namespace) -> None:
    """Whichever run of the owner comes to the head of the queue, the oldest throttled one is claimed."""
    await put(mailbox, "t1")
    await asyncio.sleep(0.01)  # the server's clock tells which is older
    await put(mailbox, "t2", "t3")
    for action in (Action.RELEASE, Action.BACKOFF):
        [run] = await take(mailbox, limit=1)
        assert (run.task_id, await throttled(mailbox)) == ("t1", 2)
        await end(mailbox, run, action)
    await upkeep.promote(mailbox.scripts, agent="a")
    [second] = await take(mailbox, limit=1)  # it was unthrottled while t1 was not due
    await end(mailbox, second)
    assert names(await take(mailbox, limit=1)) == ["t1"]


async def test_a_limit_that_is_raised_or_removed_makes_the_others_ready(mailbox: Namespace) -> None:
    await put(mailbox, *(f"t{number}" for number in range(8)))
    [first] = await take(mailbox, limit=1)
    await end(mailbox, first)
    assert [len(await take(mailbox, limit=3)) for _ in range(2)] == [3, 0]
    await put(mailbox, "u", owner="other")
    assert names(await take(mailbox, limit=0)) == ["u"]
    await lease.reclaim_process(mailbox.scripts, process="p", cause=Cause.LEFT)
    assert len(await take(mailbox, limit=0)) == 8
    assert await throttled(mailbox) == 0


async def test_all_tasks_of_an_owner_end_and_never_more_than_two_at_once(system: System) -> None:
    """Two real runners, five owners with twelve tasks each, some of them cancelled meanwhile."""
    at_once: Counter[str] = Counter()
    most: Counter[str] = Counter()

    class Busy(BaseAgent[AgentContext]):
        async def completion(self, agent_ctx: AgentContext, messages: Any = None) -> Any:
            owner = ExecutionContext.current().owner_id
            at_once[owner] += 1
            most[owner] = max(most[owner], at_once[owner])
            try:
                await asyncio.sleep(0.005)
                return await super().completion(agent_ctx, messages)
            finally:
                at_once[owner] -= 1

    agent = Busy(name="a", model=ScriptedModel(lambda messages: say("done")))
    owners = [f"owner-{number}" for number in range(5)]
    tasks = [await system.submit(agent, "q", owner) for _ in range(12) for owner in owners]
    for _ in range(2):
        await system.start(agent, quick(workers=2, owner_limit=2))
    for task_id in tasks[::7]:
        with contextlib.suppress(InactiveTaskError):  # it was quicker
            await system.orchestrator.cancel_task(task_id)
    statuses = Counter([(await system.ended(task_id))["status"] for task_id in tasks])
    assert set(statuses) <= {"completed", "cancelled"}
    assert most == dict.fromkeys(owners, 2)
