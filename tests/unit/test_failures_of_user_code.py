"""Whatever the user's code raises affects only its own call. Real: the whole lifecycle, inline. The model is scripted.

The property test draws what is raised, where and how, with neighbours that must not notice.
"""

import asyncio
import contextlib
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel

from factorial import (
    Agent,
    AgentContext,
    AgentWorkerConfig,
    BaseAgent,
    ExecutionContext,
    FatalAgentError,
    RetryableError,
    TurnCompletion,
)
from factorial._core.boundary import ordinary
from factorial._core.text import error_text, safe_repr
from factorial.agent.lifecycle.failure import describe, is_final
from factorial.errors import ContextError, TurnTimeoutError
from factorial.testing import ScriptedModel, call, calls, say

QUICK = AgentWorkerConfig(retry_delay=0.001, max_retry_delay=0.002, max_retries=1)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class UnprintableValue(ValueError):
    def __str__(self) -> str:
        raise LookupError("no text")


LEAVES: list[Callable[[], BaseException]] = [
    asyncio.CancelledError,
    KeyboardInterrupt,
    GeneratorExit,
    StopIteration,
    StopAsyncIteration,
    RecursionError,
    MemoryError,
    TimeoutError,
    Unprintable,
    UnprintableValue,
    lambda: SystemExit(3),
    lambda: BaseException("bare"),
    lambda: ContextError("mine"),
]

errors = st.recursive(
    st.sampled_from(LEAVES).map(lambda make: make()),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda found: BaseExceptionGroup("several", found)),
    max_leaves=4,
)


def plain(error: BaseException) -> Callable[[], Any]:
    def broken() -> str:
        raise error

    return broken


def awaited(error: BaseException) -> Callable[[], Any]:
    async def broken() -> str:
        await asyncio.sleep(0)
        raise error

    return broken


def returning_an_awaitable(error: BaseException) -> Callable[[], Any]:
    return lambda: awaited(error)()


def within_a_step(error: BaseException) -> Callable[[], Any]:
    async def broken() -> str:
        async def function() -> str:
            raise error

        return await ExecutionContext.current().step("look", function)

    return broken


def within_a_plain_step(error: BaseException) -> Callable[[], Any]:
    return lambda: ExecutionContext.current().step_sync("look", plain(error))


def cancelling_itself(error: BaseException) -> Callable[[], Any]:
    async def broken() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            raise error from None
        return "never"

    return broken


PLACES = [
    plain, awaited, returning_an_awaitable, within_a_step, within_a_plain_step, cancelling_itself,
]  # fmt: skip


def tool_of(broken: Callable[[], Any]) -> Callable[[], Any]:
    """The same as a tool: named and described, and async if it is."""
    if inspect.iscoroutinefunction(broken):

        async def bad() -> Any:
            """Fail."""
            return await broken()

        return bad

    def bad_and_plain() -> Any:
        """Fail."""
        return broken()

    bad_and_plain.__name__ = "bad"
    return bad_and_plain


@settings(deadline=None, max_examples=80)
@given(errors, st.sampled_from(PLACES), st.booleans())
def test_whatever_a_tool_raises_is_the_result_of_its_call_and_no_neighbour_notices(
    error: BaseException, place: Callable[[BaseException], Callable[[], Any]], first: bool
) -> None:
    finished: list[str] = []

    async def slow() -> str:
        """Take a while."""
        for _ in range(20):
            await asyncio.sleep(0)
        finished.append("slow")
        return "slow is done"

    both = [call("bad"), call("slow")] if first else [call("slow"), call("bad")]
    agent = Agent(name="a", tools=[tool_of(place(error)), slow], model=ScriptedModel([calls(*both), say("done")]))
    context = AgentContext(query="q")
    done = asyncio.run(asyncio.wait_for(agent.run_inline(context, worker_config=QUICK), 20))
    answers = {message["tool_call_id"]: message["content"] for message in context.messages if message["role"] == "tool"}
    assert (done.output, finished) == ("done", ["slow"])
    assert answers[f"call_0_{int(first)}"] == "slow is done"
    assert answers[f"call_0_{int(not first)}"].startswith("Error: ")


@pytest.mark.parametrize("place", [plain, awaited])
@pytest.mark.parametrize("wrap", [lambda error: error, lambda error: ExceptionGroup("in a task group", [error])])
async def test_a_fatal_error_ends_the_run_also_in_a_group(place: Any, wrap: Any) -> None:
    tool = tool_of(place(wrap(FatalAgentError("enough"))))
    agent = Agent(name="a", tools=[tool], model=ScriptedModel([call("bad"), say("done")]))
    with pytest.raises(FatalAgentError, match="enough"):
        await agent.run_inline(AgentContext(query="q"), worker_config=QUICK)


async def test_a_fatal_error_counts_more_than_the_failure_of_another_call() -> None:
    def again() -> str:
        """Ask for another attempt."""
        raise RetryableError("later")

    def stop() -> str:
        """End it."""
        raise FatalAgentError("enough")

    agent = Agent(name="a", tools=[again, stop], model=ScriptedModel([calls(call("again"), call("stop"))]))
    with pytest.raises(FatalAgentError, match="enough"):
        await agent.run_inline(AgentContext(query="q"), worker_config=QUICK)


def test_sub_tasks_that_leave_are_contained_by_a_task_group() -> None:
    """A task group collects what its tasks raise, `KeyboardInterrupt` apart, which asyncio lets stop the loop."""

    async def look() -> str:
        """Look in two places."""

        async def lost() -> None:
            raise asyncio.CancelledError

        async def broken() -> None:
            raise ConnectionError("gone")

        async with asyncio.TaskGroup() as group:
            group.create_task(lost())
            group.create_task(broken())
        return "never"

    agent = Agent(name="a", tools=[look], model=ScriptedModel([call("look"), say("done")]))
    context = AgentContext(query="q")
    assert asyncio.run(agent.run_inline(context)).output == "done"
    assert "ConnectionError: gone" in context.messages[2]["content"]


# -- a cancel of ours


@pytest.mark.parametrize(
    "raised", [None, RuntimeError("interrupted"), BaseExceptionGroup("several", [GeneratorExit()])]
)
async def test_a_cancel_of_ours_cancels_whatever_the_tool_makes_of_it(raised: BaseException | None) -> None:
    started = asyncio.Event()

    async def hang() -> str:
        """Hang."""
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if raised is None:
                raise
            raise raised from None
        return "never"

    context = AgentContext(query="q")
    agent = Agent(name="a", tools=[hang], model=ScriptedModel([call("hang"), say("done")]))
    heard: list[str] = []
    running = asyncio.create_task(
        agent.run_inline(context, event_handler=lambda event: heard.append(event.event_type), worker_config=QUICK)
    )
    await asyncio.wait_for(started.wait(), 20)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 20)
    assert heard[-1] == "run_cancelled" and "progress_update_tool_action_failed" not in heard


async def test_a_turn_timeout_is_a_cancel_of_ours() -> None:
    async def hang() -> str:
        """Hang."""
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ConnectionError("it went away") from None
        return "never"

    agent = Agent(name="a", tools=[hang], model=ScriptedModel([call("hang"), say("done")]))
    policy = AgentWorkerConfig(retry_delay=0.001, max_retry_delay=0.002, max_retries=0, turn_timeout=0.2)
    heard: list[str] = []
    with pytest.raises(TurnTimeoutError):
        await agent.run_inline(
            AgentContext(query="q"), event_handler=lambda event: heard.append(event.event_type), worker_config=policy
        )
    assert "progress_update_tool_action_failed" not in heard


# -- callbacks, validators, overridden methods, handlers


@settings(deadline=None, max_examples=60)
@given(errors, st.sampled_from(["run_turn", "completion", "tool_action", "prepare_messages", "model", "is_enabled"]))
def test_what_a_method_of_the_agent_raises_fails_the_attempt_and_counts_as_a_retry(
    error: BaseException, place: str
) -> None:
    raised: list[str] = []

    def once() -> None:
        if not raised:
            raised.append(place)
            raise error

    class Broken(BaseAgent[AgentContext]):
        async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
            if place == "run_turn":
                once()
            return await super().run_turn(agent_ctx)

        async def completion(self, agent_ctx: AgentContext, messages: list[dict[str, Any]]) -> Any:
            if place == "completion":
                once()
            return await super().completion(agent_ctx, messages)

        async def tool_action(self, tool_call: Any, agent_ctx: AgentContext) -> Any:
            if place == "tool_action":
                once()
            return await super().tool_action(tool_call, agent_ctx)

        def prepare_messages(self, agent_ctx: AgentContext) -> list[dict[str, Any]]:
            if place == "prepare_messages":
                once()
            return super().prepare_messages(agent_ctx)

    script = ScriptedModel([call("look"), say("done")])

    def model(agent_ctx: AgentContext) -> Any:
        if place == "model":
            once()
        return script

    heard = run_with_a_tool(Broken, model, lambda: once() if place == "is_enabled" else None)
    if is_final(ordinary(place, error)):
        assert heard[-1] == "run_failed"  # another attempt would meet it again
    else:
        assert heard[-1] == "run_completed" and heard.count("task_retried") == 1


def run_with_a_tool(kind: type[BaseAgent[Any]], model: Any, when_asked: Callable[[], None]) -> list[str]:
    from factorial import function_tool

    def is_enabled(agent_ctx: AgentContext) -> bool:
        when_asked()
        return True

    @function_tool(is_enabled=is_enabled)
    def look() -> str:
        """Look."""
        return "seen"

    heard: list[str] = []
    agent = kind(name="a", tools=[look], model=model)
    run = agent.run_inline(
        AgentContext(query="q"), event_handler=lambda event: heard.append(event.event_type), worker_config=QUICK
    )
    with contextlib.suppress(Exception):
        asyncio.run(asyncio.wait_for(run, 20))
    return heard


CALLBACKS = ["on_run_start", "on_turn_start", "on_turn_end"]


@settings(deadline=None, max_examples=60)
@given(errors, st.sampled_from(CALLBACKS), st.booleans())
def test_what_a_callback_raises_is_logged_or_fails_the_attempt(error: BaseException, name: str, is_async: bool) -> None:
    called: list[str] = []

    def broken(*arguments: Any) -> None:
        called.append(name)
        if len(called) == 1:
            raise error

    async def broken_later(*arguments: Any) -> None:
        broken(*arguments)

    heard: list[str] = []
    callback: dict[str, Any] = {name: broken_later if is_async else broken}
    agent = Agent(name="a", model=ScriptedModel([say("done")]), **callback)
    run = agent.run_inline(
        AgentContext(query="q"), event_handler=lambda event: heard.append(event.event_type), worker_config=QUICK
    )
    assert asyncio.run(asyncio.wait_for(run, 20)).output == "done"
    # StopIteration cannot leave a coroutine: it arrives as a RuntimeError.
    assert heard.count("task_retried") == (not isinstance(error, Exception | SystemExit))


@pytest.mark.parametrize("name", ["on_run_end", "on_run_cancelled"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit(), Unprintable()])
async def test_what_a_callback_after_the_end_raises_changes_nothing(
    name: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    started = asyncio.Event()

    async def hang() -> str:
        """Hang."""
        started.set()
        await asyncio.Event().wait()
        return "never"

    async def broken(*arguments: Any) -> None:
        raise error

    script = [call("hang")] if name == "on_run_cancelled" else [say("done")]
    agent = Agent(name="a", tools=[hang], model=ScriptedModel(script), **{name: broken})  # type: ignore[arg-type]
    running = asyncio.create_task(agent.run_inline(AgentContext(query="q")))
    if name == "on_run_cancelled":
        await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    else:
        assert (await running).output == "done"
    assert "callback broken" in caplog.text


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), KeyError("k")])
def test_what_a_validator_raises_fails_the_attempt(error: BaseException) -> None:
    tried: list[int] = []

    def check(value: int) -> int:
        tried.append(value)
        if len(tried) == 1:
            raise error
        return value

    def look(number: Annotated[int, AfterValidator(check)]) -> str:
        """Look."""
        return f"seen {number}"

    class Answer(BaseModel):
        number: Annotated[int, AfterValidator(check)]

    heard: list[str] = []
    for agent in (
        Agent(name="a", tools=[look], model=ScriptedModel([call("look", number=1), say("done")])),
        Agent(name="b", output_type=Answer, model=ScriptedModel([call("final_output", number=1)])),
    ):
        tried.clear()
        heard.clear()
        run = agent.run_inline(
            AgentContext(query="q"), event_handler=lambda event: heard.append(event.event_type), worker_config=QUICK
        )
        assert asyncio.run(asyncio.wait_for(run, 20)).output
        assert (len(tried), heard.count("task_retried")) == (2, 1)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), GeneratorExit(), Unprintable()])
@pytest.mark.parametrize("is_async", [False, True])
def test_what_an_event_handler_raises_ends_the_run(error: BaseException, is_async: bool) -> None:
    def broken(event: Any) -> None:
        raise error

    async def broken_later(event: Any) -> None:
        raise error

    agent = Agent(name="a", model=ScriptedModel([say("done")]))
    handler = broken_later if is_async else broken
    with pytest.raises(FatalAgentError, match="event_handler failed on run_started"):
        asyncio.run(agent.run_inline(AgentContext(query="q"), event_handler=handler))


# -- context variables


def test_callbacks_and_turns_share_their_context_variables() -> None:
    """As a tracer needs it: the token of a variable that `on_turn_start` sets is valid in `on_turn_end`."""
    span: ContextVar[str] = ContextVar("span", default="none")
    tokens: list[Any] = []
    seen: list[str] = []

    async def look() -> str:
        """Look."""
        seen.append(span.get())
        return "seen"

    async def begin(*arguments: Any) -> None:
        tokens.append(span.set("turn"))

    async def end(*arguments: Any) -> None:
        span.reset(tokens.pop())

    agent = Agent(
        name="a", tools=[look], model=ScriptedModel([call("look"), say("done")]), on_turn_start=begin, on_turn_end=end
    )
    heard: list[str | None] = []
    run = agent.run_inline(AgentContext(query="q"), event_handler=lambda event: heard.append(event.event_type))
    asyncio.run(run)
    assert (seen, tokens) == (["turn"], []) and heard[-1] == "run_completed"


# -- texts


@dataclass(frozen=True)
class Nameless:
    def __repr__(self) -> str:
        raise SystemExit(1)


@settings(deadline=None)
@given(errors)
def test_every_error_has_a_text(error: BaseException) -> None:
    for text in (error_text(error), describe(error)):
        assert text and text.encode()


def test_texts_of_errors() -> None:
    assert error_text(KeyError("Paris")) == "KeyError: 'Paris'"
    assert error_text(asyncio.CancelledError()) == "CancelledError"
    assert error_text(Unprintable()) == "Unprintable: (its message cannot be read)"
    group = ExceptionGroup("in a task group", [ValueError("a"), OSError("b")])
    assert error_text(group).endswith("[ValueError: a; OSError: b]")
    assert error_text(ExceptionGroup("many", [ValueError(str(n)) for n in range(9)])).endswith("ValueError: 4; ...]")
    assert safe_repr(Nameless()) == "<Nameless>"
    assert describe(RetryableError("later")) == "later"
    assert describe(RetryableError()) == "RetryableError"
    assert describe(ValueError("half \udc80")) == "ValueError: half ?"
