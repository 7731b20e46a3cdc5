"""Log lines on standard error, each with the name of the process that wrote it."""

import logging
import sys

__all__ = ["log_to_stderr"]


def log_to_stderr(process: str, level: int = logging.INFO) -> None:
    """Log to standard error as `process`, unless logging has been set up already."""
    logging.basicConfig(
        stream=sys.stderr, level=level, format=f"%(asctime)s %(levelname)-7s {process} %(name)s: %(message)s"
    )
