"""What holds for every document: its links lead somewhere, and what it names is there."""

import os
import re
from pathlib import Path

import pytest

from tests.examples.documents import DOCUMENTS, ROOT, without_blocks

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:factorial|examples|tests|benchmarks|supervisors|formal|docs)/[\w/.-]*)`")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_it_names_is_there(document: str) -> None:
    named = set(PATH.findall(without_blocks(DOCUMENTS[document])))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document: str) -> None:
    broken = []
    for link in LINK.findall(without_blocks(DOCUMENTS[document])):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = os.path.normpath(Path(document).parent / path) if path else document
        if not (ROOT / target).exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def anchors(document: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(DOCUMENTS[document]), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_no_promise_is_cited_by_its_number_outside_its_tests() -> None:
    """The numbers are those of tests/spec/PROMISES.md: elsewhere, a reader cannot know what they mean."""
    number = re.compile(r"\bchecklist\b|\([A-Z]\d\d(?:(?:, | to | and )[A-Z]\d\d)*\)")
    places = ("factorial", "examples", "benchmarks", "supervisors", "formal", "docs", "tests")
    files = [
        path for place in places for kind in ("py", "lua", "md", "toml") for path in ROOT.glob(f"{place}/**/*.{kind}")
    ]
    read = [path for path in files if not path.is_relative_to(ROOT / "tests" / "spec") and path != Path(__file__)]
    assert len(read) > 200
    assert [str(path.relative_to(ROOT)) for path in read if number.search(path.read_text(encoding="utf-8"))] == []


def test_the_index_leads_to_every_page() -> None:
    linked = {os.path.normpath(Path("docs") / link) for link in LINK.findall(DOCUMENTS["docs/README.md"])}
    pages = {document for document in DOCUMENTS if document.startswith("docs/")} - {"docs/README.md"}
    assert pages - linked == set()
