"""Specifications are validated when they are made. Pure."""

import math
from typing import Any

import pytest

from factorial.errors import ConfigError
from factorial.supervisor.rules.spec import (
    AutoShutdown,
    ChildSpec,
    Restart,
    Strategy,
    SupervisorFlags,
    check_specs,
)


def child(**changes: Any) -> ChildSpec:
    return ChildSpec(**{"id": "a.1", "target": "some.module:function", **changes})


def test_the_defaults_are_those_of_otp() -> None:
    flags = SupervisorFlags()
    assert (flags.strategy, flags.intensity, flags.period) == ("one_for_one", 1, 5.0)
    assert flags.auto_shutdown is AutoShutdown.NEVER
    assert (child().restart, child().shutdown, child().type) == ("permanent", 5.0, "worker")


def test_plain_words_become_members() -> None:
    assert SupervisorFlags(strategy="rest_for_one").strategy is Strategy.REST_FOR_ONE  # type: ignore[arg-type]
    assert child(restart="transient").restart is Restart.TRANSIENT


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"id": "no spaces"}, "child id 'no spaces'"),
        ({"id": ""}, "child id ''"),
        ({"target": "module.function"}, "'module:function'"),
        ({"target": "__main__:function"}, "another process can import"),
        ({"restart": "sometimes"}, "permanent, transient, temporary"),
        ({"shutdown": -1}, "shutdown=-1"),
        ({"shutdown": math.inf}, "shutdown=inf"),
        ({"start_timeout": 0}, "more than 0"),
        ({"kwargs": {"live": object()}}, "plain data"),
        ({"significant": True}, "a permanent child never ends for good"),
    ],
)
def test_an_invalid_spec_is_rejected(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        child(**changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"strategy": "one"}, "one_for_one, one_for_all"),
        ({"intensity": -1}, "intensity=-1"),
        ({"period": 0}, "period=0"),
    ],
)
def test_invalid_flags_are_rejected(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        SupervisorFlags(**changes)


def test_two_children_cannot_have_one_id() -> None:
    with pytest.raises(ConfigError, match=r"two children with the id 'a\.1'"):
        check_specs(SupervisorFlags(), [child(), child()])


def test_significant_needs_auto_shutdown() -> None:
    spec = child(restart="temporary", significant=True)
    with pytest.raises(ConfigError, match="auto_shutdown"):
        check_specs(SupervisorFlags(), [spec])
    check_specs(SupervisorFlags(auto_shutdown=AutoShutdown.ANY_SIGNIFICANT), [spec])


def test_a_spec_does_not_show_the_arguments() -> None:
    """The URL of a server may hold a password."""
    assert "secret" not in repr(child(kwargs={"redis": {"url": "redis://:secret@host"}}))
