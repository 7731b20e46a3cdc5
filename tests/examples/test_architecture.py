"""ARCHITECTURE.md and docs/explanation/ against the code: keys, scripts, and what they name. Nothing is fake."""

import re

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
