"""The lab's side of the control plane: give it everything to serve, and wait until that is in effect.

post     without waiting; a push that supersedes another ends its wait
settle   wait for the barrier: every node proxy that runs has acknowledged both types at this version on a live
         stream, and the certificates of new identities were issued
go_back  have what was acknowledged last served again, without waiting
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from meshlab.controlplane.requests import Push, Pushed, Refused, Resources, SetClients
from meshlab.errors import LabError, LabLostError, NotAcknowledgedError, RejectedError, UsageError
from meshlab.kernel.conversation import Number
from meshlab.lab.running import envoy
from meshlab.lab.running.programs import Peer
from meshlab.lab.site import Site
from meshlab.plan.transition import Served
from meshlab.protocols.messages import MANIFESTS_TYPE, message
from meshlab.topology import dump
from meshlab.translate import for_envoy, resources

if TYPE_CHECKING:
    from google.protobuf.message import Message


@dataclass(frozen=True, slots=True)
class Wire:
    """Everything that is served, as the control plane takes it."""

    common: Resources = field(default_factory=dict)
    """What node proxies see."""
    own: Mapping[str, Resources] = field(default_factory=dict)
    """By instance: what each waypoint sees."""


_TYPE_URLS = "type.googleapis.com/"
_GOES_BACK = "what was in effect before is on its way to every proxy again, and was not waited for"
_SLACK_S = 5.0
"""How much later than the deadline the control plane's answer may come."""
_LISTENING_S = 20.0


@dataclass(slots=True)
class Configuration:
    """One for a lab; used by one thread at a time."""

    site: Site
    served: Wire = field(default_factory=Wire)
    """What was served last when everybody had acknowledged it."""
    _posted: tuple[Peer, Number[Pushed], Wire, list[str]] | None = None
    """The last push: to whom, its number, what it was, and who has to acknowledge it."""

    def post(
        self, wire: Wire, certificates: Collection[str], timeout_s: float, *, fallback: Wire | None = None
    ) -> None:
        """Have ``wire`` served from now on, unless it is already, without waiting.

        Args:
            fallback: what a control plane that has just started goes back to where ``wire`` is refused.

        Raises:
            LabLostError: the control plane is gone.
        """
        control_plane, posted, barrier = self._control_plane(), self._posted, self._barrier()
        if posted is not None and fallback is None and (posted[0], *posted[2:]) == (control_plane, wire, barrier):
            return
        push = Push(
            resources=wire.common,
            views=wire.own,
            barrier=barrier,
            certificates=sorted(set(certificates) - self._issued_before()),
            timeout_s=timeout_s,
            after_nack=self.site.settings.after_nack,
            fallback=None if fallback is None else fallback.common,
            fallback_views={} if fallback is None else fallback.own,
        )
        self._posted = control_plane, control_plane.post(push), wire, barrier

    def settle(self, timeout_s: float, given_s: float | None = None) -> None:
        """Wait until what was posted last is in effect.

        Args:
            given_s: how long was given for all of it, which an error says; ``timeout_s`` is what is left.

        Raises:
            NotAcknowledgedError: proxy, type and version that were missing at the deadline; or a proxy that is gone.
            RejectedError: a proxy's NACK, in its words; the message says who may still serve it.
        """
        assert self._posted is not None, "something was posted"
        control_plane, number, wire, _ = self._posted
        self._posted = None
        try:
            answer, _ = control_plane.answer(number, timeout_s + _SLACK_S, self._look_for_the_dead)
        except (NotAcknowledgedError, LabLostError):
            raise
        except LabError as error:
            raise NotAcknowledgedError(f"not in effect: {error}") from error
        if "nack" in answer:
            raise RejectedError(_refusal(answer))
        if "superseded" in answer:
            raise NotAcknowledgedError("not in effect: another push took its place first")
        if "timeout" in answer:
            late = [f"{lag['client']}: {lag['type_url']} at version {lag['version']}" for lag in answer["timeout"]]
            late += [f"no proxy asked for a certificate of {identity}" for identity in answer["certificates"]]
            raise NotAcknowledgedError(f"not in effect within {given_s or timeout_s:g} s: {'; '.join(late)}")
        self.served = wire

    def go_back(self, failure: BaseException, wire: Wire | None = None) -> None:
        """Have ``wire``, or what was in effect last, served again; this push ends the one that is still waiting."""
        with suppress(LabLostError):
            self._posted = None
            self.post(self.served if wire is None else wire, (), 0.0)
            if self.served.common:
                failure.add_note(_GOES_BACK)

    def wire(self, served: Served) -> Wire:
        own = {
            str(one.instance.first): _encoded_all(self._view(key, served)) for key, one in self.site.waypoints.items()
        }
        return Wire(_encoded_all(resources(served.mesh, served.hbone, served.unhealthy)), own)

    def _view(self, waypoint: str, served: Served) -> Mapping[str, Mapping[str, Message]]:
        """The resources that the control plane sends to the waypoint that runs in this pod."""
        mesh = served.mesh
        if self.site.waypoint.describe().config == "envoy":
            own = self.site.waypoints[waypoint].own
            forms = for_envoy.resources(mesh, waypoint, own, served.unhealthy, served.also)
            return envoy.of(self.site.waypoint).messages(forms)
        base = replace(self.site.topology, expect=(), steps=())
        texts = {
            "manifests": dump(replace(base, mesh=mesh)),
            "unhealthy": " ".join(sorted(served.unhealthy)),
            **({"also": dump(replace(base, mesh=served.also))} if served.also is not None else {}),
        }
        return {
            MANIFESTS_TYPE: {name: message("google.protobuf.StringValue")(value=text) for name, text in texts.items()}
        }

    def with_raw(self, wire: Wire, kind: str, name: str, body: bytes) -> Wire:
        """``wire`` with one more resource, as bytes that need not be valid.

        Raises:
            UsageError: there is no such type.
        """
        more = {type_url: dict(named) for type_url, named in wire.common.items()}
        type_url = _TYPE_URLS + kind.removeprefix(_TYPE_URLS)
        if type_url not in more:
            choices = ", ".join(sorted(known.removeprefix(_TYPE_URLS) for known in more))
            raise UsageError(f"no type '{kind}' is served to a node proxy (there are {choices})")
        more[type_url][name] = base64.b64encode(body).decode()
        return replace(wire, common=more)

    def admit(self) -> None:
        """Tell the control plane which node proxies there are; the streams of others end."""
        self._control_plane().ask(SetClients(self.site.clients()))

    def _control_plane(self) -> Peer:
        peer = self.site.peer("control-plane")
        if peer is None:
            raise LabLostError("the control plane was ended by a verb: lab.instance('control-plane').restart()")
        peer.wait_event("listening", _LISTENING_S)
        return peer

    def _barrier(self) -> list[str]:
        """Every instance that has to acknowledge what is served."""
        return list(self.site.clients().values())

    def _issued_before(self) -> set[str]:
        """Identities that control planes before this one have certified: a proxy that has kept one asks for none."""
        return {event["identity"] for event in self.site.heard if event["event"] == "issued"}

    def _look_for_the_dead(self) -> None:
        for name in self._barrier():
            if self.site.programs.has_ended(name):
                raise NotAcknowledgedError(f"not in effect: {self.site.programs.why_gone(name)}")


def _refusal(answer: Refused) -> str:
    nack = answer["nack"]
    refused = f"{nack['client']} refused {nack['type_url']}: {nack['detail']}"
    if not answer["went_back"]:
        return f"{refused}. It is still served (after_nack is 'leave')"
    if behind := sorted({lag["client"] for lag in answer["behind"]}):
        return f"{refused}. The version before was sent again; who has not acknowledged it: {', '.join(behind)}"
    return f"{refused}. All have gone back to the version before"


def _encoded_all(resources: Mapping[str, Mapping[str, Message]]) -> Resources:
    return {kind: {name: _encoded(each) for name, each in named.items()} for kind, named in resources.items()}


def _encoded(message: Message) -> str:
    """Deterministic, since a resource's version is the hash of its bytes."""
    return base64.b64encode(message.SerializeToString(deterministic=True)).decode()
