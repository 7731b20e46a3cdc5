"""The URL of a server in its parts. `urllib.parse` supports one host only.

    redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]                          one server, or any node of a cluster
    redis://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT],...                     several nodes of one cluster
    redis+cluster://...                                                     the same, stated explicitly
    redis+sentinel://[USER:PASSWORD@]HOST[:PORT],.../SERVICE[/DATABASE]     sentinels, and the service that they watch
    unix://[USER:PASSWORD@]/PATH

`rediss` in the place of `redis` means TLS. Each may end in `?option=value&...`.
"""

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote

__all__ = ["ServerURL"]

_PARTS = re.compile(
    r"(?P<scheme>[a-z+]+):(?://(?:(?P<credentials>[^/?#]*)@)?(?P<hosts>[^/?#]*))?(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?:#.*)?"
)
_HOST = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?")
_SECRET_OPTIONS = ("password", "sentinel_password", "ssl_password")


@dataclass(frozen=True, slots=True)
class ServerURL:
    """The parts of a URL as written, with percent-encoding."""

    scheme: str
    user: str
    password: str
    hosts: tuple[tuple[str, int | None], ...]
    """Each with its port, if given. One empty host if the URL names none."""
    path: str
    """With its leading slash; empty if there is none."""
    query: str

    @classmethod
    def parse(cls, url: str) -> "ServerURL":
        """Raises `ValueError`. Its message repeats no part of the URL, which may hold a password."""
        parts = _PARTS.fullmatch(url)
        if parts is None:
            raise ValueError("this is not the URL of a server")
        credentials = parts["credentials"] or ""
        if "@" in credentials and "," in credentials:
            raise ValueError("user and password are written once, before the first host")
        hosts = []
        named = (parts["hosts"] or "").split(",")
        for written in named:
            host = _HOST.fullmatch(written)
            if host is None or (len(named) > 1 and not host[1]):
                raise ValueError("a host cannot be read")
            hosts.append((host[1], int(host[2]) if host[2] else None))
        user, _, password = credentials.partition(":")
        return cls(parts["scheme"], user, password, tuple(hosts), parts["path"], parts["query"] or "")

    @property
    def topology(self) -> str:
        """`cluster` or `sentinel` if the scheme says so, else empty."""
        return self.scheme.partition("+")[2]

    @property
    def shown(self) -> str:
        """The URL without password and options, for people."""
        hosts = ",".join(host + (f":{port}" if port else "") for host, port in self.hosts)
        return f"{self.scheme}://{self.user}{'@' if self.user else ''}{hosts}{self.path}"

    @property
    def secrets(self) -> list[str]:
        """The passwords, both percent-encoded and decoded."""
        options = parse_qs(self.query)
        given = [value for name in _SECRET_OPTIONS for value in options.get(name, ())]
        return [self.password, unquote(self.password), *given]
