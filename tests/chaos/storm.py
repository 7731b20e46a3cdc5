"""The long storm: a system at work, whose processes are killed and stopped all the time; and the proof that no harm was
done (`make chaos`).

    python -m tests.chaos.storm --minutes 20 --tasks 200000 --kills 1000 --figures storm.json

Tasks of all kinds (`storm_work.py`) are enqueued at an even pace, for owners of their own in each cohort. Some are
steered, cancelled, or given the result that they wait for, from outside. A subscriber of each cohort comes late, and
goes and comes again. Meanwhile

- worker processes that have tasks at hand are killed, singly, in pairs, and half of them at once;
- some are stopped until they are taken for dead, and woken up again;
- now and then the supervisor is killed, alone or with all its processes, and a new one is started.

Each cohort is looked at as soon as it has ended (`storm_check.py`), and forgotten, so that a storm may last as long as
one likes. Ended tasks are removed by the system's own maintenance.

Real: the supervisor's command, worker processes, Valkey, signals. Scripted: the model.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from factorial.errors import InactiveTaskError
from tests.chaos.storm_check import PROMISES, Cohort, Figures, Hit, Job, check, quantile
from tests.chaos.storm_work import KINDS, Line, StormContext, call_id, opening, storm
from tests.chaos.system import System
from tests.redis.doctor import assert_invariants
from tests.support import kill_session, session_members, wait_until
from tests.valkey import ValkeyServer

__all__ = ["MANY_KILLS", "Goals", "Storm", "main"]

COHORT, OWNERS = 300, 6
"""Tasks of a cohort, without their children, and their owners."""
PROCESSES = 5
MOST_READY = 500
"""If more tasks than that wait for a worker, the machine is too slow for the pace, and no more are enqueued."""
CALLS = sum(kind.share * len(kind.turns) for kind in KINDS.values()) / 1000
"""Model calls of a task, on the average."""
STUCK_AFTER = 900.0
"""Seconds within which a cohort has to end once it is enqueued: longer than all the pauses of a task whose processes
are killed a dozen times in a row, and that waits for a worker as long as others do each time."""
MARGIN = 1.1
"""The pace is so much faster than the goals ask for."""
MANY_KILLS = 100
"""From so many on, each kind of harm has to have met a step in flight."""
LEASE_OVER = 20.0
"""Seconds within which a process that does not beat is taken for dead, on a busy machine, too."""

CONFIG = """
[redis]
url = "{url}"
namespace = "{namespace}"
[events]
ttl = 1200.0
[logging]
level = "warning"
[supervisor]
grace = 8.0
# The same process may be killed again and again, without a pause before its next start.
intensity = 1000000
period = 1.0
[[runner]]
agent = "tests.chaos.storm_work:storm"
processes = {processes}
[runner.worker]
workers = 4
batch_size = 15
heartbeat_interval = 0.5
retry_delay = 0.1
# The deaths are not the tasks' doing.
max_recoveries = 30
[runner.maintenance]
interval = 0.5
# Longer than it takes to look at a cohort.
task_ttl = {{ completed_ttl = 1000.0, failed_ttl = 1000.0, cancelled_ttl = 1000.0 }}
"""


@dataclass(frozen=True)
class Goals:
    """What the storm has to come to."""

    seconds: float
    tasks: int
    kills: int
    patience: float = 0.0
    """So many seconds more, if tasks and kills need them."""


@dataclass
class Harm:
    """What was done to the system."""

    kills: int = 0
    """SIGKILLs of worker processes that had tasks at hand, and of supervisors."""
    volleys: int = 0
    supervisors: int = 0
    stops: int = 0
    """Processes that were stopped until all that they held had been taken from them, and woken."""
    at_hand: int = 0
    """Tasks that the killed processes held."""
    hits: dict[int, list[Hit]] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)

    def note(self, name: str, pid: int, hit: Hit) -> None:
        self.hits.setdefault(pid, []).append(hit)
        self.names[name] = pid


@dataclass(frozen=True)
class Process:
    """A worker process, and how many tasks it holds."""

    name: str
    pid: int
    held: int


async def until(condition: Callable[[], bool | Awaitable[bool]], every: float = 0.1) -> None:
    """Wait until it is true. However long that takes: a timeout is the caller's."""
    while True:
        value = condition()
        if await value if isinstance(value, Awaitable) else value:
            return
        await asyncio.sleep(every)


class Diaries:
    """The files of the witness, one for each process, as they grow."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory
        self._read: dict[str, int] = {}

    def news(self) -> Iterator[Line]:
        """What was written since this was last asked. The file of a process that is gone is removed."""
        for entry in list(os.scandir(self._directory)):
            done = self._read.get(entry.name, 0)
            if entry.stat().st_size == done:
                if not psutil.pid_exists(int(entry.name)):
                    os.unlink(entry.path)
                    self._read.pop(entry.name, None)
                continue
            with open(entry.path, "rb") as diary:
                diary.seek(done)
                text, _, _ = diary.read().rpartition(b"\n")
            self._read[entry.name] = done + len(text) + bool(text)
            for line in text.decode().splitlines():
                yield Line.read(line, int(entry.name))


class Storm:
    """One storm over one system. `blow` it, and read `figures`, `harm` and `failures`."""

    def __init__(self, directory: Path, url: str, namespace: str, goals: Goals, *, seed: int = 7) -> None:
        self.goals = goals
        self.figures = Figures()
        self.harm = Harm()
        self.enqueued = 0
        self.ended = 0
        self.lasted = 0.0
        self.most_memory = 0
        """Of Valkey, in bytes, if it was this storm's alone."""
        self._chance = random.Random(seed)
        self._system = System(directory, url, namespace)
        self._system.config.write_text(CONFIG.format(url=url, namespace=namespace, processes=PROCESSES))
        self._client = self._system.orchestrator
        self._cohorts: dict[str, Cohort] = {}
        self._diaries = Diaries(self._system.diary)
        self._helpers: asyncio.TaskGroup
        self._outside: asyncio.TaskGroup
        self._over = asyncio.Event()
        self._calls = 0  # of models that were answered
        self._stopped: set[int] = set()
        self._dead: set[str] = set()
        self._leaders: list[int] = []

    async def blow(self) -> None:
        """All of it, from the start of the system to its end. Raises what no test expects."""
        try:
            await self._start(PROCESSES)
            begun = time.monotonic()
            async with asyncio.TaskGroup() as self._helpers:
                self._helpers.create_task(self._weather())
                watching = [self._helpers.create_task(work) for work in (self._watch(), self._tell())]
                async with asyncio.TaskGroup() as self._outside:
                    await self._send_cohorts(begun)
                    self._over.set()
                self.lasted = time.monotonic() - begun
                for one in watching:
                    one.cancel()
            await self._finish()
        finally:
            for leader in self._leaders:  # also those that a killed supervisor has left
                kill_session(leader)
            await self._system.clean_up()

    async def _pause(self, seconds: float) -> bool:
        """Wait so long, or until the storm is over. Tells whether it goes on."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), seconds)
        return not self._over.is_set()

    # -- the work

    async def _send_cohorts(self, begun: float) -> None:
        """Enqueue at an even pace, and have each cohort looked at, until the time is over."""
        pace = self.goals.tasks * MARGIN / self.goals.seconds
        number = 0
        while self._goes_on(time.monotonic() - begun):
            cohort = self._cohort(str(number))
            self._cohorts[cohort.name] = cohort
            for job in cohort.jobs.values():
                late = begun + self.enqueued / pace - time.monotonic()
                if late > 0.02:
                    await asyncio.sleep(late)
                await self._enqueue(job)
            self._outside.create_task(self._see_to(cohort))
            await until(self._keeps_up)
            number += 1

    def _goes_on(self, elapsed: float) -> bool:
        if elapsed < self.goals.seconds:
            return True
        is_reached = self.enqueued >= self.goals.tasks and self.harm.kills >= self.goals.kills
        return not is_reached and elapsed < self.goals.seconds + self.goals.patience

    async def _keeps_up(self) -> bool:
        mailbox = await self._client._namespace()
        return int(await mailbox.connection.execute("LLEN", mailbox.keys.ready(storm.name))) <= MOST_READY

    def _cohort(self, name: str) -> Cohort:
        kinds = self._chance.choices(list(KINDS), [kind.share for kind in KINDS.values()], k=COHORT)
        owners = [f"owner-{name}-{number}" for number in range(OWNERS)]
        labels = [f"{name}.{number}" for number in range(COHORT)]
        jobs = {
            label: Job(label, kind, owners[number % OWNERS])
            for number, (label, kind) in enumerate(zip(labels, kinds, strict=True))
        }
        return Cohort(name, owners, jobs)

    async def _enqueue(self, job: Job) -> None:
        # Some take longer than it takes a zombie to come back.
        pause = self._chance.uniform(*((1.0, 2.0) if self._chance.random() < 0.1 else (0.05, 0.4)))
        context = StormContext(query=job.kind, messages=opening(job.kind), label=job.label, pause=pause)
        task = await self._client.enqueue_task(storm, owner_id=job.owner, payload=context)
        job.task_id = task.id
        self.enqueued += 1
        if job.kind == "cancel":
            self._outside.create_task(self._cancel(job, self._chance.uniform(0, 1.5)))

    async def _cancel(self, job: Job, delay: float) -> None:
        await asyncio.sleep(delay)
        with contextlib.suppress(InactiveTaskError):
            await self._client.cancel_task(job.task_id)
            job.cancelled = True

    async def _steer(self, job: Job, delay: float) -> None:
        await asyncio.sleep(delay)
        with contextlib.suppress(InactiveTaskError):
            await self._client.steer_task(job.task_id, [{"role": "user", "content": "steered"}])
            job.steered = True

    async def _answer(self, job: Job, delay: float) -> None:
        """Give the result that the task waits for, twice: early, or when the task is probably parked."""
        await asyncio.sleep(delay)
        for _ in range(2):
            job.answers.append(await self._client.complete_deferred_tool(job.task_id, call_id(0, 0), "yes"))

    # -- the witness

    async def _watch(self) -> None:
        """Follow the diaries, and act upon what is seen there."""
        while True:
            self._see_news()
            await asyncio.sleep(0.1)

    def _see_news(self) -> None:
        for line in self._diaries.news():
            self._see(line)

    def _see(self, line: Line) -> None:
        self._calls += line.what == "model" and line.edge == "end"
        cohort = self._cohorts.get(line.label.partition(".")[0])
        if cohort is None:  # a zombie, whose task has ended long since
            self.figures.late += 1
            return
        cohort.lines.append(line)
        job = cohort.jobs.get(line.label)
        if job is None or line.edge != "begin" or job.noticed:
            return
        if line.what == "ask":
            job.noticed = True
            self._outside.create_task(self._answer(job, self._chance.choice([0.0, 1.0])))
        elif job.kind == "steer":
            job.noticed = True
            self._outside.create_task(self._steer(job, self._chance.uniform(0.0, 1.5)))

    # -- the weather

    async def _weather(self) -> None:
        """Kills, in step with the work that is done, so that a slow machine has time to do any.

        Mostly one process, now and then two, or half of those that have something at hand. After every so many kills
        one is stopped instead, or the supervisor is killed.
        """
        calls_to_a_kill = CALLS * self.goals.tasks / self.goals.kills / MARGIN
        to_stop, to_start_anew = max(2, min(12, self.goals.kills // 10)), max(6, self.goals.kills // 20)
        next_stop, next_start, with_all = 1, to_start_anew, True
        while await self._pause(0.2):
            kills = self.harm.kills
            if kills >= self.goals.kills * MARGIN or self._calls < kills * calls_to_a_kill:
                continue
            if self._stopped and kills >= min(next_stop, next_start):
                continue  # until the one that is stopped has been woken
            if kills >= next_stop:
                for victim in (await self._busy())[:1]:
                    next_stop = kills + to_stop
                    self._stopped.add(victim.pid)
                    self._helpers.create_task(self._stop(victim))
            elif kills >= next_start:
                next_start = kills + to_start_anew
                await self._start_anew(with_all)
                with_all = not with_all
            else:
                many = self._chance.choices([1, 2, PROCESSES], [6, 2, 2])[0]
                busy = await self._busy()
                for victim in busy[: min(many, (len(busy) + 1) // 2)]:
                    self._murder(victim)

    def _murder(self, victim: "Process", how: str = "killed") -> None:
        now = time.time()
        self._dead.add(victim.name)
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGKILL)
            self.harm.note(victim.name, victim.pid, Hit(how, now, now + 1.0))  # it is gone some moments later
            self.harm.kills += 1
            self.harm.at_hand += victim.held

    async def _stop(self, victim: "Process") -> None:
        """Stop a process until it has been taken for dead, and have it go on soon, while others have begun with what
        it held: a zombie."""
        begun = time.time()
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.pid, signal.SIGSTOP)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEASE_OVER):
                    await until(partial(self._is_bereft, victim), every=0.02)
                self.harm.stops += victim.name not in self._dead
            await asyncio.sleep(self._chance.uniform(0.0, 0.5))
            self.harm.note(victim.name, victim.pid, Hit("stopped", begun, time.time() + 2.0))
            os.kill(victim.pid, signal.SIGCONT)
        self._stopped.remove(victim.pid)

    async def _is_bereft(self, process: Process) -> bool:
        mailbox = await self._client._namespace()
        return int(await mailbox.connection.execute("SCARD", mailbox.keys.held(process.name))) == 0

    async def _start_anew(self, with_all: bool) -> None:
        """Kill the supervisor, alone or with all its processes, and start a new one."""
        processes = await self._processes()
        now = time.time()
        self._system.process.kill()
        self.harm.kills += 1
        self.harm.supervisors += 1
        orphaned = Hit("orphaned", now, now + 20.0)
        for one in processes:
            if with_all:
                self._murder(one, "killed with its supervisor")
            else:
                self.harm.note(one.name, one.pid, orphaned)
        known = {one.pid for one in processes}
        for other in session_members(self._system.process.pid):
            if other.pid not in known:  # it has only begun, and may take tasks before it leaves
                self.harm.hits.setdefault(other.pid, []).append(orphaned)
        await self._system.process.wait()
        await self._start(2)

    async def _busy(self) -> "list[Process]":
        """Those that have something at hand and have not been stopped, in any order."""
        busy = [one for one in await self._processes() if one.held and one.pid not in self._stopped]
        return self._chance.sample(busy, len(busy))

    async def _processes(self) -> "list[Process]":
        """The worker processes that are alive, as far as the mailbox knows, and how much each has at hand."""
        mailbox = await self._client._namespace()
        keys, execute = mailbox.keys, mailbox.connection.execute
        names = [name.decode() for name in await execute("ZRANGE", keys.prefix + "processes", 0, -1)]
        found = []
        for name in names:
            about = await execute("GET", keys.lease(name))
            if about and name not in self._dead:
                found.append(Process(name, json.loads(about)["pid"], await execute("SCARD", keys.held(name))))
        return found

    async def _start(self, count: int) -> None:
        """Start a supervisor, and wait until so many of its processes were there."""
        found = {one.name for one in await self._processes()}
        enough = len(found) + count
        await self._system.launch()
        self._leaders.append(self._system.process.pid)

        async def are_there() -> bool:
            found.update(one.name for one in await self._processes())
            return len(found) >= enough

        await wait_until(are_there, 120, f"{count} new processes; log: {self._system.log}")

    # -- the proof

    async def _see_to(self, cohort: Cohort) -> None:
        """Wait for the end of a cohort, look at it, and forget it."""
        subscriber = self._outside.create_task(self._subscribe(cohort))
        ids = {job.task_id for job in cohort.jobs.values()}
        is_stuck = not await self._all_ended(cohort)
        events = await self._events(cohort)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                await until(lambda: len(cohort.subscriber_saw) >= len(events[cohort.owners[0]]))
        subscriber.cancel()
        ids |= {event["task_id"] for owner in cohort.owners for event in events[owner]}
        data = await asyncio.gather(*map(self._client.get_task_data, ids))
        if is_stuck:  # and perhaps has ended meanwhile
            events = await self._events(cohort)
        self._see_news()
        check(self.figures, cohort, dict(zip(ids, data, strict=True)), events, self.harm.hits, self.harm.names)
        self.ended += len(cohort.jobs)
        del self._cohorts[cohort.name]

    async def _all_ended(self, cohort: Cohort) -> bool:
        """Wait until the cohort's owners have no active task. False: in vain; what is stored tells which are stuck."""
        mailbox = await self._client._namespace()

        async def is_idle(owner: str) -> bool:
            return int(await mailbox.connection.execute("HGET", mailbox.keys.owner(owner), "active") or 0) == 0

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STUCK_AFTER):
                for owner in cohort.owners:
                    await until(partial(is_idle, owner), every=0.5)
                return True
        return False

    async def _events(self, cohort: Cohort) -> dict[str, list[dict[str, Any]]]:
        """All events of the cohort's owners."""
        mailbox = await self._client._namespace()
        events = {}
        for owner in cohort.owners:
            stored = await mailbox.connection.execute("XRANGE", mailbox.keys.events(owner), "-", "+")
            events[owner] = [{**json.loads(parts[1]), "id": event_id.decode()} for event_id, parts in stored]
        return events

    async def _subscribe(self, cohort: Cohort) -> None:
        """Hear the first owner's events: late, and with a new subscription after every so many of them."""
        await asyncio.sleep(self._chance.uniform(0, 2))
        saw = cohort.subscriber_saw
        while True:
            enough = len(saw) + self._chance.randrange(50, 300)
            after = saw[-1] if saw else "0"
            async with aclosing(self._client.subscribe_to_updates(cohort.owners[0], after=after)) as updates:
                async for update in updates:
                    saw.append(update["id"])
                    if len(saw) >= enough:
                        break

    async def _finish(self) -> None:
        """Stop the system in order, and look at all that is left."""
        code = await self._system.stop()
        if code != 0:
            self.figures.blame("wrong", f"the system ended with exit code {code}")
        mailbox = await self._client._namespace()
        try:
            await assert_invariants(mailbox.connection, self._system.namespace, quiet=True)
        except AssertionError as error:  # the figures are worth having, all the more
            self.figures.blame("wrong", f"the invariants do not hold at the end: {error}")
        log = self._system.log.read_text()
        for traceback in re.findall(r"Traceback \(most recent call last\):\n(?: .*\n)+.*", log):
            if "/factorial/" in traceback:  # a process that had only begun when its supervisor was killed has its own
                self.figures.blame("wrong", f"a traceback in the log: {traceback}")

    # -- what it came to

    async def _tell(self) -> None:
        """A line now and then."""
        begun = time.monotonic()
        while True:
            await asyncio.sleep(max(5.0, self.goals.seconds / 40))
            minutes, seconds = divmod(int(time.monotonic() - begun), 60)
            print(
                f"{minutes:3d}:{seconds:02d}  {self.enqueued:7,} enqueued, {self.ended:7,} ended and looked at, "
                f"{self.harm.kills:5,} kills  ({self.ended / (60 * minutes + seconds):.0f} tasks/s)  "
                f"{'no harm' if not self.figures.broken else dict(self.figures.broken)}",
                flush=True,
            )

    @property
    def failures(self) -> list[str]:
        """What was not kept, or not reached. Empty: all is well."""
        figures, goals = self.figures, self.goals
        reached = {
            "tasks": (sum(figures.ends.values()), goals.tasks),
            "kills": (self.harm.kills, goals.kills),
            "steered": (figures.steers, 1),
            "cancelled in time": (figures.cancels, 1),
            "results given": (figures.answers, 1),
        }
        short = [
            f"{what}: {count:,}, and the goal was {goal:,}" for what, (count, goal) in reached.items() if count < goal
        ]
        harms = ("killed", "killed with its supervisor", "stopped") if goals.kills >= MANY_KILLS else ()
        idle = [f"{what}: nothing came of it, no step was repeated" for what in harms if not figures.repeated_by[what]]
        return figures.details + short + idle

    def report(self) -> dict[str, Any]:
        """All figures, as plain data."""
        figures, harm = self.figures, self.harm
        repeated = sum(figures.repeated_by.values())
        return {
            "seconds": round(self.lasted, 1),
            "tasks": {
                "ended": sum(figures.ends.values()),
                "per second": round(sum(figures.ends.values()) / self.lasted, 1),
                **figures.ends,
                "steered": figures.steers,
                "cancelled in time": figures.cancels,
                "results given": figures.answers,
            },
            "harm done": {
                "kills": harm.kills,
                "of supervisors": harm.supervisors,
                "tasks at hand per kill": round(harm.at_hand / max(1, harm.kills - harm.supervisors), 1),
                "processes stopped and woken": harm.stops,
                "processes that lost their lease for want of time": len(figures.starved),
                "tasks taken back": figures.taken_back,
            },
            "promises broken": {promise: figures.broken[promise] for promise in PROMISES},
            "events checked": figures.events,
            "memory of Valkey, at the most (MB)": round(self.most_memory / 1e6),
            "steps": {
                "needed": figures.steps,
                "repeated": repeated,
                "repeated per kill": round(figures.repeated_by["killed"] / max(1, harm.kills), 2),
                "cut off": figures.cut_off,
                "ended just before": len(figures.unrecorded),
                "seconds before": _quantiles(figures.unrecorded),
                "by": dict(figures.repeated_by),
                "after the end, by zombies": figures.late,
            },
            "seconds until a step that was cut off went on": {
                what: _quantiles(values) for what, values in figures.recoveries.items()
            },
        }


def _quantiles(values: list[float]) -> dict[str, float]:
    """How these seconds are spread; of none, nothing."""
    if not values:
        return {}
    spread = {"p50": quantile(values, 0.5), "p99": quantile(values, 0.99), "longest": max(values)}
    return {name: round(value, 3) for name, value in spread.items()} | {"of": len(values)}


def lines(report: dict[str, Any], indent: str = "") -> Iterator[str]:
    """A report as a table."""
    for name, value in report.items():
        if isinstance(value, dict):
            yield f"{indent}{name}"
            yield from lines(value, indent + "  ")
        else:
            shown = f"{value:,}" if isinstance(value, int | float) else str(value)
            yield f"{indent}{name:<{60 - len(indent)}}{shown:>12}"


async def run(goals: Goals, seed: int) -> Storm:
    """A storm over a Valkey of its own."""
    directory = Path(tempfile.mkdtemp(prefix="fct-"))
    server = ValkeyServer(directory)
    try:
        server.start()
        storm = Storm(directory, server.url, "storm", goals, seed=seed)
        await storm.blow()
        for line in server.command("INFO memory").decode().splitlines():
            if line.startswith("used_memory_peak:"):
                storm.most_memory = int(line.partition(":")[2])
        return storm
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


def main() -> int:
    """The command. Its exit code is 1 if a promise was broken, or a goal not reached."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.storm", description="A long storm of kills.")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--tasks", type=int, help="goal; by default 10,000 a minute")
    parser.add_argument("--kills", type=int, help="goal; by default 50 a minute")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--figures", type=Path, metavar="FILE", help="write the figures there, as JSON")
    options = parser.parse_args()
    tasks = round(10_000 * options.minutes) if options.tasks is None else options.tasks
    kills = round(50 * options.minutes) if options.kills is None else options.kills
    storm = asyncio.run(run(Goals(60 * options.minutes, tasks, kills), options.seed))
    report = storm.report()
    print("", *lines(report), sep="\n")
    if options.figures:
        options.figures.write_text(json.dumps(report, indent=2) + "\n")
    for failure in storm.failures:
        print(f"FAILED  {failure}", file=sys.stderr)
    return 1 if storm.failures else 0


if __name__ == "__main__":
    sys.exit(main())
