"""One of two machines is lost, with the default settings: how long its tasks wait.

Real: supervisors, worker processes, Valkey, signals. Scripted: the model. Both run on this machine, each in a session
of its own, all processes of which are killed at once.
"""

import time

from factorial.config import AgentWorkerConfig
from tests.chaos.figures import fault
from tests.chaos.system import System, SystemAt
from tests.support import wait_until

COUNT = 12
AT_MOST = 20.0


async def test_the_tasks_of_a_lost_machine_continue_within_20_seconds(
    system: System, system_at: SystemAt, redis_url: str
) -> None:
    defaults = AgentWorkerConfig()
    other = system_at(redis_url)
    other.diary = system.diary
    for machine in (system, other):
        machine.configure(heartbeat=defaults.heartbeat_interval, missed=defaults.missed_heartbeats)
        text = machine.config.read_text()
        machine.config.write_text(text.replace("maintenance = { interval = 0.25 }\n", ""))
    await other.start()
    tasks = [await other.enqueue(turns=1, model_seconds=60, tool_seconds=0.1) for _ in range(COUNT)]
    await wait_until(lambda: len(other.witness()) == COUNT, message="all under way")
    await system.start()
    for process in other.members():
        process.kill()
    lost_at = time.time()
    await other.process.wait()
    await wait_until(lambda: len(system.witness()) == 2 * COUNT, 2 * AT_MOST, "all to be continued")
    waited = max(line["at"] for line in system.witness()) - lost_at
    fault("a machine is lost, default settings", tasks=len(tasks), all_continued_after=f"{waited:.1f} s")
    assert waited < AT_MOST
    for task in tasks:
        await system.orchestrator.cancel_task(task.id)
    assert await system.stop() == 0
