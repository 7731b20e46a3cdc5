"""The result of a deferred tool call (`give.lua`). Called by the orchestrator."""

import secrets

from factorial.mailbox.script import Scripts

__all__ = ["deliver"]


async def deliver(scripts: Scripts, *, task_id: str, tool_call_id: str, result: bytes) -> bool:
    """Hand `result` to the run that waits for it. False: nobody does (any more), or it has one already."""
    answer = await scripts.run("deliver", task_id, tool_call_id, secrets.token_hex(8), result)
    return bool(answer[0] == b"OK")
