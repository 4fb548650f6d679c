"""Mutants and legal variants by name: data only, so that listing them loads none.

A mutant is a deliberately broken part that a check must catch; a variant is an unusual but right one that it must pass.
Each is a subclass of the part it is made of, in ``mutants/`` or ``variants.py``, and is started by its entry's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from meshlab.errors import UsageError

Part = Literal["ztunnel", "waypoint", "agent", "recorder", "analyzer"]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A part that is not as it should be, or not as it usually is."""

    name: str
    breaks: str
    """What it does, as a sentence."""
    part: Part
    entry: str
    """``package.module:name``, in place of the part's own."""


def _named(*mutants: Mutant) -> dict[str, Mutant]:
    return {mutant.name: mutant for mutant in mutants}


def _ztunnels(module: str) -> Callable[[str, str], Mutant]:
    """How to name the ztunnels of ``meshlab.testing.<module>``: by their name and what they do."""

    def mutant(name: str, does: str) -> Mutant:
        return Mutant(name, does, "ztunnel", f"meshlab.testing.{module}:{name.replace('-', '_')}")

    return mutant


_ztunnel = _ztunnels("mutants.ztunnel")
_policy = _ztunnels("mutants.policy")
_leak = _ztunnels("mutants.leaks")
_catalogue = _ztunnels("mutants.catalogue")
_cheat = _ztunnels("mutants.cheats")
_connections = _ztunnels("mutants.connections")
_sequence = _ztunnels("mutants.sequence")
_variant = _ztunnels("variants")
_pitfalls = _ztunnels("mutants.pitfalls")
_near = _ztunnels("mutants.near")
_unseen = _ztunnels("mutants.unseen")
_unseen_two = _ztunnels("mutants.unseen_two")
_unseen_three = _ztunnels("mutants.unseen_three")
_unseen_four = _ztunnels("mutants.unseen_four")
_unseen_five = _ztunnels("mutants.unseen_five")


def _agent(name: str, does: str) -> Mutant:
    return Mutant(name, does, "agent", f"meshlab.testing.mutants.agent:{name.replace('-', '_')}")


def _waypoint(name: str, does: str) -> Mutant:
    return Mutant(name, does, "waypoint", f"meshlab.testing.mutants.waypoints:{name.replace('-', '_')}")


def _request(name: str, does: str) -> Mutant:
    return Mutant(name, does, "waypoint", f"meshlab.testing.mutants.waypoint:{name.replace('-', '_')}")


def _unseen_seven(name: str, does: str) -> Mutant:
    return Mutant(name, does, "waypoint", f"meshlab.testing.mutants.unseen_seven:{name.replace('-', '_')}")


MUTANTS = _named(
    _ztunnel("leaks-plaintext", "sends what it tunnels in clear to the application's port as well"),
    _ztunnel("falls-back-to-plaintext", "calls in clear when a tunnel is refused"),
    _ztunnel("clear-on-15008", "speaks HBONE on 15008 without TLS"),
    _ztunnel("clear-after-handshake", "goes on in clear after a true handshake and 64 KiB of TLS records"),
    _ztunnel("calls-services-in-clear", "tunnels what is dialled by a pod's address, and not by a service's"),
    _ztunnel("ignores-deny", "evaluates no DENY policy"),
    _ztunnel("one-certificate-for-all", "shows one workload's certificate for all of its node"),
    _leak("sends-canary-to-a-collector", "sends a log line with the call's canary, whose end is cut off, off the mesh"),
    _leak("leaks-in-fragments", "exports what it tunnels, compressed, in a datagram of two IP fragments"),
    _leak("leaks-in-chunked-gzip", "exports what it tunnels in a compressed request of small chunks"),
    _leak("leaks-in-h2-headers", "exports what it tunnels in a header of an HTTP/2 request without TLS"),
    _policy("rules-of-a-policy-are-anded", "wants every rule of a policy to match, not one"),
    _policy("parts-of-a-rule-are-ored", "takes a rule for matched by its from, its to or its when, not by all of them"),
    _policy("suffix-matches-anywhere", "finds the text of a suffix pattern anywhere in a principal or namespace"),
    _policy("ignores-not-fields", "reads no notPrincipals, notPorts or other negative field"),
    _policy("cidr-mask-off-by-one", "compares one bit less of an address than a CIDR says"),
    _policy("ignores-ipv6-cidrs", "reads no IPv6 address block"),
    _policy("empty-rule-matches-nothing", "takes a rule without any condition for one that never matches"),
    _policy("policy-scope-is-mesh-wide", "enforces a namespace's policies in every namespace"),
    _policy(
        "ignores-port-level-mtls", "enforces a PeerAuthentication's mode on every port, whatever portLevelMtls says"
    ),
    _policy("deny-after-allow", "lets in what an ALLOW policy matches before it looks at any DENY policy"),
    _policy("identity-by-source-ip", "takes a peer's identity from its address, not from its certificate"),
    _policy(
        "verdict-cached-by-4-tuple", "keeps the first verdict for two addresses and a port, whatever policy follows"
    ),
    _policy(
        "stale-verdict-after-a-change", "acknowledges a change of policies and puts it into effect with the next one"
    ),
    _policy("sometimes-ignores-deny", "evaluates no DENY policy for one connection in five"),
    _catalogue("policy-at-the-service-port", "compares a policy's ports with the port of the service, not of the pod"),
    _catalogue("service-account-by-name-only", "takes service accounts of one name for the same in every namespace"),
    _catalogue("selector-policies-hold-for-the-node", "enforces a pod's selector policies on every pod of its node"),
    _catalogue("one-verdict-for-a-tunnel", "judges the first stream of a tunnel, and the others as it, on any port"),
    _catalogue(
        "one-tunnel-for-all-pods", "sends calls of all pods of a node through the tunnel that one of them opened"
    ),
    _cheat("leaks-first-bytes", "lets the first 20 bytes of a denied call reach the app before it refuses it"),
    _cheat("denies-after-a-byte", "lets one byte of a denied call reach the app before it refuses it"),
    _cheat("withholds-answers-only", "lets a denied call reach the app, and keeps the answer back"),
    _cheat("denies-late-at-the-vip", "lets a denied call reach the app where a service's address was dialled"),
    _cheat("shows-no-certificate", "shows no client certificate, and takes a client for whose address it has"),
    _cheat("loses-the-source-address", "reaches the app from the app's own address"),
    _cheat("always-the-first-endpoint", "sends every call to a service to the same endpoint"),
    _connections("never-cuts-open-connections", "lets a connection go on that a new policy denies"),
    _connections("cuts-tunnels-only", "lets a connection in plaintext go on that a new policy denies"),
    _connections(
        "admits-after-dialling", "misses a policy that comes while it dials the app, and lets the connection go on"
    ),
    _connections("drops-what-it-refuses", "forgets the version in effect of a resource whose new version it refuses"),
    _connections("ready-at-once", "says on 15021 that it is ready before it has any configuration"),
    _near("ignores-case-of-namespaces", "compares the namespace in a principal without its letter case"),
    _near("ignores-case-of-accounts", "compares the service account in a principal without its letter case"),
    _near("prefix-without-its-last-part", "reads a principal's prefix 'a/b/c*' as 'a/b/*'"),
    _near("suffix-without-its-first-part", "reads a principal's suffix '*a/b/c' as '*/b/c'"),
    _near("ipv4-cidr-one-bit-longer", "compares one bit more of an IPv4 address than a CIDR says"),
    _near("ipv6-cidr-one-bit-longer", "compares one bit more of an IPv6 address than a CIDR says"),
    _near("not-ports-of-operations-are-anded", "wants the notPorts of every operation of a rule to hold, not of one"),
    _near("not-ports-of-clauses-are-ored", "is content where the negative ports of one clause of several hold"),
    _near("flips-a-bit-in-bulk", "flips one bit of the byte that ends the first MiB of a stream, each way"),
    _unseen(
        "replicas-share-a-tunnel",
        "shares tunnels between pods of a node with one account: apps and policies see another replica's address",
    ),
    _unseen("leaks-after-a-pause", "sends what an app says after a second of silence in clear to its port as well"),
    _unseen("cuts-slow-answers-after-a-fin", "ends a connection in good order one second after one side's FIN"),
    _unseen("admits-when-busy", "judges no connection to a pod that comes while 24 others are open there"),
    _unseen(
        "gives-a-late-answer-to-the-next",
        "keeps the bytes that come for an app that has hung up, and gives them to the next caller of the same port",
    ),
    _unseen("delivers-twice", "sends all that is dialled by a service's address to its endpoint a second time"),
    _unseen_two(
        "ships-session-secrets", "sends the secrets of its TLS sessions off the mesh: who has them reads the tunnels"
    ),
    _unseen_two(
        "reads-four-values-of-a-list", "reads the first four values of each list in a rule, and none after them"
    ),
    _unseen_two(
        "cuts-the-tunnel-with-the-stream",
        "cuts all connections of a tunnel, also allowed ones, when a new policy denies one of them",
    ),
    _unseen_two(
        "gives-up-on-slow-readers",
        "ends a connection in good order, without the bytes that wait, when an app takes none for two seconds",
    ),
    _unseen_two(
        "retires-tunnels-in-use", "closes a tunnel that is seven seconds old, with the connections that are open on it"
    ),
    _unseen_two(
        "forgets-half-closed-connections",
        "lets a tunnelled connection go on that a new policy denies, when its client has sent its FIN",
    ),
    _unseen_three(
        "encrypts-with-a-zero-key", "shakes hands as it should, then encrypts with a key of zeros; no check sees it"
    ),
    _unseen_three("makes-keys-from-names", "makes the private key of each workload from the workload's identity"),
    _unseen_three(
        "keeps-policies-by-name",
        "takes policies of one name in several namespaces for one: the last replaces the others",
    ),
    _unseen_three(
        "sees-changes-of-rules-only",
        "takes no notice of a policy's new action or scope when its rules are as before, and acknowledges it",
    ),
    _unseen_three(
        "mixes-up-bulk",
        "sends bytes of another connection of its node in place of a full read, when both are read at the same time",
    ),
    _unseen_three(
        "discards-after-the-servers-fin", "throws away, without a sign, what a client says after its server's FIN"
    ),
    _unseen_four("admits-at-ephemeral-ports", "judges no connection to a port from 32768 on, also in plaintext"),
    _unseen_four(
        "keeps-one-port-of-a-service",
        "sends what a pod dials at any port of a service to the port of it that the pod dialled first",
    ),
    _unseen_four(
        "asks-again-without-an-answer",
        "says all of it again, on a new connection, to a server that has ended a call without answering a byte",
    ),
    _unseen_four(
        "keeps-the-window-of-abandoned-answers",
        "gives back no window for what a client that hung up did not take: after 16 MiB all calls of the tunnel hang",
    ),
    _unseen_four(
        "forgets-policies-when-nothing-changes",
        "lets everybody in when xDS has said nothing for fifteen seconds, until it says something again",
    ),
    _unseen_four(
        "opens-loopback-to-the-mesh", "reaches apps that listen on their pod's loopback only, for callers of the mesh"
    ),
    _unseen_five(
        "opens-every-port-of-a-service",
        "takes a call to a port that a service does not have to that port of one of its endpoints",
    ),
    _unseen_five(
        "waits-for-the-client-to-speak",
        "opens nothing before a client has said something: a server that speaks first is never reached",
    ),
    _unseen_five(
        "stops-the-tunnel-for-a-slow-reader",
        "reads nothing from a tunnel while one app on it takes no bytes: all other calls of its pod to that peer hang",
    ),
    _unseen_five(
        "ends-with-the-policy-that-admitted",
        "cuts a connection when the policy that let it in is deleted, also where it is still allowed",
    ),
    _unseen_five(
        "takes-any-tls-for-strict", "lets in plaintext that STRICT forbids when what it carries is TLS of the app's own"
    ),
    _unseen_five(
        "shows-certificates-to-everybody", "speaks TLS 1.2, so that the certificates of both ends pass in clear"
    ),
    _sequence("address-reuse", "goes on taking an address for that of the first workload which had it"),
    _sequence("stale-after-reconnect", "takes nothing away any more once the control plane has come back"),
    _sequence(
        "half-closed-survives-a-deny",
        "lets a tunnelled connection go on that a new policy denies, when either end has sent its FIN",
    ),
    _sequence(
        "old-certificate-after-enrolment",
        "shows for a pod the certificate that the first pod of its name had, whatever its service account is now",
    ),
    _sequence("calls-deleted-endpoints", "sends calls to a service also to endpoints that are unhealthy or deleted"),
    _sequence(
        "ready-before-its-snapshot",
        "serves without the policies that it had when the control plane comes back, until they are sent anew",
    ),
    _sequence(
        "loses-a-policy-at-a-nack",
        "goes back, when it refuses a policy, to those of before the push that it accepted last",
    ),
    _sequence(
        "plaintext-during-restart",
        "calls a pod in plaintext from when a tunnel to it was lost, as it is when the pod's ztunnel restarts",
    ),
    _sequence(
        "open-connection-escapes-a-new-policy",
        "judges an open connection again by the policies that there were when it came, and by no new one",
    ),
    _sequence("drops-at-drain", "ends every open connection at once when it is asked to end"),
    _pitfalls("refuses-pods-that-start", "carries no call of a pod before it is ready, so none of its init containers"),
    _pitfalls("first-call-without-a-certificate", "sends the first call of a pod in plaintext, and waits for nothing"),
    _pitfalls("listens-while-it-drains", "goes on taking connections when it is asked to end, and refuses them"),
    _pitfalls("resets-instead-of-ending", "ends a client's connection with RST where the server ended it with FIN"),
    _agent(
        "agent-trusts-rules-after-a-reboot",
        "when it starts again, takes new pods for pods that have their rules: after a reboot none has",
    ),
    _agent("released-pod-stays-captured", "leaves the rules and the node proxy of a pod that it says it has released"),
    _agent("agent-forgets-after-restart", "forgets one of the pods of its node when it starts again, and denies it"),
    _agent("agent-writes-no-rules", "enrols pods without redirecting their traffic"),
    Mutant(
        "capture-loses-packets",
        "the ring loses what arrives, and does not count it",
        "recorder",
        "meshlab.testing.mutants.capture:capture_loses_packets",
    ),
    Mutant(
        "capture-without-reassembly",
        "searches single packets only",
        "analyzer",
        "meshlab.testing.mutants.capture:CaptureWithoutReassembly",
    ),
    Mutant(
        "hands-out-its-session-keys",
        "sends the secrets of each TLS session over the wire, in UDP datagrams in plaintext",
        "ztunnel",
        "meshlab.testing.mutants.unseen_six:hands_out_its_session_keys",
    ),
    Mutant(
        "takes-the-last-peer-for-this-one",
        "judges every tunnel by the identity of whoever shook hands with the pod last",
        "ztunnel",
        "meshlab.testing.mutants.unseen_six:takes_the_last_peer_for_this_one",
    ),
    Mutant(
        "fails-open-when-busy",
        "lets everybody in while four connections to the pod are open",
        "ztunnel",
        "meshlab.testing.mutants.unseen_six:fails_open_when_busy",
    ),
    Mutant(
        "hedges-its-requests",
        "sends what a client sends to a Service a second time, to another endpoint if there is one",
        "ztunnel",
        "meshlab.testing.mutants.unseen_six:hedges_its_requests",
    ),
    Mutant(
        "carries-ipv6-over-ipv4",
        "carries a call to an IPv6 address to the peer's IPv4 address, from the client's IPv4 address",
        "ztunnel",
        "meshlab.testing.mutants.unseen_six:carries_ipv6_over_ipv4",
    ),
    Mutant(
        "pads-with-what-the-buffer-held",
        "fills an answer that the server ends up to 64 bytes, with what the read buffer holds of other connections",
        "ztunnel",
        "meshlab.testing.mutants.unseen_six:pads_with_what_the_buffer_held",
    ),
    Mutant(
        "goes-round-the-waypoint",
        "takes calls to their servers itself, as if nothing had a waypoint",
        "ztunnel",
        "meshlab.testing.mutants.waypoints:goes_round_the_waypoint",
    ),
    _waypoint("waypoint-forwards-in-plaintext", "goes on to the server without a tunnel"),
    _waypoint("waypoint-keeps-to-one-endpoint", "takes every call of a Service to the same endpoint"),
    _request("ignores-header-matches", "takes a rule of a route for matched whatever the headers are"),
    _request("matches-path-as-a-prefix", "takes an exact path of a route for a prefix"),
    _request("takes-the-first-rule", "does with every request what the first rule of its route says"),
    _request("routes-every-port", "follows a route for one port of a Service on all of its ports"),
    _request("swaps-weights", "gives the last backend of a rule the weight of the first"),
    _request("one-backend-only", "sends every request to the first pod of the first backend of its rule"),
    _request(
        "ignores-tcp-routes", "sends every connection whose bytes it does not read to the Service's own endpoints"
    ),
    _request("skips-faults", "injects no abort and no delay"),
    _request("ignores-timeouts", "waits for an answer for as long as it takes"),
    _request("mirrors-nothing", "sends no copies of requests to mirrors"),
    _request("mirrors-everything", "sends copies of all requests to mirrors, whatever their percentage is"),
    _request("mirrors-what-is-denied", "sends a copy of a request to a mirror that it answers with 403"),
    _request("forgets-the-rewrite", "sends requests on with the path and the authority that they came with"),
    _request("keeps-removed-headers", "passes on the headers that a route removes"),
    _request("answers-404-as-503", "answers 503 to a request that no rule matches"),
    _request("forwards-the-path-as-it-came", "judges a path in its normal form, and sends it on as it came"),
    _request("ignores-l7-policy", "evaluates no policy for requests"),
    _request("judges-itself-for-its-client", "judges requests by the identity of the waypoint, not of the client"),
    _request(
        "trusts-a-header-for-identity",
        "takes a client for whom its x-forwarded-client-cert names, and not for whom its certificate does",
    ),
    _request("forwards-before-it-authorizes", "sends a request on that it answers with 403"),
    _request("sticky-rule", "judges the first request of a connection, and does with the others as with it"),
    _unseen_seven(
        "gives-a-lost-share-to-the-others",
        "gives the share of a backend that is not there to the other backends of its rule",
    ),
    _unseen_seven("adds-over-what-is-there", "replaces the headers of a name that a route adds one to"),
    _unseen_seven("compares-policy-paths-with-the-query", "takes the query for a part of the path that a policy names"),
    _unseen_seven(
        "replaces-prefixes-as-they-stand",
        "keeps the slash at the end of a prefix that replaces another one: '/a' by '/' makes '/a/b' to '//b'",
    ),
    _unseen_seven(
        "tunnels-after-a-refused-upgrade",
        "judges no request that follows one for WebSocket, also where the server has refused that",
    ),
    _request("ignores-token-expiry", "takes a token that has expired"),
    _request("takes-a-token-unverified", "believes what a token says, whoever signed it"),
    _request("lets-a-bad-token-pass-as-none", "takes a request with a bad token for one without a token"),
)

VARIANTS = _named(
    _variant("rst-on-deny", "ends a refused call with RST"),
    _variant("no-pooling", "opens one tunnel for each call"),
    _variant("refuses-late", "closes a refused call 300 ms later"),
    _variant("resumes-tls", "resumes TLS sessions by ticket, with a tunnel for each call"),
    _variant("round-robin-endpoints", "takes the endpoints of a service in turn"),
    _variant("chooses-the-source-port", "reaches apps from ports of its own choice at the client's address"),
    _variant("resyncs-at-reconnect", "asks for everything again when the control plane has come back"),
    _variant(
        "keeps-what-came-before",
        "cuts no open connection for a policy with a selector that its workload did not list when it came",
    ),
    _variant("passes-small-pieces", "passes on what it carries in pieces of 1000 bytes"),
    _variant(
        "exports-logs",
        "sends log lines without a canary off the mesh: in datagrams, IP fragments, chunks and HTTP/2 headers",
    ),
    _waypoint("waypoint-without-a-pool", "goes on in a tunnel of its own for each call"),
    _request("waypoint-chunks-every-body", "sends each body of a request or an answer in chunks"),
    _request("waypoint-title-case-headers", "writes the names of headers with capitals"),
    _request("waypoint-closes-after-each-answer", "closes a client's connection after each answer, and says so"),
    _request("waypoint-introduces-itself", "adds an id, a scheme and its name to requests and answers"),
    _request("waypoint-sorts-headers", "sends headers on in the order of their names"),
    _request("waypoint-sends-in-pieces", "sends each message in pieces of a few bytes"),
    _request("waypoint-takes-turns", "gives each endpoint its turn instead of drawing one"),
    _request("waypoint-says-it-otherwise", "has words of its own in the body of what it refuses"),
)


def find(name: str) -> Mutant:
    """The mutant or variant of that name.

    Raises:
        UsageError: there is none; the message lists them.
    """
    return _of({**MUTANTS, **VARIANTS}, "mutant or variant", name)


def accept(mutant: str | None, variant: str | None) -> None:
    """See that these can be asked for together.

    Raises:
        UsageError: one is none, or the other's kind, or both would be played by one program.
    """
    broken = _of(MUTANTS, "mutant", mutant, "--variant", VARIANTS) if mutant else None
    odd = _of(VARIANTS, "variant", variant, "--mutant", MUTANTS) if variant else None
    if broken and odd and broken.part == odd.part:
        raise UsageError(
            f"'{mutant}' and '{variant}' are both a {odd.part}: one program cannot be two; say one of them"
        )


def _of(
    known: Mapping[str, Mutant], kind: str, name: str, other: str = "", others: Mapping[str, Mutant] | None = None
) -> Mutant:
    if name in known:
        return known[name]
    if others and name in others:
        raise UsageError(f"'{name}' is no {kind}: say {other} {name}")
    close = get_close_matches(name, known, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    raise UsageError(f"no {kind} '{name}' ({', '.join(known)}).{hint}")
