"""Rules of the repository that no linter checks. Pure: the files are read, nothing is run."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("factorial", "examples", "benchmarks", "formal", "supervisors", "docs", "tests")
TEXTS = {".py", ".lua", ".md", ".toml", ".yml", ".yaml", ".pml"}
CITATION = re.compile(r"\bchecklist [A-Z]\d\d|[(,] ?[IOCAEDTN]\d\d\b|test_spec_[A-Z]\d\d")


def texts() -> Iterator[Path]:
    """The text files of the repository that contributors write."""
    yield from ROOT.glob("*.md")
    for folder in FOLDERS:
        yield from (path for path in (ROOT / folder).rglob("*") if path.suffix in TEXTS)


def test_the_numbers_of_promises_stay_in_their_folder() -> None:
    """A reader who does not have PROMISES.md open must understand every other file."""
    places = [path for path in texts() if not path.is_relative_to(ROOT / "tests" / "spec")]
    allowed = {Path(__file__), ROOT / "tests" / "mutants" / "faults.py"}  # the latter names tests of that folder
    citing = {
        str(path.relative_to(ROOT)): found[0]
        for path in places
        if path not in allowed and (found := CITATION.search(path.read_text(encoding="utf-8")))
    }
    assert citing == {}
