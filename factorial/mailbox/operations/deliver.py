"""Delivers the result of a deferred tool call (`deliver.lua`). Called by the orchestrator."""

import secrets

from factorial.mailbox.script import Scripts

__all__ = ["deliver"]


async def deliver(scripts: Scripts, *, task_id: str, tool_call_id: str, result: bytes) -> bool:
    """Deliver `result` to the run that awaits it. False: no run awaits it (any more), or it has a result already."""
    answer = await scripts.run("deliver", task_id, tool_call_id, secrets.token_hex(8), result)
    return bool(answer[0] == b"OK")
