"""ARCHITECTURE.md and docs/explanation/ against the code: keys, scripts, and what they name. Nothing is fake."""

import re
from itertools import pairwise

import pytest

from factorial.mailbox.keys import KINDS
from tests.examples.documents import DOCUMENTS, ROOT, rows, section

PACKAGE = ROOT / "factorial"
PROTOCOL = "docs/explanation/protocol.md"
ABOUT_THE_CODE = [path for path in DOCUMENTS if path == "ARCHITECTURE.md" or path.startswith("docs/explanation/")]


@pytest.mark.parametrize("document", ABOUT_THE_CODE)
def test_every_file_that_is_named_is_there(document: str) -> None:
    named = set(re.findall(r"`(?:[\w/]*/)?(\w+\.(?:py|lua))\b", DOCUMENTS[document]))
    there = {path.name for folder in ("factorial", "tests") for path in (ROOT / folder).rglob("*.*")}
    assert named - there == set()


def test_every_script_has_its_line() -> None:
    scripts = {path.name for path in (PACKAGE / "mailbox").glob("*/*.lua") if path.parent.name != "lib"}
    assert {row[0].strip("`") for row in rows(section(PROTOCOL, "Scripts"))} == scripts


def test_the_keys_are_those_of_the_code() -> None:
    documented = []
    for key, kind_of_value, holds in rows(section(PROTOCOL, "Keys")):
        kind, _, name = key.strip("`").partition(":")
        documented.append((kind, name, kind_of_value, holds))
    assert documented == [(kind, about.name, about.type, about.holds) for kind, about in KINDS.items()]


ROOMS = {
    "Client": ("client", "orchestrator"),
    "Mailbox": ("mailbox",),
    "Actors": ("actors",),
    "Agent": ("agent",),
    "Models and tools": ("models", "tools"),
}


def test_each_step_of_the_walk_is_one_room_further() -> None:
    """A step names functions of its own room only, and that room and the one before it know each other."""
    steps = re.findall(
        r"^\d+\. \*\*([\w ]+)\.\*\*((?:.|\n  )*)", section("ARCHITECTURE.md", "The walk of one task"), re.M
    )
    assert [name for name, _ in steps][:5] == list(ROOMS)
    for name, text in steps:
        files = re.findall(r"`([\w/]+)\.py:\w+`", text)
        assert files and {file.partition("/")[0] for file in files} <= set(ROOMS[name]), name
    for (before, _), (after, _) in pairwise(steps):
        assert before != after and (imports(before, after) or imports(after, before)), (before, after)


def imports(importing: str, imported: str) -> bool:
    """Whether a module of the first room imports one of the second."""
    names = "|".join(ROOMS[imported])
    paths = [
        path for room in ROOMS[importing] for path in [*PACKAGE.glob(f"{room}.py"), *PACKAGE.glob(f"{room}/**/*.py")]
    ]
    return any(re.search(rf"from factorial\.({names})\b", path.read_text()) for path in paths)


def test_every_function_that_is_named_is_there() -> None:
    text = "\n".join(DOCUMENTS[document] for document in ABOUT_THE_CODE)
    named = re.findall(r"`([\w/]+\.py):(\w+)`", text)
    assert len(named) > 25
    missing = []
    for file, name in named:
        places = [PACKAGE / file] if (PACKAGE / file).exists() else list(PACKAGE.rglob(file.rpartition("/")[2]))
        if not any(re.search(rf"\b(def|class) {name}\b|^{name} = ", path.read_text(), re.MULTILINE) for path in places):
            missing.append(f"{file}:{name}")
    assert missing == []
