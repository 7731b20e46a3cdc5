"""The snippets of the tutorial and the guides, run as they are written.

Real: the processes, the supervisor, the embedded Valkey, its data on disk. Not real: the models, which play the
documents' own scripts, and the functions that a guide leaves to its reader, such as a railway's booking service.
"""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from factorial import Agent, AgentContext
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


def names_of(document: str, **given: Any) -> dict[str, Any]:
    """What the document's first fragment defines, with the functions that it leaves to its reader."""
    fragment = next(one for one in FRAGMENTS if one.document == document)
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
