"""`python -m factorial.supervisor status|drain|resume|scale|restart|stop`: each verb through the command's `main`.

The server is a real Valkey, with the control mailbox of a supervisor on it. Fake: its operations, which record the
calls.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from factorial.cli.supervisor import main
from factorial.config import RedisConfig
from factorial.mailbox import Namespace
from factorial.mailbox.embedded.share import is_running
from factorial.mailbox.operations.enqueue import enqueue
from factorial.mailbox.supervisors import reports
from tests.supervisor.served import FakeOperations, serve
from tests.support import wait_until
from tests.valkey import free_port

ROOT = Path(__file__).parent.parent.parent


class Operator:
    """An operator at another machine, who knows the server."""

    def __init__(self, mailbox: Namespace, capsys: pytest.CaptureFixture[str]) -> None:
        self.mailbox = mailbox
        self.where = ["--redis", mailbox.redis.url, "--namespace", mailbox.redis.namespace]
        self._capsys = capsys

    async def says(self, *words: str) -> tuple[int, str, str]:
        """The exit code, the output and the error output."""
        return await self.says_just(*words, *self.where)

    async def says_just(self, *words: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        code = await asyncio.to_thread(main, words)
        printed = self._capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out, printed.err

    async def sees(self, *names: str) -> None:
        """Wait until these supervisors are known."""

        async def known() -> bool:
            return [one.name for one in await reports.read_all(self.mailbox.scripts)] == sorted(names)

        await wait_until(known, message=f"{names} are known")

    async def silences(self, name: str, seconds: int = 40) -> None:
        """Let the latest report be this old."""
        now, _ = await self.mailbox.connection.execute("TIME")
        key = f"{self.mailbox.keys.prefix}supervisors"
        await self.mailbox.connection.execute("ZADD", key, (int(now) - seconds) * 1000, name)


@pytest.fixture
async def operator(redis_url: str, namespace: str, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Operator]:
    mailbox = await Namespace.open(RedisConfig(url=redis_url, namespace=namespace))
    yield Operator(mailbox, capsys)
    await mailbox.close()


@pytest.fixture
async def one(operator: Operator) -> AsyncIterator[FakeOperations]:
    """The only supervisor, `a`."""
    operations = FakeOperations("a")
    async with serve(operator.mailbox, operations):
        await operator.sees("a")
        yield operations


@pytest.fixture
async def other(operator: Operator, one: FakeOperations) -> AsyncIterator[FakeOperations]:
    """A second one, `b`."""
    operations = FakeOperations("b")
    async with serve(operator.mailbox, operations):
        await operator.sees("a", "b")
        yield operations


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("drain", "drain"),
        ("drain weather", "drain weather"),
        ("resume weather.1", "resume weather.1"),
        ("resume", "resume"),
        ("restart weather", "restart weather"),
        ("restart", "restart"),
        ("scale weather 4", "scale weather 4"),
    ],
)
async def test_each_verb(operator: Operator, one: FakeOperations, words: str, asked: str) -> None:
    assert await operator.says(*words.split()) == (0, f"a: done: {asked}\n", "")
    assert one.asked == [asked]


@pytest.mark.parametrize(("words", "asked"), [("stop", "stop gracefully"), ("stop --now", "stop now")])
async def test_a_stop_is_done_when_the_supervisor_has_ended(
    operator: Operator, one: FakeOperations, words: str, asked: str
) -> None:
    assert await operator.says(*words.split()) == (0, "a: stopped\n", "")
    assert one.asked == [asked]
    assert await reports.read_all(operator.mailbox.scripts) == []


async def test_a_stop_that_takes_too_long(
    operator: Operator, one: FakeOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stop(now: bool) -> str:
        return "stopping"

    monkeypatch.setattr(one, "stop", stop)
    code, out, err = await operator.says("stop", "--timeout", "0.5")
    assert (code, out) == (1, "")
    assert err == "factorial: a: it was asked to stop, and is still stopping after 0.5 s\n"


async def test_an_unknown_target_is_a_wrong_command(operator: Operator, one: FakeOperations) -> None:
    code, out, err = await operator.says("drain", "nowhere")
    assert (code, out) == (2, "")
    assert err == "factorial: a: there is no 'nowhere' here; there are: weather, weather.1\n"


async def test_an_order_that_cannot_be_done_now_fails(operator: Operator, one: FakeOperations) -> None:
    code, out, err = await operator.says("restart", "resting")
    assert (code, out) == (1, "")
    assert err == "factorial: a: drained: resting. There is nothing to restart; resume it first\n"


async def test_an_order_that_has_started_goes_on_after_the_timeout(operator: Operator, one: FakeOperations) -> None:
    code, out, err = await operator.says("restart", "slow", "--timeout", "0.3")
    assert (code, out) == (1, "")
    assert err.startswith("factorial: a: not done within 0.3 s. If the order has started, it runs to its end. ")
    assert one.asked == ["restart slow"]
    one.finish.set()


async def test_an_order_that_has_not_started_when_the_timeout_expires_is_dropped(
    operator: Operator, one: FakeOperations
) -> None:
    async with one.turn:
        code, out, err = await operator.says("drain", "weather", "--timeout", "0.3")
    assert (code, out) == (1, "")
    assert err == (
        "factorial: a: not started within 0.3 s, because another order or a reload was in progress: it was dropped\n"
    )
    assert (await operator.says("resume"))[0] == 0
    assert one.asked == ["resume"]


async def test_if_several_supervisors_run_one_has_to_be_picked(
    operator: Operator, one: FakeOperations, other: FakeOperations
) -> None:
    code, out, err = await operator.says("drain")
    assert (code, out) == (2, "")
    assert "2 supervisors run in namespace" in err
    assert "add --supervisor NAME or --all; known there: a, b" in err
    assert (await operator.says("drain", "--supervisor", "b")) == (0, "b: done: drain\n", "")
    assert (one.asked, other.asked) == ([], ["drain"])
    code, out, _ = await operator.says("resume", "--all")
    assert code == 0
    assert sorted(out.splitlines()) == ["a: done: resume", "b: done: resume"]


async def test_a_refusal_by_one_of_several_supervisors_is_a_failure(
    operator: Operator, one: FakeOperations, other: FakeOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.finish.set()
    monkeypatch.setattr(other, "drain", one.drain)
    monkeypatch.setattr(one, "drain", one.restart)
    code, out, err = await operator.says("drain", "resting", "--all")
    assert (code, out, err.count("factorial: ")) == (1, "", 2)


async def test_a_lost_supervisor_gets_no_orders(operator: Operator, one: FakeOperations, other: FakeOperations) -> None:
    other.fails_to_report = True
    await operator.silences("b")
    assert (await operator.says("drain"))[:2] == (0, "a: done: drain\n")  # the only one that is alive
    code, _, err = await operator.says("drain", "--supervisor", "b")
    assert code == 1
    assert "no supervisor 'b' runs in" in err
    assert "known there: a, b (lost, last heard of 4" in err


async def test_no_supervisor_is_known(operator: Operator) -> None:
    code, out, err = await operator.says("drain")
    assert (code, out) == (1, "")
    assert err.startswith("factorial: no supervisor runs in namespace 't-")
    assert "is it the right server and namespace?" in err
    code, out, err = await operator.says("status")
    assert (code, out) == (1, "")
    assert err.startswith("factorial: no supervisor runs in namespace 't-")
    code, out, _ = await operator.says("status", "--json")
    told = json.loads(out)
    assert told.pop("memory")["limit"] == 0
    assert (code, told) == (1, {"supervisors": [], "queues": {}, "deferred": {}, "unserved": []})


async def test_status_draws_all_supervisors_and_the_queues(
    operator: Operator, one: FakeOperations, other: FakeOperations
) -> None:
    scripts = operator.mailbox.scripts
    for task_id in ("t1", "t2"):
        await enqueue(scripts, task_id=task_id, agent="weather", owner_id="o", conversation=[b"{}"], fields={})
    one.fails_to_report = True
    await operator.silences("a")
    code, out, err = await operator.says("status")
    assert (code, err) == (0, "")
    assert "! a  LOST, last heard of 4" in out
    assert "  b  running for 1m06s  (pid 11 on h, factorial 0.3.0)" in out
    assert "└─ weather.1  running" in out
    assert out.splitlines()[-2:] == [
        "  QUEUE    READY  THROTTLED  SUSPECTS  BACKOFF  PARKED  HELD",
        "  weather      2          0         0        0       0     0",
    ]
    code, out, _ = await operator.says("status", "--supervisor", "b")
    assert code == 0
    assert "LOST" not in out


async def test_the_status_of_a_lost_supervisor_is_a_failure(operator: Operator, one: FakeOperations) -> None:
    one.fails_to_report = True
    await operator.silences("a")
    code, out, _ = await operator.says("status")
    assert code == 1
    assert "LOST" in out


async def test_status_as_json(operator: Operator, one: FakeOperations) -> None:
    code, out, _ = await operator.says("status", "--json")
    status = json.loads(out)
    assert code == 0
    counts = {"ready": 0, "throttled": 0, "suspects": 0, "backoff": 0, "parked": 0, "held": 0}
    assert status["queues"] == {"weather": counts}
    [about] = status["supervisors"]
    assert about.pop("age") < 6
    assert about.pop("lost") is False
    assert about == one.report()


async def test_the_server_of_a_configuration_whose_agents_cannot_be_imported_here(
    operator: Operator, one: FakeOperations, tmp_path: Path
) -> None:
    redis = operator.mailbox.redis
    file = tmp_path / "system.toml"
    file.write_text(
        f'[redis]\nurl = "{redis.url}"\nnamespace = "{redis.namespace}"\n[[runner]]\nagent = "not_here:weather"\n'
    )
    assert (await operator.says_just("drain", "--config", str(file)))[0] == 0
    assert one.asked == ["drain"]
    code, _, err = await operator.says("drain", "--config", str(file))
    assert code == 2
    assert "leave --redis and --namespace out" in err


async def test_the_server_of_the_environment(
    operator: Operator, one: FakeOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis = operator.mailbox.redis
    monkeypatch.setenv("REDIS_URL", redis.url)
    assert (await operator.says_just("drain", "--namespace", redis.namespace))[0] == 0
    assert one.asked == ["drain"]


async def test_an_embedded_server_is_used_if_it_runs_and_not_started_if_it_does_not(
    operator: Operator, tmp_path: Path
) -> None:
    url = f"embedded:{tmp_path / 'data'}"
    for verb in ("status", "stop"):
        code, out, err = await operator.says_just(verb, "--redis", url)
        assert (code, out) == (1, "")
        assert err.startswith(f"factorial: nothing runs in namespace 'factorial' at {url}: its server is not running")
    assert not (tmp_path / "data").exists()
    mailbox = await Namespace.open(RedisConfig(url=url))
    try:
        operations = FakeOperations()
        async with serve(mailbox, operations):
            await Operator(mailbox, operator._capsys).sees("a")
            assert (await operator.says_just("drain", "--redis", url))[:2] == (0, "a: done: drain\n")
    finally:
        await mailbox.close()
    assert not is_running(url)
    assert (await operator.says_just("status", "--redis", url))[0] == 1
    assert not is_running(url)


async def test_no_server(operator: Operator) -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    code, _, err = await operator.says_just("status", "--redis", url)
    assert code == 1
    assert err.startswith(f"factorial: {url}: nothing listens there")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("scale weather", "N"),
        (
            "scale weather 0",
            "'0' is not a number of processes: use 1 to 1000; to have none, drain the runner",
        ),
        ("scale weather 1001", "argument N: '1001' is not a number of processes: use 1 to 1000"),
        ("scale weather two", "'two' is not a number of processes"),
        ("scale", "RUNNER"),
        ("drain a b", "unrecognized arguments: b"),
        ("drain --timeout 0", "'0' is not a number of seconds"),
        ("drain --timeout nan", "'nan' is not a number of seconds"),
        ("drain --json", "unrecognized arguments: --json"),
        ("drain --all --supervisor a", "not allowed with argument"),
        ("status --all", "unrecognized arguments: --all"),
        ("status --redis http://localhost", "begin it with redis://"),
        ("status --redis redis://localhost --namespace {}", "use 1 to 64 letters"),
        ("status --config missing.toml", "there is no such file"),
        ("", "config.toml"),
        ("a.toml b.toml", "unrecognized arguments: b.toml"),
        ("a.toml --json", "--json goes with --check"),
        ("a.toml --log-level loud", "invalid choice: 'loud'"),
        ("./status", "status: there is no such file"),
    ],
)
async def test_wrong_commands_are_one_line_and_exit_code_2(operator: Operator, words: str, named: str) -> None:
    code, out, err = await operator.says_just(*words.split())
    assert (code, out) == (2, "")
    assert err.startswith("factorial: ")
    assert err.count("\n") == 1
    assert named in err


@pytest.mark.parametrize("verb", ["", "status", "drain", "resume", "restart", "scale", "stop"])
def test_help_has_examples_and_the_exit_codes(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*verb.split(), "--help"])
    assert ended.value.code == 0
    shown, _, examples = capsys.readouterr().out.partition("examples:")
    assert f"  python -m factorial.supervisor {verb}".rstrip() in examples
    if verb:
        _, *lines = shown.partition("exit code:")[2].strip().splitlines()
        codes = [line.split()[0] for line in lines]
        assert codes == (["1", "2"] if verb == "status" else ["1", "2", "130"])


async def test_the_tree_is_drawn_where_the_encoding_has_no_lines(operator: Operator, one: FakeOperations) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "factorial.supervisor", "status", *operator.where,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"`- weather.1  running" in out


@pytest.mark.parametrize("unbuffered", ["", "1"])
async def test_a_closed_pipe_causes_no_traceback(operator: Operator, one: FakeOperations, unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "factorial.supervisor", "status", *operator.where,
            stdout=writing, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    finally:
        os.close(writing)
    _, err = await process.communicate()
    assert (process.returncode, err) == (128 + signal.SIGPIPE, b"")


async def test_ctrl_c_ends_the_waiting_and_names_the_order(operator: Operator, one: FakeOperations) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "factorial.supervisor", "restart", "slow", *operator.where,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    await wait_until(lambda: one.asked == ["restart slow"])
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"")
    assert err == b"factorial: stopped waiting; a may still carry out: restart slow\n"
    one.finish.set()
