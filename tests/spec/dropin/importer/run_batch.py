"""Enqueues a batch, and prints how far it is: `python run_batch.py COUNT` or `python run_batch.py COUNT cancel`."""

import asyncio
import json
import sys

from agent import agent, orchestrator

from factorial import AgentContext
from factorial.exceptions import BatchNotFoundError

EVENTS = ["batch_progress", "batch_completed", "batch_cancelled"]


async def main(count: int, cancel: bool) -> None:
    payloads = [AgentContext(query=f"Summarize document {number}") for number in range(count)]
    batch = await orchestrator.enqueue_batch(agent=agent, owner_id="librarian", payloads=payloads)
    print(json.dumps({"batch": batch.id, "tasks": len(batch.task_ids), "status": batch.metadata.status}), flush=True)
    async for event in orchestrator.subscribe_to_updates(owner_id="librarian", event_types=EVENTS):
        if event.get("batch_id") != batch.id:
            continue
        shown = ("event_type", "owner_id", "progress", "completed_tasks", "total_tasks", "status")
        print(json.dumps({name: event[name] for name in shown}), flush=True)
        if event["event_type"] != "batch_progress":
            break
        if cancel:
            cancel = False
            updated = await orchestrator.cancel_batch(batch.id)
            print(json.dumps({"cancelled": updated.metadata.status}), flush=True)
    ends = {}
    for task_id in batch.task_ids:
        status = await orchestrator.get_task_status(task_id)
        ends[status.value] = ends.get(status.value, 0) + 1
    print(json.dumps(ends), flush=True)
    try:
        await orchestrator.cancel_batch("no-such-batch")
    except BatchNotFoundError as error:
        print(json.dumps({"unknown": error.batch_id}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), "cancel" in sys.argv))
