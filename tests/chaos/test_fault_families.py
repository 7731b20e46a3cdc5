"""A parent with a thousand children, and half of the worker processes killed at once, twice.

Real: worker processes (see nursery.py), Valkey, signals. Scripted: the model. The witness's file tells what was
executed.
"""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from typing import Any

from factorial import AgentContext
from tests.chaos.family import CHILD_RUNNER, answer_all, parent
from tests.chaos.figures import fault, long_or_short
from tests.chaos.system import OWNER, System
from tests.redis.doctor import assert_invariants
from tests.redis.stored import contents
from tests.sub_tasks import ends
from tests.support import wait_until

CHILDREN = long_or_short(1000, 100)


async def test_a_parent_hears_of_every_child_though_half_of_the_workers_are_killed(system: System) -> None:
    system.configure(workers=2, batch_size=5, agent="family:parent", more=CHILD_RUNNER)
    await system.start("-m", "tests.chaos.nursery", str(system.config))
    answered: Counter[str] = Counter()
    outside = asyncio.create_task(answer_all(system, answered))
    task = await system.orchestrator.enqueue_task(parent, owner_id=OWNER, payload=AgentContext(query=str(CHILDREN)))
    killed = 0
    for share in (0.1, 0.5):
        await wait_until(lambda share=share: looks(system) > share * CHILDREN, 120, "children at work")
        alive = {one.pid for one in system.workers()}
        at_work = sorted(alive & {line["pid"] for line in system.witness() if line["what"] == "look"})
        for pid in random.sample(at_work, (len(at_work) + 1) // 2):
            os.kill(pid, signal.SIGKILL)
            killed += 1
    last_kill = time.time()
    data = await system.finished(task, 180)
    outside.cancel()
    mailbox = await system.orchestrator._namespace()
    found = await contents(mailbox.connection, system.namespace)
    runs: dict[str, Any] = found["run"]
    listing = ends(data["payload"]["messages"][2]["content"])
    assert data["payload"]["output"] == f"{CHILDREN} corners seen, and I was told: yes"
    told = Counter(one.task_id for one in listing)
    assert told.keys() == runs.keys() - {task.id}
    assert len(told) == told.total() == CHILDREN  # each once, and none beside them
    assert {run["status"] for run in runs.values()} == {"completed"}
    [batch] = found["batch"].values()
    assert (batch["total"], batch["ended"], batch["completed"]) == (str(CHILDREN),) * 3
    executed = Counter(line["task"] for line in system.witness() if line["what"] == "look" and line["edge"] == "begin")
    again = {run_id: int(run["pickups"]) - 1 for run_id, run in runs.items() if run_id != task.id}
    repeated = {run_id: count - 2 for run_id, count in executed.items() if count != 2}
    assert all(0 < count <= again[run_id] for run_id, count in repeated.items())
    assert sum(again.values()) > 0  # the kills met work
    assert answered == {task.id: 1}
    await assert_invariants(mailbox.connection, system.namespace)
    fault(
        "children, and half of the workers killed, twice",
        children=CHILDREN, workers_killed=killed, lost=CHILDREN - len(told), told_twice=told.total() - len(told),
        taken_up_again=sum(again.values()), repeated_steps=sum(repeated.values()),
        seconds_after_the_last_kill=f"{time.time() - last_kill:.1f}",
    )  # fmt: skip
    assert await system.stop() == 0


def looks(system: System) -> int:
    """How many children have finished a look."""
    return sum(line["what"] == "look" and line["edge"] == "end" for line in system.witness())
