"""Rules of the repository that no linter checks. Pure: the files are read, nothing is run."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("factorial", "examples", "benchmarks", "formal", "supervisors", "docs", "tests")
TEXTS = {".py", ".lua", ".md", ".toml", ".yml", ".yaml", ".pml"}
LONGEST_FILE = 400
MOST_PARAMETERS = 6
WITH_MORE = {
    "agent/agent.py: BaseAgent.__init__": "the documented settings of an agent, as keywords",
    "orchestrator.py: Orchestrator.__init__": "the documented settings of an orchestrator, as keywords",
    "orchestrator.py: Orchestrator.subscribe_to_updates": "the documented filters, as keywords",
    "models/multi_client.py: MultiClient.__init__": "the signature of nfactorial 0.1.x",
    "models/multi_client.py: MultiClient.completion": "the signature of nfactorial 0.1.x",
}
"""Functions that may have more than MOST_PARAMETERS parameters, and why."""
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


def test_a_file_can_be_read_in_one_sitting() -> None:
    package = [path for path in (ROOT / "factorial").rglob("*") if path.suffix in (".py", ".lua")]
    lengths = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in package}
    assert {path: length for path, length in lengths.items() if length > LONGEST_FILE} == {}


def test_a_signature_can_be_remembered() -> None:
    """An exception that is not needed any more fails, too."""
    package = ROOT / "factorial"
    with_more = {
        f"{path.relative_to(package).as_posix()}: {name}"
        for path in package.rglob("*.py")
        for name, count in parameters(ast.parse(path.read_text(encoding="utf-8")))
        if count > MOST_PARAMETERS
    }
    assert with_more == set(WITH_MORE)


def parameters(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """The functions below a node: their qualified names, and how many parameters they have without `self`."""
    for child in ast.iter_child_nodes(node):
        inside = prefix
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            inside = f"{prefix}{child.name}."
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [each.arg for each in (*child.args.posonlyargs, *child.args.args, *child.args.kwonlyargs)]
            yield prefix + child.name, len([name for name in names if name not in ("self", "cls")])
        yield from parameters(child, inside)
