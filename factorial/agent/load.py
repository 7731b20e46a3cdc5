"""Imports an agent by its name in a configuration, `module:attribute`.

Called by the supervisor, to validate before anything starts, and by each process of a runner.
"""

import difflib
import importlib
import importlib.util
import logging
import os
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from factorial.errors import ConfigError

if TYPE_CHECKING:
    from factorial.agent.agent import BaseAgent

__all__ = ["load_agent"]

_logger = logging.getLogger(__name__)

_NOT_THE_USERS = (
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    str(Path(__file__).parent.parent),
)


def load_agent(reference: str) -> "BaseAgent[Any]":
    """Import the agent that `reference`, `module:attribute`, names.

    As with `python -m`, modules in the current directory are found. A program that names an agent of its own is not
    run a second time. Raises `ConfigError` that says what is wrong with the reference, or where the module fails.
    """
    from factorial.agent.agent import BaseAgent

    module_name, _, attribute = reference.partition(":")
    if not (module_name and attribute):
        raise ConfigError(f"agent {reference!r}: write it as 'module:attribute', for example 'myapp.agents:weather'")
    module = _import(reference, module_name)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"agent {reference!r}: {_absent(module, part, BaseAgent)}")
        found = getattr(found, part)
    if isinstance(found, BaseAgent):
        return found
    if isinstance(found, type) and issubclass(found, BaseAgent):
        raise ConfigError(f"agent {reference!r}: it is a class; name an instance, made by {found.__name__}(...)")
    raise ConfigError(f"agent {reference!r}: it is of type {type(found).__name__}, and not an agent")


def _import(reference: str, module_name: str) -> ModuleType:
    if not sys.flags.safe_path and not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    if (program := _running_program(module_name)) is not None:
        return program
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as missing:
        if missing.name and f"{module_name}.".startswith(f"{missing.name}."):
            raise ConfigError(
                f"agent {reference!r}: there is no module {missing.name!r} in {os.getcwd()} or among the installed "
                "packages; start in the directory that holds it, or set PYTHONPATH"
            ) from None
        raise ConfigError(f"agent {reference!r}: {_failure(missing)}") from missing
    except (Exception, SystemExit) as failed:  # the user's module runs here, and may fail in any way
        _logger.debug("importing %s has failed", module_name, exc_info=True)
        raise ConfigError(f"agent {reference!r}: {_failure(failed)}") from failed


def _running_program(module_name: str) -> ModuleType | None:
    """The main module, if `module_name` is its name: importing it would run the program a second time."""
    main = sys.modules["__main__"]
    if (spec := getattr(main, "__spec__", None)) is not None:
        return main if spec.name == module_name else None
    file = Path(getattr(main, "__file__", None) or "")
    if file.stem != module_name:
        return None
    found = importlib.util.find_spec(module_name)
    return main if found and found.origin and Path(found.origin).resolve() == file.resolve() else None


def _failure(error: BaseException) -> str:
    """What went wrong in the user's module, and at which of the user's lines."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {error.msg}"
    lines = [
        f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame)
    ]
    place = f" at {lines[-1]}" if lines else ""
    return f"its module cannot be imported: {type(error).__name__}{place}: {error}"


def _is_users(frame: traceback.FrameSummary) -> bool:
    """Whether it is neither Python's, nor an installed package's, nor ours."""
    return not frame.filename.startswith(("<frozen", *_NOT_THE_USERS))


def _absent(module: ModuleType, attribute: str, kind: type) -> str:
    agents = [name for name, value in vars(module).items() if isinstance(value, kind)]
    near = difflib.get_close_matches(attribute, agents or list(vars(module)), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; agents in it: {', '.join(agents) or 'none'}"
    return f"module {module.__name__} has no {attribute!r}{hint}"
