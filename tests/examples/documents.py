"""The documents of the repository, and what the tests read from them: snippets, sections and tables."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_PLACES = ("*.md", "docs/**/*.md", "formal/*.md")
DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for place in _PLACES
    for path in sorted(ROOT.glob(place))
    if path.name != "CHANGELOG.md"
}
"""Each document's text, by its path."""

_FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: str
    kind: str
    text: str

    @property
    def file(self) -> str:
        """The name of the file that the block is, if its first line says so."""
        found = re.match(r"# (\S+\.(?:py|toml))\n", self.text)
        return found[1] if found else ""


BLOCKS = [Block(path, *found) for path, text in DOCUMENTS.items() for found in _FENCED.findall(text)]
FILES = {block.file: block.text for block in BLOCKS if block.file}
"""The files that the documents ask their reader to create. No two of them have one name."""
FRAGMENTS = [block for block in BLOCKS if block.kind == "python" and not block.file]


def shown(document: str, kind: str = "text") -> list[str]:
    """The blocks of one kind in a document, such as what a command prints."""
    return [block.text for block in BLOCKS if (block.document, block.kind) == (document, kind)]


def without_blocks(text: str) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def section(document: str, heading: str) -> str:
    """What stands under a heading, up to the next one of any level."""
    return re.split(r"^#+ ", DOCUMENTS[document].split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """The rows of the tables in `text`, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rules = [number for number, line in enumerate(lines) if set(line) <= set("|-")]
    heads = {*rules, *(number - 1 for number in rules)}
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for number, line in enumerate(lines)
        if number not in heads
    ]


def environment() -> dict[str, str]:
    """This process's environment, without what would change how the snippets run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("REDIS_", "OPENAI_", "PYTEST_"))}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def start(folder: Path, *arguments: str, output: Path) -> "subprocess.Popen[bytes]":
    """`python ARGUMENTS` in `folder`. What it prints and logs goes into a file."""
    with output.open("wb") as file:
        command = [sys.executable, *arguments]
        return subprocess.Popen(command, cwd=folder, env=environment(), stdout=file, stderr=file)


def run(folder: Path, *arguments: str) -> str:
    """What `python ARGUMENTS` prints in `folder`; it has to succeed."""
    outcome = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout
