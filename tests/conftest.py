"""Fixtures for all tests: one real server per xdist worker, a namespace for each test, and a system in it."""

import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.chaos import figures
from tests.guard import pytest_cmdline_main as pytest_cmdline_main
from tests.harness import System
from tests.redis.server_doctor import ServerDoctor
from tests.valkey import ValkeyServer, running, server_version
from tests.valkey_cluster import ValkeyCluster
from tests.valkey_sentinel import ValkeySentinels

SharedServer = ValkeyServer | ValkeyCluster | ValkeySentinels
SHARED_SERVERS: dict[str, Callable[[Path], SharedServer]] = {
    "standalone": ValkeyServer,
    "cluster": ValkeyCluster,
    "sentinel": lambda directory: ValkeySentinels(directory, down_after=15),
}
TEST_SERVER = os.environ.get("FACTORIAL_TEST_SERVER", "standalone")


@pytest.fixture(scope="session")
def valkey() -> Iterator[SharedServer]:
    """A real server without persistence. Tests share it: do not stop or configure it.

    `FACTORIAL_TEST_SERVER` selects the kind: one server on a unix socket, a cluster, or a server with sentinels.
    """
    # Not pytest's own tmp_path: the path of a unix socket must stay below 108 bytes.
    directory = Path(tempfile.mkdtemp(prefix="fct-"))
    try:
        with running(SHARED_SERVERS[TEST_SERVER](directory)) as server:
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_url(valkey: SharedServer) -> str:
    """The URL of the shared server, for this process and any other on this machine."""
    return valkey.url


@pytest.fixture(scope="session")
def node_url(valkey: SharedServer) -> str:
    """The URL of one node for plain clients: a primary of the cluster, or the primary of the sentinels."""
    match valkey:
        case ValkeyCluster():
            return valkey.primaries[0].url
        case ValkeySentinels():
            return valkey.primary.url
    return valkey.url


@pytest.fixture(scope="session")
def one_server_url(valkey: SharedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a single server, whatever the kind of the shared server is. It stores keys of any name."""
    if isinstance(valkey, ValkeyServer):
        yield valkey.url
        return
    with running(ValkeyServer(tmp_path_factory.mktemp("one"), tcp=True)) as server:
        yield server.url


@pytest.fixture(scope="session")
def server_doctor() -> Iterator[ServerDoctor]:
    """The doctor, which asserts the invariants of everything that a server stores."""
    server_doctor = ServerDoctor()
    yield server_doctor
    server_doctor.close()


@pytest.fixture(autouse=True)
def invariants_hold(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test that uses the shared server: assert the invariants of what it stored, and remove that.

    This fixture is set up before the other fixtures of the test. So it is torn down after them, when nothing changes.
    """
    if "valkey" not in request.fixturenames:
        yield
        return
    server_doctor, url = request.getfixturevalue("server_doctor"), request.getfixturevalue("redis_url")
    yield
    namespace = request.node.funcargs.get("namespace", "factorial")
    try:
        if not request.node.get_closest_marker("broken"):
            server_doctor.check(url, namespace, end_events=_ends_are_events(request))
    finally:
        server_doctor.tidy(url, namespace)


def _ends_are_events(request: pytest.FixtureRequest) -> bool:
    """Whether the end of each run is an event. A test with a bare mailbox ends runs itself, without these events."""
    return "mailbox" not in request.fixturenames


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def system(redis_url: str, namespace: str) -> AsyncIterator[System]:
    """A namespace with an orchestrator. The test starts processes in it. Asserts the invariants at the end."""
    async with System(redis_url, namespace) as system:
        yield system


@pytest.fixture
def own_valkey(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, server_doctor: ServerDoctor
) -> Iterator[ValkeyServer]:
    """A server for this test alone, on a TCP port. The test starts it, and may stop, restart and configure it.

    If it runs at the end of the test, the invariants of everything that it stores are asserted.
    """
    server = ValkeyServer(tmp_path_factory.mktemp("valkey"), tcp=True)
    try:
        yield server
        if server.answers() and not request.node.get_closest_marker("broken"):
            server_doctor.check(server.url, end_events=_ends_are_events(request))
    finally:
        server.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach what a fault test counted to its report."""
    report = yield
    report.user_properties += [("fault", row) for row in figures.news()]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of survived faults. It leaves out what failed tests counted."""
    reports = {outcome: terminalreporter.getreports(outcome) for outcome in ("passed", "failed", "error")}
    broken = {report.nodeid for outcome in ("failed", "error") for report in reports[outcome]}
    counted = [row for report in reports["passed"] if report.nodeid not in broken for row in report.user_properties]
    if rows := sorted(row for name, row in counted if name == "fault"):
        terminalreporter.section("faults survived")
        for line in figures.table(rows):
            terminalreporter.write_line(line)


def pytest_report_header() -> str:
    """The kind and the version of the server that the tests use."""
    return f"server: {TEST_SERVER}, {server_version()}"
