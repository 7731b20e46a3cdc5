"""THE lifecycle of a run, the same in a worker and inline: turn by turn until it ends or its host takes it away.

    take a turn -> settle it with the host -> and again, as the host answers

Called by `inline.py` and by `actors/execution.py`, each with itself as the host.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Generic, TypeVar, assert_never

from factorial.agent.completion import TurnCompletion
from factorial.agent.failure import after_failure, describe, explain_failure, is_final
from factorial.agent.host import Host, Left, Proceed, Retried, Settlement
from factorial.agent.progress import metadata, progress
from factorial.agent.steps import Steps
from factorial.config import AgentWorkerConfig
from factorial.context import AgentContext, ExecutionContext
from factorial.errors import (
    ContextError,
    FactorialError,
    FatalAgentError,
    MaxTurnsError,
    RetryableError,
    TurnTimeoutError,
)
from factorial.events import AgentEvent, BaseEvent, EventType, QueueEvent
from factorial.task import Backoff, Complete, Continue, Fail
from factorial.utils import dump_json

if TYPE_CHECKING:
    from factorial.agent.agent import BaseAgent

__all__ = ["Run"]

ContextType = TypeVar("ContextType", bound=AgentContext)
logger = logging.getLogger(__name__)


class Run(Generic[ContextType]):
    """One activation of a run: from where it is taken up to where it is left."""

    def __init__(
        self,
        agent: "BaseAgent[ContextType]",
        context: ContextType,
        execution: ExecutionContext,
        host: Host,
        policy: AgentWorkerConfig,
    ) -> None:
        self.agent = agent
        self.context = context
        self.execution = execution
        self.host = host
        self.policy = policy
        self.turn = context.turn
        """The turn that is being taken, or was taken last."""
        self.steps = Steps(host, execution)
        execution.run = self

    async def take_turns(self) -> None:
        """Take turns until the run is left."""
        try:
            with self.execution.active():
                while await self._goes_on():
                    pass
        finally:
            # Else the two would hold each other, and the whole conversation, until the garbage collector comes.
            self.execution.run = None

    async def _goes_on(self) -> bool:
        """Take one turn, and tell whether another one follows here."""
        match await self._settle(await self._next_settlement()):
            case Proceed():
                self.execution.retries = 0
                return True
            case Retried():
                self.execution.retries += 1
                return True
            case Left():
                return False
            case never:
                assert_never(never)

    async def _settle(self, settlement: Settlement) -> Proceed | Retried | Left:
        try:
            return await self.host.settle(settlement)
        except ContextError as unfit:
            return await self.host.settle(self._after_failure(unfit))

    async def _next_settlement(self) -> Settlement:
        try:
            return self._after_turn(await self._turn())
        except asyncio.CancelledError:
            if interruption := self.host.interruption():
                return Settlement(interruption, self.context, turn_done=False)
            if _is_being_cancelled():
                raise
            return self._after_failure(RetryableError("the turn was cancelled from within"))
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # the boundary to the user's code: whatever it raises fails the turn alone
            return self._after_failure(error)

    async def _turn(self) -> TurnCompletion[ContextType]:
        self.turn = self.context.turn
        self.steps = Steps(self.host, self.execution)
        self.execution.iterations += 1
        return await progress("run_turn", self.execution, self.context, self._turn_in_time)

    async def _turn_in_time(self) -> TurnCompletion[ContextType]:
        try:
            async with asyncio.timeout(self.policy.turn_timeout) as limit:
                return await self.agent.run_turn(self.context)
        except TimeoutError as late:
            if not limit.expired():
                raise
            raise TurnTimeoutError(
                f"turn {self.context.turn} took longer than turn_timeout={self.policy.turn_timeout:g} seconds"
            ) from late

    def _after_turn(self, completion: TurnCompletion[ContextType]) -> Settlement:
        if not isinstance(completion, TurnCompletion):
            raise FatalAgentError(
                f"{type(self.agent).__name__}.run_turn returned {type(completion).__name__}: return a TurnCompletion"
            )
        self.context = completion.context
        self.context.turn = max(self.context.turn, self.turn + 1)
        if completion.is_done:
            return self._complete(completion.output)
        if self.agent.max_turns is not None and self.context.turn >= self.agent.max_turns:
            return self._fail(
                MaxTurnsError(f"the run was not done within max_turns={self.agent.max_turns}"), turn_done=True
            )
        return Settlement(Continue(), self.context, turn_done=True)

    def _complete(self, output: Any) -> Settlement:
        try:
            dump_json(output)
        except ValueError as unfit:
            raise ContextError(f"the output ({type(output).__name__}) cannot be stored as JSON: {unfit}") from None
        self.context.output = output
        endings = (
            self._agent_event(EventType.AGENT_OUTPUT, turn=self.turn, data=output),
            self._agent_event(EventType.RUN_COMPLETED),
        )
        return Settlement(Complete(output), self.context, turn_done=True, endings=endings)

    def _after_failure(self, error: BaseException) -> Settlement:
        if not isinstance(error, FactorialError):  # the user's code: where it failed is what they need to know
            logger.warning("task %s: turn %d failed", self.execution.task_id, self.turn, exc_info=error)
        match after_failure(error, self.execution.retries, self.policy):
            case Fail(final):
                return self._fail(final, turn_done=False)
            case Backoff(delay) as backoff:
                failed = self._queue_event(EventType.TASK_FAILED, error=describe(error))
                retried = self._queue_event(EventType.TASK_RETRIED, data={"delay": round(delay, 3)})
                return Settlement(backoff, self.context, turn_done=False, endings=(failed, retried))

    def _fail(self, error: BaseException, *, turn_done: bool) -> Settlement:
        tries = None if is_final(error) else self.policy.max_retries
        explanation = explain_failure(self.agent.name, self.execution.task_id, error, tries)
        endings = (
            self._queue_event(EventType.TASK_FAILED, error=describe(error)),
            self._agent_event(EventType.RUN_FAILED, error=explanation),
        )
        return Settlement(Fail(error), self.context, turn_done=turn_done, endings=endings)

    def _agent_event(self, event_type: str, **more: Any) -> BaseEvent:
        return AgentEvent(**self._base(event_type), **more)

    def _queue_event(self, event_type: str, **more: Any) -> BaseEvent:
        return QueueEvent(**self._base(event_type), **more)

    def _base(self, event_type: str) -> dict[str, Any]:
        execution = self.execution
        return {
            "event_type": event_type,
            "task_id": execution.task_id,
            "owner_id": execution.owner_id,
            "agent_name": execution.agent_name,
            "metadata": metadata(execution, self.turn),
        }


def _is_being_cancelled() -> bool:
    """Whether somebody has cancelled this asyncio task; if not, a `CancelledError` comes from the agent's own code."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
