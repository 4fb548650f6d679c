"""Waypoints that are wrong about requests: what they judge, where they send it, and what they do to it.

Each is the reference with one override. Its docstring names the faults of the conformance catalogue that it stands for.
The legal variants at the end are right, and unlike the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, ClassVar
from uuid import uuid4

import h11
import jwt

from meshlab.errors import ProtocolError
from meshlab.model import (
    Backend,
    HeaderEdits,
    HttpRequest,
    HttpRule,
    Mesh,
    PodPort,
    Route,
    Service,
    ServicePort,
    SpiffeId,
    TcpRule,
)
from meshlab.oracle import tcp
from meshlab.oracle.http import DENIED, NO_ROUTE, UNAVAILABLE, Answered, Came, Forwarded, Share
from meshlab.pki.tokens import TokenIssuer
from meshlab.protocols.hbone import Target
from meshlab.testing.mutants.policy import Program
from meshlab.waypoint.heads import request_head
from meshlab.waypoint.http import HttpStream, Talk
from meshlab.waypoint.main import Waypoint, run
from meshlab.waypoint.serving import Asked, Client

_AHEAD_S = 0.2
_PIECE_BYTES = 7


def _program(kind: type[Waypoint]) -> Program:
    def main(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
        run(config, fds, kind)

    return main


# --- which rule, which backend ---------------------------------------------------------------------------------------


class Misreading(Waypoint):
    """Takes each rule of a route for another one."""

    def shares(self, mesh: Mesh, came: Came) -> Sequence[Share]:
        return super().shares(self._misread_all(mesh), came)

    def connections(self, mesh: Mesh, service: Service, port: ServicePort) -> Sequence[tcp.Share]:
        return super().connections(self._misread_all(mesh), service, port)

    def _misread_all(self, mesh: Mesh) -> Mesh:
        return replace(mesh, routes=tuple(map(self.misread_route, mesh.routes)))

    def misread_route(self, route: Route) -> Route:
        return replace(route, rules=tuple(map(self.misread, route.rules)), tcp=tuple(map(self.misread_tcp, route.tcp)))

    def misread(self, rule: HttpRule) -> HttpRule:
        return rule

    def misread_tcp(self, rule: TcpRule) -> TcpRule:
        return rule


class IgnoresHeaderMatches(Misreading):
    """E ``http-request-matching``."""

    def misread(self, rule: HttpRule) -> HttpRule:
        return replace(rule, matches=tuple(replace(match, headers=()) for match in rule.matches))


class MatchesPathAsAPrefix(Misreading):
    """E ``http-request-matching``: an exact path."""

    def misread(self, rule: HttpRule) -> HttpRule:
        return replace(
            rule,
            matches=tuple(
                replace(match, path=replace(match.path, how="prefix"))
                if match.path is not None and match.path.how == "exact"
                else match
                for match in rule.matches
            ),
        )


class TakesTheFirstRule(Misreading):
    """E ``http-request-matching``: precedence, and 404 where nothing matches."""

    def misread_route(self, route: Route) -> Route:
        return replace(route, rules=tuple(replace(rule, matches=()) for rule in route.rules[:1]))


class RoutesEveryPort(Misreading):
    """E ``route-binds-to-frontend-only``."""

    def misread_route(self, route: Route) -> Route:
        tcp_rules = tuple(replace(rule, ports=()) for rule in route.tcp)
        return replace(route, services=tuple((service, None) for service, _ in route.services), tcp=tcp_rules)


def _swapped(backends: Sequence[Backend]) -> tuple[Backend, ...]:
    weights = [backend.weight for backend in reversed(backends)]
    return tuple(replace(backend, weight=weight) for backend, weight in zip(backends, weights, strict=True))


class SwapsWeights(Misreading):
    """E ``weighted-split`` and ``tcp-and-tls-routes``."""

    def misread(self, rule: HttpRule) -> HttpRule:
        return replace(rule, backends=_swapped(rule.backends))

    def misread_tcp(self, rule: TcpRule) -> TcpRule:
        return replace(rule, backends=_swapped(rule.backends))


class OneBackendOnly(Misreading):
    """E ``weighted-split``: the first backend with a weight, and always the same pod of it."""

    def misread(self, rule: HttpRule) -> HttpRule:
        return replace(rule, backends=tuple(backend for backend in rule.backends if backend.weight)[:1])

    def pick(self, endpoints: Sequence[PodPort], client: Client) -> tuple[Target, PodPort]:
        return super().pick(endpoints[:1], client)


class IgnoresTcpRoutes(Misreading):
    """E ``tcp-and-tls-routes``."""

    def misread_route(self, route: Route) -> Route:
        return replace(route, tcp=())


# --- what it does ----------------------------------------------------------------------------------------------------


class SkipsFaults(Misreading):
    """F ``abort-fault`` and ``delay-fault``."""

    def misread(self, rule: HttpRule) -> HttpRule:
        return replace(rule, abort=None, delay=None)


class IgnoresTimeouts(Misreading):
    """F ``request-timeout``."""

    def misread(self, rule: HttpRule) -> HttpRule:
        return replace(rule, timeout_s=None)


class MirrorsNothing(Misreading):
    """F ``mirror-has-no-effect-on-client``."""

    def misread(self, rule: HttpRule) -> HttpRule:
        return replace(rule, mirrors=())


class MirrorsEverything(Misreading):
    """F ``mirror-has-no-effect-on-client``: the percentage."""

    def misread(self, rule: HttpRule) -> HttpRule:
        return replace(rule, mirrors=tuple(replace(mirror, percent=100.0) for mirror in rule.mirrors))


class ForgetsTheRewrite(Misreading):
    """E ``rewrite-and-redirect``."""

    def misread(self, rule: HttpRule) -> HttpRule:
        return replace(rule, rewrite=None)


def _keeping(edits: HeaderEdits) -> HeaderEdits:
    return replace(edits, remove=())


class KeepsRemovedHeaders(Misreading):
    """E ``header-modification``."""

    def misread(self, rule: HttpRule) -> HttpRule:
        return replace(
            rule,
            request_headers=_keeping(rule.request_headers),
            response_headers=_keeping(rule.response_headers),
            backends=tuple(map(self._misread_backend, rule.backends)),
        )

    def _misread_backend(self, backend: Backend) -> Backend:
        return replace(
            backend,
            request_headers=_keeping(backend.request_headers),
            response_headers=_keeping(backend.response_headers),
        )


class AnswersNoRouteAsUnavailable(Waypoint):
    """E ``http-request-matching``: no match has to be 404."""

    def shares(self, mesh: Mesh, came: Came) -> Sequence[Share]:
        return [
            replace(share, outcome=Answered(UNAVAILABLE)) if share.outcome == Answered(NO_ROUTE) else share
            for share in super().shares(mesh, came)
        ]


class ForwardsThePathAsItCame(Waypoint):
    """G ``path-normalization-agreement``: the server gets another path than the one that was judged."""

    def shares(self, mesh: Mesh, came: Came) -> Sequence[Share]:
        return [
            replace(share, outcome=replace(outcome, request=replace(outcome.request, path=came.request.path)))
            if isinstance(outcome := share.outcome, Forwarded)
            else share
            for share in super().shares(mesh, came)
        ]


# --- who may ---------------------------------------------------------------------------------------------------------


def _without_policies(mesh: Mesh) -> Mesh:
    return replace(mesh, authorization_policies=())


class IgnoresL7Policy(Waypoint):
    """G ``l7-allow-deny-basics``."""

    def shares(self, mesh: Mesh, came: Came) -> Sequence[Share]:
        return super().shares(_without_policies(mesh), came)


class JudgesItself(Waypoint):
    """G ``l7-policy-uses-original-identity``: on the waypoint's own identity."""

    def judge(self, asked: Asked, client: Client, request: HttpRequest) -> Share:
        own = self.known.own
        assert own is not None, "a waypoint that was asked was sent its own pod"
        return super().judge(asked, replace(client, identity=own.identity(asked.mesh.trust_domain)), request)


class TrustsAHeaderForIdentity(Waypoint):
    """G ``xfcc-spoof-stripped``: what a client says of itself counts more than its certificate."""

    def judge(self, asked: Asked, client: Client, request: HttpRequest) -> Share:
        said = dict(request.headers).get("x-forwarded-client-cert", "").rpartition("URI=")[2].partition(";")[0]
        if said:
            client = replace(client, identity=SpiffeId.parse(said))
        return super().judge(asked, client, request)


class ForwardsBeforeItAuthorizes(Waypoint):
    """G ``l7-allow-deny-basics``: the client gets 403, and a server the head of the request."""

    def judge(self, asked: Asked, client: Client, request: HttpRequest) -> Share:
        share = super().judge(asked, client, request)
        if share.outcome == Answered(DENIED):
            free = replace(asked, mesh=_without_policies(asked.mesh))
            outcome = super().judge(free, client, request).outcome
            if isinstance(outcome, Forwarded):
                for pods in self.delivers_to(outcome):
                    self.tasks.spawn(self._deliver(pods, outcome.request, client))
                return replace(share, delay_s=_AHEAD_S)  # so that it arrives before the answer
        return share

    def delivers_to(self, forwarded: Forwarded) -> Sequence[Sequence[PodPort]]:
        return [forwarded.pods]

    async def _deliver(self, pods: Sequence[PodPort], request: HttpRequest, client: Client) -> None:
        try:
            server = Talk(h11.CLIENT, await self.connect(*self.pick(pods, client)))
            await server.send(request_head(request))
            await server.send(h11.EndOfMessage())
            await server.next()
        except (OSError, ProtocolError, h11.RemoteProtocolError):
            return
        server.pipe.leave()


class MirrorsWhatIsDenied(ForwardsBeforeItAuthorizes):
    """F ``mirror-has-no-effect-on-client``: the client gets 403, and a mirror its copy."""

    def delivers_to(self, forwarded: Forwarded) -> Sequence[Sequence[PodPort]]:
        return [copy.pods for copy in forwarded.copies]


class IgnoresTokenExpiry(Waypoint):
    """G ``jwt-validation``: an expired token is as good as a new one."""

    def shares(self, mesh: Mesh, came: Came) -> Sequence[Share]:
        return super().shares(mesh, replace(came, now_s=0.0))


class TakesATokenUnverified(Waypoint):
    """G ``jwt-validation``: it believes what a token says, whoever signed it."""

    def shares(self, mesh: Mesh, came: Came) -> Sequence[Share]:
        signer = TokenIssuer("")
        trusting = tuple(
            replace(one, rules=tuple(replace(rule, jwks=signer.jwks) for rule in one.rules))
            for one in mesh.request_authentications
        )
        headers = tuple((name, self._signed(value, signer)) for name, value in came.request.headers)
        request = replace(came.request, headers=headers)
        return super().shares(replace(mesh, request_authentications=trusting), replace(came, request=request))

    def _signed(self, value: str, signer: TokenIssuer) -> str:
        prefix, space, token = value.rpartition(" ")
        try:
            claims = jwt.decode(token, options={"verify_signature": False})
        except jwt.InvalidTokenError:
            return value
        return f"{prefix}{space}{signer.token(**{'subject': '', **claims})}"


class LetsABadTokenPassAsNone(Waypoint):
    """G ``jwt-validation``: a request whose token is bad is one without a token."""

    def shares(self, mesh: Mesh, came: Came) -> Sequence[Share]:
        shares = super().shares(mesh, came)
        if any(isinstance(share.outcome, Answered) and share.outcome.bad_token for share in shares):
            return super().shares(replace(mesh, request_authentications=()), came)
        return shares


class _Sticky(HttpStream):
    _first: Share | None = None

    def judge(self, request: HttpRequest) -> Share:
        """Judge the first request, and do with the others as with it."""
        self._first = self._first or super().judge(request)
        if isinstance(outcome := self._first.outcome, Forwarded):
            return replace(self._first, outcome=replace(outcome, request=request))
        return self._first


class StickyRule(Waypoint):
    """E ``weighted-split`` is per request; G ``late-l7-policy-applies-to-open-connections``."""

    stream_class: ClassVar[type[HttpStream]] = _Sticky


ignores_header_matches = _program(IgnoresHeaderMatches)
matches_path_as_a_prefix = _program(MatchesPathAsAPrefix)
takes_the_first_rule = _program(TakesTheFirstRule)
routes_every_port = _program(RoutesEveryPort)
swaps_weights = _program(SwapsWeights)
one_backend_only = _program(OneBackendOnly)
ignores_tcp_routes = _program(IgnoresTcpRoutes)
skips_faults = _program(SkipsFaults)
ignores_timeouts = _program(IgnoresTimeouts)
mirrors_nothing = _program(MirrorsNothing)
mirrors_everything = _program(MirrorsEverything)
forgets_the_rewrite = _program(ForgetsTheRewrite)
keeps_removed_headers = _program(KeepsRemovedHeaders)
answers_404_as_503 = _program(AnswersNoRouteAsUnavailable)
forwards_the_path_as_it_came = _program(ForwardsThePathAsItCame)
ignores_l7_policy = _program(IgnoresL7Policy)
judges_itself_for_its_client = _program(JudgesItself)
trusts_a_header_for_identity = _program(TrustsAHeaderForIdentity)
forwards_before_it_authorizes = _program(ForwardsBeforeItAuthorizes)
mirrors_what_is_denied = _program(MirrorsWhatIsDenied)
sticky_rule = _program(StickyRule)
ignores_token_expiry = _program(IgnoresTokenExpiry)
takes_a_token_unverified = _program(TakesATokenUnverified)
lets_a_bad_token_pass_as_none = _program(LetsABadTokenPassAsNone)


# --- legal variants --------------------------------------------------------------------------------------------------

_Pairs = list[tuple[bytes, bytes]]


class Speaking(Talk):
    """Writes the headers of a message in another way."""

    async def send(self, event: h11.Event) -> None:
        match event:
            case h11.Request(method=method, target=target):
                event = h11.Request(method=method, target=target, headers=self.request_headers(list(event.headers)))
            case h11.Response(status_code=status, reason=reason):
                headers = self.answer_headers(list(event.headers))
                event = h11.Response(status_code=status, headers=headers, reason=reason)
            case _:
                pass
        await super().send(event)

    def request_headers(self, headers: _Pairs) -> _Pairs:
        return headers

    def answer_headers(self, headers: _Pairs) -> _Pairs:
        return self.request_headers(headers)


class Chunking(Speaking):
    """Sends every body in chunks, also where its length is known."""

    def request_headers(self, headers: _Pairs) -> _Pairs:
        chunked = (b"transfer-encoding", b"chunked")
        return [chunked if name == b"content-length" else (name, value) for name, value in headers]


class TitleCase(Speaking):
    """Writes ``X-Request-Id``: the case of a name means nothing."""

    def request_headers(self, headers: _Pairs) -> _Pairs:
        return [(name.title(), value) for name, value in headers]


class Closing(Speaking):
    """Closes a client's connection after each answer, and says so."""

    def answer_headers(self, headers: _Pairs) -> _Pairs:
        return [*headers, (b"connection", b"close")]


class Introducing(Speaking):
    """Adds what many proxies add: an id of the request, its scheme, who passed it on."""

    def request_headers(self, headers: _Pairs) -> _Pairs:
        known = {name for name, _ in headers}
        own = [(b"x-request-id", uuid4().hex.encode()), (b"x-forwarded-proto", b"http"), (b"via", b"1.1 waypoint")]
        return [*headers, *(pair for pair in own if pair[0] not in known)]

    def answer_headers(self, headers: _Pairs) -> _Pairs:
        return [*headers, (b"server", b"waypoint"), (b"x-envoy-upstream-service-time", b"1")]


class Reordering(Speaking):
    """Sorts headers by name, and leaves those of one name in their order."""

    def request_headers(self, headers: _Pairs) -> _Pairs:
        return sorted(headers, key=lambda pair: pair[0])


class Dribbling(Speaking):
    """Sends a message in many small pieces."""

    async def send(self, event: h11.Event) -> None:
        data = self.connection.send(event) or b""
        for at in range(0, len(data), _PIECE_BYTES):
            await self.pipe.send(data[at : at + _PIECE_BYTES])


class TakesTurns(Waypoint):
    """Gives each endpoint its turn, where the reference draws one."""

    turns: ClassVar[Iterator[int]] = count()

    def pick(self, endpoints: Sequence[PodPort], client: Client) -> tuple[Target, PodPort]:
        return super().pick([sorted(endpoints, key=str)[next(self.turns) % len(endpoints)]], client)


class SaysItOtherwise(Waypoint):
    """Words what it answers by itself in its own way; a status says enough."""

    def shares(self, mesh: Mesh, came: Came) -> Sequence[Share]:
        return [
            replace(share, outcome=replace(share.outcome, body="no"))
            if isinstance(share.outcome, Answered) and share.outcome.body is None and share.outcome.status >= 400
            else share
            for share in super().shares(mesh, came)
        ]


def speaking(talk: type[Talk]) -> type[Waypoint]:
    class Stream(HttpStream):
        talk_class: ClassVar[type[Talk]] = talk

    class Kind(Waypoint):
        stream_class: ClassVar[type[HttpStream]] = Stream

    return Kind


waypoint_chunks_every_body = _program(speaking(Chunking))
waypoint_title_case_headers = _program(speaking(TitleCase))
waypoint_closes_after_each_answer = _program(speaking(Closing))
waypoint_introduces_itself = _program(speaking(Introducing))
waypoint_sorts_headers = _program(speaking(Reordering))
waypoint_sends_in_pieces = _program(speaking(Dribbling))
waypoint_takes_turns = _program(TakesTurns)
waypoint_says_it_otherwise = _program(SaysItOtherwise)
