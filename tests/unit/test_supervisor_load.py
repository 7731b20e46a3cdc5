"""Agents that are loaded by name. Real: modules in a temporary directory. No process, no Redis."""

import importlib.util
import itertools
import sys
import types
from pathlib import Path

import pytest

from factorial.agent.load import load_agent
from factorial.errors import ConfigError

numbers = itertools.count()

AGENTS = """
from factorial.agent.agent import BaseAgent

class Weather(BaseAgent):
    pass

class Registry:
    pass

registry = Registry()
registry.weather = weather = Weather(description="d", instructions="i", tools=[])
nothing = 7
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module in the current directory, which is not on `sys.path`: its name is new in each test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    path = tmp_path / f"agents_{next(numbers)}.py"
    path.write_text(AGENTS)
    return path


def test_an_agent_in_the_current_directory_is_found(module: Path) -> None:
    agent = load_agent(f"{module.stem}:weather")
    assert agent.description == "d"
    assert load_agent(f"{module.stem}:registry.weather") is agent


@pytest.mark.parametrize(
    ("attribute", "named"),
    [
        ("wether", "has no 'wether'; did you mean 'weather'?"),
        ("zzz", "has no 'zzz'; agents in it: weather"),
        ("Weather", r"it is a class; name an instance, made by Weather\(...\)"),
        ("nothing", "it is of type int, and not an agent"),
    ],
)
def test_an_attribute_that_is_not_an_agent(module: Path, attribute: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_agent(f"{module.stem}:{attribute}")


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (
            "import no_such_package_at_all",
            r"ModuleNotFoundError at .*{file}:1: No module named 'no_such_package_at_all'",
        ),
        ("x = 1\n1 / 0", r"ZeroDivisionError at .*{file}:2: division by zero"),
        ("def f(:", r"{file}:1: invalid syntax"),
        ("import sys\nsys.exit('bye')", r"SystemExit at .*{file}:2: bye"),
    ],
)
def test_a_module_that_does_not_import_says_where(module: Path, source: str, named: str) -> None:
    module.write_text(source)
    with pytest.raises(ConfigError, match=named.format(file=module.name)):
        load_agent(f"{module.stem}:weather")


@pytest.mark.parametrize("reference", ["no_such_module_at_all:agent", "factorial.no_such_module:agent"])
def test_a_module_that_is_not_there(module: Path, reference: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no module '.*no_such_module"):
        load_agent(reference)


@pytest.mark.parametrize("reference", ["agents", "agents:", ":agent", ""])
def test_an_invalid_reference(reference: str) -> None:
    with pytest.raises(ConfigError, match="'module:attribute'"):
        load_agent(reference)


@pytest.mark.parametrize("started_as", ["script", "module"])
def test_the_running_program_is_not_run_again(module: Path, monkeypatch: pytest.MonkeyPatch, started_as: str) -> None:
    monkeypatch.syspath_prepend(module.parent)
    module.write_text("raise SystemExit('it was run again')")
    program = types.ModuleType("__main__")
    program.__file__ = str(module)
    program.__spec__ = None if started_as == "script" else importlib.util.spec_from_file_location(module.stem, module)
    exec(AGENTS, vars(program))
    monkeypatch.setitem(sys.modules, "__main__", program)
    assert load_agent(f"{module.stem}:weather") is vars(program)["weather"]


def test_the_message_begins_with_the_reference(module: Path) -> None:
    module.write_text("raise RuntimeError('one\\ntwo')")
    with pytest.raises(ConfigError, match=rf"^agent '{module.stem}:weather': its module cannot be imported"):
        load_agent(f"{module.stem}:weather")
