"""An answer of a pydantic type: the model has to call `final_output` with it, and sees what is wrong with invalid ones.

python -m examples.structured
"""

import asyncio
from typing import Literal

from pydantic import Field

from examples.model import WHO_ANSWERS, model_or
from factorial import Agent, AgentContext
from factorial.testing import ScriptedModel, call
from factorial.utils import BaseModel


class Ticket(BaseModel):
    """A support ticket, as the help desk files it."""

    summary: str = Field(max_length=80)
    urgency: Literal["low", "normal", "high"]
    products: list[str]


# The first answer of the script is invalid. The model sees why, and the second one is valid.
SCRIPT = ScriptedModel(
    [
        call("final_output", summary="The printer is on fire", urgency="very", products=["printer"]),
        call("final_output", summary="The printer is on fire", urgency="high", products=["printer"]),
    ]
)

agent = Agent(
    name="help_desk",
    instructions="File the customer's message as a ticket.",
    output_type=Ticket,
    model=model_or(SCRIPT),
    max_turns=5,
)


async def main() -> None:
    print(WHO_ANSWERS)
    completion = await agent.run_inline(AgentContext(query="Help! My printer is burning!"))
    ticket: Ticket = completion.output
    print(f"{ticket.urgency}: {ticket.summary} ({', '.join(ticket.products)})")


if __name__ == "__main__":
    asyncio.run(main())
