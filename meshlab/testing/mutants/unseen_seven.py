"""Waypoints that are right for plain requests to plain routes, and break a promise beside them.

About a query, a slash, a header that is there already, a backend that is not, and a WebSocket that was refused.

They were written without a look at what meshlab checks: whether they are found measures the checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar, TypeVar

import h11

from meshlab.model import Backend, HeaderEdits, HttpRule, Mesh, Redirect, Rewrite, Route
from meshlab.oracle.http import DENIED, Answered, Came, Forwarded, Share, authorize
from meshlab.oracle.requests import normalised
from meshlab.testing.mutants.waypoint import Misreading
from meshlab.waypoint.heads import request_head
from meshlab.waypoint.http import HttpStream, Talk
from meshlab.waypoint.main import Waypoint, run

Program = Callable[[Mapping[str, Any], Mapping[str, int]], None]
Change = TypeVar("Change", Rewrite, Redirect)


def _program(kind: type[Waypoint]) -> Program:
    def main(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
        run(config, fds, kind)

    return main


# --- gives-a-lost-share-to-the-others --------------------------------------------------------------------------------


class GivesALostShareToTheOthers(Waypoint):
    """E ``invalid-backend-gives-500``: never another backend.

    It leaves a backend out of a rule when its Service is not there, as a list of clusters does that is built of what
    was resolved. A rule without any other backend is answered as it should be.
    """

    def shares(self, mesh: Mesh, came: Came) -> Sequence[Share]:
        there = {service.key for service in mesh.services}
        routes = tuple(self._resolved(route, there) for route in mesh.routes)
        return super().shares(replace(mesh, routes=routes), came)

    def _resolved(self, route: Route, there: set[str]) -> Route:
        return replace(route, rules=tuple(self._with_backends(rule, there) for rule in route.rules))

    def _with_backends(self, rule: HttpRule, there: set[str]) -> HttpRule:
        found = tuple(backend for backend in rule.backends if backend.service in there and backend.weight)
        return replace(rule, backends=found or rule.backends)


gives_a_lost_share_to_the_others = _program(GivesALostShareToTheOthers)


# --- adds-over-what-is-there -----------------------------------------------------------------------------------------


def _overwriting(edits: HeaderEdits) -> HeaderEdits:
    return replace(edits, set=(*edits.set, *edits.add), add=())


class AddsOverWhatIsThere(Misreading):
    """E ``header-modification``: what is added stands beside what is there.

    In Envoy the two differ by one word, the ``append_action`` of a header, and its default has changed.
    """

    def misread(self, rule: HttpRule) -> HttpRule:
        return replace(
            rule,
            request_headers=_overwriting(rule.request_headers),
            response_headers=_overwriting(rule.response_headers),
            backends=tuple(map(self._misread_backend, rule.backends)),
        )

    def _misread_backend(self, backend: Backend) -> Backend:
        return replace(
            backend,
            request_headers=_overwriting(backend.request_headers),
            response_headers=_overwriting(backend.response_headers),
        )


adds_over_what_is_there = _program(AddsOverWhatIsThere)


# --- compares-policy-paths-with-the-query ----------------------------------------------------------------------------


class ComparesPolicyPathsWithTheQuery(Waypoint):
    """G ``path-normalization-agreement``: no form of a denied path may be an allowed one.

    A ``?`` behind an exact path takes it out of the policy, as in CVE-2020-8595 of Istio. Routes are matched without
    the query, as they should be.
    """

    def shares(self, mesh: Mesh, came: Came) -> Sequence[Share]:
        whole = normalised(came.request)
        whole = replace(whole, path=whole.path.replace("?", "%3F", 1))
        decision = authorize(mesh, came.waypoint, came.service, came.connection, whole)
        if not decision.allowed:
            return [Share(Fraction(1), Answered(DENIED), decision.rule)]
        return super().shares(replace(mesh, authorization_policies=()), came)


compares_policy_paths_with_the_query = _program(ComparesPolicyPathsWithTheQuery)


# --- replaces-prefixes-as-they-stand ---------------------------------------------------------------------------------


class _AsItStands(str):
    """The slash at its end is a part of it."""

    __slots__ = ()

    def rstrip(self, chars: str | None = None, /) -> str:
        return self


def _literal(change: Change | None) -> Change | None:
    if change is None or change.prefix is None:
        return change
    return replace(change, prefix=_AsItStands(change.prefix))


class ReplacesPrefixesAsTheyStand(Misreading):
    """E ``rewrite-and-redirect``: ``/a`` -> ``/`` makes ``/a/b`` to ``//b``.

    So does Envoy's ``prefix_rewrite`` where a control plane hands a ReplacePrefixMatch on to it without a thought for
    the slash, of which the documentation of ``prefix_rewrite`` warns.
    """

    def misread(self, rule: HttpRule) -> HttpRule:
        return replace(rule, rewrite=_literal(rule.rewrite), redirect=_literal(rule.redirect))


replaces_prefixes_as_they_stand = _program(ReplacesPrefixesAsTheyStand)


# --- tunnels-after-a-refused-upgrade ---------------------------------------------------------------------------------


class _Trusting(HttpStream):
    _asks = False
    _tunnelled = False

    async def _forward(self, event: h11.Request, forwarded: Forwarded, edits: Iterable[HeaderEdits]) -> None:
        self._asks = any(name == b"upgrade" for name, _ in request_head(forwarded.request).headers)
        await super()._forward(event, forwarded, edits)

    async def _pass_answer_of(self, server: Talk, edits: Iterable[HeaderEdits]) -> bool:
        """Take whatever answer comes to a client that asks for WebSocket for the server's consent."""
        agreed = await super()._pass_answer_of(server, edits)
        self._tunnelled = self._asks and not agreed
        return agreed or self._tunnelled

    async def _read_to_the_end(self) -> bool:
        return not self._tunnelled and await super()._read_to_the_end()


class TunnelsAfterARefusedUpgrade(Waypoint):
    """G ``upgrade-cannot-smuggle``: the requests behind one that the server has answered without a 101 go unjudged.

    Of Envoy up to 1.8 and of other proxies it is known as WebSocket smuggling.
    """

    stream_class: ClassVar[type[HttpStream]] = _Trusting


tunnels_after_a_refused_upgrade = _program(TunnelsAfterARefusedUpgrade)
