"""Mistakes at the command line: each ends in one line that names the thing and what to do, and a non-zero exit code,
and nothing is left running or stored.

Real: `python -m factorial.supervisor` in a process of its own, and Valkeys with a password and with an eviction policy.
"""

import asyncio
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from factorial import Orchestrator
from factorial.errors import ContextError
from tests.chaos.agents import OddContext, odd, work
from tests.chaos.system import ROOT, show
from tests.valkey import ValkeyServer, free_port

GOOD = "redis://127.0.0.1:1"
"""A server that is never asked: the mistake is found before."""


@dataclass(frozen=True)
class Mistake:
    """A TOML file (None: there is none), the module that it names, and what the one line has to contain."""

    name: str
    toml: str | None
    told: tuple[str, ...]
    module: str = "from factorial import Agent\n"


def runner(agent: str = "my_agents:agent", url: str = GOOD) -> str:
    return f'[redis]\nurl = "{url}"\nretry_for = 0.2\n[[runner]]\nagent = "{agent}"\n'


MISTAKES = [
    Mistake("no such file", None, ("system.toml", "there is no such file")),
    Mistake("malformed TOML", "[redis\nurl = 1", ("system.toml", "not valid TOML", "line 1")),
    Mistake(
        "unknown key",
        runner() + "[runner.worker]\nworker = 3\n",
        ("system.toml", "[[runner]] 1: unknown key 'worker.worker'", "did you mean 'workers'?"),
    ),
    Mistake(
        "value out of bounds",
        runner() + "[runner.worker]\nbatch_size = 0\n",
        ("system.toml", "[[runner]] 1: 'worker.batch_size'", "greater than or equal to 1"),
    ),
    Mistake(
        "module missing", runner("no_such:agent"), ("'no_such:agent'", "there is no module 'no_such'", "PYTHONPATH")
    ),
    Mistake(
        "attribute missing",
        runner("my_agents:agnet"),
        ("my_agents has no 'agnet'", "did you mean 'agent'?"),
        'from factorial import Agent\nagent = Agent(name="a", model="gpt_5")\n',
    ),
    Mistake(
        "module raising",
        runner(),
        ("'my_agents:agent'", "my_agents.py:2", "ZeroDivisionError"),
        "from factorial import Agent\nagent = 1 / 0\n",
    ),
    Mistake(
        "default model without a key",
        runner(),
        ("agent 'weather'", "no model was given, so it uses gpt-5.4-mini", "OPENAI_API_KEY"),
        'from factorial import Agent\nagent = Agent(name="weather")\n',
    ),
    Mistake(
        "unknown model",
        runner(),
        ("my_agents.py:2", "there is no model 'gpt-5-nono'", "did you mean 'gpt-5-nano'?"),
        'from factorial import Agent\nagent = Agent(name="weather", model="gpt-5-nono")\n',
    ),
    Mistake(
        "a tool that is not a function",
        runner(),
        ("my_agents.py:2", "'search' is not a function", "pass a function with typed parameters"),
        'from factorial import Agent\nagent = Agent(name="weather", tools=["search"])\n',
    ),
    Mistake(
        "an un-typed parameter",
        runner(),
        ("tool 'search'", "my_agents.py:2", "'query'"),
        'from factorial import Agent\ndef search(query): "Search"\nagent = Agent(name="weather", tools=[search])\n',
    ),
]


async def command(directory: Path) -> tuple[int, str, float]:
    """The command's exit code and standard error, and how long it took. It must not leave a process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "REDIS_"))}
    begun = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "factorial.supervisor", "system.toml",
        cwd=directory, env={**kept, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    # Both streams end only when every process that has inherited them has ended.
    stdout, stderr = await asyncio.wait_for(process.communicate(), 15)
    assert process.returncode is not None
    assert not stdout
    return process.returncode, stderr.decode(), time.monotonic() - begun


def check(name: str, code: int, stderr: str, seconds: float, expected: int, told: tuple[str, ...]) -> None:
    show(name, exit_code=f"{code}, after {seconds:.2f} s", standard_error=stderr.strip())
    assert code == expected
    lines = stderr.strip().splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("factorial: ")
    for words in told:
        assert words in lines[0]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name.replace(" ", "_"))
async def test_a_mistake_is_told_in_one_line(tmp_path: Path, mistake: Mistake) -> None:
    (tmp_path / "my_agents.py").write_text(mistake.module)
    if mistake.toml is not None:
        (tmp_path / "system.toml").write_text(mistake.toml)
    check(mistake.name, *await command(tmp_path), 2, mistake.told)


async def test_no_redis_there(tmp_path: Path) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    (tmp_path / "system.toml").write_text(runner("tests.chaos.agents:work", url))
    check("no Redis there", *await command(tmp_path), 1, (url,))


async def test_a_wrong_password(tmp_path: Path, own_valkey: ValkeyServer) -> None:
    own_valkey.start(requirepass="right")
    for user, told in ((":wrong@", "password"), ("", "password")):
        url = f"redis://{user}127.0.0.1:{own_valkey.port}/0"
        (tmp_path / "system.toml").write_text(runner("tests.chaos.agents:work", url))
        code, stderr, seconds = await command(tmp_path)
        check("wrong password" if user else "no password", code, stderr, seconds, 1, (told, str(own_valkey.port)))
        assert "wrong" not in stderr


async def test_a_server_that_would_evict(tmp_path: Path, own_valkey: ValkeyServer) -> None:
    own_valkey.start(maxmemory_policy="allkeys-lru")
    (tmp_path / "system.toml").write_text(runner("tests.chaos.agents:work", own_valkey.url))
    told = ("maxmemory-policy allkeys-lru", "CONFIG SET maxmemory-policy noeviction")
    check("eviction policy", *await command(tmp_path), 1, told)
    assert own_valkey.command("DBSIZE") == b":0\r\n"


async def test_a_context_that_does_not_serialise(redis_url: str, namespace: str) -> None:
    """In the client, when it is enqueued: nothing is stored."""
    async with Orchestrator(redis_url=redis_url, namespace=namespace) as orchestrator:
        for payload in (OddContext(query="?", handle=object()), OddContext(query="?", handle="\ud800")):
            task = odd.create_task("me", payload)
            with pytest.raises(ContextError) as told:
                await orchestrator.enqueue_task(odd, task)
            show("a context that does not serialise", error=f"{type(told.value).__name__}: {told.value}")
            assert "OddContext" in str(told.value)
            assert "handle" in str(told.value)
            assert await orchestrator.get_task_data(task.id) is None
        with pytest.raises(ContextError, match="WorkContext"):
            work.create_task("me", "?")  # type: ignore[arg-type]
