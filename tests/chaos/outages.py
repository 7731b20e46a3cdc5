"""A provider that can be away, and the agent that needs it. Tests of outages, and `make outage`, use them."""

import asyncio
from collections import Counter
from typing import Any

from factorial import Agent
from factorial.testing import Reply, call, say
from tests.spec.provider import Call, Provider

__all__ = ["Away", "looking"]


def look() -> str:
    """Look at the sky."""
    return "blue"


looking = Agent(name="looking", instructions="Look at the sky.", tools=[look], model="gpt-4.1")


class Away(Provider):
    """A provider whose second answer, the one to the tool's result, can be refused; or all answers."""

    def __init__(self) -> None:
        super().__init__()
        self.replies = _reply
        self.refusal: int | None = None
        """The HTTP status of what is refused. None: nothing is."""
        self.refuses_all = False
        self.refused = Counter[int]()
        self.answered = 0

    async def _answer(self, call: Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if self.refusal is None or not (self.refuses_all or _is_second(call.messages)):
            self.answered += 1
            return await super()._answer(call, reader, writer)
        self.refused[self.refusal] += 1
        call.refuse(self.refusal, "away", **({"Retry_After": "2"} if self.refusal == 429 else {}))
        return await self._send_response(call, writer)


def _is_second(messages: list[dict[str, Any]]) -> bool:
    return bool(messages[-1]["role"] == "tool")


def _reply(messages: list[dict[str, Any]]) -> Reply:
    return say("It is blue.") if _is_second(messages) else call("look")
