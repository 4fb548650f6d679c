"""A pod of a running lab, with the verbs that a test needs: call, run, look."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address

from meshlab.errors import DeadlineError, UsageError
from meshlab.kernel.execute import Completed, run
from meshlab.lab import edits
from meshlab.lab.arguments import checks_arguments
from meshlab.lab.calls import requests
from meshlab.lab.calls.attempt import Request
from meshlab.lab.calls.connections import OpenConnection
from meshlab.lab.calls.names import read_url, resolve
from meshlab.lab.calls.urls import parse_address
from meshlab.lab.rollout import Rollout
from meshlab.lab.running.programs import CLEAN_ENV
from meshlab.lab.view import ViewForPods
from meshlab.model import DATAPLANE_MODE, Call, Family, Pod, SpiffeId
from meshlab.plan.netns import pod_netns

_TOKEN = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
"""A method, or the name of a header (RFC 9110 5.6.2)."""
_FIELD_VALUE = re.compile(r"[^\r\n\0]*")
_MOST_CONNECTIONS = 20_000
POD_CAPABILITIES = ("NET_BIND_SERVICE", "NET_RAW")
"""What a pod's programs may do, unless the topology says more."""


@checks_arguments
class PodHandle:
    """One pod. ``handle.http("http://server:8080/hello")`` calls as a program in the pod would."""

    def __init__(self, lab: ViewForPods, pod: Pod) -> None:
        self._lab = lab
        self.name = pod.key
        """``namespace/name``."""
        self._uid = pod.uid
        self._node = pod.node

    @property
    def pod(self) -> Pod:
        """Its manifest as it is in effect now.

        Raises:
            UsageError: the pod has gone. One of its name that came later is another pod.
        """
        now = next((pod for pod in self._lab.mesh.pods if pod.key == self.name), None)
        if now is None or now.uid != self._uid:
            raise UsageError(f"the pod '{self.name}' has gone{'' if now is None else ': another has its name'}")
        return now

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
        mesh = self._lab.mesh
        read = read_url(mesh, self.pod, url)
        target = resolve(mesh, self.pod, read.host, read.port, family)
        _check_head(method, headers or {})
        given = {name.lower() for name in headers or ()}
        own = {} if "host" in given else read.own_headers
        return requests.plan(
            mesh,
            self.name,
            target,
            method=method,
            path=read.path,
            headers={**own, **(headers or {})},
            body=body,
            timeout_s=timeout_s,
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
        host, port = parse_address(address)
        mesh = self._lab.mesh
        target = resolve(mesh, self.pod, host, port, family)
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
                ``http://shop%2Fserver:8080/`` is the pod also where there is a host ``shop``.
            family: 4 or 6; 4 where the name does not decide.

        Raises:
            UsageError: the URL leads nowhere in this lab, or to two places, or another argument will not do.
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

        Raises:
            UsageError: as ``http``.
        """
        planned = self.plan_tcp(address, data=data, half_close=half_close, family=family, timeout_s=timeout_s)
        return self._lab.calls([planned])[0]

    def connect(
        self,
        address: str,
        *,
        half_close: bool = False,
        family: Family | None = None,
        timeout_s: float = requests.TIMEOUT_S,
    ) -> OpenConnection:
        """Open a TCP connection to ``HOST:PORT`` that stays open while the lab changes, until the lab closes.

        How opening it ended is in ``closed_by``, never an exception.

        Args:
            half_close: close this side once it is open; the built-in echo keeps its own side open then.
            timeout_s: how long opening it may take: at a built-in echo, until it has greeted.

        Raises:
            UsageError: as ``http``.
        """
        return self.connect_many(address, 1, half_close=half_close, family=family, timeout_s=timeout_s)[0]

    def connect_many(
        self,
        address: str,
        count: int,
        *,
        half_close: bool = False,
        family: Family | None = None,
        timeout_s: float = requests.TIMEOUT_S,
    ) -> list[OpenConnection]:
        """Open ``count`` connections, some tens at a time; each as ``connect`` does.

        Raises:
            UsageError: as ``http``, or there are to be none, or more than the machine holds.
        """
        if not 0 < count <= _MOST_CONNECTIONS:
            raise UsageError(f"connect_many() opens 1 to {_MOST_CONNECTIONS} connections, not {count}")
        planned = self.plan_tcp(address, half_close=half_close, family=family, timeout_s=timeout_s)
        return self._lab.connect([planned] * count)

    # --- the pod itself ----------------------------------------------------------------------------------------------

    def label(self, labels: Mapping[str, str | None], timeout_s: float = 10.0, *, wait: bool = True) -> Rollout:
        """Set labels; ``None`` takes one away. In effect on return; raises as ``lab.apply``."""
        return self._lab.transitions.put(lambda mesh: edits.label_pod(mesh, self.name, labels), timeout_s, wait=wait)

    def enrol(self, timeout_s: float = 10.0, *, wait: bool = True) -> Rollout:
        """Bring the running pod into the mesh by its own label, which beats its namespace's."""
        return self.label({DATAPLANE_MODE: "ambient"}, timeout_s, wait=wait)

    def release(self, timeout_s: float = 10.0, *, wait: bool = True) -> Rollout:
        """Take the running pod out of the mesh by its own label, which beats its namespace's."""
        return self.label({DATAPLANE_MODE: "none"}, timeout_s, wait=wait)

    def exec(
        self,
        *argv: str,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> Completed:
        """Run a command of the host's in the pod, as ``kubectl exec`` does: with its environment and working folder.

        Raises:
            UsageError: there is no command, or one of its words cannot be passed to a program.
            KernelRefusedError: it could not be started.
            DeadlineError: it still ran at the deadline and was killed.
        """
        _check_command(argv, env or {})
        program, netns = self.pod.program, self._lab.netns(pod_netns(self.name))
        try:
            return run(
                self._lab.site.sandbox,
                argv,
                netns=netns,
                mntns=self._lab.site.mounts.of_pod(self.pod, netns),
                capabilities=capabilities_of(self.pod),
                env={**CLEAN_ENV, **(program.env if program else {}), **(env or {})},
                cwd=(program.working_dir if program else "") or "/",
                stdin=stdin,
                timeout_s=timeout_s,
            )
        except TimeoutError as error:
            raise DeadlineError(str(error)) from error

    def __repr__(self) -> str:
        return f"<pod {self.name} on {self._node}>"


def capabilities_of(pod: Pod) -> Iterable[str]:
    return sorted({*POD_CAPABILITIES, *pod.add_capabilities})


def _check_head(method: str, headers: Mapping[str, str]) -> None:
    """Refuse what would be another request than was meant, or none."""
    for what, name in (("the method", method), *(("a header's name", name) for name in headers)):
        if not _TOKEN.fullmatch(name):
            raise UsageError(f"{what} must be one word of HTTP, not {name!r}")
    for name, value in headers.items():
        if not _FIELD_VALUE.fullmatch(value) or any(ord(letter) > 255 for letter in value):
            raise UsageError(f"the header '{name}' must be Latin-1 without line breaks, not {value!r}")


def _check_command(argv: Sequence[str], env: Mapping[str, str]) -> None:
    if not argv or not argv[0]:
        raise UsageError('exec() needs a command: exec("ip", "address")')
    if unnamed := [name for name in env if not name or "=" in name]:
        raise UsageError(f"no variable of an environment can have the name {unnamed[0]!r}")
    if cut := [word for word in (*argv, *env, *env.values()) if "\0" in word]:
        raise UsageError(f"{cut[0]!r} has a NUL character, with which Linux ends a text")
