"""ARCHITECTURE.md's lists against the code: keys, scripts, and the functions it names. Nothing is fake."""

import re
from pathlib import Path

from factorial.mailbox.keys import KINDS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "factorial"
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def test_no_line_is_about_a_file_that_is_not_there() -> None:
    listed = set(re.findall(r"`(?:[\w/]*/)?(\w+\.(?:py|lua))`", TEXT))
    there = {path.name for folder in ("factorial", "tests") for path in (ROOT / folder).rglob("*.*")}
    assert listed - there == set()


def test_every_script_has_its_line() -> None:
    scripts = {path.name for path in (PACKAGE / "mailbox").glob("*/*.lua") if path.parent.name != "lib"}
    assert set(re.findall(r"^\| `(\w+\.lua)` \|", TEXT, re.MULTILINE)) == scripts


def test_the_keys_are_those_of_the_code() -> None:
    rows = set(re.findall(r"^\| `(\w+)(?::([^`]*))?` \| ([A-Z]+|pub/sub) \|", TEXT, re.MULTILINE))
    assert rows == {(kind, about.name, about.type) for kind, about in KINDS.items()}


def test_every_function_that_is_named_is_there() -> None:
    named = re.findall(r"`([\w/]+\.py):(\w+)`", TEXT)
    assert len(named) > 25
    missing = []
    for file, name in named:
        places = [PACKAGE / file] if (PACKAGE / file).exists() else list(PACKAGE.rglob(Path(file).name))
        if not any(re.search(rf"\b(def|class) {name}\b|^{name} = ", path.read_text(), re.MULTILINE) for path in places):
            missing.append(f"{file}:{name}")
    assert missing == []
