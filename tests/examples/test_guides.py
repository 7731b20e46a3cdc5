"""The snippets of the tutorial and the guides, run as they are written.

Real: the processes, the supervisor, the embedded Valkey, its data on disk. Not real: the models, which play the
documents' own scripts, and the functions that a guide leaves to its reader, such as a railway's booking service.
"""

import json
import logging
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from factorial import Agent, AgentContext, AgentWorkerConfig, RetryableError
from factorial.telemetry.logs import JsonFormatter
from factorial.telemetry.task_log import TaskLog
from factorial.testing import ScriptedModel, call, say
from tests.examples.conftest import System
from tests.examples.documents import BLOCKS, FRAGMENTS, run, shown


def test_no_two_documents_have_a_file_of_one_name() -> None:
    names = Counter(block.file for block in BLOCKS if block.file)
    assert [name for name, count in names.items() if count > 1] == []


def test_all_files_are_run_here_or_in_the_test_of_the_readme() -> None:
    files = {block.file for block in BLOCKS if block.file and block.document != "README.md"}
    assert files == {"run.py", "watch.py", "shop.py", "shop.toml", "approve.py", "chat.py", "test_weather.py"}


async def test_a_system_from_python_is_watched_steered_and_cancelled(folder: Path, system: System) -> None:
    async with system("run.py"):
        assert run(folder, "watch.py") == shown("docs/tutorial/watch.md")[0]


async def test_a_task_waits_for_a_person(folder: Path, system: System) -> None:
    async with system("-m", "factorial.supervisor", "shop.toml") as log:
        assert run(folder, "approve.py") == shown("docs/tutorial/wait.md")[0]
    assert "Traceback" not in log.read_text()


async def test_a_conversation_continues(folder: Path, system: System) -> None:
    weather = (folder / "weather.py").read_text()
    assert weather.count("], delay=") == 1
    (folder / "weather.py").write_text(weather.replace("], delay=", ', say("A hat, after Oslo.")], delay='))
    async with system("-m", "factorial.supervisor", "system.toml"):
        assert run(folder, "chat.py") == "Take a coat: 4 degrees in Oslo.\nA hat, after Oslo.\n"


def test_a_test_of_your_own(folder: Path) -> None:
    assert "1 passed" in run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_weather.py")


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=lambda fragment: fragment.document)
def test_every_other_fragment_runs(fragment: Any) -> None:
    exec(compile(fragment.text, fragment.document, "exec"), {"__name__": "document"})


def names_of(document: str, place: int = 0, **given: Any) -> dict[str, Any]:
    """What a fragment of the document defines, with what it leaves to its reader."""
    fragment = [one for one in FRAGMENTS if one.document == document][place]
    names = {"__name__": "document", **given}
    exec(compile(fragment.text, document, "exec"), names)
    return names


async def test_the_idempotency_key_gets_to_the_service() -> None:
    orders: dict[str, str] = {}
    railway = SimpleNamespace(book=lambda seat, idempotency_key: orders.setdefault(idempotency_key, f"booked {seat}"))
    names = names_of("docs/guides/failures.md", railway=railway)
    script = ScriptedModel([call("book_seat", seat="12A"), say("Booked.")])
    await Agent(tools=[names["book_seat"]], model=script).run_inline(AgentContext(query="A seat, please"))
    [key] = orders
    assert key and orders[key] == "booked 12A"


async def test_a_tool_changes_the_context_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    names = names_of("docs/guides/agents.md")
    agent = names["planner"]
    script = [call("book_hotel", city="Oslo", price=450), call("book_hotel", city="Bergen", price=90), say("Done.")]
    monkeypatch.setattr(agent, "model", ScriptedModel(script))
    context = (await agent.run_inline(names["Trip"](query="Norway"))).context
    assert (context.booked, context.budget) == (["Oslo"], 50.0)
    assert "Too expensive" in context.messages[4]["content"]


def test_the_line_of_the_log_is_what_is_written(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "factorial.task"):
        error = "TimeoutError: the station does not answer"
        TaskLog("4f1c", "weather", "user123").retried(error, turn=2, attempt=1, delay=0.81)
    line = json.loads(JsonFormatter("weather.1-3fa9c2").format(caplog.records[0]))
    documented = json.loads(shown("docs/guides/logs-and-metrics.md", "json")[0])
    assert list(documented.items())[1:] == list(line.items())[1:]
    assert documented["timestamp"][-5:-1].startswith(".") and line.keys() == documented.keys()


class Effects:
    """Two services of an example. The second one fails when it is first called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    def call(self, *about: str) -> str:
        self.calls.append(about)
        if [first for first, *_ in self.calls] == ["first", "second"]:
            raise RetryableError("not now")
        return f"{about[0]}-{len(self.calls)}"

    async def acall(self, *about: str) -> str:
        return self.call(*about)


async def test_a_step_that_has_finished_is_not_repeated() -> None:
    effects = Effects()

    async def pay(order_id: str, amount: int, idempotency_key: str) -> str:
        return await effects.acall("first", order_id, str(amount), idempotency_key)

    names = names_of(
        "docs/guides/steps.md",
        payments=SimpleNamespace(charge=pay),
        warehouse=SimpleNamespace(ship=lambda *about: effects.acall("second", *about)),
    )
    agent = names["agent"]
    agent.model = ScriptedModel([call("place_order", order_id="17", amount=250), say("It is on its way.")])
    done = await agent.run_inline(AgentContext(query="Order 17"), worker_config=AgentWorkerConfig(retry_delay=0.01))
    [(_, order_id, amount, key), *shipped] = effects.calls
    assert (order_id, amount) == ("17", "250") and "charge" in key
    assert shipped == [("second", "17", "first-1")] * 2
    assert done.context.messages[2]["content"] == "Shipped as second-3."


async def test_a_step_of_a_plain_tool_that_has_finished_is_not_repeated() -> None:
    effects = Effects()
    names = names_of(
        "docs/guides/steps.md",
        1,
        storage=SimpleNamespace(upload=lambda document: effects.call("first", document)),
        index=SimpleNamespace(add=lambda location: effects.call("second", location)),
    )
    agent = Agent(tools=[names["archive"]], model=ScriptedModel([call("archive", document="a"), say("Done.")]))
    await agent.run_inline(AgentContext(query="?"), worker_config=AgentWorkerConfig(retry_delay=0.01))
    assert effects.calls == [("first", "a"), ("second", "first-1"), ("second", "first-1")]
