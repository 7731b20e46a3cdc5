"""Messages to a task from outside: steering, a cancellation, the result of a deferred tool."""

import asyncio
import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from factorial._core.conversation import answered
from factorial.agent.agent import BaseAgent
from factorial.agent.callbacks import call_back
from factorial.agent.lifecycle.codec import decode_context, encode_messages
from factorial.agent.lifecycle.failure import describe
from factorial.agent.lifecycle.waiting import encode_result, is_call_id
from factorial.config import AgentWorkerConfig
from factorial.context import ExecutionContext, entered
from factorial.errors import (
    ConfigError,
    ContextError,
    FactorialError,
    FatalAgentError,
    InactiveTaskError,
    MailboxFullError,
    RetryableError,
)
from factorial.events import EventType, QueueEvent
from factorial.mailbox.operations.cancel import cancel
from factorial.mailbox.operations.deliver import deliver
from factorial.mailbox.operations.publish import Publisher
from factorial.mailbox.operations.steer import steer
from factorial.mailbox.script import Scripts
from factorial.mailbox.views.read import read_owner, read_run
from factorial.task import TaskStatus, check_task_id
from factorial.telemetry.task_log import TaskLog

__all__ = ["Served", "cancel_task", "deliver_result", "steer_task"]

_logger = logging.getLogger("factorial.orchestrator")

_ROLES = ("system", "developer", "user", "assistant")


class Served(Protocol):
    """An agent that has a runner in this program."""

    @property
    def agent(self) -> BaseAgent[Any]:
        """The agent."""

    @property
    def worker(self) -> AgentWorkerConfig:
        """How its processes work."""


async def steer_task(scripts: Scripts, task_id: str, messages: Sequence[Mapping[str, Any]]) -> None:
    """Put `messages` into the task's mailbox. If they are rejected, `run_steering_failed` is published, too."""
    check_task_id(task_id)
    if messages == []:
        return
    try:
        encoded = encode_messages(_checked_messages(messages))
        await steer(scripts, task_id=task_id, message_id=uuid.uuid4().hex, messages=encoded)
    except (ConfigError, ContextError, InactiveTaskError, MailboxFullError) as rejected:
        await _publish_rejection(scripts, task_id, rejected)
        raise


async def _publish_rejection(scripts: Scripts, task_id: str, rejected: FactorialError) -> None:
    if (owner_and_agent := await read_owner(scripts, task_id)) is None:
        return
    owner_id, agent = owner_and_agent
    event = QueueEvent(
        event_type=EventType.RUN_STEERING_FAILED,
        task_id=task_id,
        owner_id=owner_id,
        agent_name=agent,
        error=str(rejected),
    )
    await Publisher(scripts, owner_id).publish_event(event)


def _checked_messages(messages: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(messages, list | tuple) or not messages:
        raise ConfigError('Invalid steering message format: give a list such as [{"role": "user", "content": "..."}]')
    for position, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES or not _is_content(message):
            raise ConfigError(
                f"Invalid steering message format: messages[{position}] needs a 'content' (text, or a list of parts), "
                f"and a 'role' ({', '.join(_ROLES)})"
            )
        if message.get("tool_calls"):  # nothing would answer these calls, and providers reject such a conversation
            raise ConfigError(
                f"Invalid steering message format: messages[{position}] calls tools, which only a model can"
            )
    return messages


def _is_content(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    if isinstance(content, list):
        return bool(content) and all(isinstance(part, Mapping) and part.get("type") for part in content)
    return isinstance(content, str) and bool(content)


async def deliver_result(scripts: Scripts, task_id: str, tool_call_id: str, result: Any) -> bool:
    """Deliver a deferred tool's result. False if the task does not await it."""
    if not is_call_id(tool_call_id):
        raise ConfigError(
            f"tool_call_id={str(tool_call_id)[:80]!r}: give the id of the call, "
            "which is execution_ctx.tool_call_id in the tool"
        )
    encoded = encode_result(tool_call_id, result)
    return await deliver(scripts, task_id=check_task_id(task_id), tool_call_id=tool_call_id, result=encoded)


async def cancel_task(scripts: Scripts, task_id: str, runners: Mapping[str, Served]) -> TaskStatus:
    """Ask that the task end as cancelled. If that ends it here, call its agent's `on_run_cancelled`."""
    answer = await cancel(scripts, task_id=check_task_id(task_id))
    if TaskLog.is_enabled(logging.DEBUG) and (owner_and_agent := await read_owner(scripts, task_id)):
        owner_id, agent = owner_and_agent
        TaskLog(task_id, agent, owner_id).cancelling(answer.status)
    if answer.ended_here and any(served.agent.on_run_cancelled for served in runners.values()):
        await _call_back_cancelled(scripts, task_id, runners)
    return answer.status


async def _call_back_cancelled(scripts: Scripts, task_id: str, runners: Mapping[str, Served]) -> None:
    """No worker held the task, so no other process calls its agent."""
    run = await read_run(scripts, task_id)
    served = runners.get(run.agent) if run else None
    if run is None or served is None or served.agent.on_run_cancelled is None:
        return
    agent = served.agent
    execution_ctx = ExecutionContext(
        task_id=task_id,
        owner_id=run.owner_id,
        events=Publisher(scripts, run.owner_id, task_id, agent.name),
        agent_name=agent.name,
        retries=run.retries,
        pickups=run.pickups,
    )
    try:
        context = decode_context(agent.context_class, run.fields, run.conversation)
        context.messages = answered(context.messages)
        async with asyncio.timeout(served.worker.turn_timeout):
            with entered(execution_ctx, None):
                await call_back(agent.on_run_cancelled, context, execution_ctx)
    except (FatalAgentError, RetryableError, ContextError, TimeoutError) as error:
        # The task has ended: this cannot change that.
        _logger.warning("task %s of %s: on_run_cancelled: %s", task_id, agent.name, describe(error))
