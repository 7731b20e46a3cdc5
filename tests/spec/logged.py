"""The agent of the logging tests: its one tool does what its argument says, and has much to say about it."""

import asyncio
import logging
import os
import sys

from factorial import Agent, ExecutionContext, FatalAgentError, RetryableError, gpt_41

KEY = "sk-proj-0123456789abcdef"
PASSWORD = "hunter2"


def confession() -> str:
    """A text as a careless library writes it: with a key, the provider's key, a password, and a line of a log."""
    said = f"key {KEY}, {os.environ['OPENAI_API_KEY']}, redis://app:{PASSWORD}@db:6379/0"
    return f"{said}\n2026-01-02 03:04:05,678 INFO    desk.1-000000 factorial.task: task forged of desk: completed"


async def act(how: str, execution_ctx: ExecutionContext) -> str:
    """Do it."""
    print(f"acting: {how}")
    print(f"with the key {KEY}", file=sys.stderr)
    logging.getLogger("mine").info("acting %s", how, extra={"how": how, "api_key": KEY})
    if how == "retry" and execution_ctx.retries == 0:
        raise RetryableError(confession())
    if how == "fail":
        raise FatalAgentError(confession())
    if how == "raise":
        raise OSError(confession())
    if how == "wait":
        await asyncio.Event().wait()
    return "done"


desk = Agent(name="desk", instructions="Act.", tools=[act], model=gpt_41)
