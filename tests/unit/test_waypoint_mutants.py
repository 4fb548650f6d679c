"""What the reference waypoint makes of requests, and what each of its mutants makes of the same ones."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import waypoint_world as world

from meshlab.model import (
    Abort,
    Backend,
    Delay,
    HeaderEdits,
    HttpRequest,
    HttpRule,
    Mirror,
    NamedMatch,
    PodPort,
    RequestMatch,
    Rewrite,
    SpiffeId,
    StringMatch,
    TcpRule,
)
from meshlab.oracle.http import Answered, Forwarded, Share
from meshlab.pki.tokens import TokenIssuer
from meshlab.protocols.hbone import Refusal, Target
from meshlab.proxykit.splice import Half
from meshlab.proxykit.tasks import Tasks
from meshlab.testing.mutants import waypoint as mutants
from meshlab.testing.registry import MUTANTS, VARIANTS, Mutant
from meshlab.waypoint.main import Waypoint
from meshlab.waypoint.serving import Known

PARTS = [mutant for mutant in (*MUTANTS.values(), *VARIANTS.values()) if mutant.part == "waypoint"]
OTHER = SpiffeId("cluster.local", "shop", "other")
BY_CLIENT = f"{{from: [{{source: {{principals: [{str(world.CLIENT).removeprefix('spiffe://')}]}}}}]}}"
NO_ADMIN = "{to: [{operation: {paths: [/admin]}}]}"


@pytest.mark.parametrize("mutant", PARTS, ids=lambda mutant: mutant.name)
def test_every_entry_is_a_program(mutant: Mutant) -> None:
    module, _, function = mutant.entry.partition(":")
    assert list(inspect.signature(getattr(importlib.import_module(module), function)).parameters) == ["config", "fds"]


def waypoint(kind: type[Waypoint], known: Known) -> Waypoint:
    """One that knows what it was sent, without what it needs to serve."""
    made = kind.__new__(kind)
    made.known, made.rng, made.tasks = known, random.Random(1), Tasks()  # noqa: S311  # a test's
    return made


def judged(kind: type[Waypoint], known: Known, request: HttpRequest, identity: SpiffeId = world.CLIENT) -> Share:
    """What one draw makes of a request."""
    return waypoint(kind, known).judge(world.asked(known), world.client(known, identity), request)


def services(kind: type[Waypoint], known: Known, request: HttpRequest, port: int = 80) -> set[str]:
    """Which pods may get a request, over many draws."""
    asked = world.asked(known, port=port)
    made = waypoint(kind, known)
    outcomes = [made.judge(asked, world.client(known), request).outcome for _ in range(50)]
    return {pod.pod for outcome in outcomes if isinstance(outcome, Forwarded) for pod in outcome.pods}


def path(how: Any, value: str) -> tuple[RequestMatch, ...]:
    return (RequestMatch(path=StringMatch(how, value)),)


def sent(share: Share) -> HttpRequest:
    assert isinstance(share.outcome, Forwarded)
    return share.outcome.request


def copied(share: Share) -> list[list[str]]:
    """The pods that may get each copy."""
    assert isinstance(share.outcome, Forwarded)
    return [[pod.pod for pod in copy.pods] for copy in share.outcome.copies]


def header(share: Share, name: str) -> str | None:
    return dict(sent(share).headers).get(name)


HEADER = (RequestMatch(headers=(NamedMatch("x-to", StringMatch("exact", "two")),)),)
TO_ONE, TO_TWO = HttpRule(backends=(world.ONE,)), HttpRule(backends=(world.TWO,))
ONES, TWOS = {"shop/one", "shop/one-too"}, {"shop/two"}
ROUTED: dict[type[Waypoint], tuple[Known, HttpRequest, int, set[str], set[str]]] = {
    mutants.IgnoresHeaderMatches: (
        world.known(replace(TO_TWO, matches=HEADER), TO_ONE),
        world.request(),
        80,
        ONES,
        TWOS,
    ),
    mutants.MatchesPathAsAPrefix: (
        world.known(replace(TO_TWO, matches=path("exact", "/a")), TO_ONE),
        world.request("/a/b"),
        80,
        ONES,
        TWOS,
    ),
    mutants.TakesTheFirstRule: (
        world.known(replace(TO_TWO, matches=path("segments", "/a")), TO_ONE),
        world.request("/b"),
        80,
        ONES,
        TWOS,
    ),
    mutants.RoutesEveryPort: (world.known(TO_TWO), world.request(), 81, ONES, TWOS),
    mutants.SwapsWeights: (
        world.known(HttpRule(backends=(replace(world.ONE, weight=1), replace(world.TWO, weight=0)))),
        world.request(),
        80,
        ONES,
        TWOS,
    ),
    mutants.OneBackendOnly: (
        world.known(HttpRule(backends=(world.ONE, world.TWO))),
        world.request(),
        80,
        ONES | TWOS,
        ONES,
    ),
}


@pytest.mark.parametrize("kind", ROUTED, ids=lambda kind: kind.__name__)
def test_one_that_routes_wrongly_sends_a_request_elsewhere(kind: type[Waypoint]) -> None:
    known, request, port, right, wrong = ROUTED[kind]
    assert services(Waypoint, known, request, port) == right
    assert services(kind, known, request, port) == wrong


def chosen(kind: type[Waypoint], known: Known) -> set[str]:
    """The pods that get connections to a port that is not read, over many draws."""
    asked, made = world.asked(known, port=81), waypoint(kind, known)
    ways = [made.choose(f"{asked.address}:81", world.client(known)) for _ in range(50)]
    return {way.endpoint.pod for way in ways if not isinstance(way, Refusal) and way.endpoint is not None}


@pytest.mark.parametrize(
    ("kind", "ports", "right", "wrong"),
    [
        (mutants.SwapsWeights, (), ONES, TWOS),
        (mutants.IgnoresTcpRoutes, (81,), TWOS, ONES),
        (mutants.RoutesEveryPort, (82,), ONES, TWOS),
    ],
)
def test_one_that_routes_wrongly_sends_a_connection_elsewhere(
    kind: type[Waypoint], ports: tuple[int, ...], right: set[str], wrong: set[str]
) -> None:
    weights = (1, 0) if right == ONES and not ports else (0, 1)
    backends = tuple(replace(one, weight=weight) for one, weight in zip((world.ONE, world.TWO), weights, strict=True))
    known = world.routing_tcp(TcpRule(ports=ports, backends=backends))
    assert (chosen(Waypoint, known), chosen(kind, known)) == (right, wrong)


def test_a_connection_whose_share_leads_nowhere_is_refused() -> None:
    known = world.routing_tcp(TcpRule(backends=(Backend(service="gone.shop", port=80),)))
    found = waypoint(Waypoint, known).choose(f"{world.asked(known).address}:81", world.client(known))
    assert isinstance(found, Refusal)
    assert (found.status, "which has no endpoint" in found.reason) == (503, True)


def test_one_that_keeps_to_a_backend_keeps_to_a_pod_of_it() -> None:
    known = world.known(TO_ONE)
    share = judged(Waypoint, known, world.request())
    assert isinstance(share.outcome, Forwarded)
    for kind, pods in ((Waypoint, 2), (mutants.OneBackendOnly, 1)):
        made = waypoint(kind, known)
        assert len({made.pick(share.outcome.pods, world.client(known)) for _ in range(50)}) == pods


REMOVING = HeaderEdits(remove=("x-gone",))
HEADERS = (("x-gone", "1"), ("x-forwarded-client-cert", f"By=x;URI={world.CLIENT}"))
Look = Callable[[Share], object]
DONE: dict[type[Waypoint], tuple[Known, HttpRequest, Look, object, object]] = {
    mutants.SkipsFaults: (
        world.known(replace(TO_ONE, abort=Abort(status=418), delay=Delay(seconds=3.0))),
        world.request(),
        lambda share: (share.outcome == Answered(418), share.delay_s),
        (True, 3.0),
        (False, 0.0),
    ),
    mutants.IgnoresTimeouts: (
        world.known(replace(TO_ONE, timeout_s=1.0)),
        world.request(),
        lambda share: getattr(share.outcome, "timeout_s", ""),
        1.0,
        None,
    ),
    mutants.MirrorsNothing: (
        world.known(replace(TO_ONE, mirrors=(Mirror(backend=world.TWO),))),
        world.request(),
        lambda share: copied(share),
        [["shop/two"]],
        [],
    ),
    mutants.MirrorsEverything: (
        world.known(replace(TO_ONE, mirrors=(Mirror(backend=world.TWO, percent=0),))),
        world.request(),
        lambda share: copied(share),
        [],
        [["shop/two"]],
    ),
    mutants.ForgetsTheRewrite: (
        world.known(replace(TO_ONE, rewrite=Rewrite(path="/b", authority="b"))),
        world.request("/a"),
        lambda share: (sent(share).path, sent(share).authority),
        ("/b", "b"),
        ("/a", "one.shop"),
    ),
    mutants.KeepsRemovedHeaders: (
        world.known(HttpRule(backends=(replace(world.ONE, request_headers=REMOVING),))),
        world.request(headers=HEADERS),
        lambda share: header(share, "x-gone"),
        None,
        "1",
    ),
    mutants.AnswersNoRouteAsUnavailable: (
        world.known(replace(TO_ONE, matches=path("exact", "/a"))),
        world.request("/b"),
        lambda share: share.outcome,
        Answered(404),
        Answered(503),
    ),
    mutants.ForwardsThePathAsItCame: (
        world.known(TO_ONE),
        world.request("/a/../b"),
        lambda share: sent(share).path,
        "/b",
        "/a/../b",
    ),
}


@pytest.mark.parametrize("kind", DONE, ids=lambda kind: kind.__name__)
def test_one_that_does_the_wrong_thing_does_it_to_a_request_and_leaves_others_alone(kind: type[Waypoint]) -> None:
    known, request, look, right, wrong = DONE[kind]
    assert (look(judged(Waypoint, known, request)), look(judged(kind, known, request))) == (right, wrong)
    plain = world.known()
    assert judged(kind, plain, world.request()) == judged(Waypoint, plain, world.request())


DENIES: dict[type[Waypoint], tuple[str, HttpRequest, SpiffeId]] = {
    mutants.IgnoresL7Policy: (world.POLICY % ("DENY", NO_ADMIN), world.request("/admin"), world.CLIENT),
    mutants.JudgesItself: (world.POLICY % ("DENY", BY_CLIENT), world.request(), world.CLIENT),
    mutants.TrustsAHeaderForIdentity: (world.POLICY % ("ALLOW", BY_CLIENT), world.request(headers=HEADERS), OTHER),
}


@pytest.mark.parametrize("kind", DENIES, ids=lambda kind: kind.__name__)
def test_one_that_judges_wrongly_lets_a_denied_request_pass(kind: type[Waypoint]) -> None:
    policies, request, identity = DENIES[kind]
    known = world.known(TO_ONE, policies=policies)
    assert judged(Waypoint, known, request, identity).outcome == Answered(403)
    assert isinstance(judged(kind, known, request, identity).outcome, Forwarded)


ISSUER = TokenIssuer("me")
TOKENS = f"""
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: tokens, namespace: shop}}
spec: {{targetRefs: [{{kind: Service, group: "", name: one}}], jwtRules: [{{issuer: me, jwks: '{ISSUER.jwks}'}}]}}
"""
BAD: dict[type[Waypoint], str] = {
    mutants.IgnoresTokenExpiry: ISSUER.token(exp=1000),
    mutants.TakesATokenUnverified: TokenIssuer("me").token(),
    mutants.LetsABadTokenPassAsNone: "x",
}


@pytest.mark.parametrize("kind", BAD, ids=lambda kind: kind.__name__)
def test_one_that_takes_bad_tokens_lets_a_request_pass_that_has_one(kind: type[Waypoint]) -> None:
    known = world.known(TO_ONE, policies=TOKENS)
    bad, good, none = (
        world.request(headers=[("authorization", f"{scheme} {token}")])
        for scheme, token in (("Bearer", BAD[kind]), ("Bearer", ISSUER.token()), ("Basic", "x"))
    )
    outcome = judged(Waypoint, known, bad).outcome
    assert isinstance(outcome, Answered)
    assert outcome.status == 401
    assert isinstance(judged(kind, known, bad).outcome, Forwarded)
    for request in (good, none):
        assert judged(kind, known, request) == judged(Waypoint, known, request)


@pytest.mark.parametrize("kind", [mutants.ForwardsBeforeItAuthorizes, mutants.MirrorsWhatIsDenied])
def test_one_that_forwards_or_mirrors_before_it_authorizes_delivers_what_it_denies(
    kind: type[mutants.ForwardsBeforeItAuthorizes],
) -> None:
    got = b""

    class Connected(kind):  # type: ignore[valid-type, misc]
        async def connect(self, target: Target, endpoint: PodPort) -> Half:
            half, (reader, writer) = await world.pair()
            self.tasks.spawn(serve(reader, writer))
            return half

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal got
        got = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await reader.read()
        writer.close()

    async def scenario() -> None:
        rule = replace(TO_ONE, mirrors=(Mirror(backend=world.TWO),))
        known = world.known(rule, policies=world.POLICY % ("DENY", NO_ADMIN))
        made = waypoint(Connected, known)
        share = made.judge(world.asked(known), world.client(known), world.request("/admin"))
        assert share.outcome == Answered(403)
        await made.tasks.finished()

    asyncio.run(scenario())
    assert got == b"GET /admin HTTP/1.1\r\nhost: one.shop\r\n\r\n"


# --- the reference ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policies", ["", world.POLICY % ("DENY", BY_CLIENT)], ids=["allowed", "denied"])
@pytest.mark.parametrize(("port", "reads"), [(80, True), (81, False)])
def test_where_requests_are_read_no_connection_is_denied_as_a_whole(policies: str, port: int, reads: bool) -> None:
    known = world.known(policies=policies)
    asked = world.asked(known, port=port)
    way = waypoint(Waypoint, known).choose(f"{asked.address}:{port}", world.client(known))
    if policies and not reads:
        assert isinstance(way, Refusal)
        assert way.status == 403
    else:
        assert not isinstance(way, Refusal)
        assert (way.endpoint is None) is reads


def test_http2_is_passed_on_as_bytes() -> None:
    known = world.known()
    asked = world.asked(known)
    assert asked.port is not None
    assert asked.is_http
    assert not replace(asked, port=replace(asked.port, protocol="http2")).is_http


def test_while_calls_move_the_mesh_that_knows_the_address_decides() -> None:
    """The mesh in effect has no waypoint for the Service any more, and some calls still come."""
    before = world.mesh(policies=world.POLICY % ("DENY", "{}"))
    moved = replace(
        before, services=tuple(replace(each, labels={"istio.io/use-waypoint": "none"}) for each in before.services)
    )
    asked = world.asked(Known("shop/gate", moved, also=before))
    assert (asked.mesh, asked.waypoint.key) == (before, "shop/gate")
    assert judged(Waypoint, Known("shop/gate", moved, also=before), world.request()).outcome == Answered(403)


def test_without_a_healthy_endpoint_a_request_is_answered_and_a_connection_refused() -> None:
    known = world.known(unhealthy=frozenset(ONES))
    assert judged(Waypoint, known, world.request()).outcome == Answered(503)
    asked = world.asked(known, port=81)
    refusal = waypoint(Waypoint, known).choose(f"{asked.address}:81", world.client(known))
    assert isinstance(refusal, Refusal)
    assert refusal.status == 503
