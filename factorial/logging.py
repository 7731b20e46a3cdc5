"""`get_logger` at its path of nfactorial 0.1.x. New programs call `logging.getLogger`."""

import logging

__all__ = ["get_logger"]


def get_logger(name: str, dedupe_exceptions: bool = True) -> logging.Logger:
    """`logging.getLogger(name)`. Factorial configures logging only in the processes of a supervisor.

    `dedupe_exceptions` is accepted and ignored.
    """
    return logging.getLogger(name)
