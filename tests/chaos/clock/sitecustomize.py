"""Sets the clock of every Python process that finds this on its path: CHAOS_CLOCK seconds ahead, or behind.

Imported by the interpreter at its start, before anybody can have taken `time.time` or `datetime` into hand. For all
that Python code sees, it is what libfaketime would do. The monotonic clock is left alone, as it is when a clock is set.
"""

import datetime
import os
import time
from typing import Any

if "CHAOS_CLOCK" in os.environ:
    OFF = int(os.environ["CHAOS_CLOCK"])
    true_time, true_time_ns = time.time, time.time_ns

    class OffDatetime(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls.fromtimestamp(time.time(), tz)

        @classmethod
        def utcnow(cls) -> Any:
            return cls.now(datetime.UTC).replace(tzinfo=None)

    time.time = lambda: true_time() + OFF
    time.time_ns = lambda: true_time_ns() + OFF * 10**9
    datetime.datetime = OffDatetime  # type: ignore[misc]
