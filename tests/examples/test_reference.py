"""The reference's tables against the code: settings, events, errors, messages, variables, options. Nothing is fake."""

import ast
import inspect
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

from factorial import errors
from factorial.config import SystemConfig
from factorial.events import CATALOGUE
from tests.examples.documents import DOCUMENTS, ROOT, environment, rows, section, shown

SOURCES = {
    path: path.read_text(encoding="utf-8") for path in (ROOT / "factorial").rglob("*.*") if path.suffix != ".pyc"
}


def test_the_settings_are_those_of_the_code() -> None:
    documented, table = [], ""
    for named, field, default, meaning in rows(DOCUMENTS["docs/reference/settings.md"]):
        table = named.strip("`") or table
        documented.append((table, field.strip("`"), default.strip("`")))
        assert meaning, field
    assert sorted(documented) == sorted(settings_of(SystemConfig, ""))


def settings_of(kind: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Table, field and default of every setting, as the reference writes them."""
    hints = get_type_hints(kind)
    for one in fields(kind):
        [*_, inner] = [hints[one.name], *(part for part in get_args(hints[one.name]) if is_dataclass(part))]
        place = f"{path}.{one.name}".lstrip(".")
        if is_dataclass(inner):
            yield from settings_of(inner, place)
            continue
        bare = "" if one.default in (MISSING, None) else json.dumps(one.default)
        yield (f"[[{path}]]" if path in ("runner", "group") else f"[{path}]", one.name, bare)


def test_the_events_are_the_catalogue() -> None:
    assert rows(DOCUMENTS["docs/reference/events.md"]) == [
        [f"`{name}`", entry.when, ", ".join(f"`{field}`" for field in entry.carries)]
        for name, entry in CATALOGUE.items()
    ]


def test_the_tree_of_errors_is_that_of_the_code() -> None:
    parents: list[tuple[int, str]] = []
    documented = {}
    for line in shown("docs/reference/errors.md")[0].splitlines():
        found = re.match(r"([ │├└─]*)(\w+)(?: \((\w+)\))?", line)
        assert found, line
        while parents and parents[-1][0] >= len(found[1]):
            parents.pop()
        documented[found[2]] = {parents[-1][1] if parents else "Exception", *([found[3]] if found[3] else [])}
        parents.append((len(found[1]), found[2]))
    assert textwrap.indent(shown("docs/reference/errors.md")[0], "    ") in (errors.__doc__ or "")
    assert documented == {
        name: {base.__name__ for base in kind.__bases__}
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, errors.FactorialError)
    }


def test_the_messages_are_those_of_the_code() -> None:
    source = "\n".join(SOURCES.values())
    table = rows(section("docs/reference/errors.md", "Messages"))
    messages = re.findall(r"`([^`]+)`", " ".join(row[0] for row in table))
    assert len(messages) > 20
    assert [message for message in messages if message not in source] == []


def test_the_environment_variables_are_those_of_the_code() -> None:
    first_cells = [row[0] for row in rows(DOCUMENTS["docs/reference/environment.md"])]
    documented = set(re.findall(r"`([A-Z_]+)`", " ".join(first_cells)))
    ours = re.compile(r"(REDIS|OPENAI|ANTHROPIC|GEMINI|XAI|FACTORIAL|NOTIFY|WATCHDOG)_[A-Z_]*[A-Z]")
    named = set()
    for path, text in SOURCES.items():
        if path.suffix == ".py":
            texts = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
            named |= {one for one in texts if isinstance(one, str) and ours.fullmatch(one)}
    logging = {f"FACTORIAL_LOG_{field.name.upper()}" for field in fields(SystemConfig().logging)}
    of_a_library = {"HTTPS_PROXY", "SSL_CERT_FILE"}
    assert documented == named | logging | of_a_library


COMMAND_LINE = "docs/reference/command-line.md"
OPTION = re.compile(r"--[a-z][a-z-]*")


@cache
def options_of(*command: str) -> set[str]:
    """The options that a command has, by its own help."""
    asked = [sys.executable, "-m", *command, "--help"]
    told = subprocess.run(asked, capture_output=True, text=True, env=environment(), check=True, timeout=60).stdout
    return set(OPTION.findall(told.partition("\n\n")[0])) - {"--help"}


def test_the_options_of_a_run_are_those_of_the_command() -> None:
    table = " ".join(row[0] for row in rows(section(COMMAND_LINE, "Run a system")))
    assert set(OPTION.findall(table)) == options_of("factorial.supervisor")


def test_the_verbs_and_their_options_are_those_of_the_command() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "factorial.supervisor", "--help"], capture_output=True, text=True, env=environment()
    ).stdout
    [listed] = re.findall(r"factorial\.supervisor (\w+(?: \| \w+)+)", told)
    text = section(COMMAND_LINE, "Operate a system")
    first_cells = " ".join(row[0] for row in rows(text))
    verbs = set(listed.split(" | "))
    assert set(re.findall(r"`([a-z]+)(?: [^`]*)?`", first_cells)) == verbs
    documented: dict[str, set[str]] = {verb: set() for verb in verbs}
    for cell, which, *_ in [row for row in rows(text) if row[0].startswith("`--")]:
        names = set(re.findall(r"`(\w+)`", which))
        for verb in (verbs - names) if which.startswith("all") else names:
            documented[verb] |= set(OPTION.findall(cell))
    assert textwrap.indent(shown("docs/reference/errors.md")[0], "    ") in (errors.__doc__ or "")
    assert documented == {verb: options_of("factorial.supervisor", verb) for verb in verbs}


def test_the_options_of_the_doctor_are_those_of_the_command() -> None:
    table = " ".join(row[0] for row in rows(section(COMMAND_LINE, "Check a namespace")))
    assert set(OPTION.findall(table)) == options_of("factorial", "doctor")
