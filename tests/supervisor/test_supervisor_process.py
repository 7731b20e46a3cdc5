"""One child as a process: real processes, started by the test itself. They need no Redis."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from factorial.errors import SupervisionError
from factorial.supervisor.process import ChildProcess
from factorial.supervisor.spec import ChildSpec


@pytest.fixture
def spec(tmp_path: Path) -> ChildSpec:
    return ChildSpec(
        id="child", target="tests.supervisor.targets:obedient", kwargs={"diary": str(tmp_path / "diary")}, shutdown=2
    )


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    yield
    left = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
    for child in left:
        child.kill()
    assert not left


async def ended(child: ChildProcess) -> int | None:
    return await asyncio.wait_for(child.exited(), 10)


async def test_it_gets_ready_and_drains(spec: ChildSpec) -> None:
    main = sys.modules["__main__"]
    child = ChildProcess(spec)
    assert sys.modules["__main__"] is main
    assert await child.ready() is True
    child.drain()
    assert await ended(child) == 0
    child.drain()
    child.kill()  # nobody is there any more: no error, and nobody else is hit


async def test_no_descriptor_is_left_open(spec: ChildSpec) -> None:
    async def live_and_die() -> None:
        child = ChildProcess(spec)
        assert await child.ready()
        child.kill()
        await ended(child)

    await live_and_die()
    before = psutil.Process().num_fds()
    await live_and_die()
    assert psutil.Process().num_fds() == before


async def test_the_second_way_to_see_its_end(spec: ChildSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no pidfd."""
    monkeypatch.delattr(os, "pidfd_open")
    child = ChildProcess(spec)
    assert await child.ready()
    os.kill(child.pid, signal.SIGKILL)
    assert await ended(child) == -signal.SIGKILL


async def test_it_does_not_matter_who_takes_the_exit_code(spec: ChildSpec) -> None:
    child = ChildProcess(spec)
    assert await child.ready()
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)  # noqa: ASYNC222  # it has ended: no waiting
    assert await ended(child) is None


async def test_a_process_that_ends_before_it_is_ready_says_why(spec: ChildSpec, tmp_path: Path) -> None:
    child = ChildProcess(ChildSpec(id="c", target="tests.supervisor.targets:fails", kwargs=spec.kwargs))
    assert await child.ready() is False
    assert await ended(child) == 1
    assert child.failure == "ValueError: no such luck"


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("no_such_module_at_all:run", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("tests.supervisor.targets:nothing", "tests.supervisor.targets:nothing is no `async def` function"),
        ("tests.supervisor.targets:note", "tests.supervisor.targets:note is no `async def` function"),
    ],
)
async def test_a_target_that_cannot_run(target: str, named: str) -> None:
    child = ChildProcess(ChildSpec(id="child", target=target))
    assert await child.ready() is False
    await ended(child)
    assert child.failure.startswith(named)


async def test_the_operating_system_refuses(spec: ChildSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.util.spawnv_passfds", refuse)
    with pytest.raises(SupervisionError, match=r"child 'child' could not be started: .*temporarily unavailable"):
        ChildProcess(spec)


async def test_signals_are_as_before(spec: ChildSpec) -> None:
    """They are held back only while a process is being started."""
    child = ChildProcess(spec)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    child.kill()
    await ended(child)
