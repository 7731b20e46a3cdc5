"""The steps of a turn that cost money or change the world: model calls and tool calls. Each finished one is journaled.

A turn that is taken again (after a crash, a retry or a release) finds its finished steps in the journal and does not
repeat them, whoever overrode `completion` or `tool_action`: the outermost call of each is the step. What is called from
within a step belongs to that step.
"""

import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from factorial._core.json import dump_anything, dump_json, load_json
from factorial._core.text import with_article
from factorial.agent.callbacks import call_back
from factorial.agent.lifecycle.host import RUN_START, Child, Host, Recorded
from factorial.agent.lifecycle.progress import Ending, Progress, showing
from factorial.agent.lifecycle.snapshot import readable
from factorial.context import AgentContext, Batch, ExecutionContext
from factorial.errors import ConfigError, FatalAgentError
from factorial.models.answer import function_calls
from factorial.tools import FINAL_OUTPUT, FunctionToolActionResult

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion, ChatCompletionMessageToolCall

    from factorial.agent.agent import BaseAgent

__all__ = ["Steps", "journaled", "tool_message"]

T = TypeVar("T")

MOST_CHILDREN = 10_000
"""Runs that one call may spawn."""


class Steps:
    """The steps of one turn."""

    def __init__(self, host: Host, execution: ExecutionContext, place: str) -> None:
        self._host = host
        self._execution = execution
        self._place = place  # what is spawned outside of a step is named after it
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
            with readable(f"what is kept of the step {key!r}"):
                return ChatCompletion.model_validate_json(earlier.result)
        execution = replace(self._execution, step="completion", idempotency_key=self._idempotency_key(agent_ctx, key))
        with execution.active():
            told = Progress("completion", execution, agent_ctx, kwargs={"messages": len(messages)})
            response = await told.follow(self._checked("completion", call, ChatCompletion), _end_of_completion)
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
                with readable(f"what is kept of the step {key!r}"):
                    return _recalled_result(recorded)
            execution = replace(
                self._execution,
                step="tool_action",
                idempotency_key=self._idempotency_key(agent_ctx, key),
                tool_call_id=tool_call.id,
            )
            agent = self._execution.run.agent
            tool = agent.tools.get(tool_call.function.name)
            if tool is not None and tool.deferral is not None and tool.deferral.awaits == "result":
                await self._host.expect(f"tool:{tool_call.id}", tool.name)
            with execution.active():
                told = Progress("tool_action", execution, agent_ctx, args=[tool_call.model_dump()])
                result = await told.follow(
                    self._checked("tool_action", call, FunctionToolActionResult), _end_of_tool_action
                )
                result.tool_call_id = result.tool_call_id or tool_call.id  # an overridden method need not say it
                if result.pending_result:
                    await call_back(agent.on_pending_tool_call, agent_ctx, execution, tool_call)
        finally:
            self.outstanding -= 1
        await self._host.record(key, _record_result(result), urgent=self.outstanding != 0)
        return result

    async def told_late(
        self, agent_ctx: AgentContext, tool_call: Mapping[str, Any], result: FunctionToolActionResult
    ) -> None:
        """The result of a call that an earlier activation of the run made: tell what `tool_action` could not."""
        if ending := _end_of_tool_action(result):
            await Progress("tool_action", self._execution, agent_ctx, args=[tool_call]).tell_end(ending)

    async def spawn(
        self, execution: ExecutionContext, agent: "BaseAgent[Any]", contexts: Sequence[AgentContext], *, as_batch: bool
    ) -> Batch:
        """Begin a run of `agent` for each of `contexts`, as children of this run.

        Their ids follow from the place where they are spawned, so that a step that is executed again spawns nothing
        twice.
        """
        from factorial.agent.agent import BaseAgent

        given: object = contexts
        if not isinstance(agent, BaseAgent):
            called = "spawn_child_tasks" if as_batch else "spawn_child_task"
            raise ConfigError(f"{called}: agent={agent!r}: give the agent itself")
        if isinstance(given, AgentContext) or not isinstance(given, Collection):
            raise ConfigError(
                f"spawn_child_tasks: payloads are {with_article(type(given).__name__)}: give a list of contexts, or "
                "use spawn_child_task"
            )
        if len(contexts) > MOST_CHILDREN:
            raise ConfigError(f"{len(contexts)} children at once, and {MOST_CHILDREN} is the most: spawn them in parts")
        for context in contexts:
            agent.check_payload(context)
        run = self._execution.run  # its turn, and not the context's, which is one more after the turn
        place = execution.idempotency_key or f"{execution.task_id}:{run.turn}:{self._place}"
        # The moment at which the run began tells it from an earlier one with an id of the user's own.
        place = f"{place}:{self._execution.run.started_at.isoformat()}:spawn#{self._count(f'spawn:{place}')}"
        task_ids = [_id(f"{place}:{number}") for number in range(len(contexts))]
        children = [Child(task_id, agent, context) for task_id, context in zip(task_ids, contexts, strict=True)]
        batch = Batch(_id(place), task_ids)
        if children:
            await self._host.spawn(batch.id if as_batch else "", children)
        return batch

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
        if self._place == RUN_START:  # it shares the journal with the first turn
            step = f"{RUN_START}:{step}"
        count = self._count(step)
        return step if count == 1 else f"#{count}:{step}"

    def _count(self, step: str) -> int:
        self._begun[step] = self._begun.get(step, 0) + 1
        return self._begun[step]

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
    if result.is_pending:
        about = {field.name: getattr(result, field.name) for field in fields(result)}  # asdict would copy the value
        return Recorded(result=dump_anything(about))
    about = {"error": result.error}
    if not (isinstance(result.output_data, str) and result.output_data == result.output_str):  # mostly they are one
        about["output_data"] = result.output_data
    return Recorded(result=dump_anything(about), message=dump_json(tool_message(result)))


def _recalled_result(recorded: Recorded) -> FunctionToolActionResult:
    about = load_json(recorded.result)
    if not recorded.message:
        return FunctionToolActionResult(**about)
    message = load_json(recorded.message)
    return FunctionToolActionResult(
        tool_call_id=message["tool_call_id"],
        output_str=message["content"],
        output_data=about.get("output_data", message["content"]),
        error=about["error"],
    )


def _end_of_completion(response: "ChatCompletion") -> Ending:
    choice = response.choices[0]
    calls = [call.function.name for call in function_calls(response)]
    usage = response.usage.model_dump(include={"prompt_tokens", "completion_tokens"}) if response.usage else None
    about = {"model": response.model, "content": choice.message.content, "tool_calls": calls, "usage": usage}
    return showing(about)


def _id(place: str) -> str:
    return uuid.uuid5(uuid.NAMESPACE_OID, place).hex


def _end_of_tool_action(result: FunctionToolActionResult) -> Ending | None:
    """None for a result that is still to come."""
    if result.is_pending:
        return None
    return showing(result.output_data, result.error)
