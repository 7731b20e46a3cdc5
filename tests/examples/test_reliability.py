"""docs/explanation/reliability.md names what is there: its folders, files, commands and events."""

import re

from factorial.events import CATALOGUE
from tests.examples.documents import DOCUMENTS, ROOT

TEXT = DOCUMENTS["docs/explanation/reliability.md"]


def test_every_path_is_there() -> None:
    paths = set(re.findall(r"`((?:tests|formal|factorial)/[\w./]*)`", TEXT))
    assert len(paths) >= 4
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_command_is_there() -> None:
    targets = set(re.findall(r"`make (\w+)", TEXT))
    assert targets >= {"chaos", "mutants", "model", "cluster"}
    makefile = (ROOT / "Makefile").read_text()
    assert [target for target in targets if f"\n{target}:" not in makefile] == []


def test_every_event_is_there() -> None:
    named = set(re.findall(r"`((?:run|subscription)_\w+)`", TEXT))
    assert named
    assert [name for name in named if name not in str(CATALOGUE)] == []
