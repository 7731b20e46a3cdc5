"""The rounds of a call: which models are tried again, and when. Real: `complete`. Fake: the models and the clock."""

import asyncio
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from factorial.errors import ModelError, ModelRefusedError, RateLimitError, TruncatedResponseError
from factorial.models import ModelRequest, complete, fallback_models
from factorial.models.faults import _retry_after
from factorial.testing import ScriptedModel, say

REQUEST = ModelRequest([{"role": "user", "content": "hi"}], timeout=30)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between the rounds. They take no time. Other code sleeps as usual."""
    taken: list[float] = []

    async def note(delay: float) -> None:
        if delay:
            taken.append(delay)
        await asyncio.sleep(0)

    monkeypatch.setattr(sys.modules["factorial.models.complete"], "asyncio", SimpleNamespace(sleep=note))
    return taken


def failing(name: str, log: list[str], *errors: ModelError) -> ScriptedModel:
    """A model that raises `errors` one after the other, and then answers."""
    left = list(errors)

    def reply(messages: Any) -> Any:
        log.append(name)
        if left:
            raise left.pop(0)
        return say(f"from {name}")

    return ScriptedModel(reply, name=name)


async def test_rounds_go_through_the_models_in_order(pauses: list[float]) -> None:
    log: list[str] = []
    first = failing("first", log, ModelError("a"), ModelError("b"), ModelError("c"))
    second = failing("second", log, ModelRefusedError("d"))
    third = failing("third", log, ModelError("e"))
    completion = await complete(fallback_models(first, second, third), REQUEST)
    assert completion.choices[0].message.content == "from third"
    assert log == ["first", "second", "third", "first", "third"]
    assert len(pauses) == 1 and 0.25 <= pauses[0] <= 0.5


async def test_a_short_retry_after_is_honoured(pauses: list[float]) -> None:
    log: list[str] = []
    await complete(failing("a", log, RateLimitError("x", retry_after=7)), REQUEST)
    assert len(pauses) == 1 and 7 < pauses[0] <= 7.7


async def test_no_try_starts_after_the_timeout(pauses: list[float]) -> None:
    log: list[str] = []
    with pytest.raises(RateLimitError):
        await complete(failing("a", log, RateLimitError("x", retry_after=7)), ModelRequest([], timeout=5))
    assert (log, pauses) == (["a"], [])


@pytest.mark.parametrize(
    "error", [TruncatedResponseError("x"), ModelRefusedError("x"), ModelError("x", retry_after=11)]
)
async def test_some_errors_are_not_retried_within_the_call(pauses: list[float], error: ModelError) -> None:
    log: list[str] = []
    with pytest.raises(ModelError) as raised:
        await complete(failing("a", log, error, error), REQUEST)
    assert raised.value is error
    assert (log, pauses) == (["a"], [])


@pytest.mark.parametrize(
    ("errors", "kind", "wait"),
    [
        ((ModelRefusedError("a"), ModelRefusedError("b")), ModelRefusedError, None),
        ((RateLimitError("a", retry_after=60), ModelRefusedError("b")), RateLimitError, 60),
        ((RateLimitError("a", retry_after=60), RateLimitError("b", retry_after=20)), RateLimitError, 20),
        ((RateLimitError("a", retry_after=60), TruncatedResponseError("b")), TruncatedResponseError, None),
    ],
)
async def test_of_several_errors_a_temporary_one_is_raised(
    pauses: list[float], errors: tuple[ModelError, ...], kind: type[ModelError], wait: float | None
) -> None:
    models = [failing(str(number), [], error) for number, error in enumerate(errors)]
    with pytest.raises(ModelError, match="all 2 models failed: a; b") as raised:
        await complete(fallback_models(*models), REQUEST)
    assert type(raised.value) is kind and raised.value.retry_after == wait


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
    ],
)
def test_retry_after_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert _retry_after(headers) == seconds


def test_retry_after_as_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Callable[[], float] = lambda: 1_000_000_000.0  # noqa: E731  # 2001-09-09 01:46:40
    monkeypatch.setattr("time.time", clock)
    assert _retry_after({"retry-after": "Sun, 09 Sep 2001 01:47:00 GMT"}) == 20
