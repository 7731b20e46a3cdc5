"""Every example runs as its docstring says, in processes of its own: without a key, so with its script as the model.

Real: the commands, the worker processes, the embedded Valkey, signals. Scripted: the model.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from factorial.mailbox.embedded.share import attach, is_running
from tests.spec.web import hear, post, socket
from tests.support import wait_until
from tests.valkey import free_port

ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    """As on a fresh machine: no key, no server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "REDIS_"))}
    return {**kept, "PYTHONPATH": str(ROOT)}


def run(directory: Path, *command: str, timeout: float = 20.0, answer: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        input=answer, cwd=directory, env=environment(), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def test_inline(tmp_path: Path) -> None:
    done = run(tmp_path, "examples.inline")
    assert done.returncode == 0, done.stderr
    assert '{"expression":"19.99 * 3"} -> 59.97' in done.stdout
    assert "ZeroDivisionError" in done.stdout
    assert "Three of them cost 59.97" in done.stdout
    assert not done.stderr


def test_structured_output(tmp_path: Path) -> None:
    done = run(tmp_path, "examples.structured")
    assert done.stdout.splitlines()[-1] == "high: The printer is on fire (printer)", done.stderr


def test_repository_inline(tmp_path: Path) -> None:
    done = run(tmp_path, "examples.repository", "What is an 'idempotency_key'?")
    assert "It is not a language model" in done.stdout
    assert re.search(r"'idempotency_key' is in [1-9]\d* lines of [1-9]\d* files", done.stdout), done.stderr


async def test_newsroom(tmp_path: Path) -> None:
    """A task waits for its children and for a person, who answers on the terminal."""
    with started(tmp_path, "examples.newsroom") as log:
        await wait_until(lambda: log.read_text().count("is ready") >= 2, timeout=20, message="the workers")
        asked = await asyncio.to_thread(run, tmp_path, "examples.newsroom", "ask", answer="Yes.\n")
        assert "2 of 2 reporters are back" in asked.stdout, asked.stderr + log.read_text()
        assert asked.stdout.splitlines()[-1] == "May it be printed? It is settled."
    assert "Traceback" not in log.read_text()


@pytest.fixture
def weather_workers(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (tmp_path / "log").open("wb") as log:
        workers = subprocess.Popen(
            [sys.executable, "-m", "examples.weather"], cwd=tmp_path, env=environment(), stderr=log
        )
    yield workers
    if workers.poll() is None:
        workers.kill()
        workers.wait()


async def test_weather(tmp_path: Path, weather_workers: subprocess.Popen[bytes]) -> None:
    """The introduction's snippet: it subscribes after it has enqueued, and sees the result."""
    log = tmp_path / "log"
    await wait_until(lambda: "children are ready" in log.read_text(), timeout=20, message="the workers")
    for _ in range(2):
        asked = run(tmp_path, "examples.weather", "ask")
        assert asked.stdout.splitlines()[-1:] == ["Result: It is sunny, and 72°F."], asked.stderr + log.read_text()
    weather_workers.send_signal(signal.SIGINT)
    assert weather_workers.wait(timeout=15) == 0
    assert "Traceback" not in log.read_text()


async def test_web(tmp_path: Path, weather_workers: subprocess.Popen[bytes]) -> None:
    """A browser that is cut off comes back with the last event that it has seen, and misses nothing."""
    log = tmp_path / "log"
    await wait_until(lambda: "children are ready" in log.read_text(), timeout=20, message="the workers")
    address = f"127.0.0.1:{free_port()}"
    with started(tmp_path, "examples.web", address.partition(":")[2]) as web_log:
        await wait_until(lambda: "running on" in web_log.read_text(), timeout=20, message="the web server")
        assert "<title>Weather</title>" in await asyncio.to_thread(page, f"http://{address}/")
        async with socket(address, "/ws/user123") as browser:
            asked = await post(address, "/api/ask", {"user_id": "user123", "query": "What's the weather?"})
            seen = await hear(browser, lambda heard: len(heard) == 2)
            browser.transport.abort()
        async with socket(address, f"/ws/user123?after={seen[-1]['id']}") as browser:
            seen += await hear(browser, lambda heard: bool(heard) and heard[-1]["event_type"] == "run_completed")
        stored = [update for update in seen if update["id"]]
        types = [update["event_type"] for update in stored]
        assert types[:2] == ["run_enqueued", "run_started"] and len(types) == len({update["id"] for update in stored})
        assert len(stored) < len(seen), "the answer is streamed"
        assert {update["task_id"] for update in seen} == {asked["task_id"]}
        assert seen[-2]["data"] == "It is sunny, and 72°F."
        async with socket(address, "/ws/user123?after=yesterday") as browser:
            with pytest.raises(ConnectionClosed, match="'yesterday' is not an event id"):
                await browser.recv()
        assert "Traceback" not in web_log.read_text()


async def test_web_leaves_no_server_behind(tmp_path: Path) -> None:
    """Stopped by SIGTERM, it was the last one to use the embedded Valkey."""
    url = f"embedded:{tmp_path / '.factorial'}"
    address = f"127.0.0.1:{free_port()}"
    with started(tmp_path, "examples.web", address.partition(":")[2], signal_number=signal.SIGTERM) as web_log:
        await wait_until(lambda: "running on" in web_log.read_text(), timeout=20, message="the web server")
        await post(address, "/api/ask", {"user_id": "user123", "query": "What's the weather?"})
        assert is_running(url)
    left_behind = is_running(url)
    if left_behind:
        attach(tmp_path / ".factorial").release()
    assert not left_behind


@contextmanager
def started(directory: Path, *command: str, signal_number: int = signal.SIGINT) -> Iterator[Path]:
    """A server; in the end, Ctrl-C (or another signal) has to stop it. Gives its log."""
    log = directory / f"{command[0]}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=directory, env=environment(), stdout=output, stderr=output
        )
    try:
        yield log
        process.send_signal(signal_number)
        process.wait(timeout=30)
    finally:
        process.kill()
        process.wait()


def page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as response:
        text: str = response.read().decode()
        return text


def test_the_demo_keeps_its_promises(tmp_path: Path) -> None:
    """`make demo`: two processes, one of them killed, nothing repeated that was finished."""
    demo = run(tmp_path, "examples.quickstart", timeout=120)
    print(demo.stdout)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    told = re.findall(r"^ *(\d+\.\d\d) s  (.*)$", demo.stdout, re.MULTILINE)
    ready = next(float(seconds) for seconds, what in told if what.endswith("is ready"))
    assert float(told[-1][0]) - ready < 30
    assert "It is not a language model" in demo.stdout
    assert len(re.findall(r"» continues here \d+ ms after the kill", demo.stdout)) >= 2
    assert re.search(r"» continues here \d+ ms after the kill; from the journal: model call", demo.stdout)
    assert re.search(r"^model calls +\d+ +\d+ +\d+ +0$", demo.stdout, re.MULTILINE)
    assert demo.stdout.count("kept    ") == 4
    assert not demo.stderr
