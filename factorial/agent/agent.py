"""What a user defines: an agent. Instructions, tools and a model, and the methods that may be overridden.

    completion      one model call
    tool_action     one tool call
    run_turn        one turn: a model call and its tools

An agent holds no state of a run, so any process may take the next turn. Defining one opens no connection and needs no
key.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal

from factorial._core.conversation import call_ids
from factorial.agent.callbacks import Callback, checked_callback
from factorial.agent.checks import check_options, checked_name, checked_tools, output_tool
from factorial.agent.compat import own_conversation, warn_of_dropped_hooks
from factorial.agent.completion import RunCompletion, TurnCompletion
from factorial.agent.lifecycle.calls import as_step, retract_loose_pieces
from factorial.agent.lifecycle.conversion import converted
from factorial.agent.lifecycle.guard import Guard
from factorial.agent.lifecycle.inline import InlineRun, run_inline
from factorial.agent.lifecycle.progress import metadata
from factorial.agent.lifecycle.steps import current_frame
from factorial.agent.lifecycle.turn import take_turn
from factorial.agent.lifecycle.window import fit_window
from factorial.agent.request import publish_trimmed, settings_for_turn, with_text
from factorial.config import AgentWorkerConfig
from factorial.context import AgentContext, ContextType, ExecutionContext
from factorial.errors import ConfigError, ContextError
from factorial.events import AgentEvent
from factorial.models import (
    DEFAULT_MODEL,
    AnyModel,
    ModelClient,
    ModelRequest,
    ModelSettings,
    MultiClient,
    ResolvedModelSettings,
    ask_client,
    check_model,
    complete,
    find_model,
    is_own_client,
    ready,
    refuse_http_client,
    sent_tokens,
    without_unclaimed,
)
from factorial.task import Task, TaskMetadata, check_owner_id, check_task_id, new_task_id
from factorial.tools import (
    FINAL_OUTPUT,
    FunctionTool,
    FunctionToolActionResult,
    call_tool,
    execution_parameters,
    sub_task_results,
)
from factorial.utils import BaseModel

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageToolCall

__all__ = ["Agent", "BaseAgent"]


class BaseAgent(Generic[ContextType]):
    """An agent over contexts of the class `context_class`.

    Parameters:
        name: what it is called in queues, events and logs; by default the class's name in snake case.
        description: what it is for.
        instructions: the system prompt, or a function of the context that returns it. Nothing is added to it.
            A second parameter named `execution_ctx`, or of the type `ExecutionContext`, is filled in.
        tools: typed functions with docstrings, or what `function_tool` made of them.
        model: a `Model`, the name of one, `fallback_models(...)`, or a function of the context that returns one.
        model_settings: temperature and the like; each a value or a function of the context.
        max_turns: the run ends within so many turns. In the last one the model is asked to answer without tools.
        output_type: a pydantic model. The run is then done when the model calls the tool `final_output` with it.
        context_class: the class of the contexts, for agents with state of their own.
        context_window_limit: the most tokens that a request and its answer may take. A request that is too long is sent
            without its oldest messages (`factorial.agent.lifecycle.window` says which), and the event
            `context_window_trimmed` is published. The model's own window applies as well, if it is smaller. Without a
            limit nothing is counted.
        request_timeout: seconds without an answer after which a model call has failed.
        parse_tool_args: False passes each tool the raw argument string.
        stream: ask the model for its answer in pieces, each published as `progress_update_completion_chunk`.
        on_run_start, on_run_end, on_turn_start, on_turn_end, on_pending_tool_call, on_pending_tool_results,
            on_run_cancelled: called when something happens: see `factorial.agent.callbacks`.
        output_retries: how many answers in a row without a valid output of the `output_type` are corrected. One more
            ends the run with `OutputError`.
        incomplete_answers: "error" ends the run with `IncompleteAnswerError` if the model's answer was cut at the token
            limit, blocked by a filter, or refused. "mark" takes what there is of it as the output; `finish_reason` of
            the last events says why the answer ended.
        client: a `MultiClient` with keys for the providers, which otherwise come from the environment; or an object of
            your own with an async method `completion`, which is then asked instead of the model (`ModelClient`).
        http_client: refused with a `ConfigError` that says what to use instead.

    Raises `ConfigError` that names the parameter or the tool, and what to do.
    """

    guards: Sequence[Guard] = ()
    """See each step of the agent's runs before and after it is taken: set it in a class or on an object."""

    def __init__(
        self,
        name: str | None = None,
        instructions: str | Callable[..., str] | None = None,
        description: str | None = None,
        tools: Sequence[FunctionTool | Callable[..., Any]] | None = None,
        model: AnyModel | str | Callable[[ContextType], AnyModel | str] | None = None,
        model_settings: ModelSettings[ContextType] | None = None,
        stream: bool = False,
        context_window_limit: int | None = None,
        max_turns: int | None = None,
        http_client: None = None,
        client: MultiClient | ModelClient | None = None,
        request_timeout: float = 120.0,
        parse_tool_args: bool = True,
        context_class: type[ContextType] = AgentContext,  # type: ignore[assignment]  # the bound of the variable
        output_type: type[BaseModel] | None = None,
        on_run_start: Callback = None,
        on_run_end: Callback = None,
        on_turn_start: Callback = None,
        on_turn_end: Callback = None,
        on_pending_tool_call: Callback = None,
        on_pending_tool_results: Callback = None,
        on_run_cancelled: Callback = None,
        *,
        output_retries: int = 3,
        incomplete_answers: Literal["error", "mark"] = "error",
    ) -> None:
        self.name: str = checked_name(type(self).__name__ if name is None else name)
        self.description: str = description or self.name
        self.instructions = instructions
        self.tools: dict[str, FunctionTool] = checked_tools(self.name, tools, parse_args=parse_tool_args)
        self.model: AnyModel | Callable[[ContextType], AnyModel | str] | None = (
            find_model(model) if isinstance(model, str) else model
        )
        self.model_settings: ModelSettings[ContextType] = ModelSettings() if model_settings is None else model_settings
        self.max_turns = max_turns
        self.output_type = output_type
        self.output_retries = output_retries
        self.incomplete_answers: Literal["error", "mark"] = incomplete_answers
        self.context_class = context_class
        self.context_window_limit = context_window_limit
        self.request_timeout = request_timeout
        self.parse_tool_args = parse_tool_args
        self.stream = stream
        refuse_http_client(f"agent {self.name!r}", http_client)
        self.client: MultiClient | ModelClient = MultiClient() if client is None else client
        self.final_output: FunctionTool | None = output_tool(self.name, output_type)
        self.on_run_start: Callback = self._callback("on_run_start", on_run_start)
        self.on_run_end: Callback = self._callback("on_run_end", on_run_end)
        self.on_turn_start: Callback = self._callback("on_turn_start", on_turn_start)
        self.on_turn_end: Callback = self._callback("on_turn_end", on_turn_end)
        self.on_pending_tool_call: Callback = self._callback("on_pending_tool_call", on_pending_tool_call)
        self.on_pending_tool_results: Callback = self._callback("on_pending_tool_results", on_pending_tool_results)
        self.on_run_cancelled: Callback = self._callback("on_run_cancelled", on_run_cancelled)
        check_options(self)

    def _callback(self, name: str, callback: Callback) -> Callback:
        return checked_callback(self.name, name, callback)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        warn_of_dropped_hooks(cls)
        for step in ("completion", "tool_action"):
            if step in cls.__dict__:
                setattr(cls, step, as_step(step, cls.__dict__[step]))

    def create_task(self, owner_id: str, payload: ContextType, task_id: str | None = None) -> Task[ContextType]:
        """A task for this agent, for `orchestrator.enqueue_task`.

        `task_id`: an id of your own, such as an order's number. However often a task with it is enqueued, it runs once.
        """
        return Task(
            agent=self.name,
            payload=self.accepted_payload(payload),
            metadata=TaskMetadata(owner_id=check_owner_id(owner_id)),
            id=new_task_id() if task_id is None else check_task_id(task_id),
        )

    def accepted_payload(self, payload: object) -> ContextType:
        """`payload` as a context of this agent's class. A plain `AgentContext` is converted.

        Raises `ContextError` if that is not possible, and for an empty query.
        """
        accepted = converted(payload, self.context_class, self.name)
        if not accepted.query:
            raise ContextError(
                f"agent {self.name!r}: the query is empty: give the user's next message as query, and what was said "
                "before it as messages"
            )
        return accepted

    async def run_inline(
        self,
        agent_ctx: ContextType,
        event_handler: Callable[[AgentEvent], Awaitable[None] | None] | None = None,
        *,
        owner_id: str = "inline",
        worker_config: AgentWorkerConfig | None = None,
    ) -> RunCompletion[ContextType]:
        """Run here and now, without Redis, with the same lifecycle and events as in a worker.

        `event_handler` gets each event, in order. `worker_config` says how failed turns are retried and how long a
        turn may take. Raises the error that ended the run as failed.
        """
        agent_ctx = self.accepted_payload(agent_ctx)
        how = InlineRun(owner_id, worker_config or AgentWorkerConfig(), event_handler)
        return await run_inline(self, agent_ctx, how)

    async def run_turn(self, agent_ctx: ContextType) -> TurnCompletion[ContextType]:
        """Take one turn. Return `TurnCompletion(is_done=True, context=..., output=...)` to end the run."""
        return await take_turn(self, agent_ctx)

    async def completion(self, agent_ctx: ContextType, messages: list[dict[str, Any]]) -> "ChatCompletion":
        """Ask the model for the next message of the conversation `messages`."""
        tools = [tool.param for tool in self._tools_on_offer(agent_ctx)]
        settings = self.resolve_model_settings(agent_ctx)
        model = self.resolve_model(agent_ctx)
        answers = None
        if self.context_window_limit is not None:
            limit = min(self.context_window_limit, model.context_window)
            messages = ready(messages)
            fitted = fit_window(
                messages,
                query=agent_ctx.query,
                limit=limit,
                tools=tools,
                answer=settings.max_completion_tokens or 0,
                sizes=sent_tokens(messages, model.providers),
            )
            if fitted.left_out:
                await publish_trimmed(limit, fitted)
                answers = sum(message.get("role") == "assistant" for message in messages)
            messages = fitted.messages
        client = self.client
        if not is_own_client(client):
            return await ask_client(client, model, messages, tools, settings)
        request = ModelRequest(
            messages=messages,
            tools=tools,
            settings=settings,
            timeout=client.timeout or self.request_timeout,
            stream=self.stream,
            call_ids=call_ids(agent_ctx.messages),
            answers=answers,
        )
        if not self.stream:
            return await complete(client.with_keys(model), request)
        # The call itself asks again, or another model: what the failed one has sent is void at once.
        return await complete(client.with_keys(model), request, self._publish_chunk, retract_loose_pieces)

    def validate_completion(self, agent_ctx: ContextType, response: "ChatCompletion") -> Awaitable[None] | None:
        """Called with the model's answer. What an override raises, plain or async, makes the model call a failed one,
        which is retried: raise `InvalidLLMResponseError` for an answer that another call may improve."""

    async def tool_action(
        self, tool_call: "ChatCompletionMessageToolCall", agent_ctx: ContextType
    ) -> FunctionToolActionResult:
        """Run the tool that the model called. What goes wrong in it becomes an error result for the model."""
        enabled = {tool.name: tool for tool in self._tools_on_offer(agent_ctx)}
        return await call_tool(
            enabled.get(tool_call.function.name),
            tool_call,
            agent_ctx,
            ExecutionContext.get(),
            parse_args=self.parse_tool_args,
            known=enabled,
        )

    def process_child_task_results(
        self, agent_ctx: ContextType, child_task_results: list[tuple[str, Any]]
    ) -> TurnCompletion[ContextType] | str | Awaitable[TurnCompletion[ContextType] | str]:
        """Add what the model reads of children that have ended to the conversation of `agent_ctx`.

        `child_task_results` has the children of one call of a forking tool, in the order of spawning: the task id with
        the output, or with an exception that says why there is none. What is added becomes the content of the tool
        message that answers the call, after the tool's own text. An override may be async, and may return the text for
        the model instead.
        """
        agent_ctx.messages.append({"role": "user", "content": sub_task_results(child_task_results)})
        return TurnCompletion(is_done=False, context=agent_ctx)

    def prepare_messages(self, agent_ctx: ContextType) -> list[dict[str, Any]]:
        """The conversation as it is sent: the instructions, then the context's messages."""
        instructions = self.resolve_instructions(agent_ctx)
        opening = [{"role": "system", "content": instructions}] if instructions else []
        return [*opening, *agent_ctx.messages]

    def messages_to_send(self, agent_ctx: ContextType) -> list[dict[str, Any]]:
        """What `prepare_messages` makes of the context, for its next model call. For Factorial's own use."""
        prepared, method = self.prepare_messages(agent_ctx), type(self).prepare_messages
        if agent_ctx.turn == 0 and method is not BaseAgent.prepare_messages:
            conversation = own_conversation(method, prepared, agent_ctx)
            if conversation is not None:
                agent_ctx.messages = prepared = conversation
        return without_unclaimed(prepared)

    def resolve_instructions(self, agent_ctx: ContextType) -> str | None:
        """The system prompt for the state `agent_ctx`."""
        instructions = self.instructions
        if not callable(instructions):
            return instructions
        further = execution_parameters(instructions)
        return instructions(agent_ctx, **dict.fromkeys(further, ExecutionContext.current() if further else None))

    def resolve_model(self, agent_ctx: ContextType) -> AnyModel:
        """The model for the state `agent_ctx`; without `model=` it is `DEFAULT_MODEL`."""
        chosen = self.model(agent_ctx) if callable(self.model) else self.model
        if isinstance(chosen, str):
            return find_model(chosen)
        return DEFAULT_MODEL if chosen is None else chosen

    def resolve_tools(self, agent_ctx: ContextType) -> list[FunctionTool]:
        """The tools that are enabled in the state `agent_ctx`, and `final_output` if there is an `output_type`."""
        enabled = [tool for tool in self.tools.values() if tool.enabled_for(agent_ctx)]
        return [*enabled, self.final_output] if self.final_output is not None else enabled

    def _tools_on_offer(self, agent_ctx: ContextType) -> list[FunctionTool]:
        tools = self.resolve_tools(agent_ctx)
        for tool in tools:
            if not isinstance(tool, FunctionTool):
                raise ConfigError(
                    f"{type(self).__name__}.resolve_tools returned a {type(tool).__name__}: "
                    "return FunctionTools, which function_tool makes of functions"
                )
        return tools

    def resolve_model_settings(self, agent_ctx: ContextType) -> ResolvedModelSettings:
        """The settings of the next model call. In the last turn that `max_turns` allows, the model has to answer."""
        settings = self.model_settings.resolve(agent_ctx)
        return settings_for_turn(
            settings,
            has_tools=bool(self.tools) or self.final_output is not None,
            must_call_tool=self.final_output is not None,
            is_last=self.max_turns is not None and agent_ctx.turn >= self.max_turns - 1,
        )

    def is_final_output(self, tool_call: "ChatCompletionMessageToolCall") -> bool:
        """Whether the model ends the run with this call."""
        return self.final_output is not None and tool_call.function.name == FINAL_OUTPUT

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r})"

    @property
    def tool_actions(self) -> dict[str, Callable[..., Any]]:
        """The function of each tool, by the tool's name."""
        return {name: tool.function for name, tool in self.tools.items()}

    def get_execution_context(self) -> ExecutionContext:
        """The execution that this turn is part of."""
        return ExecutionContext.current()

    def check_ready(self) -> None:
        """Raise `ConfigError` if the agent cannot work as it is: its model has no key. Asked before workers start."""
        kind, client = type(self), self.client
        if callable(self.model) or (kind.completion, kind.run_turn) != (BaseAgent.completion, BaseAgent.run_turn):
            return  # which model it asks, if it asks one, shows when it runs
        if not is_own_client(client):
            return
        try:
            check_model(client.with_keys(self.model or DEFAULT_MODEL))
        except ConfigError as unready:
            chosen = "" if self.model is not None else f"no model was given, so it uses {DEFAULT_MODEL.name}; "
            raise ConfigError(f"agent {self.name!r}: {chosen}{unready}") from None

    async def _publish_chunk(self, chunk: "ChatCompletionChunk") -> None:
        execution_ctx, frame = ExecutionContext.current(), current_frame()
        if frame is None:
            return
        frame.state.has_loose_pieces = True
        await frame.state.host.publish_live(
            AgentEvent(
                event_type="progress_update_completion_chunk",
                task_id=execution_ctx.task_id,
                owner_id=execution_ctx.owner_id,
                agent_name=execution_ctx.agent_name,
                turn=frame.state.context.turn,
                metadata=metadata(execution_ctx, frame.state.context.turn),
                data=with_text(chunk.model_dump(exclude_unset=True, warnings=False)),
            )
        )


class Agent(BaseAgent[AgentContext]):
    """An agent over the plain `AgentContext`: what most agents are."""


BaseAgent.completion = as_step("completion", BaseAgent.completion)  # type: ignore[method-assign]
BaseAgent.tool_action = as_step("tool_action", BaseAgent.tool_action)  # type: ignore[method-assign]
