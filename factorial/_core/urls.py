"""The URL of a server in its parts. The standard library's own function knows one host only.

    redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]                          one server, or any node of a cluster
    redis://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT],...                     several nodes of one cluster
    redis+cluster://...                                                     the same, in so many words
    redis+sentinel://[USER:PASSWORD@]HOST[:PORT],.../SERVICE[/DATABASE]     sentinels, and what they call the primary
    unix://[USER:PASSWORD@]/PATH

With `rediss` for `redis`: over TLS. All may end in `?option=value&...`. Used by `config.py`, which checks the URL,
by `redact.py`, which shows it, and by the mailbox.
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
    """What a URL says, as it is written there (percent signs and all)."""

    scheme: str
    user: str
    password: str
    hosts: tuple[tuple[str, int | None], ...]
    """Each with its port, if that is said. One empty host if none is named."""
    path: str
    """With the slash at its beginning, if there is any."""
    query: str

    @classmethod
    def parse(cls, url: str) -> "ServerURL":
        """Raises `ValueError`, whose text does not repeat anything of the URL."""
        parts = _PARTS.fullmatch(url)
        if parts is None:
            raise ValueError("this is no URL of a server")
        credentials = parts["credentials"] or ""
        if "@" in credentials and "," in credentials:
            raise ValueError("user and password stand once, before the first host")
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
        """`cluster` or `sentinel`, if the scheme says so, else nothing."""
        return self.scheme.partition("+")[2]

    @property
    def shown(self) -> str:
        """The URL as people may see it: without password and options."""
        hosts = ",".join(host + (f":{port}" if port else "") for host, port in self.hosts)
        return f"{self.scheme}://{self.user}{'@' if self.user else ''}{hosts}{self.path}"

    @property
    def secrets(self) -> list[str]:
        """The passwords, each as it is written and as it is meant."""
        options = parse_qs(self.query)
        given = [value for name in _SECRET_OPTIONS for value in options.get(name, ())]
        return [self.password, unquote(self.password), *given]
