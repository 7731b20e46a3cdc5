"""The demo: several questions at once, two worker processes, and a `kill -9` in the middle of it.

    start the tree -> enqueue -> follow the events -> kill -> follow them to the end -> stop the tree -> the account

The exit code is 0 if every promise in the account was kept.
"""

import asyncio
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.model import HAS_KEY, WHO_ANSWERS
from examples.quickstart import witness
from examples.quickstart.account import settle
from examples.quickstart.agent import agent
from examples.quickstart.show import Screen, rule, show_account, show_answers
from examples.quickstart.tree import Tree
from examples.quickstart.watch import Kill, TaskWatch, victim
from factorial import AgentContext, Orchestrator

QUESTIONS = {
    "A": "What is the 'heartbeat' of a process, and what happens without it?",
    "B": "Where is the 'journal' of a turn kept?",
    "C": "What does the 'supervisor' do when a child ends?",
    "D": "Who makes a 'backoff', and how long is it?",
    "E": "How does a 'steer' reach a running task?",
    "F": "Which code decides that a 'cancel' is accepted?",
}
PATIENCE = 180.0 if HAS_KEY else 25.0


class Demo:
    """One run of the demo."""

    def __init__(self, diary: Path) -> None:
        self.owner = f"demo-{uuid.uuid4().hex[:8]}"
        self.diary = diary
        self.screen = Screen()
        self.orchestrator = Orchestrator(redis_url="embedded:.factorial")  # as in quickstart.toml
        self.tasks: dict[str, TaskWatch] = {}
        self.kill: Kill | None = None

    async def run(self) -> bool:
        """Run it. Returns whether every promise was kept."""
        tree = await Tree.start(self.screen.supervisor)
        try:
            conversations = await self.ask()
        finally:
            stopped = await tree.stop()
            await self.orchestrator.close()
        show_answers(list(self.tasks.values()))
        account = settle(self.tasks, conversations, self.executions(), self.kill, stopped)
        show_account(account)
        return all(is_kept for _, is_kept in account.promises)

    async def ask(self) -> list[Sequence[Mapping[str, Any]]]:
        """Enqueue all questions, and follow the tasks until they end. Returns the conversations."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self.enqueue()
                await self.follow()
        except TimeoutError:
            self.screen.line("demo", f"gave up after {PATIENCE:g} s")
        finally:
            conversations = [await self.end(task_id) for task_id in self.tasks]
        return conversations

    async def enqueue(self) -> None:
        """Enqueue all questions at once."""
        for name, question in QUESTIONS.items():
            task = agent.create_task(self.owner, AgentContext(query=question))
            await self.orchestrator.enqueue_task(agent=agent, task=task)
            self.tasks[task.id] = TaskWatch(name, question)
            self.screen.line("demo", question, name)

    async def follow(self) -> None:
        """Print the events as they come until all tasks have ended. Kill a process in the middle of a turn."""
        async for event in self.orchestrator.subscribe_to_updates(self.owner):
            task = self.tasks[event["task_id"]]
            had_continued = task.take_over is not None
            task.follow(event, self.kill)
            if task.take_over is not None and not had_continued:
                self.screen.take_over(task)
            self.screen.event(event, task)
            if self.kill is None and (process := victim(self.tasks.values())):
                self.kill = self.kill_process(process)
            if all(task.ending for task in self.tasks.values()):
                return

    def kill_process(self, process: str) -> Kill:
        """Kill the process with SIGKILL, so that it cannot release its tasks."""
        pid = next(one.pid for one in self.executions() if one.process == process)
        held = {task_id: task for task_id, task in self.tasks.items() if task.process == process and not task.ending}
        os.kill(pid, signal.SIGKILL)
        killed_at = time.time()
        names = ", ".join(task.name for task in held.values())
        self.screen.line("demo", f"✗ kill -9 {pid}: {process} was in the middle of the tasks {names}")
        return Kill(process, killed_at, frozenset(held))

    def executions(self) -> list[witness.Execution]:
        """What the witness recorded of this demo's tasks."""
        return [one for one in witness.testimony(self.diary) if one.task_id in self.tasks]

    async def end(self, task_id: str) -> Sequence[Mapping[str, Any]]:
        """Cancel the task if it has not ended, so that the next demo starts without it. Returns its conversation."""
        if not self.tasks[task_id].ending:
            await self.orchestrator.cancel_task(task_id)
        data = await self.orchestrator.get_task_data(task_id)
        return data["payload"]["messages"] if data else []


def main() -> int:
    rule("Factorial: an agent answers questions about this repository, and one of its processes is killed")
    print(WHO_ANSWERS)
    with tempfile.TemporaryDirectory() as directory:
        diary = Path(directory) / "witness"
        os.environ[witness.FILE_VARIABLE] = str(diary)
        try:
            return 0 if asyncio.run(Demo(diary).run()) else 1
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    sys.exit(main())
