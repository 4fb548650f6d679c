"""The ``:authority`` of a CONNECT: ``ip:port``, ``[v6]:port`` or ``host:port``."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address


@dataclass(frozen=True, slots=True)
class Authority:
    host: IPv4Address | IPv6Address | str
    """An address, or else a host name as the peer wrote it."""
    port: int
    """0 to 65535."""

    @classmethod
    def parse(cls, text: str) -> Authority:
        """Read what a peer sent.

        Raises:
            ValueError: there is no port, or no host, or one of them is none.

        Source: https://www.rfc-editor.org/rfc/rfc9110#section-9.3.6 (CONNECT takes host and port, and both)
        """
        host, colon, port = text.rpartition(":")
        if not (colon and host and port.isascii() and port.isdecimal()) or int(port) > 65535:
            raise ValueError(f"{text!r} is not HOST:PORT")
        if host.startswith("["):
            if not host.endswith("]"):
                raise ValueError(f"{text!r} opens a bracket and does not close it")
            return cls(IPv6Address(host[1:-1]), int(port))
        if ":" in host:
            raise ValueError(f"{text!r}: an IPv6 address takes brackets, [{host}]:{port}")
        try:
            return cls(ip_address(host), int(port))
        except ValueError:
            return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if isinstance(self.host, IPv6Address) else f"{self.host}:{self.port}"
