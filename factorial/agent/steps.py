"""The steps of a turn that cost money or change the world: model calls and tool calls. Each finished one is journaled.

A turn that is taken again (after a crash, a retry or a release) finds its finished steps in the journal and does not
repeat them, whoever overrode `completion` or `tool_action`: the outermost call of each is the step. What is called from
within a step belongs to that step.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from factorial.agent.answer import function_calls
from factorial.agent.host import Host, Recorded
from factorial.agent.progress import progress
from factorial.context import AgentContext, ExecutionContext
from factorial.errors import FatalAgentError
from factorial.tools import FINAL_OUTPUT, FunctionToolActionResult
from factorial.utils import dump_anything, dump_json, load_json

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion, ChatCompletionMessageToolCall

__all__ = ["Steps", "journaled", "tool_message"]

T = TypeVar("T")


class Steps:
    """The steps of one turn."""

    def __init__(self, host: Host, execution: ExecutionContext) -> None:
        self._host = host
        self._execution = execution
        self._begun: dict[str, int] = {}
        self.outstanding = 0
        """Tool calls of this turn that have not finished."""

    async def completion(
        self, agent_ctx: AgentContext, messages: list[dict[str, Any]], call: Callable[[], Awaitable["ChatCompletion"]]
    ) -> "ChatCompletion":
        """One model call."""
        from openai.types.chat import ChatCompletion

        key = self._key("completion")
        if earlier := self._host.recall(key):
            return ChatCompletion.model_validate_json(earlier.result)
        execution = replace(self._execution, step="completion", idempotency_key=self._idempotency_key(agent_ctx, key))
        with execution.active():
            response = await progress(
                "completion", execution, agent_ctx, self._checked("completion", call, ChatCompletion),
                kwargs={"messages": len(messages)}, show=_show_completion,
            )  # fmt: skip
        urgent = any(call.function.name != FINAL_OUTPUT for call in function_calls(response))
        answer = response.model_dump(exclude_unset=True)
        try:
            recorded = dump_json(answer)
        except ValueError:  # text that UTF-8 cannot hold: half of an emoji
            recorded = dump_anything(answer)
            response = ChatCompletion.model_validate_json(recorded)
        await self._host.record(key, Recorded(recorded), urgent=urgent)
        return response

    async def tool_action(
        self,
        tool_call: "ChatCompletionMessageToolCall",
        agent_ctx: AgentContext,
        call: Callable[[], Awaitable[FunctionToolActionResult]],
    ) -> FunctionToolActionResult:
        """One tool call."""
        key = self._key(f"tool:{tool_call.id}")
        try:
            if recorded := self._host.recall(key):
                return _recalled_result(recorded)
            execution = replace(
                self._execution, step="tool_action", idempotency_key=self._idempotency_key(agent_ctx, key)
            )
            with execution.active():
                result = await progress(
                    "tool_action", execution, agent_ctx, self._checked("tool_action", call, FunctionToolActionResult),
                    args=[tool_call.model_dump()], show=_show_result,
                )  # fmt: skip
        finally:
            self.outstanding -= 1
        await self._host.record(key, _record_result(result), urgent=self.outstanding != 0)
        return result

    def _checked(self, step: str, call: Callable[[], Awaitable[T]], kind: type[T]) -> Callable[[], Awaitable[T]]:
        """`call`, which fails for good if an overridden method returns something else than `kind`."""

        async def checked() -> T:
            value: object = await call()
            if not isinstance(value, kind):
                agent = type(self._execution.run.agent).__name__
                raise FatalAgentError(f"{agent}.{step} returned {type(value).__name__}: return a {kind.__name__}")
            return value

        return checked

    def _key(self, step: str) -> str:
        """The name of a step in the journal: the same when the turn is taken again."""
        count = self._begun[step] = self._begun.get(step, 0) + 1
        return step if count == 1 else f"{step}#{count}"

    def _idempotency_key(self, agent_ctx: AgentContext, key: str) -> str:
        return f"{self._execution.task_id}:{agent_ctx.turn}:{key}"


def journaled(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """The agent method `name` (`completion` or `tool_action`) as a step, when it is the outermost call."""
    if getattr(method, "is_journaled", False):
        return method

    @wraps(method)
    async def step(self: Any, first: Any, second: Any) -> Any:
        execution = ExecutionContext.get()
        if execution is None or execution.step or execution.run is None:
            return await method(self, first, second)
        steps: Steps = execution.run.steps
        take = steps.completion if name == "completion" else steps.tool_action
        return await take(first, second, lambda: method(self, first, second))

    step.is_journaled = True  # type: ignore[attr-defined]
    return step


def tool_message(result: FunctionToolActionResult) -> dict[str, Any]:
    """The result of a tool call as the message that answers it."""
    return {"role": "tool", "tool_call_id": result.tool_call_id, "content": result.output_str}


def _record_result(result: FunctionToolActionResult) -> Recorded:
    about: dict[str, Any] = {"error": result.error}
    if not (isinstance(result.output_data, str) and result.output_data == result.output_str):  # mostly they are one
        about["output_data"] = result.output_data
    return Recorded(result=dump_anything(about), message=dump_json(tool_message(result)))


def _recalled_result(recorded: Recorded) -> FunctionToolActionResult:
    about, message = load_json(recorded.result), load_json(recorded.message)
    return FunctionToolActionResult(
        tool_call_id=message["tool_call_id"],
        output_str=message["content"],
        output_data=about.get("output_data", message["content"]),
        error=about["error"],
    )


def _show_completion(response: "ChatCompletion") -> dict[str, Any]:
    choice = response.choices[0]
    calls = [call.function.name for call in function_calls(response)]
    usage = response.usage.model_dump(include={"prompt_tokens", "completion_tokens"}) if response.usage else None
    return {"model": response.model, "content": choice.message.content, "tool_calls": calls, "usage": usage}


def _show_result(result: FunctionToolActionResult) -> Any:
    return result.error if result.error is not None else result.output_data
