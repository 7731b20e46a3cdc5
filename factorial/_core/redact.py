"""Keeps keys and passwords out of text that people read: log lines, messages of errors, events.

A secret is recognised by its value, if it was registered (`remember_secret`, `remember_environment`), or by its form
(`sk-...`, a password within a URL, what follows `Authorization:`).
"""

import os
import re
from collections.abc import Mapping
from functools import lru_cache

from factorial._core.urls import ServerURL

__all__ = [
    "hide_secrets", "is_secret_name", "remember_environment", "remember_password", "remember_secret", "shown_url",
]  # fmt: skip

_HIDDEN = "***"

_SHORTEST = 6
"""The least number of characters of a registered secret. A shorter one may be an ordinary word."""
_NAMES = re.compile(r"(?:API_?KEY|SECRET(?:_?KEY)?|ACCESS_?KEY|TOKEN|PASSWORD|PASSWD)$", re.IGNORECASE)
# Each pattern takes linear time for any text: no two of its parts may match the same run of characters.
_URL = re.compile(r"(://[^\s:@/\"'<>]*):(?:(?!://)[^\s\"'<>])*@")
_KEY = re.compile(
    r"\b(?:(?:sk|pk|rk|xai|gsk|hf|gh[opsu]|github_pat|xox[abps])[-_][\w*.-]{8,}"  # providers, GitHub, Slack
    r"|AIza[\w*-]{8,}|AKIA[A-Z0-9]{12,})|(?<![\w-])eyJ[\w-]{8,}+\.[\w-]++\.[\w-]+"  # Google, AWS, a JSON web token
)
_QUOTE = r"""\\?["']?"""  # also within JSON within JSON
_NAMED = re.compile(
    rf"""((?:\bauthorization{_QUOTE}\s*+[:=,]\s*+(?:b(?=["']))?{_QUOTE}(?:(?:bearer|basic|token|digest|api-?key)(?=\s))?|\bbearer\s"""
    r"""|(?:(?:api|access)[-_ ]?key|secret(?:[-_]?(?:key|token))?|private[-_]?key|passphrase|pwd|passw(?:or)?d"""
    rf"""|(?:access|auth|refresh)[-_]?token){_QUOTE}\s*+[:=])\s*+{_QUOTE})"""
    r"""(?!(?:bearer|basic|token|digest|api-?key)\s)[^\s"',;&\\]{4,}""",
    re.IGNORECASE,
)
# A fast check first: most text contains none of these.
_PREFIXES = ("k-", "k_", "xai", "hf", "gh", "xox", "AIza", "AKIA", "eyJ")
_WORDS = ("authorization", "bearer", "key", "secret", "passw", "token", "pwd", "passphrase")

_remembered: list[str] = []
"""Longest first, because one may be part of another. Never changed in place, because several threads read it."""


def hide_secrets(text: str) -> str:
    """`text` with `***` where a secret was."""
    for secret in _remembered:
        if secret in text:
            text = text.replace(secret, _HIDDEN)
    if "@" in text:
        text = _URL.sub(rf"\1:{_HIDDEN}@", text)
    if _has_any(_PREFIXES, text):
        text = _KEY.sub(_HIDDEN, text)
    if _has_any(_WORDS, text.lower()):
        text = _NAMED.sub(rf"\1{_HIDDEN}", text)
    return text


def _has_any(parts: tuple[str, ...], text: str) -> bool:
    for part in parts:  # noqa: SIM110  # `any` takes twice as long, and this runs for each field of a log line
        if part in text:
            return True
    return False


@lru_cache(maxsize=1000)
def is_secret_name(name: str) -> bool:
    """Whether a value of this name is a secret: `..._API_KEY`, `password`, `access_token`."""
    return _NAMES.search(name) is not None


def shown_url(url: str) -> str:
    """`url` as it may appear in messages: without password and query."""
    try:
        return ServerURL.parse(url).shown
    except ValueError:
        return "(a URL that cannot be read)"


def remember_secret(secret: str | None) -> None:
    """From now on, `hide_secrets` hides `secret`. Ignored if it is shorter than 6 characters."""
    global _remembered
    if secret and len(secret) >= _SHORTEST and secret not in _remembered:
        _remembered = sorted([*_remembered, secret], key=len, reverse=True)


def remember_password(url: str) -> None:
    """From now on, `hide_secrets` hides the passwords in `url`, both percent-encoded and decoded."""
    try:
        secrets = ServerURL.parse(url).secrets
    except ValueError:
        return
    for secret in secrets:
        remember_secret(secret)


def remember_environment(environment: Mapping[str, str] = os.environ) -> None:
    """From now on, `hide_secrets` hides the environment's secrets: `..._API_KEY`, `..._TOKEN`, `..._PASSWORD`."""
    for name, value in environment.items():
        if is_secret_name(name):
            remember_secret(value.strip())
