"""Finds the verbs: each module of this package may list some as `VERBS`."""

import importlib
import pkgutil

from factorial import cli
from factorial.cli.common import Verb

__all__ = ["find_verbs"]


def find_verbs(program: str) -> dict[str, Verb]:
    """The verbs of `program` by their names, in the order of the modules and of their lists."""
    modules = [importlib.import_module(f"{cli.__name__}.{found.name}") for found in pkgutil.iter_modules(cli.__path__)]
    listed: list[Verb] = [verb for module in modules for verb in getattr(module, "VERBS", ())]
    return {verb.name: verb for verb in listed if verb.program == program}
