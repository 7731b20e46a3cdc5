"""Each promise of PROMISES.md that is kept has a test here that is named after it. Pure."""

import re
from pathlib import Path

HERE = Path(__file__).parent
PROMISES = re.findall(
    r"^- ([A-Z]\d\d)( \(not yet kept)?", (HERE / "PROMISES.md").read_text(encoding="utf-8"), re.MULTILINE
)


def test_every_kept_promise_has_a_test() -> None:
    rows = {row for row, _ in PROMISES}
    kept = {row for row, later in PROMISES if not later}
    assert len(kept) > 70
    text = "\n".join(path.read_text() for path in HERE.glob("test_spec_*.py"))
    names = re.findall(r"def test_spec_(\w+?)_(?=[a-z])", text)
    shown = {row for name in names for row in re.findall(r"[A-Z]\d\d", name)}
    for first, last in re.findall(r"([A-Z]\d\d)_to_([A-Z]\d\d)", "\n".join(names)):
        shown |= {f"{first[0]}{number:02}" for number in range(int(first[1:]), int(last[1:]) + 1)}
    assert kept - shown == set()
    assert shown <= rows
