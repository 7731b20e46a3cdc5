"""What the tests of the documents' promises share: a real Valkey, and a real HTTP server that speaks the OpenAI
protocol (`llmock`, the plugin's fixture). Fake: the language model behind that server, and nothing else.

Whatever a test is about, it fails if a request's conversation was one that no provider takes (`provider.flaw`).

A file holds one chapter of PROMISES.md; a test's name begins with the row that it shows (`test_spec_A07_...`).
"""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from llmock.pytest_plugin import LLMock

from factorial.models import close_clients
from tests.spec.program import Program
from tests.spec.provider import Provider, flaw


@pytest.fixture(autouse=True)
async def closed_clients() -> AsyncIterator[None]:
    """No connection outlives its test."""
    yield
    await close_clients()


@pytest.fixture
async def provider(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Provider]:
    """A server for the models of OpenAI that answers when the test says so."""
    async with Provider().running() as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.url)
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")
        yield running
        assert running.flaws == []


@pytest.fixture
def llmock(llmock: LLMock) -> Iterator[LLMock]:
    """The plugin's, which does not look at the conversations that it is sent: in the end, they are looked at here."""
    yield llmock
    bodies = [request.body or {} for request in llmock.requests]  # it does not keep a very large one
    assert [wrong for body in bodies if (wrong := flaw(body.get("messages", ())))] == []


@pytest.fixture
async def program(tmp_path: Path) -> AsyncIterator[Program]:
    """A directory with a module of agents, and a system in processes of its own to be started there."""
    program = Program(tmp_path)
    try:
        yield program
    finally:
        await program.clean_up()
