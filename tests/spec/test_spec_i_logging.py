"""Row I10: what a system logs. Real: the supervisor, its processes, Valkey, HTTP, the openai client. Fake: the language
model. Everything that a system writes, to standard output and standard error, is read from one file.
"""

import asyncio
import json
import logging
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from llmock.pytest_plugin import LLMock

from factorial import Agent, AgentContext, ExecutionContext, Orchestrator, deferred_result, gpt_41
from tests.harness import System
from tests.spec.logged import KEY, PASSWORD, desk
from tests.support import kill_session, wait_until

ROOT = Path(__file__).resolve().parents[2]
END = ("completed", "failed", "cancelled")


class Logged:
    """A system of one process for `desk`, and what it has written."""

    def __init__(self, directory: Path, url: str, namespace: str, llmock: LLMock) -> None:
        self.directory = directory
        self.log = directory / "log"
        self.url, self.namespace = url, namespace
        self.orchestrator = Orchestrator(redis_url=url, namespace=namespace)
        self.process: asyncio.subprocess.Process
        self.llmock = llmock

    def toml(self, more: str = "") -> str:
        """The path of a configuration. `more`: further tables."""
        file = self.directory / "system.toml"
        file.write_text(f"""
redis = {{ url = "{self.url}", namespace = "{self.namespace}" }}
supervisor = {{ grace = 4.0 }}
{more}
[[runner]]
agent = "tests.spec.logged:desk"
worker = {{ workers = 1, heartbeat_interval = 0.5, retry_delay = 0.05, max_retries = 1 }}
maintenance = {{ interval = 0.2 }}
""")
        return str(file)

    async def start(self, *program: str, **environment: str) -> None:
        """Start it, and wait until its process is ready."""
        with self.log.open("wb") as output:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, *program, stdout=output, stderr=output, cwd=self.directory, start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            )  # fmt: skip
        await self.wrote("children are ready")

    async def wrote(self, text: str) -> None:
        """Wait until this has been written."""
        await wait_until(
            lambda: text in self.log.read_text() or self.process.returncode is not None, 60, f"{text!r} in the log"
        )
        assert text in self.log.read_text(), self.log.read_text()

    async def stop(self) -> None:
        """Ctrl-C, and the end of it."""
        self.process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(self.process.wait(), 60) == 0, self.log.read_text()

    async def enqueue(self, how: str) -> str:
        """A task whose model calls the tool with this argument, and is content with what it says."""
        self.llmock.call_tool("act", {"how": how}).reply("So be it.")
        task = await self.orchestrator.enqueue_task(desk, owner_id="me", payload=AgentContext(query=how))
        return task.id

    async def reaches(self, task_id: str, *statuses: str) -> dict[str, Any]:
        """Wait for one of the statuses."""

        async def there() -> bool:
            return await self.orchestrator.get_task_status(task_id) in statuses

        await wait_until(there, 60, f"{task_id} to be {statuses}; log: {self.log.read_text()}")
        data = await self.orchestrator.get_task_data(task_id)
        assert data is not None
        return data

    async def ended(self, how: str) -> str:
        """A task that has run to its end."""
        task_id = await self.enqueue(how)
        await self.reaches(task_id, *END)
        self.llmock.reset()
        return task_id

    async def cancelled(self) -> str:
        """A task that was cancelled while its tool ran."""
        task_id = await self.enqueue("wait")
        await self.wrote("acting: wait")
        await self.orchestrator.cancel_task(task_id)
        await self.reaches(task_id, "cancelled")
        self.llmock.reset()
        return task_id

    @property
    def objects(self) -> list[dict[str, Any]]:
        """All lines, each of which has to be JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def story(self, task_id: str) -> list[dict[str, Any]]:
        """The lines of the task's life."""
        return [line for line in self.objects if line.get("event") and line["task_id"] == task_id]

    def events(self, task_id: str) -> list[str]:
        """The events of the lines."""
        return [line["event"] for line in self.story(task_id)]


@pytest.fixture
async def logged(tmp_path: Path, redis_url: str, namespace: str, llmock: LLMock) -> AsyncIterator[Logged]:
    """Not yet started."""
    system = Logged(tmp_path, redis_url, namespace, llmock)
    yield system
    await system.orchestrator.close()
    if hasattr(system, "process"):
        kill_session(system.process.pid)
        await system.process.wait()


def by_file(logged: Logged) -> tuple[str, ...]:
    return "-m", "factorial.supervisor", logged.toml('logging = { format = "json" }')


def by_option(logged: Logged) -> tuple[str, ...]:
    return "-m", "factorial.supervisor", logged.toml(), "--log-format", "json"


def by_program(logged: Logged) -> tuple[str, ...]:
    script = logged.directory / "my_script.py"
    script.write_text(f"""
from factorial import AgentWorkerConfig, LoggingConfig, Orchestrator, SupervisorConfig
from tests.spec.logged import desk
orchestrator = Orchestrator(
    redis_url="{logged.url}", namespace="{logged.namespace}", logging_config=LoggingConfig(format="json"),
    supervisor_config=SupervisorConfig(grace=4.0),
)
orchestrator.register_runner(desk, AgentWorkerConfig(workers=1, retry_delay=0.05, max_retries=1))
if __name__ == "__main__":
    orchestrator.run()
""")
    return (str(script),)


@pytest.mark.parametrize("program", [by_file, by_option, by_program])
async def test_spec_I10_one_json_line_for_each_step_of_a_task(
    logged: Logged, program: Callable[[Logged], tuple[str, ...]]
) -> None:
    await logged.start(*program(logged))
    retried, failed, cancelled = await logged.ended("retry"), await logged.ended("fail"), await logged.cancelled()
    await logged.stop()

    assert logged.events(retried) == ["started", "retried", "resumed", "completed"]
    assert logged.events(failed) == ["started", "failed"]
    assert logged.events(cancelled) == ["started", "cancelled"]
    for task_id in (retried, failed, cancelled):
        for line in logged.story(task_id):
            assert (line["agent"], line["owner_id"], line["logger"]) == ("desk", "me", "factorial.task")
            assert re.fullmatch(r"desk\.1-\w{6}", line["process"])
            assert line["message"].startswith(f"task {task_id} of desk for me: ")
    started, again, resumed, completed = logged.story(retried)
    assert [line["level"] for line in (started, again, resumed, completed)] == ["info", "warning", "info", "info"]
    assert (started["turn"], started["attempt"], again["turn"], again["attempt"]) == (0, 1, 0, 1)
    assert (resumed["attempt"], completed["turns"]) == (2, 2)
    assert 0 < again["delay"] < 1
    assert again["error"].startswith("key ***, ***, redis://app:***@db:6379/0 2026-")
    assert logged.story(failed)[1]["level"] == "error"


async def test_spec_I10_all_that_a_system_writes_is_json_and_tells_whose_it_is(logged: Logged) -> None:
    await logged.start(*by_file(logged))
    task_id = await logged.ended("raise")
    await logged.stop()

    first, *_, last = logged.objects
    assert first["process"] == last["process"] == "supervisor"
    assert [line["process"] for line in logged.objects if line["message"].startswith("this is supervisor ")] == [
        "supervisor"
    ]
    assert last["message"].endswith("has stopped")
    for line in logged.objects:
        assert list(line)[:5] == ["timestamp", "level", "logger", "message", "process"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["timestamp"])
    within = [line for line in logged.objects if line["logger"] in ("mine", "stdout", "stderr", "factorial.tools.call")]
    assert [(line["logger"], line["message"]) for line in within] == [
        ("stdout", "acting: raise"),
        ("stderr", "with the key ***"),
        ("mine", "acting raise"),
        ("factorial.tools.call", "tool act failed"),
    ]
    for line in within:
        assert (line["task_id"], line["agent"], line["turn"], line["attempt"]) == (task_id, "desk", 0, 1)
    assert (within[2]["how"], within[2]["api_key"]) == ("raise", "***")
    assert within[3]["exception"].startswith("Traceback (most recent call last):\n")


async def test_spec_I10_a_task_of_a_dead_process_is_told_of_and_what_is_given_back(logged: Logged) -> None:
    await logged.start(*by_file(logged))
    task_id = await logged.enqueue("wait")
    await logged.wrote("acting: wait")
    os.kill(int(re.findall(r"desk\.1-\w+ \(pid (\d+)\) is ready", logged.log.read_text())[0]), signal.SIGKILL)
    await wait_until(lambda: logged.log.read_text().count("acting: wait") == 2, 60, "the tool to be called again")
    await logged.stop()
    assert logged.events(task_id) == ["started", "reclaimed", "resumed", "released"]
    reclaimed = logged.story(task_id)[1]
    assert (reclaimed["process"], reclaimed["agent"], reclaimed["cause"]) == ("supervisor", "desk", "killed")
    assert reclaimed["from_process"] == logged.story(task_id)[0]["process"]


@pytest.mark.parametrize("form", ["text", "json"])
async def test_spec_I10_no_secret_and_no_forged_line_whatever_an_error_says(logged: Logged, form: str) -> None:
    await logged.start("-m", "factorial.supervisor", logged.toml(), FACTORIAL_LOG_FORMAT=form)
    tasks = [await logged.ended(how) for how in ("retry", "fail", "raise")]
    await logged.stop()
    written = logged.log.read_text()
    assert "***" in written
    stored = json.dumps([await logged.orchestrator.get_task_data(task_id) for task_id in tasks[:2]])
    for secret in (KEY, PASSWORD, os.environ["OPENAI_API_KEY"]):
        assert secret not in written
    assert KEY not in stored
    assert PASSWORD not in stored
    assert not re.search(r"^2026-01-02", written, re.MULTILINE)


async def test_spec_I10_the_text_can_be_read(logged: Logged) -> None:
    await logged.start("-m", "factorial.supervisor", logged.toml())
    retried, failed = await logged.ended("retry"), await logged.ended("fail")
    await logged.stop()
    lines = [line for line in logged.log.read_text().splitlines() if "factorial.task: " in line and line[0] == "2"]
    said = [re.sub(r"^[\d-]+ [\d:,]+ ", "", re.sub(r"1-\w{6}|\d\.\d+(?= s)", "X", line)) for line in lines]
    what = "key ***, ***, redis://app:***@db:6379/0 "
    assert said[0] == f"INFO    desk.X factorial.task: task {retried} of desk for me: started at turn 0"
    assert said[1].startswith(
        f"WARNING desk.X factorial.task: task {retried} of desk for me: turn 0 failed (attempt 1), retry in X s: {what}"
    )
    assert said[2] == f"INFO    desk.X factorial.task: task {retried} of desk for me: resumed at turn 0, attempt 2"
    assert re.sub(r"[\d.]+ s$", "X s", said[3]) == (
        f"INFO    desk.X factorial.task: task {retried} of desk for me: completed after 2 turns, X s"
    )
    assert said[4] == f"INFO    desk.X factorial.task: task {failed} of desk for me: started at turn 0"
    assert said[5].startswith(f"ERROR   desk.X factorial.task: task {failed} of desk for me: failed in turn 0: {what}")
    assert len(said) == 6


async def test_spec_I10_a_turn_that_goes_well_writes_no_line(logged: Logged) -> None:
    await logged.start(*by_file(logged))
    for _ in range(5):
        logged.llmock.call_tool("act", {"how": "nothing"})
    task_id = await logged.ended("nothing")
    await logged.wrote("completed after 7 turns")  # and then that it stops
    await logged.stop()
    assert logged.events(task_id) == ["started", "completed"]
    assert logged.story(task_id)[1]["turns"] == 7
    [written] = [line for line in logged.objects if line.get("event") == "completed"]
    its_own = ("stdout", "stderr", "mine")  # what the tool writes
    within = [line for line in logged.objects if line.get("task_id") == task_id and line["logger"] not in its_own]
    assert [(line["logger"], line.get("event")) for line in within] == [
        ("factorial.task", "started"),
        ("factorial.task", "completed"),
    ]
    between = logged.objects[logged.objects.index(within[0]) : logged.objects.index(written) + 1]
    loggers = {line["logger"] for line in between if not line["logger"].startswith("factorial.supervisor")}
    assert loggers == {"factorial.task", *its_own}  # no library logs a model call


async def test_spec_I10_the_level_is_that_of_the_configuration(logged: Logged) -> None:
    process = logged.toml('logging = { level = "error", format = "json" }')
    with logged.log.open("wb") as output:
        logged.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "factorial.supervisor", process, stdout=output, stderr=output, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    failed = await logged.ended("fail")
    await logged.stop()
    assert logged.events(failed) == ["failed"]
    assert {line["level"] for line in logged.objects if line["logger"] not in ("stdout", "stderr")} == {"error"}


async def test_spec_I10_a_mistake_at_the_start_is_json_too(logged: Logged) -> None:
    config = Path(logged.toml('logging = { format = "json" }'))
    config.write_text(config.read_text().replace("logged:desk", "logged:disk"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "factorial.supervisor", str(config), cwd=logged.directory,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, out) == (2, b"")
    [line] = map(json.loads, err.splitlines())
    assert "factorial: " in line["message"]
    assert "'disk'" in line["message"]


async def test_spec_I10_a_task_that_waits_for_a_result_is_parked_and_resumed(
    system: System, llmock: LLMock, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def lines() -> list[dict[str, Any]]:
        return [vars(record) for record in caplog.records if record.name == "factorial.task"]

    @deferred_result(timeout=60)
    def ask(question: str, execution_ctx: ExecutionContext) -> None:
        """Ask a person who has no time now."""
        asked.append(execution_ctx.tool_call_id)

    llmock.call_tool("ask", {"question": "May I?"}).reply("I may.")
    agent = Agent(name="clerk", tools=[ask], model=gpt_41)
    with caplog.at_level(logging.INFO, logger="factorial.task"):
        await system.start(agent)
        task_id = await system.submit(agent)
        await system.reaches(task_id, "pending_tool_results", timeout=60)
        await system.orchestrator.complete_deferred_tool(task_id, asked[0], "Yes.")
        await system.ended(task_id, timeout=60)
        written = await wait_until(lambda: len(lines()) >= 4 and lines())  # the last line comes after the event itself
    assert [fields["event"] for fields in written] == ["started", "parked", "resumed", "completed"]
    assert (written[1]["turn"], written[1]["awaits"], written[3]["turns"]) == (0, 1, 2)
    assert {(fields["task_id"], fields["agent"], fields["owner_id"]) for fields in written} == {
        (task_id, "clerk", "owner")
    }


async def test_spec_I10_the_client_logs_what_it_asks_for_at_debug_level(
    logged: Logged, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="factorial.task"):
        task_id = await logged.enqueue("nothing")
        await logged.orchestrator.cancel_task(task_id)
    records = [record for record in caplog.records if record.name == "factorial.task"]
    written = [vars(record) for record in records]
    assert [record.levelname for record in records] == ["DEBUG", "DEBUG"]
    assert [fields["event"] for fields in written] == ["enqueued", "cancelling"]
    assert written[1]["status"] == "cancelled"
    for fields in written:
        assert (fields["task_id"], fields["agent"], fields["owner_id"]) == (task_id, "desk", "me")
