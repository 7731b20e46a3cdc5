"""Between the clients and the server: every request is an object that waits until its fate is decided.

The operations are the real ones of factorial/mailbox. They run without an event loop: where one would wait for the
network, its coroutine gives the request out, and goes on when it is handed a reply.
"""

import types
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass, field
from typing import Any

from factorial.errors import FactorialError, MailboxUnavailableError
from factorial.mailbox.keys import Keys
from factorial.mailbox.script import Argument, Scripts

__all__ = ["Call", "Request", "Wire", "at_once"]


@dataclass(eq=False)
class Request:
    """One message to the server: a script by its name, or a plain command. The same object when it is sent again."""

    name: str
    args: tuple[Any, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    """What the client means by it."""
    accepted: Any = None
    """What the server answered when it first accepted the request. None: it has not yet."""


@types.coroutine
def _sent(request: Request) -> Generator[Request, Any, Any]:
    return (yield request)


@dataclass
class _Plain:
    """The commands other than scripts."""

    async def execute(self, *args: Any) -> Any:
        return await _sent(Request(str(args[0]), args[1:]))


class Wire(Scripts):
    """The scripts as a client has them."""

    def __init__(self, keys: Keys) -> None:
        super().__init__(_Plain(), keys, {})

    async def run(self, name: str, *args: Argument) -> Any:
        """Send the request, and wait for the reply."""
        return await _sent(Request(name, args))


@dataclass(eq=False)
class Call:
    """An operation in progress. `then` gets its result, or the error that the caller would see."""

    who: str
    """Which client, as a history calls it."""
    operation: Coroutine[Request, Any, Any]
    then: Callable[[Any], None] = lambda result: None
    facts: dict[str, Any] = field(default_factory=dict)
    request: Request | None = None
    """The request to be delivered. None once the operation has ended."""

    def __post_init__(self) -> None:
        self._go_on(None)

    def reply(self, answer: Any) -> None:
        """The server's answer has arrived."""
        self._go_on(answer)

    def give_up(self) -> None:
        """The server could not be reached for too long. The request may have been executed."""
        self._go_on(MailboxUnavailableError("the server could not be reached"))

    def drop(self) -> None:
        """The client has died."""
        self.request = None
        self.operation.close()

    def _go_on(self, answer: Any) -> None:
        try:
            failed = isinstance(answer, Exception)
            self.request = self.operation.throw(answer) if failed else self.operation.send(answer)
            self.request.facts = self.facts
            return
        except StopIteration as end:
            result = end.value
        except FactorialError as refusal:
            result = refusal
        self.request = None
        self.then(result)


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never has to wait."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits for something")
