"""A pod of a running lab, with the verbs that a test needs: call, run, look."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from meshlab.errors import UsageError
from meshlab.kernel.execute import Completed, run
from meshlab.lab import requests
from meshlab.lab.attempt import Request
from meshlab.lab.names import resolve
from meshlab.lab.programs import CLEAN_ENV
from meshlab.model import Call, Family, Pod, SpiffeId

if TYPE_CHECKING:
    from meshlab.lab.lab import Lab

_POD_URL = re.compile(r"http://([a-z0-9.-]+/[a-z0-9.-]+):(\d+)(/.*)?")
POD_CAPABILITIES = ("NET_BIND_SERVICE", "NET_RAW")
"""What a pod's programs may do, unless the topology says more."""


class PodHandle:
    """One pod. ``handle.http("http://server:8080/hello")`` calls as a program in the pod would."""

    def __init__(self, lab: Lab, pod: Pod) -> None:
        self._lab = lab
        self.pod = pod

    @property
    def name(self) -> str:
        """``namespace/name``."""
        return self.pod.key

    @property
    def identity(self) -> SpiffeId:
        """Who the pod is where it is enrolled."""
        return self.pod.identity(self._lab.mesh.trust_domain)

    @property
    def ipv4(self) -> IPv4Address:
        return self.pod.ipv4

    @property
    def ipv6(self) -> IPv6Address:
        return self.pod.ipv6

    def plan_http(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        family: Family | None = None,
        timeout_s: float = requests.TIMEOUT_S,
    ) -> Request:
        """An HTTP call for ``lab.calls``; arguments as of ``http``."""
        host, port, path = _split(url)
        mesh = self._lab.mesh
        target = resolve(mesh, self.pod, host, port, family)
        return requests.plan(
            mesh, self.name, target, method=method, path=path, headers=headers, body=body, timeout_s=timeout_s
        )

    def plan_tcp(
        self,
        address: str,
        *,
        data: bytes = b"",
        half_close: bool = False,
        family: Family | None = None,
        timeout_s: float = requests.TIMEOUT_S,
    ) -> Request:
        """A TCP call for ``lab.calls``; arguments as of ``tcp``."""
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdigit():
            raise UsageError(f"'{address}' is not HOST:PORT")
        mesh = self._lab.mesh
        target = resolve(mesh, self.pod, host, int(port), family)
        return requests.plan(mesh, self.name, target, "tcp", body=data, half_close=half_close, timeout_s=timeout_s)

    def http(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        family: Family | None = None,
        timeout_s: float = requests.TIMEOUT_S,
    ) -> Call:
        """Make an HTTP/1.1 call from this pod; how it ended is in ``Call.outcome``, never an exception.

        Args:
            url: ``http://HOST:PORT/PATH``; HOST is a Service, a pod (``server``, ``shop/server``) or an address.
            family: 4 or 6; 4 where the name does not decide.

        Raises:
            UsageError: the URL leads nowhere in this lab.
        """
        planned = self.plan_http(url, method=method, headers=headers, body=body, family=family, timeout_s=timeout_s)
        return self._lab.calls([planned])[0]

    def tcp(
        self,
        address: str,
        *,
        data: bytes = b"",
        half_close: bool = False,
        family: Family | None = None,
        timeout_s: float = requests.TIMEOUT_S,
    ) -> Call:
        """Send ``data`` over TCP to ``HOST:PORT`` and read it back (the built-in echo gives it back as it came).

        Args:
            half_close: close this side first; only then does the echo answer.
        """
        planned = self.plan_tcp(address, data=data, half_close=half_close, family=family, timeout_s=timeout_s)
        return self._lab.calls([planned])[0]

    def exec(
        self,
        *argv: str,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> Completed:
        """Run a command of the host's in the pod, as ``kubectl exec`` does: with its environment and working folder.

        Raises:
            KernelRefusedError: it could not be started.
            TimeoutError: it still ran at the deadline and was killed.
        """
        program, netns = self.pod.program, self._lab.netns(f"pod:{self.name}")
        return run(
            self._lab.sandbox,
            argv,
            netns=netns,
            mntns=self._lab.mounts.of_pod(self.pod, netns),
            capabilities=capabilities_of(self.pod),
            env={**CLEAN_ENV, **(program.env if program else {}), **(env or {})},
            cwd=(program.working_dir if program else "") or "/",
            stdin=stdin,
            timeout_s=timeout_s,
        )

    def __repr__(self) -> str:
        return f"<pod {self.name} on {self.pod.node}>"


def capabilities_of(pod: Pod) -> Iterable[str]:
    return sorted({*POD_CAPABILITIES, *pod.add_capabilities})


def _split(url: str) -> tuple[str, int, str]:
    """Host, port and path of a URL. A pod's key has a slash, which a URL's host has not; we read it all the same."""
    of_pod = _POD_URL.fullmatch(url)
    if of_pod:
        return of_pod[1], int(of_pod[2]), of_pod[3] or "/"
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise UsageError(f"'{url}' is no URL of the form http://HOST:PORT/PATH (the mesh does the TLS)")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return parts.hostname, parts.port or 80, path
