"""Each row of the checklist has a test here that is named after it. Pure."""

import re
from pathlib import Path

CHAPTERS = {"I": 13, "O": 17, "C": 6, "A": 16, "E": 12, "D": 8, "T": 5}
LATER = {"O11", "O16"}
"""The dashboard's page, and `nfactorial create`."""


def test_every_row_has_a_test() -> None:
    rows = {f"{chapter}{number:02}" for chapter, count in CHAPTERS.items() for number in range(1, count + 1)}
    text = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_spec_*.py"))
    names = re.findall(r"def test_spec_(\w+?)_(?=[a-z])", text)
    shown = {row for name in names for row in re.findall(r"[A-Z]\d\d", name)}
    for first, last in re.findall(r"([A-Z]\d\d)_to_([A-Z]\d\d)", "\n".join(names)):
        shown |= {f"{first[0]}{number:02}" for number in range(int(first[1:]), int(last[1:]) + 1)}
    assert rows - LATER - shown == set()
    assert shown <= rows
