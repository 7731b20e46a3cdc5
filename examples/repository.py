"""An agent that answers questions about this repository, with three tools over real files.

python -m examples.repository "Where is a 'lease' taken, and when is it over?"
"""

import asyncio
import fnmatch
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from examples.librarian import LIBRARIAN
from examples.model import WHO_ANSWERS, model_or
from factorial import Agent, AgentContext

__all__ = ["ROOT", "Directory", "RepositoryAgent", "agent"]

ROOT = Path(__file__).resolve().parent.parent

_INSTRUCTIONS = """You answer questions about a code repository, for its developers.
Look things up with your tools, several at once where you can; do not guess. Name the files that you rely on.
Answer in at most three sentences."""

_MOST_LINES = 200
_LONGEST_LINE = 300
_LARGEST_FILE = 500_000


class Directory:
    """Three tools that see the text files below `root`, and nothing else. Links that lead out are not followed.

    Names that start with a dot (.git, .env, .venv) are hidden. The size of each result is limited, because it stays in
    the conversation until the run ends.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    @property
    def tools(self) -> list[Callable[..., str]]:
        """The tools, for an agent."""
        return [self.list_files, self.search_text, self.read_file]

    def list_files(self, directory: str = ".", pattern: str = "*") -> str:
        """List the text files below a directory, with how many lines each has.

        Args:
            directory: a path relative to the repository's root.
            pattern: what a file's name must match, for example "*.lua".
        """
        files = self._files(directory)
        found = [f"{path} ({text.count(chr(10))})" for path, text in files if fnmatch.fnmatch(path.name, pattern)]
        return _bounded(found) or f"no file below {directory} matches {pattern}"

    def search_text(self, text: str, directory: str = ".") -> str:
        """Find the lines that contain a text, in any case. Each is shown as path:line: content.

        Args:
            text: the text itself; it is not a regular expression.
            directory: where to look: a path relative to the repository's root.
        """
        if not text.strip():
            raise ValueError("text is empty: give the text to search for")
        hits = [
            f"{path}:{number}: {line.strip()}"
            for path, content in self._files(directory)
            for number, line in enumerate(content.splitlines(), 1)
            if text.lower() in line.lower()
        ]
        return _bounded(hits) or f"{text!r} occurs nowhere below {directory}"

    def read_file(self, path: str, first_line: int = 1) -> str:
        """Read up to 200 lines of a text file.

        Args:
            path: relative to the repository's root.
            first_line: the number of the first line to read, from 1.
        """
        text = _text(self._inside(path))
        if text is None:
            raise ValueError(f"{path} is not a text file, or is larger than {_LARGEST_FILE} bytes")
        return _bounded(text.splitlines()[max(first_line, 1) - 1 :]) or f"{path} has no line {first_line}"

    def _inside(self, path: str) -> Path:
        """The real path, if it is within the root. Otherwise raises an error that the model sees."""
        real = (self.root / path).resolve()
        is_inside = real.is_relative_to(self.root)
        if not is_inside or any(part.startswith(".") for part in real.relative_to(self.root).parts):
            raise ValueError(f"{path} is outside the repository: give a path relative to its root")
        if not real.exists():
            raise ValueError(f"{path} does not exist: list_files shows what does")
        return real

    def _files(self, directory: str) -> Iterator[tuple[Path, str]]:
        """The text files below `directory`: path relative to the root, and content. Links are not followed."""
        for place, directories, names in os.walk(self._inside(directory)):
            directories[:] = sorted(name for name in directories if not name.startswith("."))
            for file in (Path(place, name) for name in sorted(names) if not name.startswith(".")):
                if not file.is_symlink() and (text := _text(file)) is not None:
                    yield file.relative_to(self.root), text


def _text(file: Path) -> str | None:
    """The content of a text file, or None if the file is too large or not text."""
    try:
        return file.read_text(encoding="utf-8") if file.stat().st_size <= _LARGEST_FILE else None
    except (UnicodeDecodeError, OSError):
        return None


def _bounded(lines: list[str]) -> str:
    shown = [line[:_LONGEST_LINE] for line in lines[:_MOST_LINES]]
    if len(lines) > _MOST_LINES:
        shown.append(f"... and {len(lines) - _MOST_LINES} more lines")
    return "\n".join(shown)


class RepositoryAgent(Agent):
    """Answers questions about the repository in `root`."""

    def __init__(self, root: Path = ROOT) -> None:
        super().__init__(
            name="repository",
            description="Answers questions about a code repository",
            instructions=_INSTRUCTIONS,
            tools=Directory(root).tools,
            model=model_or(LIBRARIAN),
            max_turns=12,
        )


agent = RepositoryAgent()


async def main(question: str) -> None:
    print(WHO_ANSWERS)
    print((await agent.run_inline(AgentContext(query=question))).output)


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "Where is a 'lease' taken, and when is it over?"))
