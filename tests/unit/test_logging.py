"""Log lines: what is in them, and what is not. Nothing is fake; no process is started."""

import io
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest

from factorial import Agent, AgentContext, AgentWorkerConfig, LoggingConfig
from factorial._core import redact
from factorial._core.redact import hide_secrets, remember_environment, remember_password, remember_secret, shown_url
from factorial._core.text import one_line
from factorial.config import SystemConfig
from factorial.errors import ConfigError, FactorialError
from factorial.telemetry.logs import JsonFormatter, TextFormatter, logging_to_stderr
from factorial.telemetry.task_log import TaskFields, TaskLog
from factorial.testing import ScriptedModel, call, say

KEY = "sk-proj-0123456789abcdef"


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets of one test are not remembered in the next."""
    monkeypatch.setattr(redact, "_remembered", [])


@dataclass
class Log:
    """What a handler with the tested formatter has written."""

    stream: io.StringIO

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


Formatter = Callable[[str], logging.Formatter]


@pytest.fixture
def log_with() -> Iterator[Callable[[Formatter], Log]]:
    """Write all log records with a formatter for the process `w.1`."""
    root, level = logging.getLogger(), logging.getLogger().level
    added = []

    def start(formatter: Formatter) -> Log:
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter("w.1"))
        handler.addFilter(TaskFields())
        root.addHandler(handler)
        root.setLevel(logging.DEBUG)
        added.append(handler)
        return Log(stream)

    yield start
    root.setLevel(level)
    for handler in added:
        root.removeHandler(handler)


@pytest.fixture
def as_json(log_with: Callable[[Formatter], Log]) -> Log:
    return log_with(JsonFormatter)


@pytest.fixture
def as_text(log_with: Callable[[Formatter], Log]) -> Log:
    return log_with(TextFormatter)


# -- the log of a task


def log_everything(log: TaskLog) -> None:
    log.enqueued()
    log.claimed(turn=0, attempt=1, pickups=1)
    log.retried("ValueError: no", turn=0, attempt=1, delay=0.25)
    log.claimed(turn=0, attempt=2, pickups=2)
    log.parked(turn=0, awaits=2)
    log.released(turn=1)
    log.reclaimed("w.2", "killed")
    log.superseded()
    log.given_up("w.2")
    log.completed(turns=1)
    log.failed("ValueError: no", turn=3, attempt=6)
    log.cancelled(turn=2)


def test_each_line_of_a_task_has_its_id_and_agent_as_fields(as_json: Log) -> None:
    log_everything(TaskLog("t1", "weather", "o1"))
    lines = as_json.objects
    assert [line["event"] for line in lines] == [
        "enqueued", "started", "retried", "resumed", "parked", "released", "reclaimed", "superseded", "given_up",
        "completed", "failed", "cancelled",
    ]  # fmt: skip
    for line in lines:
        assert (line["task_id"], line["agent"], line["owner_id"]) == ("t1", "weather", "o1")
        assert (line["logger"], line["process"]) == ("factorial.task", "w.1")
        assert line["message"].startswith("task t1 of weather for o1: ")
    assert lines[2] == {
        "timestamp": lines[2]["timestamp"], "level": "warning", "logger": "factorial.task", "process": "w.1",
        "message": "task t1 of weather for o1: turn 0 failed (attempt 1), retry in 0.25 s: ValueError: no",
        "event": "retried", "task_id": "t1", "agent": "weather", "owner_id": "o1", "turn": 0, "attempt": 1,
        "delay": 0.25, "error": "ValueError: no",
    }  # fmt: skip
    assert [line["level"] for line in lines if line["event"] in ("enqueued", "failed")] == ["debug", "error"]


def test_text_lines_have_the_same_content(as_text: Log) -> None:
    log_everything(TaskLog("t1", "weather", "o1"))
    lines = [line.split("factorial.task: ")[1] for line in as_text.text.splitlines()]
    assert lines[2:4] == [
        "task t1 of weather for o1: turn 0 failed (attempt 1), retry in 0.25 s: ValueError: no",
        "task t1 of weather for o1: resumed at turn 0, attempt 2",
    ]
    assert lines[4] == "task t1 of weather for o1: parked after turn 0, awaits 2 results"
    assert lines[9].startswith("task t1 of weather for o1: completed after 1 turn, ")
    assert "WARNING w.1 factorial.task: " in as_text.text


async def test_each_text_line_within_a_task_has_its_id(as_text: Log) -> None:
    """Those of the user's code, in a plain tool and in an async one, and those of libraries."""
    mine = logging.getLogger("shop")

    def plain() -> str:
        """Look."""
        mine.info("looked")
        return "seen"

    async def listen() -> str:
        """Listen."""
        mine.info("heard %d things", 2)
        return "heard"

    mine.info("before")
    agent = Agent(name="a", tools=[plain, listen], model=ScriptedModel([call("plain"), call("listen"), say("done")]))
    completion = await agent.run_inline(AgentContext(query="go"))
    lines = [line.partition(" shop: ")[2] for line in as_text.text.splitlines() if " shop: " in line]
    [looked, heard] = lines[1:]
    assert lines[0] == "before"
    assert looked.startswith("task ") and looked.endswith(": looked")
    task_id = looked.removeprefix("task ").removesuffix(": looked")
    assert heard == f"task {task_id}: heard 2 things"
    assert completion.output == "done" and f"task {task_id} of a for inline: completed" in as_text.text


@pytest.mark.parametrize(("age", "shown"), [(0.0, "0"), (7.26, "7.26"), (999.4, "999"), (86400.0, "86400")])
def test_durations_count_from_the_enqueueing(
    as_text: Log, monkeypatch: pytest.MonkeyPatch, age: float, shown: str
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    log = TaskLog("t1", "weather", age=age)
    log.claimed(turn=0, attempt=1, pickups=3)
    log.completed(turns=2)
    assert as_text.text.endswith(f"completed after 2 turns, {shown} s\n")


def test_a_line_below_the_level_is_not_formatted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("factorial.task"), "level", logging.ERROR)
    monkeypatch.setattr("factorial.telemetry.task_log.one_line", lambda text: pytest.fail("a line was made"))
    TaskLog("t1", "weather").enqueued()


async def test_what_is_logged_within_a_task_carries_its_fields(as_json: Log) -> None:
    def look_up(city: str) -> str:
        """Look it up."""
        logging.getLogger("mine").info("looking up %s", city, extra={"city": city})
        raise ValueError("no such city")

    agent = Agent(name="a", tools=[look_up], model=ScriptedModel([call("look_up", city="Oslo"), say("done")]))
    await agent.run_inline(AgentContext(query="q"), owner_id="me")
    [mine] = [line for line in as_json.objects if line["logger"] == "mine"]
    assert {name: mine[name] for name in ("agent", "owner_id", "turn", "attempt", "city")} == {
        "agent": "a", "owner_id": "me", "turn": 0, "attempt": 1, "city": "Oslo",
    }  # fmt: skip
    [ours] = [line for line in as_json.objects if line["logger"] == "factorial.tools.call"]
    assert ours["task_id"] == mine["task_id"]
    assert "ValueError: no such city" in ours["exception"]
    logging.getLogger("mine").info("after it")
    assert "task_id" not in as_json.objects[-1]


async def test_an_inline_run_is_logged_if_the_program_has_set_up_logging(as_json: Log) -> None:
    def sometimes(agent_ctx: AgentContext) -> str:
        attempts.append(1)
        if len(attempts) == 1:
            raise ValueError("not yet")
        return "Do it."

    attempts: list[int] = []
    agent = Agent(name="a", instructions=sometimes, model=ScriptedModel([say("done")]))
    await agent.run_inline(AgentContext(query="q"), worker_config=AgentWorkerConfig(retry_delay=0.01))
    agent = Agent(name="a", instructions=sometimes, model=ScriptedModel([]))
    with pytest.raises(FactorialError):
        await agent.run_inline(AgentContext(query="q"), worker_config=AgentWorkerConfig(max_retries=0))
    steps = [line for line in as_json.objects if "event" in line]
    assert [step["event"] for step in steps] == ["started", "retried", "completed", "started", "failed"]
    assert [step["task_id"] for step in steps] == [steps[0]["task_id"]] * 3 + [steps[3]["task_id"]] * 2
    assert {(step["agent"], step["owner_id"]) for step in steps} == {("a", "inline")}
    assert (steps[1]["turn"], steps[1]["attempt"], steps[1]["error"]) == (0, 1, "ValueError: not yet")


# -- the two formats


def test_json_has_the_time_in_utc_and_all_extra_fields(as_json: Log) -> None:
    odd = {"when": datetime(2026, 1, 2), "names": {"b"}, "self": object(), "half": "\ud83d"}
    logging.getLogger("mine").warning("%d\nlines", 2, extra=odd)
    [line] = as_json.objects
    assert line["timestamp"].endswith("Z")
    assert len(line["timestamp"]) == len("2026-01-02T03:04:05.678Z")
    assert (line["message"], line["level"]) == ("2\nlines", "warning")
    assert (line["when"], line["names"]) == ("2026-01-02T00:00:00", ["b"])
    assert set(line) == {"timestamp", "level", "logger", "message", "process", *odd}


def test_json_has_the_traceback_in_one_field(as_json: Log) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("mine").exception("failed")
    [line] = as_json.objects
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ValueError: two\nlines")


@pytest.mark.parametrize(
    "evil", ["x\n2026-01-02 03:04:05,678 ERROR w.1 factorial.task: forged", "\x1b[2Jx", "a\rb", "a\u2028b"]
)
def test_text_cannot_forge_a_line(evil: str, as_text: Log) -> None:
    TaskLog("t1", evil, evil).failed(evil)
    assert len(as_text.text.splitlines()) == 1
    logging.getLogger("mine").error("%s", evil, exc_info=ValueError(evil))
    first, *others = as_text.text.splitlines()[1:]
    assert "mine: " in first
    assert all(line.startswith("    | ") for line in others)
    assert all(character == "\n" or character.isprintable() for character in as_text.text)


def test_one_line_changes_only_control_characters() -> None:
    assert one_line("Grüße") == "Grüße"
    assert one_line("a\tb\x00") == "a b "


# -- secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"the key {KEY} is wrong", "the key *** is wrong"),
        (f"Incorrect API key provided: {KEY[:8]}****cdef.", "Incorrect API key provided: ***"),
        ("redis://:123/word@db:6379/0", "redis://:***@db:6379/0"),
        ("no route to redis://app:hunter2@db:6379/0?x=1.", "no route to redis://app:***@db:6379/0?x=1."),
        ("rediss://:hunter2@db:6379: refused", "rediss://:***@db:6379: refused"),
        ("https://example.org/users?id=7", "https://example.org/users?id=7"),
        ("Authorization: Bearer abc.def.ghi", "Authorization: Bearer ***"),
        ('{"authorization": "Basic dXNlcjpwdw=="}', '{"authorization": "Basic ***"}'),
        ("headers={'x-api-key': 'abcdef'}", "headers={'x-api-key': '***'}"),
        ("Authorization: Token abcdef123456", "Authorization: Token ***"),
        ("Authorization: Digest abcdef123456", "Authorization: Digest ***"),
        (r'{"arguments": "{\"api_key\": \"abcdef\"}"}', r'{"arguments": "{\"api_key\": \"***\"}"}'),
        ("AWS_SECRET_ACCESS_KEY=abc/def+ghi", "AWS_SECRET_ACCESS_KEY=***"),
        ("private_key=abcdef passphrase: abcdef pwd=abcdef", "private_key=*** passphrase: *** pwd=***"),
        ("('Authorization', 'Basic dXNlcjpwdw==')", "('Authorization', 'Basic ***')"),
        ("password=hunter2, host=db", "password=***, host=db"),
        ("xai-0123456789 gsk_0123456789 ghp_0123456789ab AIzaSyA123456789", "*** *** *** ***"),
        ("task-0123456789 asks a risk-averse desk", "task-0123456789 asks a risk-averse desk"),
        ("skipped sky-scrapers; max_tokens=100", "skipped sky-scrapers; max_tokens=100"),
        ("OPENAI_API_KEY, which is not set", "OPENAI_API_KEY, which is not set"),
    ],
)  # fmt: skip
def test_secrets_are_recognised_by_their_form(text: str, shown: str) -> None:
    assert hide_secrets(text) == shown
    assert hide_secrets(shown) == shown


@pytest.mark.parametrize("part", [" ", "'", "authorization: ", "@://a:", "-eyJaaaaaaaaa", "-sk-aaaaaaaa", "password"])
def test_the_search_for_secrets_takes_time_in_proportion_to_the_text(part: str) -> None:
    """Otherwise the output of a tool could block the event loop."""
    text = "authorization: " + part * (100_000 // len(part))
    begun = time.thread_time()
    hide_secrets(text)
    assert (
        time.thread_time() - begun < 5
    )  # it takes 0.1 s; it would take minutes in proportion to the square of the length


def test_known_secrets_are_hidden() -> None:
    remember_environment({"LOCAL_API_KEY": "open sesame", "HOME": "/home/me", "X_TOKEN": "1", "DB_PASSWORD": "sesame"})
    remember_password("redis://app:p%40ssword@db/0")
    remember_secret(None)
    assert (
        hide_secrets("1: open sesame, sesame, p%40ssword and p@ssword in /home/me")
        == "1: ***, ***, *** and *** in /home/me"
    )


def test_a_url_is_shown_without_password_and_query() -> None:
    assert shown_url("redis://app:secret@[::1]:6379/2?password=secret") == "redis://app@[::1]:6379/2"
    many = "redis+sentinel://app:secret@s1:26379,[::1],s3:1/mymaster/0?sentinel_password=secret"
    assert shown_url(many) == "redis+sentinel://app@s1:26379,[::1],s3:1/mymaster/0"
    assert "secret" not in shown_url("redis://a:secret@h1:1,b:secret@h2:2,c:secret@h3")


@pytest.mark.parametrize("formatter", [JsonFormatter, TextFormatter])
def test_no_part_of_a_line_holds_a_secret(formatter: Formatter, log_with: Callable[[Formatter], Log]) -> None:
    log = log_with(formatter)
    remember_secret("open sesame")

    class Client:
        def __repr__(self) -> str:
            return f"Client({KEY})"

    try:
        raise ValueError(f"{KEY} open sesame")
    except ValueError as error:
        extra = {"deep": [{"url": "redis://:hunter2@db/0", KEY: Client()}], "password": "hunter2", "client": Client()}
        logging.getLogger("mine").error("%s", KEY, exc_info=error, stack_info=True, extra=extra)
        TaskLog("t1", "a", "o").failed(str(error))
        TaskLog("t1", "a", "o").problem(logging.ERROR, str(error), error)
    assert "***" in log.text
    for secret in (KEY, "open sesame", "hunter2", KEY[-8:]):
        assert secret not in log.text


async def test_the_error_of_a_task_that_is_stored_and_published_holds_no_key() -> None:
    def fail(agent_ctx: AgentContext) -> str:
        raise RuntimeError(f"the key {KEY} is wrong")

    events: list[Any] = []
    agent = Agent(name="a", instructions=fail, model=ScriptedModel([say("hi")]))
    with pytest.raises(RuntimeError):
        await agent.run_inline(
            AgentContext(query="q"), event_handler=events.append, worker_config=AgentWorkerConfig(max_retries=0)
        )
    errors = [event.error for event in events if event.error]
    assert errors
    assert all("***" in error and KEY not in error for error in errors)


# -- what is set up


@contextmanager
def a_new_program() -> Iterator[None]:
    """The state of a program that has not set up logging."""
    root = logging.getLogger()
    handlers, root.handlers, level = root.handlers, [], root.level
    try:
        yield
        assert root.handlers in ([], [HANDLER])
    finally:
        root.handlers = handlers
        root.setLevel(level)


HANDLER = logging.NullHandler()


def test_printed_text_is_json_too_until_logging_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with a_new_program(), logging_to_stderr("s", LoggingConfig(format="json")):
        print("two\nlines")
        print(f"a key: {KEY}", file=sys.stderr)
        logging.getLogger("mine").info("logged")
    print("plain")
    out, err = capsys.readouterr()
    *printed, plain = out.splitlines()
    assert plain == "plain"
    assert [(line["logger"], line["level"], line["message"], line["process"]) for line in map(json.loads, printed)] == [
        ("stdout", "info", "two", "s"), ("stdout", "info", "lines", "s"),
    ]  # fmt: skip
    assert [(line["logger"], line["message"]) for line in map(json.loads, err.splitlines())] == [
        ("stderr", "a key: ***"), ("mine", "logged"),
    ]  # fmt: skip


def test_logging_that_is_set_up_already_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with a_new_program():
        logging.getLogger().addHandler(HANDLER)
        with logging_to_stderr("s", LoggingConfig(format="json", level="debug")) as handler:
            assert handler is None
            print("plain")
            assert logging.getLogger().handlers == [HANDLER]
    assert capsys.readouterr().out == "plain\n"


def test_http_requests_to_models_are_logged_at_debug_level_only(capsys: pytest.CaptureFixture[str]) -> None:
    with a_new_program(), logging_to_stderr("s", LoggingConfig()):
        logging.getLogger("httpx").info("HTTP Request: POST")
    with a_new_program(), logging_to_stderr("s", LoggingConfig(level="debug")):
        logging.getLogger("httpx").info("HTTP Request: POST again")
        logging.getLogger("openai._base_client").debug("the conversation")
    err = capsys.readouterr().err
    assert err.count("HTTP Request") == err.count("POST again") == 1
    assert "the conversation" not in err


def test_the_environment_takes_precedence_over_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LoggingConfig(level="warning", format="text")
    assert config.resolved == config
    monkeypatch.setenv("FACTORIAL_LOG_FORMAT", "JSON ")
    assert config.resolved == LoggingConfig(level="warning", format="json")
    monkeypatch.setenv("FACTORIAL_LOG_LEVEL", "inf")
    with pytest.raises(ConfigError, match="FACTORIAL_LOG_LEVEL='inf': did you mean 'info'"):
        _ = config.resolved


def test_a_wrong_setting_is_named(tmp_path: Any) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[logging]\nformat = "xml"\n[[runner]]\nagent = "a:b"\n')
    with pytest.raises(ConfigError, match=r"logging\.format.*'text' or 'json'"):
        SystemConfig.from_toml(file)
    with pytest.raises(ConfigError, match="LoggingConfig: 'level'"):
        LoggingConfig(level="loud")  # type: ignore[arg-type]
