"""`get_logger` by the path that nfactorial 0.1.x had for it. New programs call `logging.getLogger`."""

import logging

__all__ = ["get_logger"]


def get_logger(name: str, dedupe_exceptions: bool = True) -> logging.Logger:
    """`logging.getLogger(name)`. What is shown is the program's to configure, or the supervisor's in its processes.

    `dedupe_exceptions` is accepted and changes nothing: each exception is logged whole.
    """
    return logging.getLogger(name)
