"""What a ztunnel's access log says of the connections that it opened. The log is a stranger's: it may hold anything.

    {"time": "2026-08-01T12:00:00.000001Z", "message": "connection opened", "direction": "inbound",
     "src.addr": "10.0.0.1:40404", "src.identity": "spiffe://...", "dst.hbone_addr": "10.0.0.2:8080", ...}

A line that is no such record is skipped. A field that is there and is no text never looks like an address or an
identity that is right.

Source: https://istio.io/latest/docs/ambient/usage/troubleshoot-ztunnel/
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

_MESSAGE = "connection opened"
_LINE_CHARACTERS = 64 * 1024
"""A longer line is no record: each of its parts has a bound far below."""
_IDENTITY_CHARACTERS = 2048
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Opened:
    """One connection that a ztunnel opened or accepted."""

    direction: str
    """``inbound`` at the destination's ztunnel, ``outbound`` at the source's."""
    source: str
    """The client's address, without its port; empty where the record has none."""
    source_port: int
    """0 where the record has none."""
    hbone: str
    """``dst.hbone_addr`` as it is written: what the CONNECT asked for."""
    time: str
    source_identity: str = ""
    """Whom the client's certificate names, or some words where that cannot be shown; empty where there is none."""
    destination_identity: str = ""
    """As ``source_identity``, of the server's certificate."""

    @property
    def at_ns(self) -> float | None:
        """When it was written, in nanoseconds since 1970; ``None`` where the record does not say."""
        try:
            return datetime.fromisoformat(self.time).timestamp() * 1e9
        except (OverflowError, ValueError):
            return None

    @property
    def destination(self) -> str:
        """The address that the CONNECT asked for, without its port."""
        return _split(self.hbone)[0]

    @property
    def destination_port(self) -> int:
        return _split(self.hbone)[1]


def read_opened(text: str) -> Iterator[Opened]:
    """The records of opened connections in a log."""
    for line in text.split("\n"):
        if f'"{_MESSAGE}"' in line and len(line) <= _LINE_CHARACTERS:
            record = _object(line)
            if record.get("message") == _MESSAGE:
                yield _opened(record)


def _object(line: str) -> Mapping[str, object]:
    """The JSON object that ``line`` is; empty where it is something else."""
    try:
        value = json.loads(line)
    except (RecursionError, ValueError):  # also a line out of which the recorder cut the middle
        return {}
    return value if isinstance(value, dict) else {}


def _opened(record: Mapping[str, object]) -> Opened:
    source, port = _split(_text(record, "src.addr"))
    return Opened(
        direction=_text(record, "direction"),
        source=source,
        source_port=port,
        hbone=_text(record, "dst.hbone_addr"),
        time=_text(record, "time"),
        source_identity=_identity(record, "src.identity"),
        destination_identity=_identity(record, "dst.identity"),
    )


def _text(record: Mapping[str, object], name: str) -> str:
    value = record.get(name, "")
    return value if isinstance(value, str) else ""


def _split(address: str) -> tuple[str, int]:
    """Host and port of ``10.0.0.1:80`` or ``[fd00::1]:80``."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0


def _identity(record: Mapping[str, object], name: str) -> str:
    """The identity as a sentence can show it. Skipping an odd one would hide what the proxy claims."""
    value = record.get(name, "")
    if not isinstance(value, str):
        return f"no text ({type(value).__name__})"
    if len(value) > _IDENTITY_CHARACTERS or not value.isprintable():
        return f"no identity ({value[:_SHOWN]!a})"
    return value
