"""The files in supervisors/: each system starts and runs a task of each agent; the other files are checked.

Real: the command, its processes, Valkey (embedded, or on a port), systemd's own check of the unit. Scripted: the model.
"""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import AsyncIterator, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import psutil
import pytest

from factorial import AgentContext, Orchestrator
from factorial.agent.load import load_agent
from factorial.cli.supervisor import main
from factorial.config import SystemConfig
from factorial.supervisor.rules.spec import LEAVE_SECONDS
from tests.support import wait_until
from tests.valkey import ValkeyServer

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "supervisors"
SYSTEMS = sorted(path.name for path in FILES.glob("*.toml"))
PRODUCTION = (FILES / "production.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SYSTEMS)
def test_it_passes_the_check(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    assert main([f"supervisors/{name}", "--check"]) == 0, capsys.readouterr().err
    assert "good; agents: " in capsys.readouterr().out


class Started:
    """A system that runs a file, in a directory of its own, and a client."""

    def __init__(self, directory: Path, name: str, redis_url: str) -> None:
        self.directory = directory
        self.file = FILES / name
        self.config = SystemConfig.from_toml(self.file)
        self.log = directory / "log"
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "REDIS_"))
        } | {"PYTHONPATH": str(ROOT), "REDIS_URL": redis_url}
        url = self.config.redis.url.replace("embedded:", f"embedded:{directory}/") or redis_url
        self.orchestrator = Orchestrator(redis_url=url, namespace=self.config.redis.namespace)

    async def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "factorial.supervisor", str(self.file),
                cwd=self.directory, env=self.environment, stderr=log, start_new_session=True,
            )  # fmt: skip
        await wait_until(
            lambda: "children are ready" in self.text or self.process.returncode is not None, 60, "the start"
        )
        assert "children are ready" in self.text, self.text

    @property
    def text(self) -> str:
        return self.log.read_text()

    async def run(self, reference: str) -> Any:
        """Run a task of an agent, and return its output."""
        task = await self.orchestrator.enqueue_task(
            load_agent(reference), owner_id="test", payload=AgentContext(query="Where is a 'lease' taken?")
        )

        async def is_over() -> bool:
            return await self.orchestrator.get_task_status(task.id) in ("completed", "failed", "cancelled")

        await wait_until(is_over, 40, f"the end of a task of {reference}; log: {self.text}")
        data = await self.orchestrator.get_task_data(task.id)
        assert data is not None
        assert data["status"] == "completed", data["error"]
        return data["payload"]["output"]

    def members(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._is_member(process)]

    def _is_member(self, process: psutil.Process) -> bool:
        """Whether it is of the session, or the embedded server, which has a session of its own."""
        try:
            at_home = os.getsid(process.pid) == self.process.pid or process.cwd().startswith(str(self.directory))
            return at_home and process.status() != psutil.STATUS_ZOMBIE
        except (ProcessLookupError, psutil.Error):
            return False


@pytest.fixture
async def started(request: pytest.FixtureRequest, own_valkey: ValkeyServer) -> AsyncIterator[Started]:
    """The system of the file that the test is parametrised with."""
    own_valkey.start(appendonly="yes")
    system = Started(Path(tempfile.mkdtemp(prefix="fct-")), request.param, own_valkey.url)
    yield system
    await system.orchestrator.close()
    for process in system.members():
        process.kill()
    if system.process.returncode is None:
        await system.process.wait()
    shutil.rmtree(system.directory, ignore_errors=True)


@pytest.mark.checkout
@pytest.mark.parametrize("started", SYSTEMS, indirect=True)
async def test_it_runs_a_task_of_each_agent_and_stops(started: Started) -> None:
    await started.start()
    count = sum(runner.process_count for runner in started.config.runner)
    assert len(re.findall(r"\w+\.\d+-\w+ \(pid \d+\) is ready", started.text)) == count
    for runner in started.config.runner:
        assert await started.run(runner.agent)
    await started.orchestrator.close()
    started.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(started.process.wait(), started.config.supervisor.grace) == 0, started.text
    assert "Traceback" not in started.text
    await wait_until(lambda: not started.members(), message="no process left")


@pytest.mark.parametrize("started", ["quickstart.toml"], indirect=True)
async def test_it_reports_to_systemd_what_the_unit_waits_for(started: Started) -> None:
    address = str(started.directory / "notify")
    started.environment |= {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.setblocking(False)
        said: list[str] = []

        async def hears(text: str) -> None:
            """Wait until it is reported, after what was reported before."""
            while text not in said:
                async with asyncio.timeout(40):
                    said.extend((await asyncio.get_running_loop().sock_recv(systemd, 4096)).decode().split("\n"))
            del said[: said.index(text) + 1]

        await started.start()
        await hears("WATCHDOG=1")
        await hears("READY=1")
        workers = [each for each in started.members() if "spawn_main" in " ".join(each.cmdline())]
        assert len(workers) == 2
        assert not [each for each in workers if {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(each.environ())]
        started.process.send_signal(signal.SIGHUP)
        await hears("RELOADING=1")
        await hears("READY=1")
        await hears("WATCHDOG=1")
        started.process.send_signal(signal.SIGTERM)
        await hears("STOPPING=1")
        assert await asyncio.wait_for(started.process.wait(), 20) == 0, started.text


# production.toml shows every key.


def keys_of(cls: Any, table: str) -> Iterator[tuple[str, str, Any]]:
    """Each table, key and default, of all nested tables."""
    for field in fields(cls):
        kind = get_type_hints(cls)[field.name]
        inner = kind.__args__[0] if getattr(kind, "__origin__", None) is tuple else kind
        if is_dataclass(inner):
            yield from keys_of(inner, f"{table}.{field.name}".strip("."))
        else:
            yield table, field.name, field.default


def shown() -> dict[tuple[str, str], str]:
    """The comment above each setting in the file, by table and key. Commented settings are included."""
    found: dict[tuple[str, str], str] = {}
    table, comment = "", ""
    for line in PRODUCTION.splitlines():
        if heading := re.fullmatch(r"\[+([\w.]+)\]+", line):
            table, comment = heading[1], ""
        elif setting := re.fullmatch(r"(?:# )?(\w+) = .*", line):
            found.setdefault((table, setting[1]), comment)
            comment = ""
        else:
            comment = f"{comment} {line.removeprefix('# ')}" if line else ""
    return found


ALL_KEYS = list(keys_of(SystemConfig, ""))


def test_all_tables_of_the_file_are_covered() -> None:
    assert len(ALL_KEYS) > 40
    assert {table for table, _, _ in ALL_KEYS} == set(re.findall(r"^\[+([\w.]+)\]+$", PRODUCTION, re.MULTILINE))


@pytest.mark.parametrize(("table", "key", "default"), ALL_KEYS, ids=[f"{table}.{key}" for table, key, _ in ALL_KEYS])
def test_production_shows_every_key_with_its_default(table: str, key: str, default: Any) -> None:
    comment = shown()[table, key]
    if default is MISSING:
        assert comment.endswith("There is no default.")
        return
    shown_default = re.search(r"Default: (.+)\.$", comment)
    assert shown_default, comment
    if default is None:
        assert re.match(r"as in \[|no", shown_default[1])
    else:
        assert tomllib.loads(f"it = {shown_default[1]}")["it"] == default


def test_production_has_no_unknown_key() -> None:
    assert set(shown()) == {(table, key) for table, key, _ in ALL_KEYS}


def test_production_takes_the_server_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://somewhere:1234/5")
    assert SystemConfig.from_toml(FILES / "production.toml").redis.resolved_url == "redis://somewhere:1234/5"


# Around the system: systemd, and containers.

GRACE = SystemConfig.from_toml(FILES / "production.toml").supervisor.grace
UNIT = (FILES / "factorial.service").read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    """Uses the Python that runs this test, because the one in the unit does not exist here."""
    unit = tmp_path / "factorial.service"
    unit.write_text(UNIT.replace("/opt/factorial/.venv/bin/python", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_an_error_in_a_broken_unit(tmp_path: Path) -> None:
    unit = tmp_path / "factorial.service"
    unit.write_text(UNIT.replace("/opt/factorial/.venv/bin/python", sys.executable) + "\n[Service]\nRestrat=no\n")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert "Restrat" in done.stderr


def test_the_unit_allows_enough_time_and_signals_only_the_supervisor() -> None:
    said = dict(re.findall(r"^(\w+)=(.*)$", UNIT, re.MULTILINE))
    assert float(said["TimeoutStopSec"]) > GRACE + LEAVE_SECONDS
    assert (said["Type"], said["KillMode"], said["OOMPolicy"]) == ("notify", "mixed", "continue")
    assert said["RestartPreventExitStatus"] == "2"


def test_the_image_has_the_supervisor_as_pid_1_and_not_as_root() -> None:
    said = dict(re.findall(r"^([A-Z]+) (.*)$", (FILES / "Dockerfile").read_text(), re.MULTILINE))
    assert said["ENTRYPOINT"] == '["python", "-m", "factorial.supervisor"]'
    assert (said["USER"], said["STOPSIGNAL"]) == ("factorial", "SIGTERM")
    file = re.fullmatch(r'\["(.+)"\]', said["CMD"])
    assert file and (ROOT / file[1]).is_file()


@pytest.mark.checkout
def test_the_files_that_the_image_copies_exist_and_install(tmp_path: Path) -> None:
    """The package's metadata can be made of what is copied before `pip install`: it names no missing file."""
    copies = re.findall(r"^COPY (.*) (\S+)$", (FILES / "Dockerfile").read_text(), re.MULTILINE)
    for sources, target in copies:
        for source in sources.split():
            path = ROOT / source
            assert path.exists()
            if path.is_dir():
                shutil.copytree(path, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, tmp_path / target)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())
    named = [project["project"]["readme"], *project["project"]["license-files"]]
    named += project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert [name for name in named if not (tmp_path / name).exists()] == []
    assert main_of(tmp_path) == 0


def main_of(directory: Path) -> int:
    """`--check` of the image's system, with nothing but what was copied."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    done = subprocess.run(
        [sys.executable, "-m", "factorial.supervisor", "supervisors/production.toml", "--check"],
        cwd=directory, env=environment | {"PYTHONPATH": str(directory)}, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode


def test_the_containers_share_a_server_with_persistence() -> None:
    yaml = pytest.importorskip("yaml")
    said = yaml.safe_load((FILES / "compose.yaml").read_text())
    valkey, system = said["services"]["valkey"], said["services"]["system"]
    command = " ".join(valkey["command"])
    assert "--appendonly yes" in command and "--maxmemory-policy noeviction" in command
    assert "healthcheck" in valkey and system["depends_on"]["valkey"]["condition"] == "service_healthy"
    assert (FILES / system["build"]["context"] / system["build"]["dockerfile"]).is_file()
    assert system["scale"] == 2
    assert float(system["stop_grace_period"].removesuffix("s")) > GRACE + LEAVE_SECONDS
    assert "volumes" in valkey
