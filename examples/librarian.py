"""The script that answers questions about the repository if there is no key. It is not a language model.

It searches for the quoted word, opens the files that have it most often, searches the tests for a name that is defined
there, and reports what it found. Each reply depends on the conversation alone, so any process can make the next one.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from factorial.testing import Reply, ScriptedModel, call, calls, say

__all__ = ["LIBRARIAN"]


def reply(messages: Sequence[Mapping[str, Any]]) -> Reply:
    """The next reply of a conversation: search, read two files, search the tests, read one, report."""
    question = next(message["content"] for message in messages if message["role"] == "user")
    found = {message["tool_call_id"]: message["content"] for message in messages if message["role"] == "tool"}
    topic = _topic(question)
    mentions = _mentions(found.get("call_0_0", ""))
    files = [path for path, _ in mentions.most_common(3)]
    match sum(message["role"] == "assistant" for message in messages):
        case 0:
            return calls(
                call("search_text", text=topic, directory="factorial"),
                call("list_files", directory="factorial", pattern=f"*{topic}*"),
            )
        case 1 if files:
            return calls(*(call("read_file", path=path) for path in files[:2]))
        case 2 if files:
            name = _defined(topic, found["call_1_0"]) or topic
            return calls(call("search_text", text=name, directory="tests"), call("read_file", path=files[-1]))
        case 3 if tests := _mentions(found.get("call_2_0", "")):
            return call("read_file", path=tests.most_common(1)[0][0])
        case _:
            return say(_report(topic, mentions, found))


def _topic(question: str) -> str:
    """The quoted word, or else the longest word."""
    quoted = re.search(r"'(\w+)'", question)
    return quoted[1] if quoted else max(re.findall(r"\w+", question) or ["factorial"], key=len)


def _mentions(hits: str) -> Counter[str]:
    """How often each file occurs in the result of `search_text`."""
    return Counter(re.findall(r"^([^\s:]+):\d+: ", hits, re.MULTILINE))


def _defined(topic: str, text: str) -> str | None:
    """The name of a function or class that contains the topic."""
    definition = re.search(rf"(?:def|class|function) (\w*{topic}\w*)", text, re.IGNORECASE)
    return definition[1] if definition else None


def _report(topic: str, mentions: Counter[str], found: Mapping[str, str]) -> str:
    if not mentions:
        return f"'{topic}' occurs nowhere."
    file, times = mentions.most_common(1)[0]
    opening = found.get("call_1_0", "").strip(' "-\n').split("\n")[0].strip(' "')
    tests = len(_mentions(found.get("call_2_0", "")))
    return (
        f"'{topic}' is in {mentions.total()} lines of {len(mentions)} files, most often ({times}) in {file}, "
        f"which begins: “{opening}” {tests} test files are related to it."
    )


LIBRARIAN = ScriptedModel(reply, delay=0.25, name="librarian (a script)")
