"""The tools of examples/repository.py over real files: what they show, and that no path leads out of the root."""

from pathlib import Path

import pytest

from examples.repository import Directory


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    """A root directory, next to a file that the tools must not show."""
    (tmp_path / "secret.txt").write_text("the neighbour's password")
    root = tmp_path / "root"
    (root / "src" / ".git").mkdir(parents=True)
    (root / "readme.md").write_text("Leases\nA lease is over when nobody renews it.\n")
    (root / "src" / "lease.py").write_text("LEASE = 15\n")
    (root / "src" / ".git" / "config").write_text("lease = hidden\n")
    (root / ".env").write_text("LEASE=secret\n")
    (root / "picture.png").write_bytes(b"\x89PNG\xff\xfe lease")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "out").symlink_to(tmp_path)
    return Directory(root)


def test_lists_the_text_files(directory: Directory) -> None:
    assert directory.list_files() == "readme.md (2)\nsrc/lease.py (1)"
    assert directory.list_files("src", "*.py") == "src/lease.py (1)"
    assert directory.list_files(pattern="*.lua") == "no file below . matches *.lua"


def test_finds_lines_in_any_case(directory: Directory) -> None:
    assert directory.search_text("LEASE") == (
        "readme.md:1: Leases\nreadme.md:2: A lease is over when nobody renews it.\nsrc/lease.py:1: LEASE = 15"
    )
    assert directory.search_text("l.ase") == "'l.ase' occurs nowhere below ."
    with pytest.raises(ValueError, match="give the text to search for"):
        directory.search_text("  ")


def test_reads_from_a_line(directory: Directory) -> None:
    assert directory.read_file("readme.md", first_line=2) == "A lease is over when nobody renews it."
    assert directory.read_file("readme.md", first_line=9) == "readme.md has no line 9"
    assert directory.read_file(str(directory.root / "src/../readme.md"), first_line=-3).startswith("Leases")


@pytest.mark.parametrize(
    "path",
    ["../secret.txt", "/etc/passwd", "src/../../secret.txt", "link.txt", "out/secret.txt", ".env", "src/.git/config"],
)
def test_no_path_leads_out(directory: Directory, path: str) -> None:
    with pytest.raises(ValueError, match="outside the repository"):
        directory.read_file(path)


@pytest.mark.parametrize("path", ["..", "/", "out", "src/.git"])
def test_no_search_leads_out(directory: Directory, path: str) -> None:
    with pytest.raises(ValueError, match="outside the repository"):
        directory.search_text("password", path)
    with pytest.raises(ValueError, match="outside the repository"):
        directory.list_files(path, "*")


def test_a_search_from_the_root_finds_nothing_outside(directory: Directory) -> None:
    assert directory.search_text("password") == "'password' occurs nowhere below ."
    assert directory.list_files(pattern="../*") == "no file below . matches ../*"


def test_files_that_are_not_text(directory: Directory) -> None:
    for path in ("picture.png", "src"):
        with pytest.raises(ValueError, match=f"{path} is not a text file"):
            directory.read_file(path)
    with pytest.raises(ValueError, match=r"lost\.py does not exist"):
        directory.read_file("lost.py")


def test_results_are_bounded(directory: Directory) -> None:
    (directory.root / "long.txt").write_text(("x" * 1_000 + "\n") * 300)
    for result in (directory.read_file("long.txt"), directory.search_text("xxx")):
        assert len(result) < 70_000
        assert result.endswith("... and 100 more lines")
    (directory.root / "huge.txt").write_text("y" * 600_000)
    with pytest.raises(ValueError, match="or is larger than"):
        directory.read_file("huge.txt")
    assert "huge.txt" not in directory.list_files()
