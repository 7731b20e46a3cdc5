"""What a worker does with a wake token that it cannot use. Real: the worker. Fake: everything around it."""

from types import SimpleNamespace
from typing import Any

from factorial.actors.durable_host import Workplace
from factorial.actors.worker import Ready, Refill, Worker
from factorial.config import AgentWorkerConfig


class Process:
    """Stands in for the process, and counts the tokens that the worker passed on."""

    def __init__(self) -> None:
        self.passed_on = 0

    async def pass_on(self) -> None:
        self.passed_on += 1


def full_worker(process: Any) -> Worker:
    nobody: Any = SimpleNamespace(name="nobody")
    worker = Worker("worker-1", Workplace(nobody, nobody, "p", AgentWorkerConfig(batch_size=1)), process)
    worker.drain()
    assert worker.free_slots == 0
    return worker


async def test_a_worker_without_room_passes_the_token_on() -> None:
    """A process passes its token to the worker with the most free slots, and a claim may fill these in the meantime. If
    the worker kept the token, ready tasks would wait although other workers are idle."""
    process = Process()
    await full_worker(process).receive(Ready())
    assert process.passed_on == 1


async def test_a_freed_slot_is_not_a_token() -> None:
    process = Process()
    await full_worker(process).receive(Refill())
    assert process.passed_on == 0
