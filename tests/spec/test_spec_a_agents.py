"""Chapter A of the checklist: agents. Real: Valkey, HTTP, the openai client. Fake: the language model."""

from llmock.pytest_plugin import LLMock

from factorial import Agent, gpt_41
from tests.harness import System


async def test_spec_A01_an_agent_asks_its_model(system: System, llmock: LLMock) -> None:
    llmock.reply("Sunny.")
    agent = Agent(name="weather", instructions="Be brief.", model=gpt_41)
    await system.start(agent)
    data = await system.ended(await system.submit(agent, "How is the weather?"))
    assert data["payload"]["output"] == "Sunny."
    assert llmock.last_request.body == {
        "model": "gpt-4.1",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "How is the weather?"},
        ],
    }
