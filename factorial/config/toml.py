"""The file of `python -m factorial.supervisor`, read as plain data."""

import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from factorial.errors import ConfigError

__all__ = ["naming", "read_toml"]


@contextmanager
def naming(file: str | os.PathLike[str]) -> Iterator[None]:
    """Put the name of the configuration's file in front of every `ConfigError` that is raised within."""
    try:
        yield
    except ConfigError as mistake:
        raise ConfigError(f"{os.fspath(file)}: {mistake}") from mistake.__cause__


def read_toml(file: Path) -> dict[str, Any]:
    """What the file holds. Raises `ConfigError` if it cannot be read, or is not valid TOML."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except FileNotFoundError:
        raise ConfigError("there is no such file") from None
    except OSError as unreadable:
        raise ConfigError(f"it cannot be read: {unreadable.strerror}") from None
    except UnicodeDecodeError as unreadable:
        raise ConfigError(f"it cannot be read: save it as UTF-8 ({unreadable})") from None
    except RecursionError:
        raise ConfigError("it is not valid TOML: brackets are nested too deeply") from None
    except ValueError as malformed:  # TOMLDecodeError, and the error of int() for a number of too many digits
        raise ConfigError(f"it is not valid TOML: {malformed}") from None
