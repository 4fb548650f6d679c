"""What there is to be seen of one cell: its packets in the capture, and a node proxy's lines about it. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from ipaddress import ip_address
from itertools import islice
from typing import Any

from meshlab.model import Call
from meshlab.model.report import Cell
from meshlab.proofs.links import FABRIC
from meshlab.proofs.packets import FIN, RST, SYN, Header, parse
from meshlab.report.bundle.annotate import Frame, Told, carried, flows
from meshlab.report.bundle.page import PacketRow, Trouble

_MOST_PACKETS = 24
_MOST_LINES = 12
_LATE_NS = 2_000_000_000
"""A connection's last line may come this much after its call's end."""
_ACK = 0x10
_FLAGS = ((SYN, "SYN"), (FIN, "FIN"), (RST, "RST"))


def trouble(cell: Cell, frames: Sequence[Frame], told: Sequence[Told], lines: Sequence[tuple[str, str]]) -> Trouble:
    """The story of ``cell``, whose calls are ``told``."""
    places = sorted(set(_places(frames, told)))
    began = min((one.call.started_ns for one in told), default=0)
    return Trouble(
        cell=cell,
        packets=[_row(place, frames[place], began) for place in places[:_MOST_PACKETS]],
        more_packets=max(0, len(places) - _MOST_PACKETS),
        display_filter=_display_filter(frames, told, places),
        log_lines=lines,
    )


def log_lines(logs: Mapping[str, str], told: Sequence[Told]) -> list[tuple[str, str]]:
    """Program and line, where a connection is named that may be one of these calls."""
    found = (
        (program, line)
        for program, text in logs.items()
        for line in text.splitlines()
        if (record := _record(line)) and any(_speaks_of(record, one) for one in told)
    )
    return list(islice(found, _MOST_LINES))


def _places(frames: Sequence[Frame], told: Sequence[Told]) -> Iterator[int]:
    """Packets at the pods, of the flows that may have carried these calls, in the calls' time."""
    for flow in flows(frames, told):
        if flow.link.name == FABRIC:
            continue
        for one in carried(flow, told):
            call = one.call
            yield from (place for place in flow.places if call.started_ns <= frames[place][2] <= call.ended_ns)


def _row(place: int, frame: Frame, began_ns: int) -> PacketRow:
    link, _, time_ns, data = frame
    head = parse(data, 0, len(data))
    source, destination = _end(head.source, head.source_port), _end(head.destination, head.destination_port)
    return PacketRow(
        number=place + 1,
        after_ms=(time_ns - began_ns) / 1e6,
        link=str(link),
        ends=f"{source} \u2192 {destination}",
        what=_what(head),
    )


def _what(head: Header) -> str:
    flags = [name for bit, name in _FLAGS if head.flags & bit]
    size = head.end - head.payload
    if head.flags & _ACK and not size:
        flags.append("ACK")
    return ", ".join([*flags, *([f"{size} bytes"] if size else [])])


def _end(address: bytes, port: int) -> str:
    return f"{ip_address(address)}:{port}" if len(address) == 4 else f"[{ip_address(address)}]:{port}"


def _display_filter(frames: Sequence[Frame], told: Sequence[Told], places: Sequence[int]) -> str:
    """The two pods' packets on that port, from the first to the last that was found."""
    if not places:
        return ""
    flow = flows([frames[place] for place in places], told)[0]
    layer = "ip" if len(flow.client[0]) == 4 else "ipv6"
    ends = " && ".join(f"{layer}.addr == {ip_address(address)}" for address, _ in (flow.client, flow.server))
    return f"{ends} && tcp.port == {flow.server[1]} && frame.number in {{{places[0] + 1}..{places[-1] + 1}}}"


def _record(line: str) -> tuple[float, Mapping[str, Any]] | None:
    """When a line was written and what it says; None where it is no such record."""
    try:
        record = json.loads(line)
        return datetime.fromisoformat(str(record["time"])).timestamp() * 1e9, record
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None


def _speaks_of(told_at: tuple[float, Mapping[str, Any]], told: Told) -> bool:
    at_ns, record = told_at
    call = told.call
    if not call.started_ns - 1e6 <= at_ns <= call.ended_ns + _LATE_NS:
        return False
    ends = {str(record.get(key, "")) for key in ("dst.hbone_addr", "dst.addr")}
    clients = {str(record.get("src.addr", "")).rpartition(":")[0].strip("[]")}
    return any(
        ends & {_end(address, hop.port) for address in hop.destination.addresses if _is_of(call, address)}
        and clients & {str(ip_address(address)) for address in hop.source.addresses if _is_of(call, address)}
        for hop in told.hops
    )


def _is_of(call: Call, address: bytes) -> bool:
    """Whether the address is of the call's family."""
    return len(address) == (4 if call.family == 4 else 16)
