"""A real system under test: the supervisor's command, its worker processes, and what the witness and events tell."""

import asyncio
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import psutil

from factorial import Orchestrator, Task
from tests.chaos.agents import DIARY, HarmContext, WorkContext, harm, work
from tests.support import PATIENCE, kill_session, session_members, wait_until

ROOT = Path(__file__).resolve().parents[2]
OWNER = "chaos"
WORKER = re.compile(r"spawn_main|tests\.chaos\.nursery")
"""What the command line of a worker process has: one that the supervisor has spawned, or the nursery has forked."""


class System:
    """One `python -m factorial.supervisor`, which may be started again, with a client beside it."""

    def __init__(self, directory: Path, url: str, namespace: str) -> None:
        self.directory = directory
        self.log = directory / "log"
        self.diary = directory / "diary"
        self.config = directory / "system.toml"
        self.url, self.namespace = url, namespace
        self.orchestrator = Orchestrator(redis_url=url, namespace=namespace)
        self.process: asyncio.subprocess.Process
        self._starts = 0

    def configure(
        self,
        *,
        processes: int = 2,
        heartbeat: float = 3.0,
        missed: int = 2,
        grace: float = 8.0,
        workers: int = 6,
        batch_size: int = 1,
        agent: str = "work",
        supervisor: str = "intensity = 100",
        worker: str = "",
        more: str = "",
    ) -> None:
        """Write the configuration. One slot per worker, so that tasks spread over the processes. `worker` is TOML of
        its settings, with a comma at its end. `more` is TOML of the runner, and of what comes after it.

        The lease is longer than a living process on a busy machine is ever held up: whoever ends is taken note of by
        those who started it. Where a test needs that a lease runs out, or is outlived, it says so.
        """
        beats = f"heartbeat_interval = {heartbeat}, missed_heartbeats = {missed}"
        self.config.write_text(f"""
[redis]
url = "{self.url}"
namespace = "{self.namespace}"
[supervisor]
grace = {grace}
{supervisor}
[[runner]]
agent = "tests.chaos.{agent if ":" in agent else f"agents:{agent}"}"
processes = {processes}
worker = {{ {worker}workers = {workers}, batch_size = {batch_size}, {beats} }}
maintenance = {{ interval = 0.25 }}
{more}
""")

    async def start(self, *program: str, **environment: str) -> None:
        """Start it, or another program that runs a system, and wait until all processes are ready."""
        self._starts += 1
        await self.launch(*program, **environment)
        await self.logs("children are ready", self._starts)

    async def launch(self, *program: str, **environment: str) -> None:
        """Start it, and do not wait."""
        program = program or ("-m", "factorial.supervisor", str(self.config))
        with self.log.open("ab") as stderr:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, *program,
                stderr=stderr, cwd=self.directory, start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), DIARY: str(self.diary), **environment},
            )  # fmt: skip

    async def logs(self, text: str, count: int = 1, timeout: float = 4 * PATIENCE) -> None:
        """Wait until the log has `text` so many times. Processes may have to start before, one after the other."""
        await wait_until(
            lambda: self.log.read_text().count(text) >= count or self.process.returncode is not None,
            timeout, f"{count} x {text!r} in the log",
        )  # fmt: skip
        assert self.log.read_text().count(text) >= count, self.log.read_text()

    async def all_ready(self) -> None:
        """Wait until every process that was started for a dead one is ready."""
        await wait_until(
            lambda: self._count("is ready") >= 2 * self._starts + self._count("ended by SIGKILL: abnormal")
        )

    def _count(self, text: str) -> int:
        return self.log.read_text().count(text)

    async def enqueue(self, **work_to_do: Any) -> Task[WorkContext]:
        """Enqueue a task; its turns are its query."""
        turns = work_to_do.setdefault("turns", 5)
        payload = WorkContext(query=str(turns), **work_to_do)
        return await self.orchestrator.enqueue_task(work, owner_id=OWNER, payload=payload)

    async def enqueue_harm(self, **to_do: Any) -> Task[HarmContext]:
        """Enqueue a task that may do harm to its process, for the agent `harm`."""
        payload = HarmContext(query="go", **to_do)
        return await self.orchestrator.enqueue_task(harm, owner_id=OWNER, payload=payload)

    async def status(self, task: Task[Any]) -> str:
        return str(await self.orchestrator.get_task_status(task.id))

    async def finished(self, task: Task[Any], timeout: float = 2 * PATIENCE) -> dict[str, Any]:
        """Wait for the end of the task, and return all that is stored."""
        final = ("completed", "failed", "cancelled")

        async def is_final() -> bool:
            return await self.status(task) in final

        await wait_until(is_final, timeout, f"the end of {task.id}; log: {self.log}")
        data = await self.orchestrator.get_task_data(task.id)
        assert data is not None
        return data

    async def events(self, task: Task[Any]) -> list[dict[str, Any]]:
        """All stored events of a task that has ended, in order."""
        found = []
        async for event in self.orchestrator.subscribe_to_updates(OWNER, task_ids=[task.id]):
            found.append(event)
            if event["event_type"] in ("run_completed", "run_failed", "run_cancelled"):
                return found
        raise AssertionError("a subscription does not end by itself")

    async def told(self, task: Task[WorkContext], event_type: str, turn: int) -> None:
        """Wait for an event of a turn: what it tells of is in the journal, which is written in the same step."""
        async with (
            asyncio.timeout(PATIENCE),
            aclosing(
                self.orchestrator.subscribe_to_updates(OWNER, task_ids=[task.id], event_types=[event_type])
            ) as updates,
        ):
            async for event in updates:
                if event["turn"] == turn:
                    return

    def witness(self) -> list[dict[str, Any]]:
        """All that the witness saw, in order."""
        text = self.diary.read_text() if self.diary.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def lines(self, task: Task[Any], **wanted: Any) -> list[dict[str, Any]]:
        """What the witness saw of a task."""
        return [
            line for line in self.witness()
            if line["task"] == task.id and all(line[name] == value for name, value in wanted.items())
        ]  # fmt: skip

    async def held(self) -> dict[str, int]:
        """How many tasks each ready process holds at the moment."""
        mailbox = await self.orchestrator._namespace()
        names = [
            name.decode()
            for name in await mailbox.connection.execute("ZRANGE", mailbox.keys.prefix + "processes", 0, -1)
        ]
        counts = [await mailbox.connection.execute("SCARD", mailbox.keys.held(name)) for name in names]
        return dict(zip(names, counts, strict=True))

    async def statuses(self, tasks: Sequence[Task[Any]]) -> Counter[str]:
        """How many of the tasks have which status."""
        return Counter(map(str, await asyncio.gather(*(self.orchestrator.get_task_status(task.id) for task in tasks))))

    async def all_end(self, tasks: Sequence[Task[Any]], timeout: float = 2 * PATIENCE) -> list[dict[str, Any]]:
        """Wait for the end of all the tasks, and return what is stored of them."""

        async def are_final() -> bool:
            return set(await self.statuses(tasks)) <= {"completed", "failed", "cancelled"}

        await wait_until(are_final, timeout, f"the end of {len(tasks)} tasks; log: {self.log}")
        data = await asyncio.gather(*(self.orchestrator.get_task_data(task.id) for task in tasks))
        return [each for each in data if each is not None]

    async def sees(self, task: Task[Any], timeout: float = PATIENCE, **wanted: Any) -> dict[str, Any]:
        """Wait until the witness has seen this."""
        seen = await wait_until(lambda: self.lines(task, **wanted), timeout, f"the witness to see {wanted}")
        return dict(seen[0])

    def executed(self, task: Task[WorkContext]) -> Counter[str]:
        """How many calls of each kind were begun."""
        return Counter(line["what"] for line in self.lines(task, edge="begin"))

    def members(self) -> list[psutil.Process]:
        """The living processes of the session of the supervisor, also those that have lost their parent."""
        return session_members(self.process.pid)

    def workers(self) -> list[psutil.Process]:
        """The living worker processes: the supervisor has spawned them, or the nursery has forked them."""
        found = []
        for process in self.members():
            with suppress(psutil.NoSuchProcess):
                if process.pid != self.process.pid and WORKER.search(" ".join(process.cmdline())):
                    found.append(process)
        return found

    async def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """Signal the supervisor, and wait for its end."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), timeout)

    async def command(self, *arguments: str) -> tuple[int, str]:
        """Run `python -m factorial.supervisor VERB ...` for this system: its exit code, and what it printed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "factorial.supervisor", *arguments, "--config", str(self.config),
            cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await asyncio.wait_for(process.communicate(), 2 * PATIENCE)
        return process.returncode or 0, out.decode()

    async def order(self, *arguments: str) -> str:
        """The one supervisor's answer to an order that it carries out."""
        code, out = await self.command(*arguments)
        assert code == 0, out
        return out.strip().partition(": ")[2]

    async def supervisors(self) -> list[dict[str, Any]]:
        """What `status --json` tells."""
        code, out = await self.command("status", "--json")
        assert code == 0, out
        return list(json.loads(out)["supervisors"])

    async def nodes(self) -> dict[str, dict[str, Any]]:
        """What it tells of each node of the one supervisor."""
        found: dict[str, dict[str, Any]] = {}

        def walk(node: dict[str, Any]) -> None:
            found[node["id"]] = node
            if node["type"] == "supervisor":
                for child in node["children"]:
                    walk(child)

        [supervisor] = await self.supervisors()
        walk(supervisor["tree"])
        return found

    async def clean_up(self) -> None:
        """Leave nothing behind, whatever a test has done."""
        await self.orchestrator.close()
        if hasattr(self, "process"):
            kill_session(self.process.pid)
            await self.process.wait()


SystemAt = Callable[[str], System]
"""Makes a system on the server of a URL: the fixture `system_at`."""


def show(title: str, **facts: Any) -> None:
    """Print what a test showed: `pytest -s` lets it be read."""
    print(f"\n{title}\n" + "\n".join(f"    {name.replace('_', ' ')}: {fact}" for name, fact in facts.items()))


def check_result(data: dict[str, Any], turns: int = 5) -> None:
    """The run has ended as it would have without any trouble."""
    output = " ".join(f"q{turn} s{turn}" for turn in range(turns))
    assert data["status"] == "completed", data
    assert data["payload"]["output"] == output
    assert data["payload"]["notes"] == [f"quick {turn}" for turn in range(turns)]
    assert data["payload"]["turn"] == turns + 1
    roles = ["user", *["assistant", "tool", "tool"] * turns, "assistant"]
    assert [message["role"] for message in data["payload"]["messages"]] == roles


def check_events(events: list[dict[str, Any]], turns: int = 5) -> None:
    """Each step is told of as completed exactly once, in order, between the run's beginning and its end."""
    types = [event["event_type"] for event in events]
    assert types[:2] == ["run_enqueued", "run_started"]
    assert types[-2:] == ["agent_output", "run_completed"]
    completed = [
        (event["turn"], event["event_type"].removeprefix("progress_update_").removesuffix("_completed"))
        for event in events
        if event["event_type"].startswith("progress_update_") and event["event_type"].endswith("_completed")
    ]
    tools = ["completion", "tool_action", "tool_action", "run_turn"]
    expected = [(turn, step) for turn in range(turns) for step in tools]
    assert completed == [*expected, (turns, "completion"), (turns, "run_turn")]
    ids = [tuple(map(int, event["id"].split("-"))) for event in events]
    assert ids == sorted(set(ids))
