"""Whether a waypoint did what it should with requests and connections: with each of them, and how often each. Pure.

Each call is put to the shares that explain it. A call that none explains is wrong by itself. Then they are counted. Of
n calls a share of p gets k or fewer, or k or more, with a probability that the binomial distribution says exactly; one
that is less likely than ``rarely`` is wrong.

    200 calls, shares of 90 % and 10 %: right proxies have 3 to 44 of the smaller one, but for 1 in a million
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from meshlab.apps import language
from meshlab.lab.calls.endings import is_waypoints
from meshlab.lab.proving.matrix import MISSED_BY_CHANCE, rarely
from meshlab.model import Call, Expected, HeaderEdits, HttpRequest, Outcome, Reaches, Refused, Share, Status, Way

_DEFAULT_PORTS = {"http": 80, "https": 443}
_OF_THE_CONNECTION = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "content-length"})
"""Headers that each proxy writes anew."""
_OF_A_PROXY = frozenset({"x-forwarded-client-cert"})
"""Headers that only a proxy may vouch for: one that a client made up may be taken away, and a server may see others."""


def wrong_answer(due: Expected, call: Call) -> str:
    """Why no share explains how ``call`` ended, as half a sentence; empty where one does."""
    reasons = [_unlike(share, call, due) for share in due.shares]
    if "" in reasons:
        return ""
    own = [reason for share, reason in zip(due.shares, reasons, strict=True) if _concerns(share, call)]
    return f"{_what_came(call)}: {(own or reasons)[0]}"


def wrong_shares(due: Expected, calls: Sequence[Call]) -> str:
    """Which share is too small or too large to be chance, as half a sentence; empty where none is."""
    total = len(calls)
    explaining = [[share for share in due.shares if not _unlike(share, call, due)] for call in calls]
    least = rarely(due)
    for share in due.shares:
        alone = sum(found == [share] for found in explaining)
        at_most = sum(share in found for found in explaining)
        chance = float(share.chance)
        if _at_most(at_most, total, chance) < least or _at_most(total - alone, total, 1 - chance) < least:
            return (
                f"{at_most} of {total} calls came to {_named(share)}, which should get {chance:.4g} of them"
                f" (by chance less often than {MISSED_BY_CHANCE:g})"
            )
    return ""


def wrong_copies(due: Expected, calls: Sequence[Call], received: Mapping[int, Mapping[str, int]]) -> str:
    """Say what is wrong with the copies of requests that servers have answered; the text is empty where nothing is.

    Args:
        received: number of a call -> pod -> on how many connections its canary came there.
    """
    for share in due.shares:
        explained = [call for call in calls if call.peer and not _unlike(share, call, due)]
        found = [_other_pods(call, received) for call in explained]
        mirrors = [{way.path.server.pod for way in copies.ways} for copies in share.copies]
        for pods in found:
            if strangers := sorted(pods.difference(*mirrors)):
                return f"a request also reached {strangers[0]}, where no copy of it should go"
        for copies, pods_of in zip(share.copies, mirrors, strict=True):
            is_told_apart = sum(bool(pods_of & others) for others in mirrors) == 1
            if copies.are_let_in and is_told_apart:
                seen, total, chance = sum(bool(pods_of & pods) for pods in found), len(found), float(copies.chance)
                least = rarely(due)
                if _at_most(seen, total, chance) < least or _at_most(total - seen, total, 1 - chance) < least:
                    where = " or ".join(sorted(pods_of))
                    return (
                        f"copies of {seen} of {total} requests reached {where}, which should get {chance:.4g} of them"
                    )
    return ""


def _other_pods(call: Call, received: Mapping[int, Mapping[str, int]]) -> set[str]:
    """The pods that got a call on another connection than the one on which it was answered."""
    own = call.peer.pod if call.peer else ""
    return {pod for pod, times in received.get(call.number, {}).items() if times > (pod == own)}


def tally(calls: Sequence[Call]) -> str:
    """What came back, in a few words: ``180 x shop/one, 20 x 418``."""
    counts = Counter(_answer(call) for call in calls)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{number} x {answer}" for answer, number in sorted(counts.items()))


def _answer(call: Call) -> str:
    if call.peer is not None and call.status is not None:
        return call.peer.pod if 200 <= call.status < 300 else f"{call.status} from {call.peer.pod}"
    return str(call.status) if call.status is not None else str(call.outcome)


def _what_came(call: Call) -> str:
    return f"{_answer(call)}{f' ({call.error})' if call.error and call.status is None else ''}"


def _named(share: Share) -> str:
    own = share.ways[0].response
    if isinstance(own, Status):
        return str(own.code)
    if share.ways[0].connection is None:
        return "nobody"
    return " or ".join(sorted(way.path.server.pod for way in share.ways))


# --- one call --------------------------------------------------------------------------------------------------------


def _concerns(share: Share, call: Call) -> bool:
    if call.peer is None:
        return any(isinstance(way.response, Status) and way.response.code == call.status for way in share.ways)
    return any(isinstance(way.response, Reaches) and way.response.pod == call.peer.pod for way in share.ways)


def _unlike(share: Share, call: Call, due: Expected) -> str:
    """In what the call is not as this share has it; empty where it is."""
    took_s = (call.ended_ns - call.started_ns) / 1e9
    if share.delay_s and took_s < share.delay_s:
        return f"the answer came after {took_s:.3f} s, and it should wait {share.delay_s:g} s"
    if call.peer is None and is_waypoints(call, due):
        return _unlike_status(share, call)
    if call.peer is None:
        may_be = Reaches if call.answered else Refused if call.refused else None
        explains = may_be is not None and any(isinstance(way.response, may_be) for way in share.ways)
        return "" if explains else f"{_named(share)} should have answered"
    way = next(
        (way for way in share.ways if isinstance(way.response, Reaches) and way.response.pod == call.peer.pod), None
    )
    if way is None:
        return f"{_named(share)} should have answered"
    return _unlike_at_server(share, way, call)


def _unlike_status(share: Share, call: Call) -> str:
    codes = {way.response.code for way in share.ways if isinstance(way.response, Status)}
    if call.status not in codes:
        return f"{_named(share)} should have answered"
    if share.location and _place(call.headers.get("location", "")) != _place(share.location):
        return f"the location is {call.headers.get('location', '')!r}, not {share.location!r}"
    if share.body is not None and call.body != share.body.encode():
        return f"the body is {call.body[:40]!r}, not {share.body[:40]!r}"
    return _unlike_headers(share.response_headers, call)


def _unlike_at_server(share: Share, way: Way, call: Call) -> str:
    peer, seen, sent = call.peer, way.connection, share.request
    assert peer is not None
    assert seen is not None
    if call.outcome is not Outcome.OK:
        return f"it ended in {call.outcome}{f' ({call.error})' if call.error else ''}"
    if peer.server_port != seen.port:
        return f"it arrived at port {peer.server_port}, not at {seen.port}"
    if peer.address != seen.source_ip:
        return f"the server saw the client at {peer.address}, not at {seen.source_ip}: the call goes {way.path}"
    if sent is None:
        return ""
    if (peer.method, peer.path) != (sent.method, sent.path):
        return f"the server saw {peer.method} {peer.path}, not {sent.method} {sent.path}"
    return _unlike_request(sent, call) or _unlike_headers(share.response_headers, call)


def _unlike_request(sent: HttpRequest, call: Call) -> str:
    """What of the headers did not arrive as it should have; a proxy may add some."""
    peer, asked = call.peer, call.request
    assert peer is not None
    if not peer.headers:  # of what has no body, such as HEAD, the echo says less
        return ""
    if sent.authority and peer.headers.get("host") != sent.authority:
        return f"the server saw the host {peer.headers.get('host')!r}, not {sent.authority!r}"
    wanted: dict[str, str] = {}
    for name, value in sent.headers:
        wanted[name] = f"{wanted[name]}, {value}" if name in wanted else value
    for name, value in wanted.items():
        if name not in _OF_THE_CONNECTION | _OF_A_PROXY and _listed(peer.headers.get(name)) != _listed(value):
            return f"the server saw {name}: {peer.headers.get(name)!r}, not {value!r}"
    for name, _ in asked.headers if asked is not None else ():
        own = name in _OF_THE_CONNECTION or name.startswith(language.OWN_HEADERS)
        if name not in wanted and not own and name in peer.headers:
            return f"the server saw {name}, which should have been removed"
    return ""


def _listed(value: str | None) -> list[str] | None:
    return None if value is None else [part.strip() for part in value.split(",")]


def _unlike_headers(edits: Sequence[HeaderEdits], call: Call) -> str:
    """What of the answer's headers is not as the edits leave it, each of which sees what the ones before it did."""
    known: dict[str, list[str]] = {}
    """What a header comes to, whatever the server gave it."""
    added: dict[str, list[str]] = {}
    """What is beside the server's own values."""
    for edit in edits:
        for name, values in (*((name, []) for name in edit.remove), *((name, [value]) for name, value in edit.set)):
            known[name] = list(values)
            added.pop(name, None)
        for name, value in edit.add:
            (known if name in known else added).setdefault(name, []).append(value)
    for name, values in known.items():
        wanted = ", ".join(values) if values else None
        if _listed(call.headers.get(name)) != _listed(wanted):
            return f"the answer has {name}: {call.headers.get(name)!r}, not {wanted!r}"
    for name, values in added.items():
        if missing := set(values) - set(_listed(call.headers.get(name)) or ()):
            return f"the answer has {name}: {call.headers.get(name)!r}, to which {min(missing)!r} should be added"
    return ""


def _place(location: str) -> tuple[str, str, int | None, str, str]:
    parts = urlsplit(location)
    port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    return (parts.scheme, parts.hostname or "", port, parts.path, parts.query)


# --- many ------------------------------------------------------------------------------------------------------------


def _at_most(seen: int, total: int, chance: float) -> float:
    """The probability of ``seen`` or fewer of ``total``, each with ``chance``."""
    if chance <= 0:
        return 1.0
    if chance >= 1:
        return 1.0 if seen >= total else 0.0
    log, log_not = math.log(chance), math.log1p(-chance)
    return sum(
        math.exp(
            math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) + k * log + (total - k) * log_not
        )
        for k in range(seen + 1)
    )
