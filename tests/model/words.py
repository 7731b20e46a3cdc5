"""A history in words: one line for each request that the server executes, and what it answered."""

from typing import Any

from factorial.mailbox.operations.claim import Token
from tests.model.wire import Request

__all__ = ["described", "heard"]


def described(request: Request) -> str:
    """What the request asks."""
    args, facts = request.args, request.facts
    match request.name:
        case "enqueue" | "cancel":
            return f"{request.name} {args[0]}"
        case "claim":
            return f"claim of up to {args[3]} by {args[0]} (nonce {args[4]})"
        case "record":
            number, entries = facts["message_number"], ", ".join(facts["entries"])
            return f"record {number} of {facts['run']} under {_shown(facts['token'])}: {entries}"
        case "enqueue_batch":
            return f"enqueue of the batch {args[0]}: {', '.join(run.task_id for run in facts['runs'])}"
        case "cancel_batch":
            return f"cancel of the batch {args[0]}"
        case "spawn":
            children = ", ".join(child.task_id for child in facts["children"])
            return f"spawn by {facts['run']} under {_shown(facts['token'])}: {children}"
        case "commit":
            awaited = f" for {', '.join(facts['work'].awaits)}" if facts["work"].awaits else ""
            return f"commit of {facts['run']} under {_shown(facts['token'])}: {facts['work'].action}{awaited}"
        case "deliver":
            return f"result for {args[1]} of {args[0]}"
        case "steer":
            return f"steer {args[0]}: {args[1]}"
        case "reclaim" if args[1]:
            return f"reclaim of {args[1]}, which has {args[2]}"
        case "register" | "release":
            return f"{request.name} of {args[0]}"
        case _:
            return f"{request.name} {' '.join(str(arg) for arg in args if arg != '')}"


def heard(request: Request, reply: Any) -> str:
    """What the server answered."""
    match request.name:
        case "claim" if reply[0] == b"OK":
            return ", ".join(f"{run.decode()} under epoch {epoch}" for run, _, epoch, *_ in reply[2]) or "nothing"
        case "commit" if reply[0] == b"OK":
            return str(reply[1].decode())
        case "reclaim":
            return f"{_plain(reply[0])} go on, {_plain(reply[1])} are given up"
        case _:
            return str(_plain(reply))


def _plain(reply: Any) -> Any:
    if isinstance(reply, list):
        return [_plain(item) for item in reply]
    return reply.decode() if isinstance(reply, bytes) else reply


def _shown(token: Token) -> str:
    return f"epoch {token.epoch}, seq {token.seq}"
