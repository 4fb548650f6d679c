"""Who calls whom in traffic, and what that is in a mesh: a pod or a Service comes and goes. Pure.

("shop/client", "http://server:8080/hello")     a call in HTTP
("shop/client", "tcp://shop/server:9090")       a call in TCP
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meshlab.errors import UsageError
from meshlab.lab.calls import requests, urls
from meshlab.lab.calls.attempt import Request
from meshlab.lab.calls.names import owner, read_url, resolve
from meshlab.model import Mesh, Pod, Service

_TCP = "tcp://"


@dataclass(frozen=True, slots=True)
class Pair:
    """A pod and what it calls."""

    source: str
    """``namespace/name``."""
    url: str

    @property
    def is_tcp(self) -> bool:
        return self.url.startswith(_TCP)


@dataclass(frozen=True, slots=True)
class Planned:
    """A pair in one mesh."""

    call: Request
    line: Request
    """The connection to hold open."""


def read_pairs(pairs: Sequence[tuple[str, str]]) -> tuple[Pair, ...]:
    """Read the pairs that a user gives.

    Raises:
        UsageError: there is none, or one has another form. Whether its names are there is another matter.
    """
    if not pairs:
        raise UsageError("traffic needs a pair at least: (source pod, URL)")
    read = []
    for pair in pairs:
        if len(pair) != 2 or "/" not in pair[0]:
            raise UsageError(f"{pair!r} is no pair of a source pod (NAMESPACE/NAME) and a URL")
        made = Pair(*pair)
        if made.is_tcp:
            urls.parse_address(made.url.removeprefix(_TCP))
        else:
            urls.parse(made.url)
        read.append(made)
    return tuple(read)


def plan(mesh: Mesh, pair: Pair, timeout_s: float = requests.TIMEOUT_S) -> Planned | None:
    """What ``pair`` is in ``mesh``; ``None`` where its source or its destination is not there.

    Nor is a Service there for a pod outside the mesh: the lab has no kube-proxy.
    """
    source = next((pod for pod in mesh.pods if pod.key == pair.source), None)
    if source is None:
        return None
    try:
        planned = _plan(mesh, source, pair, timeout_s)
    except UsageError:
        return None
    target = owner(mesh, planned.call.to)
    if target is None or (isinstance(target, Service) and not mesh.is_enrolled(source)):
        return None
    return planned


def _plan(mesh: Mesh, source: Pod, pair: Pair, timeout_s: float) -> Planned:
    if pair.is_tcp:
        host, port = urls.parse_address(pair.url.removeprefix(_TCP))
        line = requests.plan(mesh, source.key, resolve(mesh, source, host, port, None), "tcp", timeout_s=timeout_s)
        return Planned(line, line)
    url = read_url(mesh, source, pair.url)
    target = resolve(mesh, source, url.host, url.port, None)
    return Planned(
        requests.plan(mesh, source.key, target, path=url.path, headers=url.own_headers, timeout_s=timeout_s),
        requests.plan(mesh, source.key, target, "tcp", timeout_s=timeout_s),
    )
