"""`@retry` and `@publish_progress` on an agent's methods. Real: everything but the model, which plays a script."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from factorial import Agent, AgentContext, BaseEvent, FatalAgentError, TurnCompletion, publish_progress, retry
from factorial.agent import decorators
from factorial.errors import ConfigError, ModelRefusedError
from factorial.testing import ScriptedModel


class Flaky:
    """Its methods fail `failures` times."""

    def __init__(self, failures: int, error: Exception | None = None) -> None:
        self.failures = failures
        self.error = error or RuntimeError("flaky")
        self.calls = 0

    async def _call(self, value: int) -> int:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return value

    @retry(max_attempts=5, delay=0.002, exponential_base=1.5)
    async def patient(self, value: int) -> int:
        """Documented."""
        return await self._call(value)

    @retry(max_attempts=3, delay=0.04, exponential_base=2.0, max_delay=0.05, jitter=False)
    async def timed(self, value: int) -> int:
        return await self._call(value)

    @retry(max_attempts=1)
    async def once(self, value: int) -> int:
        return await self._call(value)


async def test_retry_calls_until_it_works() -> None:
    flaky = Flaky(4)
    assert await flaky.patient(7) == 7
    assert flaky.calls == 5
    assert Flaky.patient.__name__ == "patient" and Flaky.patient.__doc__ == "Documented."


async def test_after_the_last_attempt_the_last_error_is_raised() -> None:
    flaky = Flaky(9)
    with pytest.raises(RuntimeError, match="flaky"):
        await flaky.patient(7)
    assert flaky.calls == 5
    with pytest.raises(RuntimeError):
        await Flaky(1).once(7)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between the attempts. They take no time. Other code sleeps as usual."""
    taken: list[float] = []

    async def note(seconds: float) -> None:
        taken.append(seconds)

    monkeypatch.setattr(decorators, "asyncio", SimpleNamespace(sleep=note))
    return taken


async def test_the_pauses_grow_and_are_bounded(pauses: list[float]) -> None:
    assert await Flaky(2).timed(1) == 1
    assert pauses == [0.04, 0.05]


async def test_a_bare_retry(pauses: list[float]) -> None:
    class Bare(Flaky):
        @retry
        async def method(self, value: int) -> int:
            return await self._call(value)

    flaky = Bare(9)
    with pytest.raises(RuntimeError):
        await flaky.method(1)
    assert flaky.calls == 3
    assert 0.5 <= pauses[0] <= 1.5 and 1.0 <= pauses[1] <= 3.0


@pytest.mark.parametrize("error", [FatalAgentError("no"), ModelRefusedError("no"), ConfigError("no")])
async def test_permanent_errors_are_not_retried(error: Exception) -> None:
    flaky = Flaky(9, error)
    with pytest.raises(type(error)):
        await flaky.patient(1)
    assert flaky.calls == 1


async def test_a_cancellation_is_not_an_error_to_retry() -> None:
    flaky = Flaky(9, asyncio.CancelledError())  # type: ignore[arg-type]
    with pytest.raises(asyncio.CancelledError):
        await flaky.patient(1)
    assert flaky.calls == 1


@pytest.mark.parametrize("options", [{"max_attempts": 0}, {"delay": -1}, {"exponential_base": 0.5}])
def test_invalid_options_are_rejected(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="retry"):
        retry(**options)


class Reporting(Agent):
    """Publishes the progress of its own methods."""

    @publish_progress(func_name="data_processing")
    async def process(self, amount: int, *, unit: str) -> str:
        return f"{amount} {unit}"

    @publish_progress
    async def check(self, agent_ctx: AgentContext) -> None:
        raise ValueError("unchecked")

    async def run_turn(self, agent_ctx: AgentContext) -> TurnCompletion[AgentContext]:
        output = await self.process(5, unit="kg")
        try:
            await self.check(agent_ctx)
        except ValueError:
            output += ", unchecked"
        return TurnCompletion(is_done=True, context=agent_ctx, output=output)


async def test_progress_is_published_before_and_after() -> None:
    heard: list[BaseEvent] = []
    agent = Reporting(name="reporting", model=ScriptedModel(["unused"]))
    completion = await agent.run_inline(AgentContext(query="q"), event_handler=heard.append)
    assert completion.output == "5 kg, unchecked"
    events = {event.event_type: event.to_dict() for event in heard}
    started = events["progress_update_data_processing_started"]["data"]
    assert (started["args"], started["kwargs"]) == ([5], {"unit": "kg"})
    assert events["progress_update_data_processing_completed"]["data"]["result"] == "5 kg"
    assert events["progress_update_check_failed"]["error"] == "ValueError: unchecked"
    assert events["progress_update_check_started"]["data"]["args"] == []  # contexts are left out


async def test_outside_a_turn_the_method_is_only_called() -> None:
    assert await Reporting(name="reporting").process(1, unit="g") == "1 g"
