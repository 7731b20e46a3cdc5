"""The README's snippets, run as they are written, in a folder that holds nothing else.

Real: the processes, the supervisor, the embedded Valkey, its data on disk. Not real: the model, which plays the
README's own script, and `railway`, a booking service that the README leaves to its reader.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest

from factorial import Agent, AgentContext
from factorial.config import SystemConfig
from factorial.events import CATALOGUE
from factorial.testing import ScriptedModel, call, say
from tests.support import wait_until

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [(kind, text) for kind, text in re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)]
FILES = {found[1]: text for _, text in BLOCKS if (found := re.match(r"# (\S+\.(?:py|toml))\n", text))}
FRAGMENTS = [text for kind, text in BLOCKS if kind == "python" and text not in FILES.values()]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with the README's files. Not pytest's own: the path of a unix socket must be short."""
    directory = Path(tempfile.mkdtemp(prefix="fct-readme-"))
    try:
        for name, text in FILES.items():
            (directory / name).write_text(text, encoding="utf-8")
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def environment() -> dict[str, str]:
    """This process's, without what would change how the snippets run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "OPENAI_", "PYTEST_"))}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def run(folder: Path, *arguments: str) -> str:
    """What `python ARGUMENTS` prints in `folder`; it has to succeed."""
    outcome = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


@contextmanager
def system(folder: Path, *arguments: str) -> Iterator[Path]:
    """A system in `folder`, started with `python ARGUMENTS`; in the end, Ctrl-C has to stop it. Gives its log."""
    log = folder / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment(), stderr=stderr)
    try:
        yield log
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def test_the_readme_has_the_files_that_it_speaks_of() -> None:
    assert {"weather.py", "inline.py", "system.toml", "ask.py", "run.py", "watch.py", "test_weather.py"} == set(FILES)


def test_inline(folder: Path) -> None:
    assert run(folder, "inline.py") == "Take a coat: 4 degrees in Oslo.\n"


def test_your_own_test(folder: Path) -> None:
    assert "1 passed" in run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_weather.py")


async def test_the_system_from_toml_answers_as_shown(folder: Path) -> None:
    run(folder, "-m", "factorial.supervisor", "system.toml", "--check")
    with system(folder, "-m", "factorial.supervisor", "system.toml") as log:
        await wait_until(lambda: "is ready" in log.read_text(), timeout=30, message="a process is ready")
        shown = next(text for kind, text in BLOCKS if kind == "text")
        assert run(folder, "ask.py") == shown


async def test_the_system_from_python_is_watched_steered_and_cancelled(folder: Path) -> None:
    with system(folder, "run.py") as log:
        await wait_until(lambda: "is ready" in log.read_text(), timeout=30, message="a process is ready")
        printed = run(folder, "watch.py").splitlines()
    assert printed[:2] == ["run_enqueued", "run_started"]
    assert printed[2:] == ["run_steering_applied", "Take a coat: 4 degrees in Oslo.", "cancelled"]


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=range(len(FRAGMENTS)))
def test_every_other_fragment_runs(fragment: str) -> None:
    exec(compile(fragment, "README.md", "exec"), {"__name__": "readme"})


async def test_the_idempotency_key_gets_to_the_service() -> None:
    orders: dict[str, str] = {}
    railway = SimpleNamespace(book=lambda seat, idempotency_key: orders.setdefault(idempotency_key, f"booked {seat}"))
    [fragment] = [text for text in FRAGMENTS if "idempotency_key" in text]
    names: dict[str, Any] = {"railway": railway}
    exec(compile(fragment, "README.md", "exec"), names)
    script = ScriptedModel([call("book_seat", seat="12A"), say("Booked.")])
    await Agent(tools=[names["book_seat"]], model=script).run_inline(AgentContext(query="A seat, please"))
    [key] = orders
    assert key and orders[key] == "booked 12A"


def test_the_table_of_settings_is_that_of_the_code() -> None:
    rows, table = [], ""
    for line in README.split("\n## Settings\n")[1].split("\n## ")[0].splitlines():
        if line.startswith("| ") and not line.startswith("| table"):
            named, field, default = (cell.strip().strip("`") for cell in line.split("|")[1:4])
            table = named or table
            rows.append((table, field, default))
    assert sorted(rows) == sorted(_settings(SystemConfig, ""))


def _settings(kind: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Table, field and default of every setting, as the README writes them."""
    hints = get_type_hints(kind)
    for one in fields(kind):
        [*_, inner] = [hints[one.name], *(part for part in get_args(hints[one.name]) if is_dataclass(part))]
        place = f"{path}.{one.name}".lstrip(".")
        if is_dataclass(inner):
            yield from _settings(inner, place)
            continue
        bare = "" if one.default in (MISSING, None) else _toml(one.default)
        yield (f"[[{path}]]" if path in ("runner", "group") else f"[{path}]", one.name, bare)


def _toml(value: Any) -> str:
    return json.dumps(value)


def test_the_table_of_events_is_the_catalogue() -> None:
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in README.split("\n### Events\n")[1].split("\n## ")[0].splitlines()
        if line.startswith("| `") and not line.startswith("| `event_type`")
    ]
    assert table == [
        [f"`{name}`", entry.when, ", ".join(f"`{field}`" for field in entry.carries)]
        for name, entry in CATALOGUE.items()
    ]


def test_the_messages_in_the_table_of_troubles_are_those_of_the_code() -> None:
    source = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "factorial").rglob("*.*") if _is_source(path)
    )
    section = README.split("\n## When something is wrong\n")[1].split("\n## ")[0]
    messages = re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)
    assert len(messages) > 10
    assert [message for message in messages if message not in source] == []


def _is_source(path: Path) -> bool:
    return path.suffix in (".py", ".lua")


def test_every_file_that_the_documents_name_is_there() -> None:
    for document in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        named = set(re.findall(r"`((?:factorial|examples|tests|benchmarks|supervisors)/[\w/.]*)`", text))
        assert [name for name in sorted(named) if not (ROOT / name).exists()] == [], document
