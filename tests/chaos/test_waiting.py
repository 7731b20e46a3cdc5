"""Tasks that wait for children and for answers from outside, while the processes of all of them are killed.

Real: supervisor, worker processes, Valkey, signals. Scripted: the model. The witness's file tells what was executed.
"""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from typing import Any

from factorial import AgentContext
from tests.chaos.family import CHILD_RUNNER, CHILDREN, answer_all, parent
from tests.chaos.figures import fault
from tests.chaos.system import OWNER, System, show
from tests.redis.doctor import assert_invariants
from tests.redis.stored import contents

PARENTS = 20
KILLS, PAUSE = 24, 0.3


async def test_families_survive_a_storm(system: System) -> None:
    patient = "intensity = 1000\nmax_backoff = 0.5"
    system.configure(workers=4, batch_size=10, agent="family:parent", supervisor=patient, more=CHILD_RUNNER)
    await system.start()
    answered: Counter[str] = Counter()
    outside = asyncio.create_task(answer_all(system, answered))
    tasks = [
        await system.orchestrator.enqueue_task(parent, owner_id=OWNER, payload=AgentContext(query="go"))
        for _ in range(PARENTS)
    ]
    chance, began = random.Random(3), time.time()
    killed: list[int] = []
    for number in range(KILLS):
        await asyncio.sleep(max(0.0, began + number * PAUSE - time.time()))
        pid = chance.choice([process.pid for process in system.workers() if process.pid not in killed])
        killed.append(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    data = await system.all_end(tasks, 120)
    outside.cancel()
    mailbox = await system.orchestrator._namespace()
    runs: dict[str, Any] = (await contents(mailbox.connection, system.namespace))["run"]
    # Without any trouble a parent is taken up three times, before and after each wait, and a child once.
    taken_up_again = sum(int(run["pickups"]) for run in runs.values()) - PARENTS * (3 + CHILDREN)
    executed = Counter(line["what"] for line in system.witness() if line["edge"] == "begin")
    show(
        f"{KILLS} x SIGKILL, one every {PAUSE} s, over 4 processes: {PARENTS} parents, each with {CHILDREN} children "
        "and a question",
        taken_up_again_after_a_kill=taken_up_again,
        ends=dict(Counter(run["status"] for run in runs.values())),
        answers_that_were_kept=answered.total(),
        calls_executed=f"{dict(executed)}; needed: send {PARENTS}, ask {PARENTS}, look {PARENTS * CHILDREN * 2}",
        retries=sum(int(run.get("retries", 0)) for run in runs.values()),
    )
    assert taken_up_again > 0  # the kills met work
    assert len(runs) == PARENTS * (1 + CHILDREN)  # nothing was lost, and nothing spawned twice
    assert {run["status"] for run in runs.values()} == {"completed"}
    assert set(answered.values()) == {1} and len(answered) == PARENTS
    for each in data:
        assert each["payload"]["output"] == f"{CHILDREN} corners seen, and I was told: yes"
        assert [message["role"] for message in each["payload"]["messages"]] == [
            "user", "assistant", "tool", "assistant", "tool", "assistant",
        ]  # fmt: skip
        assert (each["retries"], each["payload"]["turn"]) == (0, 3)
    await assert_invariants(mailbox.connection, system.namespace)
    fault(
        "SIGKILLs over families that wait",
        kills=KILLS,
        families=PARENTS,
        runs=len(runs),
        lost=PARENTS * (1 + CHILDREN) - len(runs),
        answers_kept_twice=answered.total() - len(answered),
    )
    assert await system.stop() == 0
