"""One turn: prepare the messages, ask the model, run the tools it calls, and see whether the run is done.

Called by `BaseAgent.run_turn`, which a user's agent may override. Its `TurnCompletion` goes to `activation.py`.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from factorial._core.boundary import Raised, caught, ordinary
from factorial.agent.completion import TurnCompletion
from factorial.agent.lifecycle.definition import AgentDefinition
from factorial.agent.lifecycle.ending import CORRECTION, answer_text, check_complete, check_outputs
from factorial.agent.lifecycle.failure import is_final
from factorial.agent.lifecycle.steps import current_frame
from factorial.agent.lifecycle.waiting import answer_calls
from factorial.context import ContextType, ExecutionContext
from factorial.errors import RetryableError
from factorial.models import assistant_message
from factorial.models.answer import finish_reason, function_calls
from factorial.tools import FunctionToolActionResult, call_tool
from factorial.tools.output import failure

__all__ = ["settled", "take_turn"]


async def take_turn(agent: AgentDefinition[ContextType], agent_ctx: ContextType) -> TurnCompletion[ContextType]:
    """Take the next turn of the run, and append its messages to the context."""
    response = await agent.completion(agent_ctx, agent.messages_to_send(agent_ctx))
    if not response.choices:
        raise RetryableError("the model's answer holds no choice")
    calls = function_calls(response)
    if not calls:
        check_complete(agent, response)
    agent_ctx.messages.append(assistant_message(response))
    results = await _answer(agent, agent_ctx, calls)
    done, output = False, None
    if agent.final_output is None and not calls:
        done, output = True, answer_text(response)
    for call, result in zip(calls, results, strict=True):
        if agent.is_final_output(call) and result.error is None:
            done, output = True, result.output_data
            break
    if agent.final_output is not None and not done:
        mistake = results[-1].output_str if results else str(answer_text(response))
        check_outputs(agent, agent_ctx.messages, mistake)
        if not calls:
            agent_ctx.messages.append(dict(CORRECTION))
    completion = TurnCompletion(
        is_done=done,
        context=agent_ctx,
        output=output,
        tool_call_results=list(zip(calls, results, strict=True)),
        finish_reason=finish_reason(response),
    )
    pending = [result for result in results if result.is_pending]
    if pending and not done:  # all calls are answered together, when the results have arrived
        completion.pending_tool_call_ids = [result.tool_call_id for result in pending if result.pending_result]
        completion.pending_child_task_ids = [child for result in pending for child in result.pending_child_task_ids]
    else:
        answer_calls(agent_ctx.messages, [settled(result) for result in results])
    return completion


async def _answer(
    agent: AgentDefinition[ContextType], agent_ctx: ContextType, calls: Sequence[Any]
) -> list[FunctionToolActionResult]:
    """The result of each call, in their order. Every tool finishes, and is recorded, before an error is raised."""
    tool_calls = [call for call in calls if not agent.is_final_output(call)]
    if (frame := current_frame()) is not None:
        frame.steps.expect_calls(len(tool_calls))
    returned = await asyncio.gather(*(caught(partial(agent.tool_action, call, agent_ctx)) for call in tool_calls))
    if errors := [ordinary("tool_action", one.error) for one in returned if isinstance(one, Raised)]:
        raise next(filter(is_final, errors), errors[0])
    results = iter(cast(list[FunctionToolActionResult], returned))
    return [
        await call_tool(agent.final_output, call, agent_ctx, ExecutionContext.get())
        if agent.is_final_output(call)
        else next(results)
        for call in calls
    ]


def settled(result: FunctionToolActionResult) -> FunctionToolActionResult:
    """`result`, or if it is still to come an error: the run does not await it, and each call needs an answer."""
    return failure(result.tool_call_id, "the run has ended without this result") if result.is_pending else result
