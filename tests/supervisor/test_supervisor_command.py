"""`python -m factorial.supervisor`: mistakes end in one line, and a whole system runs.

The mistakes call the command's `main` in this process; the servers are real ones. The last tests run the real command
with a real Valkey, real worker processes and a scripted model.
"""

import asyncio
import itertools
import json
import os
import re
import signal
import sys
from pathlib import Path

import psutil
import pytest

from factorial.cli.supervisor import main
from tests.support import wait_until
from tests.valkey import ValkeyServer, free_port

ROOT = Path(__file__).parent.parent.parent

AGENT = """
from factorial.agent.agent import BaseAgent
from factorial.testing import ScriptedModel, say

weather = BaseAgent(name="weather", description="d", instructions="i", tools=[], model=ScriptedModel([say("sunny")]))
keyless = BaseAgent(name="keyless", description="d", instructions="i", tools=[])
"""

numbers = itertools.count()


class Project:
    """A user's directory with a module of agents."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.module = f"my_agents_{next(numbers)}"
        (directory / f"{self.module}.py").write_text(AGENT)

    def toml(self, url: str = "redis://localhost:1", more: str = "", agent: str = "weather", runner: str = "") -> str:
        file = self.directory / "system.toml"
        reference = agent if ":" in agent else f"{self.module}:{agent}"
        file.write_text(
            f'[redis]\nurl = "{url}"\nretry_for = 0.2\n{more}\n[[runner]]\nagent = "{reference}"\n{runner}\n'
        )
        return str(file)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return Project(tmp_path)


def command_line(process: psutil.Process) -> str:
    """Its command line, empty for a process that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The command's exit code and its one line."""
    code = main(arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("factorial: ")]
    assert len(lines) == 1
    assert not [child for child in psutil.Process().children() if "spawn_main" in command_line(child)]
    return code, lines[0]


def test_a_good_file_passes_the_check(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([project.toml(runner="processes = 2"), "--check"]) == 0
    assert "good; agents: weather; processes: 2" in capsys.readouterr().out


def test_the_check_as_json(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([project.toml(runner="processes = 2"), "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "runners": {"weather": {"agent": f"{project.module}:weather", "processes": 2}}
    }


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "there is no such file"),
        ("[redis", "it is not valid TOML"),
        ("", "there is no [[runner]]"),
        ('[[runner]]\nagent = "a:b"\nproceses = 2', "[[runner]] 1: unknown key 'proceses'; did you mean 'processes'?"),
        ('[[runner]]\nagent = "no_such_module:agent"', "there is no module 'no_such_module'"),
        ('[[runner]]\nagent = "json:dumps"', "and not an agent"),
        ('[[runner]]\nagent = "json:dumsp"', "has no 'dumsp'"),
    ],
)
def test_an_error_in_the_file_is_one_line_and_exit_code_2(
    project: Project, capsys: pytest.CaptureFixture[str], content: str | None, named: str
) -> None:
    if content is not None:
        Path("bad.toml").write_text(content)
    for arguments in (["bad.toml"], ["bad.toml", "--check"]):
        code, line = refused(capsys, *arguments)
        assert code == 2
        assert named in line


def test_an_agent_whose_model_has_no_key(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = refused(capsys, project.toml(agent="keyless"), "--check")
    assert code == 2
    assert "'keyless'" in line
    assert "OPENAI_API_KEY" in line


def test_two_runners_with_one_agent(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    file = project.toml(runner=f'[[runner]]\nagent = "{project.module}:weather"')
    code, line = refused(capsys, file)
    assert code == 2
    assert "two runners have an agent named 'weather'" in line


def test_no_server(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    code, line = refused(capsys, project.toml(url))
    assert code == 1
    assert url in line


def test_a_wrong_password(project: Project, capsys: pytest.CaptureFixture[str], own_valkey: ValkeyServer) -> None:
    own_valkey.start(requirepass="right")
    code, line = refused(capsys, project.toml(f"redis://:wrong@127.0.0.1:{own_valkey.port}"))
    assert code == 1
    assert "password" in line
    assert ":wrong@" not in line


def test_a_server_that_would_evict_tasks(
    project: Project, capsys: pytest.CaptureFixture[str], own_valkey: ValkeyServer
) -> None:
    own_valkey.start(maxmemory_policy="allkeys-lru")
    code, line = refused(capsys, project.toml(own_valkey.url))
    assert code == 1
    assert "CONFIG SET maxmemory-policy noeviction" in line


@pytest.mark.parametrize("embedded", [False, True])
async def test_a_system_runs_restarts_a_killed_process_and_stops(
    project: Project, own_valkey: ValkeyServer, embedded: bool
) -> None:
    if not embedded:
        own_valkey.start()
    config = project.toml("embedded:data" if embedded else own_valkey.url, runner="processes = 2")
    log = project.directory / "log"
    with log.open("wb") as stderr:
        supervisor = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "factorial.supervisor", config,
            stderr=stderr, cwd=project.directory, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    try:
        await wait_until(lambda: log.read_text().count(" is ready") == 2, timeout=30, message="two processes")
        victim = int(re.findall(r"weather\.1-\w+ \(pid (\d+)\) is ready", log.read_text())[0])
        os.kill(victim, signal.SIGKILL)
        await wait_until(lambda: log.read_text().count(" is ready") == 3, timeout=30, message="a third process")
        supervisor.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(supervisor.wait(), 20) == 0
        text = log.read_text()
        assert "ended by SIGKILL" in text
        assert text.count("ended with exit code 0: shutdown") == 2
        assert "Traceback" not in text
    finally:
        if supervisor.returncode is None:
            supervisor.kill()
            await supervisor.wait()
    here = str(project.directory)
    await wait_until(lambda: not [each for each in psutil.process_iter() if here in command_line(each)])
