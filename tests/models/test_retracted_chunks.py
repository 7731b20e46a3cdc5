"""What is shown of an answer that fails after it has begun is withdrawn.

Real: the openai client, HTTP, an inline run. Fake: the server's answers, which the tests write byte by byte.
"""

from typing import Any

from factorial import Agent, AgentContext
from factorial.errors import InvalidLLMResponseError
from factorial.events import AgentEvent
from factorial.models import fallback_models
from factorial.testing import ScriptedModel, say
from tests.models.conftest import RawServer
from tests.models.test_odd_servers import piece

CHUNK = "progress_update_completion_chunk"


def text_shown(events: list[AgentEvent]) -> str:
    """The text that a page shows which follows the events as the documentation says."""
    done, streamed = "", ""
    for event in events:
        if event.event_type == CHUNK:
            streamed += event.data["text"]
        elif event.event_type == "completion_retracted":
            streamed = ""
        elif event.event_type == "progress_update_completion_completed":
            done, streamed = done + streamed, ""
    return done + streamed


async def test_a_model_that_fails_while_it_streams_is_followed_by_another(raw_server: RawServer) -> None:
    raw_server.stream(piece({"content": "The dose is"}), {"error": {"code": 502, "message": "upstream died"}})
    events: list[AgentEvent] = []
    model = fallback_models(raw_server.model, ScriptedModel([say("Ask a doctor.")]))
    agent = Agent(name="streaming", stream=True, model=model)
    await agent.run_inline(AgentContext(query="q"), event_handler=events.append)
    types = [event.event_type for event in events]
    assert types.count("completion_retracted") == 1
    assert types.index(CHUNK) < types.index("completion_retracted")
    assert text_shown(events) == "Ask a doctor."
    [retracted] = [event for event in events if event.event_type == "completion_retracted"]
    chunk = events[types.index(CHUNK)]
    assert retracted.turn == chunk.turn == 0
    for event in (retracted, chunk):
        assert event.metadata is not None
        assert (event.metadata["attempt"], event.metadata["pickups"]) == (1, 1)


async def test_an_answer_that_the_agent_rejects_is_withdrawn() -> None:
    answers = iter(["no", "yes"])

    class Strict(Agent):
        def validate_completion(self, agent_ctx: AgentContext, response: Any) -> None:
            if response.choices[0].message.content == "no":
                raise InvalidLLMResponseError("another one, please")

    events: list[AgentEvent] = []
    agent = Strict(name="strict", stream=True, model=ScriptedModel(lambda messages: next(answers)))
    completion = await agent.run_inline(AgentContext(query="q"), event_handler=events.append)
    assert completion.output == text_shown(events) == "yes"
    assert [event.event_type for event in events].count("completion_retracted") == 1


async def test_what_has_not_failed_is_not_withdrawn() -> None:
    events: list[AgentEvent] = []
    agent = Agent(name="streaming", stream=True, model=ScriptedModel([say("one two")]))
    await agent.run_inline(AgentContext(query="q"), event_handler=events.append)
    assert text_shown(events) == "one two"
    assert "completion_retracted" not in [event.event_type for event in events]
