"""`python -m tests.chaos.nursery system.toml`: the worker processes of a configuration, quickly born.

It stands in for the supervision tree where a test kills hundreds of processes: one process imports everything once, and
forks the workers; for each that ends it forks another one, which first has the dead one's tasks taken back. A start
takes some 30 ms, where a supervisor's takes as long as the imports. What runs in a worker is all real; the lifeline is
a fake one. SIGTERM ends it, as it ends a supervisor. `System.start("-m", "tests.chaos.nursery", str(system.config))`.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable

from factorial.actors.worker_process import WorkerProcess, prepare
from factorial.agent.load import load_agent
from factorial.config import RunnerConfig, SystemConfig
from factorial.mailbox import Namespace
from factorial.mailbox.operations.lease import Cause

Grave = tuple[str, Cause]


class Lifeline:
    """Says what the nursery says: by SIGTERM."""

    def __init__(self, process: str) -> None:
        self.process = process
        self.draining = asyncio.Event()
        self.leaving = asyncio.Event()

    def ready(self) -> None:
        """The process works."""
        logging.getLogger("nursery").info("(pid %d) is ready", os.getpid())

    def gauge(self, name: str, read: Callable[[], float]) -> None:
        """Nobody reads it."""


async def live(config: SystemConfig, runner: RunnerConfig, name: str, predecessor: Grave | None) -> None:
    """The life of one worker process."""
    lifeline = Lifeline(name)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lifeline.draining.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    mailbox = await Namespace.open(config.redis, config.events, config.metrics, patient=True)
    try:
        if predecessor is not None:
            await mailbox.reclaim_process(*predecessor)
        agent = load_agent(runner.agent)
        await WorkerProcess(agent, mailbox, name, runner.worker, runner.maintenance).run(
            lifeline, config.supervisor.grace
        )
    finally:
        await mailbox.close()


class Nursery:
    """The workers that live, by pid."""

    def __init__(self, config: SystemConfig) -> None:
        self.config = config
        self.living: dict[int, tuple[RunnerConfig, str]] = {}
        self.born = 0
        self.closing = False

    def bear(self, runner: RunnerConfig, predecessor: Grave | None = None) -> None:
        """Fork one more worker."""
        self.born += 1
        name = f"nursling-{self.born}"
        pid = os.fork()
        if pid:
            self.living[pid] = (runner, name)
            return
        try:
            logging.basicConfig(level=logging.INFO, format=f"%(levelname)s {name} %(name)s: %(message)s", force=True)
            asyncio.run(live(self.config, runner, name, predecessor))
            os._exit(0)
        except BaseException:
            logging.exception("a worker has failed")
            os._exit(1)

    def close(self) -> None:
        """Ask all to leave; none is born any more."""
        self.closing = True
        for pid in self.living:
            os.kill(pid, signal.SIGTERM)

    def watch(self) -> None:
        """Replace the dead, until all have left."""
        while self.living:
            # A SIGTERM between a fork and its entry in the books would not reach that child.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            pid, status = os.wait()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            runner, name = self.living.pop(pid)
            exitcode = os.waitstatus_to_exitcode(status)
            logging.warning("%s (pid %d) ended by %d", name, pid, exitcode)
            if not self.closing:
                self.bear(runner, (name, Cause.KILLED if exitcode == -signal.SIGKILL else Cause.CRASHED))


def main() -> None:
    """Run the configuration that the command line names."""
    config = SystemConfig.from_toml(sys.argv[1])
    prepare()
    for runner in config.runner:
        load_agent(runner.agent)
    logging.basicConfig(level=logging.INFO)
    nursery = Nursery(config)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGTERM, lambda *_: nursery.close())
    for runner in config.runner:
        for _ in range(runner.processes or runner.worker.processes):
            nursery.bear(runner)
    logging.info("all %d children are ready", len(nursery.living))
    nursery.watch()


if __name__ == "__main__":
    main()
