"""Chapter N of PROMISES.md: three programs and a page, as users of nfactorial 0.1.31 write them (`tests/spec/dropin/`).
Each is copied into a folder of its own, and started as its users would.

Real: Valkey, HTTP, the openai client, the programs' processes and their supervisor, uvicorn, WebSockets, and the page's
script in node. Fake: the language model, and the elements of the page.
"""

import asyncio
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from factorial.testing import Reply, call, calls, say
from tests.spec.folder import UVICORN, address_of, are_ready, copied, environment_of, get, started
from tests.spec.provider import Provider, texts
from tests.spec.web import hear, post, socket
from tests.valkey import ValkeyServer


def node() -> str | None:
    """The program `node`, if it is one that has WebSockets."""
    found = shutil.which("node")
    if found is None:
        return None
    told = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    version = [int(part) for part in re.findall(r"\d+", told)[:2]]
    return found if version >= [20, 10] else None


# -- a research team, and its page


def newsroom(messages: list[dict[str, Any]]) -> Reply:
    """What the models of the editor and of its fact finders say."""
    role, asked = messages[0]["content"], [message for message in messages if message["role"] == "assistant"]
    if role.startswith("You find facts"):
        subject = messages[1]["content"]
        return [call("look_up", subject=subject), call("final_output", facts=[f"{subject} <exist>"])][len(asked)]
    return [
        call("outline", title="The sea", points=["whales", "ships"]),
        call("send_out", questions=["whales", "ships", "krakens"]),
        call("final_output", headline="At sea", text="There are whales & ships"),
    ][len(asked)]


async def screens(folder: Path, environment: dict[str, str], *arguments: str) -> list[dict[str, Any]]:
    """What the page has shown, in the order of its changes."""
    program = node()
    assert program is not None
    process = await asyncio.create_subprocess_exec(
        program, "--experimental-websocket", "browser.js", *arguments,
        cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        output, errors = await asyncio.wait_for(process.communicate(), 120)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, errors.decode()
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.skipif(
    node() is None, reason="needs node 20.10 or newer: apt-get install nodejs, or npm install --global n"
)
async def test_spec_N03_N04_N08_N10_a_research_team_with_a_final_output_and_its_page(
    tmp_path: Path, own_valkey: ValkeyServer, provider: Provider
) -> None:
    own_valkey.start()
    folder, environment = copied("research", tmp_path), environment_of(own_valkey, provider)
    provider.replies = newsroom
    with (
        started(folder, environment | {"OPENAI_API_KEY": "key-of-the-team"}, "agent.py") as workers,
        started(folder, environment, *UVICORN) as web,
    ):
        await are_ready(workers)
        shown = await screens(folder, environment, await address_of(web), "ann", "Write about the sea.")
    last = shown[-1]
    assert last == {
        "tools": ["outline done: The sea", "send_out done: 3 found"],
        "finders": [
            "look_up done: 2 found / whales <exist>", "look_up done: 1 found / ships <exist>",
            "look_up failed: KeyError: 'krakens' / krakens <exist>",
        ],
        "bar": 100,
        "answer": "At sea. There are whales & ships",
    }  # fmt: skip
    seen = {name: [screen[name] for screen in shown] for name in last}
    assert ["outline running"] in seen["tools"] and ["outline done: The sea", "send_out running"] in seen["tools"]
    assert ["out", "out", "out"] in seen["finders"]  # the children are known before they have begun
    assert any("look_up running / out" in finders for finders in seen["finders"])
    assert seen["bar"] == sorted(seen["bar"]) and len(set(seen["bar"])) > 3  # turns count, and not only ended tasks
    [closing] = [one for one in provider.calls if one.messages[0]["content"].startswith("You write") and
                 len(one.messages) == 6]  # fmt: skip
    answer = closing.messages[-1]["content"]
    assert answer.startswith("3 fact finders are back\n<sub_task_results>\n<sub_task_result sub_task_id=")
    assert answer.count(' &lt;exist&gt;"]} </sub_task_result>') == 3
    assert [one["function"]["name"] for one in closing.body["tools"]] == ["outline", "final_output"]
    assert "authorization: bearer key-of-the-team" in closing.head


# -- a coding agent with an approval


async def test_spec_N02_N10_a_coding_agent_waits_for_an_approval(
    tmp_path: Path, own_valkey: ValkeyServer, provider: Provider
) -> None:
    own_valkey.start()
    folder, environment = copied("coder", tmp_path), environment_of(own_valkey, provider)
    provider.replies = [
        "Hello!",  # which is in the history
        calls(call("read_file", path="a.py"), call("write_file", path="a.py", content="x = 2\n")),
        call("run_tests", command="pytest"),
        call("run_tests", command="pytest -x"),
        "Changed, and tested.",
    ]
    with (
        started(folder, environment | {"OPENAI_API_KEY": "key"}, "agent.py") as workers,
        started(folder, environment, *UVICORN) as web,
    ):
        await are_ready(workers)
        address = await address_of(web)
        async with socket(address, "/updates/bob") as browser:
            job = {
                "user": "bob", "query": "Make x two", "files": {"a.py": "x = 1\n", "b.py": ""},
                "history": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello!"}],
            }  # fmt: skip
            task_id = (await post(address, "/jobs", job))["task_id"]
            heard: list[dict[str, Any]] = []
            for approved in (False, True):
                heard += await hear(browser, lambda some: wants_approval(some) is not None, 60)
                decision = {"task_id": task_id, "tool_call_id": wants_approval(heard), "approved": approved}
                assert (await get(address, f"/jobs/{task_id}"))["status"] in ("processing", "pending_tool_results")
                report = "1 passed" if approved else "not now"
                assert await post(address, "/decisions", decision | {"report": report}) == {"success": True}
            heard += await hear(browser, lambda some: some[-1:] != [] and some[-1]["event_type"] == "run_completed", 60)
        assert await get(address, f"/jobs/{task_id}") == {
            "status": "completed", "files": {"a.py": "x = 2\n", "b.py": ""}, "changed": ["a.py"],
            "output": "Changed, and tested.",
        }  # fmt: skip
    results = [one["data"]["result"] for one in heard if one["event_type"] == "progress_update_tool_action_completed"]
    by_tool = {(one["tool_call"]["function"]["name"], one["output_str"]): one["output_data"] for one in results}
    assert by_tool["write_file", "a.py is written"] == {"path": "a.py", "before": "x = 1\n", "after": "x = 2\n"}
    decisions = [data for (tool, _), data in by_tool.items() if tool == "run_tests"]
    assert decisions == [{"status": "rejected", "report": "not now"}, {"status": "approved", "report": "1 passed"}]
    assert (folder / "approvals").read_text().split() == [
        part
        for one in heard
        if one["event_type"] == "progress_update_tool_action_started" and is_approval(one)
        for part in (task_id, one["data"]["args"][0]["id"], *json.loads(arguments(one))["command"].split())
    ]
    first, second, third, fourth = provider.calls
    assert texts(first.messages) == [
        "system: You change files, and run the tests when you are done.", "user: Hello", "assistant: Hello!",
        "user: Files:\na.py\nb.py\n\nMake x two",
    ]  # fmt: skip
    assert texts(fourth.messages)[4:] == [
        "assistant: read_file(), write_file()", "tool: x = 1\n", "tool: a.py is written",
        "assistant: run_tests()", 'tool: {"status":"rejected","report":"not now"}',
        "assistant: run_tests()", 'tool: {"status":"approved","report":"1 passed"}',
    ]  # fmt: skip
    assert first.body["model"] == "gpt-4.1" and len(second.messages) == 7 and len(third.messages) == 9
    described = first.body["tools"][1]["function"]["parameters"]["properties"]
    assert {"path", "content"} == described.keys()


def is_approval(update: dict[str, Any]) -> bool:
    """Whether it is about a call that a person has to approve."""
    return bool(update["data"]["args"][0]["function"]["name"] == "run_tests")


def arguments(update: dict[str, Any]) -> str:
    """The arguments of the call."""
    return str(update["data"]["args"][0]["function"]["arguments"])


def wants_approval(heard: list[dict[str, Any]]) -> str | None:
    """The id of the call that waits, if the last update says that the task waits for one."""
    if not heard or heard[-1]["event_type"] != "task_pending_tool_call_results":
        return None
    return str(heard[-1]["data"]["tool_call_ids"][0])


# -- a batch with progress


def summarizer(messages: list[dict[str, Any]]) -> Reply | None:
    """Reads the document, and sums it up. The first task of a batch of hundred is answered, and no other one."""
    number = int(messages[1]["content"].rpartition(" ")[2])
    if messages[-1]["role"] == "tool":
        return say(f"In short: {messages[-1]['content']}")
    return call("read", number=number)


async def run_batch(folder: Path, environment: dict[str, str], *arguments: str) -> list[dict[str, Any]]:
    """What `python run_batch.py` prints, line by line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "run_batch.py", *arguments, cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 120)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0
    return [json.loads(line) for line in output.splitlines()]


async def test_spec_N05_N06_N07_a_batch_with_progress(
    tmp_path: Path, own_valkey: ValkeyServer, provider: Provider
) -> None:
    own_valkey.start()
    folder, environment = copied("importer", tmp_path), environment_of(own_valkey, provider)
    provider.replies = summarizer
    with started(folder, environment | {"OPENAI_API_KEY": "key"}, "agent.py") as workers:
        await are_ready(workers)
        begun, *progress, ends, unknown = await run_batch(folder, environment, "20")
        assert (begun["tasks"], begun["status"]) == (20, "active") and unknown == {"unknown": "no-such-batch"}
        assert ends == {"completed": 20}
        assert {(one["owner_id"], one["total_tasks"]) for one in progress} == {("librarian", 20)}
        percents = [one["progress"] for one in progress]
        assert percents == sorted(percents) and percents[-2:] == [100, 100]
        # Each task takes two of its four turns, so there is progress between the ends of tasks.
        assert len({one["progress"] for one in progress}) > len({one["completed_tasks"] for one in progress})
        assert [one["event_type"] for one in progress].count("batch_completed") == 1
        assert progress[-1]["status"] == "completed" and progress[0]["status"] == "active"
        missing = next(one for one in provider.calls if "missing" in str(one.messages[-1]["content"]))
        assert missing.messages[-1]["content"] == "Error: FileNotFoundError: document 13 is missing"

        begun, *progress, ends, _ = await run_batch(folder, environment, "400", "cancel")
        assert {"cancelled": "cancelled"} in progress and progress[-1]["event_type"] == "batch_cancelled"
        assert progress[-1]["status"] == "cancelled"
        assert ends["cancelled"] > 0 and sum(ends.values()) == 400
