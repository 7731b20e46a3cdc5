"""The first process of a container: PID 1 of a PID namespace of its own, which `unshare` makes.

Real: the namespace, the signals, the orphans; the last tests run the real command with an embedded Valkey and worker
processes (the model is a script). The first ones have a small program stand in for the supervisor.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path

import psutil
import pytest

from factorial import AgentContext, Orchestrator
from factorial.agent.load import load_agent
from tests.support import wait_until

ROOT = Path(__file__).parent.parent.parent

AGENTS = """
import os, subprocess, sys, time
from factorial import Agent
from factorial.testing import ScriptedModel, call, say

def leave_an_orphan() -> str:
    "A program whose parent ends at once: it ends as a child of PID 1"
    subprocess.run(["sh", "-c", "sleep 0.3 & echo $!"], stdout=open("orphans", "a"), check=True)
    return "left"

def work() -> str:
    "Work for a second"
    open("at_work", "w").close()
    time.sleep(1)
    return "worked"

orphaner = Agent(name="orphaner", instructions="i", tools=[leave_an_orphan],
    model=ScriptedModel([call("leave_an_orphan"), call("leave_an_orphan"), say("done")]))
slow = Agent(name="slow", instructions="i", tools=[work],
    model=ScriptedModel([*(call("work") for _ in range(30)), say("done")]))
"""

SYSTEM = """
[redis]
url = "embedded:data"
[supervisor]
grace = 6.0
[[runner]]
agent = "pid1_agents:orphaner"
[[runner]]
agent = "pid1_agents:slow"
"""


@cache
def unshare() -> tuple[str, ...] | None:
    """The command that starts a program as PID 1 here, or `None` if that is not allowed."""
    for user in ((), ("--user", "--map-root-user")):
        command = ("unshare", *user, "--pid", "--fork", "--kill-child", "--mount-proc")
        try:
            if subprocess.run([*command, "true"], capture_output=True, timeout=10, check=False).returncode == 0:
                return command
        except OSError:
            return None
    return None


pytestmark = pytest.mark.skipif(
    unshare() is None, reason="needs `unshare --pid`, which is Linux's, and the right to it"
)


class Container:
    """A program as PID 1. Its output goes to `log`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "log"

    def run(self, *program: str) -> None:
        command = unshare()
        assert command is not None
        with self.log.open("wb") as log:
            self.outside = subprocess.Popen(
                [*command, sys.executable, *program],
                cwd=self.directory, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    def run_stand_in(self, text: str) -> None:
        """Run a program in place of the supervisor."""
        self.run("-c", f"from factorial.supervisor.process.init import as_init\nas_init()\n{text}")

    async def says(self, text: str, timeout: float = 20.0) -> None:
        await wait_until(
            lambda: text in self.log.read_text() or self.outside.poll() is not None, timeout, f"{text!r} in the log"
        )
        assert text in self.log.read_text(), self.log.read_text()

    @property
    def init(self) -> psutil.Process:
        """PID 1, seen from outside."""
        [init] = psutil.Process(self.outside.pid).children()
        return init

    @property
    def supervisor(self) -> psutil.Process:
        """The child that PID 1 has forked."""
        command = self.init.cmdline()
        [supervisor] = [child for child in self.init.children() if child.cmdline() == command]
        return supervisor

    def zombies(self) -> list[psutil.Process]:
        return [each for each in self.init.children(recursive=True) if each.status() == psutil.STATUS_ZOMBIE]

    async def ends(self, timeout: float = 20.0) -> int:
        """Wait for the end, and return the exit code."""
        await wait_until(lambda: self.outside.poll() is not None, timeout, f"the end; log: {self.log.read_text()}")
        return int(self.outside.returncode)


@pytest.fixture
async def container() -> AsyncIterator[Container]:
    container = Container(Path(tempfile.mkdtemp(prefix="fct-")))  # a short path, for the socket
    yield container
    if hasattr(container, "outside"):
        container.outside.kill()  # this ends all processes in the namespace
        container.outside.wait()
    shutil.rmtree(container.directory, ignore_errors=True)


@pytest.mark.parametrize(
    ("end", "code"),
    [("sys.exit(0)", 0), ("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", 137), ("os.kill(os.getpid(), 15)", 143)],
)
async def test_it_ends_with_the_supervisor_s_exit_code(container: Container, end: str, code: int) -> None:
    container.run_stand_in(f"import os, sys\nassert os.getppid() == 1 != os.getpid()\n{end}")
    assert await container.ends() == code, container.log.read_text()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"])
async def test_signals_are_passed_on(container: Container, name: str) -> None:
    container.run_stand_in(
        f"import signal, sys\nsignal.signal(signal.{name}, lambda *_: sys.exit(3))\n"
        "print('up', flush=True)\nwhile True: signal.pause()"
    )
    await container.says("up")
    container.init.send_signal(signal.Signals[name])
    assert await container.ends() == 3


async def test_a_supervisor_inherits_the_signal_mask_of_the_caller(container: Container) -> None:
    container.run_stand_in("import signal\nprint('held:', signal.pthread_sigmask(signal.SIG_BLOCK, []))")
    assert await container.ends() == 0
    assert "held: set()" in container.log.read_text()


async def test_orphans_are_collected_and_the_children_of_the_supervisor_are_not(container: Container) -> None:
    container.run_stand_in(
        "import subprocess, time\n"
        "own = subprocess.Popen(['sh', '-c', 'exit 5'])\n"
        "for _ in range(20): subprocess.run(['sh', '-c', 'sleep 0.2 & sleep 0 &'])\n"
        "time.sleep(1)\nprint('code', own.wait(), flush=True)\ntime.sleep(60)"
    )
    await container.says("code 5")
    assert container.zombies() == []
    assert container.init.children() == [container.supervisor]


async def test_pid_1_does_not_wait_for_a_program_that_a_tool_has_left(container: Container) -> None:
    container.run_stand_in(
        "import os, subprocess\nsubprocess.Popen(['sleep', '300'], start_new_session=True)\nos.kill(os.getpid(), 9)"
    )
    assert await container.ends(5) == 137


async def test_a_process_that_is_not_pid_1_does_not_fork(container: Container) -> None:
    container.run(
        "-c",
        "import os, subprocess, sys\nsys.exit(subprocess.run([sys.executable, '-c', "
        "'import os; from factorial.supervisor.process.init import as_init; before = os.getpid(); as_init(); "
        "assert os.getpid() == before']).returncode)",
    )
    assert await container.ends() == 0, container.log.read_text()


@pytest.fixture
async def system(container: Container, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Orchestrator]:
    """The real command as PID 1, and a client outside of the container."""
    (container.directory / "pid1_agents.py").write_text(AGENTS)
    (container.directory / "system.toml").write_text(SYSTEM)
    monkeypatch.chdir(container.directory)
    monkeypatch.setattr(sys, "path", list(sys.path))
    container.run("-m", "factorial.supervisor", "system.toml")
    await container.says("children are ready", 60)
    orchestrator = Orchestrator(redis_url=f"embedded:{container.directory}/data")
    yield orchestrator
    await orchestrator.close()
    sys.modules.pop("pid1_agents", None)


async def enqueue(orchestrator: Orchestrator, agent: str) -> str:
    task = await orchestrator.enqueue_task(
        load_agent(f"pid1_agents:{agent}"), owner_id="o", payload=AgentContext(query="q")
    )
    return task.id


async def test_the_command_as_pid_1_leaves_no_zombie_and_stops_gracefully(
    container: Container, system: Orchestrator
) -> None:
    task_id = await enqueue(system, "orphaner")

    async def is_done() -> bool:
        return await system.get_task_status(task_id) == "completed"

    await wait_until(is_done, 20, "the end of the task")
    assert len((container.directory / "orphans").read_text().split()) == 2
    await wait_until(
        lambda: not any(each.name() == "sleep" for each in container.init.children()), message="the orphans' end"
    )
    assert container.zombies() == []
    await system.close()  # so that the last process in the container stops the server
    container.init.send_signal(signal.SIGTERM)
    assert await container.ends() == 0
    assert "Traceback" not in container.log.read_text()


async def test_when_the_supervisor_is_killed_the_workers_drain_before_pid_1_ends(
    container: Container, system: Orchestrator
) -> None:
    task_id = await enqueue(system, "slow")
    await wait_until((container.directory / "at_work").exists, 20, "the task at work")
    await system.close()
    begin = time.monotonic()
    container.supervisor.kill()
    assert await container.ends() == 137
    assert (
        time.monotonic() - begin < 6 + 5 + 2
    )  # the grace, the time to leave, and the interval in which an orphan checks its parent
    log = container.log.read_text()
    assert log.count("the supervisor has ended: draining, then leaving") == 2
    assert "Traceback" not in log
    again = Orchestrator(redis_url=f"embedded:{container.directory}/data")
    data = await again.get_task_data(task_id)
    await again.close()
    assert data is not None
    assert (data["status"], data["retries"]) == ("queued", 0)  # released, and not reclaimed from a dead process
