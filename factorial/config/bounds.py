"""The types of the settings: what values they accept.

Numbers are strict: a number in quotes, or `true` in the place of a number, is rejected and not converted.
"""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from pydantic import AllowInfNan, Strict

__all__ = [
    "AutoShutdown", "BucketSize", "Count", "Flag", "Heartbeats", "Limit", "LogFormat", "LogLevel", "Megabytes", "Pause",
    "Port", "Restart", "Seconds", "Strategy",
]  # fmt: skip

Seconds = Annotated[float, Strict(), AllowInfNan(False), Gt(0), Le(31_536_000)]
Pause = Annotated[float, Strict(), AllowInfNan(False), Ge(0), Le(86_400)]
Count = Annotated[int, Strict(), Ge(1), Le(1_000_000)]
Limit = Annotated[int, Strict(), Ge(0), Le(1_000_000)]
Heartbeats = Annotated[int, Strict(), Ge(2), Le(100)]
Megabytes = Annotated[int, Strict(), Ge(1), Le(100_000_000)]
Port = Annotated[int, Strict(), Ge(1), Le(65_535)]
Flag = Annotated[bool, Strict()]

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
Restart = Literal["permanent", "transient", "temporary"]
AutoShutdown = Literal["never", "any_significant", "all_significant"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
BucketSize = Literal["seconds", "minutes", "hours", "days"]
