"""`python -m factorial doctor` asked again and again while a system works and its processes are killed.

Real: supervisor, worker processes, Valkey, signals, and the command's own process in the end. Scripted: the model.
"""

import asyncio
import os
import random
import signal
import sys

import pytest

from factorial.mailbox.doctor import check_namespace, rereading
from factorial.mailbox.visit import visiting
from tests.chaos.figures import fault, long_or_short
from tests.chaos.load import Load
from tests.chaos.system import ROOT, System

KILLS = long_or_short(100, 8)


async def kill_workers(system: System) -> None:
    """One after the other, three a second."""
    chance = random.Random(5)
    for _ in range(KILLS):
        await asyncio.sleep(0.3)
        workers = [one.pid for one in system.workers()]
        if workers:
            os.kill(chance.choice(workers), signal.SIGKILL)


async def doctor(system: System) -> tuple[int, str]:
    """The command's exit code, and what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "factorial", "doctor", "--config", str(system.config),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode()


async def test_the_doctor_raises_no_false_alarm_under_load_and_kills(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rereading, "_PAUSE", 0.05)  # so that more checks fit in
    system.configure(processes=3, supervisor="intensity = 1000\nmax_backoff = 0.5")
    await system.start()
    found = []
    async with Load(system), visiting((await system.orchestrator._namespace()).redis) as visit:
        killing = asyncio.create_task(kill_workers(system))
        while not killing.done():
            found.append(await check_namespace(visit.scripts.commands, visit.scripts.keys))
        await killing
        code, printed = await doctor(system)
    alarms = [str(finding) for one in found for finding in one.findings]
    assert alarms == []
    assert code == 0 and "all is well" in printed, printed
    fault(
        "doctor asked under load and kills", checks=len(found), kills=KILLS, false_alarms=len(alarms),
        runs_read_again=sum(one.reread for one in found),
    )  # fmt: skip
