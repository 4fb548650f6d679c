"""What a campaign has seen so far, counted; and which fields of policies had a part in it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from meshlab.fuzz.choose import Chosen
from meshlab.model import (
    FAMILIES,
    AuthorizationPolicy,
    CallStep,
    ChangeStep,
    Mesh,
    MtlsMode,
    PeerAuthentication,
    Pod,
    PolicyStep,
    Rule,
    Step,
    Topology,
    VerbStep,
    Verdict,
    has_labels,
)
from meshlab.model.report import SCHEMA_VERSION
from meshlab.topology.policies import operation_fields, source_fields

_SOURCES = ("principals", "namespaces", "serviceAccounts", "ipBlocks")
_KEYS = ("source.ip", "source.namespace", "source.principal", "destination.ip", "destination.port")


def _both(name: str) -> tuple[str, str]:
    return name, f"not{name[0].upper()}{name[1:]}"


FIELDS: tuple[str, ...] = (
    *(f"from.{name}" for positive in _SOURCES for name in _both(positive)),
    *(f"to.{name}" for name in _both("ports")),
    *(f"when.{key}.{name}" for key in _KEYS for name in _both("values")),
    "action.ALLOW",
    "action.DENY",
    "selector",
    "rules.none",
    "rules.empty",
    "mtls.mesh",
    "mtls.namespace",
    "mtls.workload",
    "portLevelMtls",
)
"""Every field that L4 judges, as manifests spell them; ``rules.none`` and ``rules.empty``: without rules, ``[{}]``."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure as it was written."""

    file: str
    result: str
    """``failed``, or ``flaky``."""
    text: str
    """What was wrong; with a flaky one, how often."""

    def to_json(self) -> dict[str, str]:
        return {"file": self.file, "result": self.result}


@dataclass(slots=True)
class Tally:
    """Counts of one campaign, or of several workers together."""

    examples: int = 0
    calls: int = 0
    allowed: int = 0
    seconds: float = 0.0
    """Of generating, calling and proving; without building labs and shrinking."""
    fields: Counter[tuple[str, bool]] = field(default_factory=Counter)
    """Field, and whether allowed -> calls to a pod for which a policy with that field was in force."""
    happened: Counter[str] = field(default_factory=Counter)
    """What happened in histories: ``apply``, ``restart``, ``connect`` ... -> how often."""
    identities: int = 0
    """That proxies named, compared with their owners."""
    repeated: int = 0
    """Examples that failed as another one had before."""
    unproven: int = 0
    """Examples of which a capture could not tell whether something was in clear."""
    failures: list[Failure] = field(default_factory=list)
    doing: str = ""
    """What is done instead of calling."""

    def count(self, mesh: Mesh, calls: Sequence[Chosen]) -> None:
        """Add the calls of one set of policies."""
        self.calls += len(calls)
        in_force: dict[str, frozenset[str]] = {}
        for one in calls:
            pod = one.call.destination
            if pod.key not in in_force:
                in_force[pod.key] = fields_in_force(mesh, pod)
            self.allowed += one.decision.allowed
            self.fields.update((name, one.decision.allowed) for name in in_force[pod.key])

    def count_history(self, topology: Topology) -> None:
        """Add the steps of a file that was played."""
        for step in topology.steps:
            if isinstance(step, CallStep):
                families = 1 if step.family else len(FAMILIES)
                self.calls += families
                self.allowed += families * (step.expect is Verdict.ALLOW)
            else:
                self.happened[_word(step)] += 1

    def add(self, other: Tally) -> None:
        """Another worker's; they ran at the same time."""
        self.examples += other.examples
        self.calls += other.calls
        self.allowed += other.allowed
        self.seconds = max(self.seconds, other.seconds)
        self.fields += other.fields
        self.happened += other.happened
        self.identities += other.identities
        self.repeated += other.repeated
        self.unproven += other.unproven
        self.failures += other.failures
        self.doing = self.doing or other.doing

    @property
    def verdicts_per_s(self) -> float:
        return round(self.calls / self.seconds, 1) if self.seconds else 0.0

    @property
    def allow_share(self) -> float:
        return round(self.allowed / self.calls, 3) if self.calls else 0.0

    @property
    def unseen(self) -> list[str]:
        """Fields that were not in an allowed verdict, or not in a denied one."""
        return [name for name in FIELDS if not (self.fields[name, True] and self.fields[name, False])]

    @property
    def exit_code(self) -> int:
        """0 nothing was wrong, 1 something was, 4 something was only at times, or could not be told, 5 nothing ran."""
        results = {failure.result for failure in self.failures}
        if "failed" in results:
            return 1
        if results or self.unproven:
            return 4
        return 0 if self.examples else 5

    def to_json(self) -> dict[str, Any]:
        return {
            "schemaVersion": SCHEMA_VERSION,
            "examples": self.examples,
            "calls": self.calls,
            "verdicts_per_s": self.verdicts_per_s,
            "allow_share": self.allow_share,
            "fields": {name: {"allow": self.fields[name, True], "deny": self.fields[name, False]} for name in FIELDS},
            "happened": dict(self.happened),
            "failures": [failure.to_json() for failure in self.failures],
        }


def _word(step: Step) -> str:
    """What a step that is no call does, in a word of files."""
    match step:
        case VerbStep() | ChangeStep():
            return step.verb
        case PolicyStep():
            return "policies"
        case _:
            return type(step).__name__.removesuffix("Step").lower()


def fields_in_force(mesh: Mesh, pod: Pod) -> frozenset[str]:
    """The fields of every policy that a proxy evaluates for calls to ``pod``."""
    if not mesh.is_enrolled(pod):
        return frozenset()
    return frozenset([*_of_authorization(mesh, pod), *_of_authentication(mesh, pod)])


def _of_authorization(mesh: Mesh, pod: Pod) -> Iterator[str]:
    for policy in mesh.authorization_policies:
        selects = has_labels(pod.labels, policy.selector or {})
        if policy.namespace not in (pod.namespace, mesh.root_namespace) or not selects:
            continue
        if not policy.dry_run and not policy.target_refs:
            yield from _of_policy(policy)


def _of_policy(policy: AuthorizationPolicy) -> Iterator[str]:
    yield f"action.{policy.action}"
    if policy.selector:
        yield "selector"
    if not policy.rules:
        yield "rules.none"
    for rule in policy.rules:
        names = set(_of_rule(rule))
        if names <= set(FIELDS):  # else it has a part for HTTP, and says something else or nothing at L4
            yield from names or {"rules.empty"}


def _of_rule(rule: Rule) -> Iterator[str]:
    for source in rule.sources:
        yield from (f"from.{name}" for name in source_fields(source))
    for operation in rule.operations:
        yield from (f"to.{name}" for name in operation_fields(operation))
    for condition in rule.conditions:
        yield from (f"when.{condition.key}.values" for _ in condition.values[:1])
        yield from (f"when.{condition.key}.notValues" for _ in condition.not_values[:1])


def _of_authentication(mesh: Mesh, pod: Pod) -> Iterator[str]:
    for level, policies in _levels(mesh.peer_authentications, mesh, pod).items():
        oldest = next(iter(policies), None)
        if oldest is not None and oldest.mode is not MtlsMode.UNSET:
            yield f"mtls.{level}"
        if oldest is not None and oldest.port_level_mtls:
            yield "portLevelMtls"


def _levels(policies: Iterable[PeerAuthentication], mesh: Mesh, pod: Pod) -> dict[str, list[PeerAuthentication]]:
    levels: dict[str, list[PeerAuthentication]] = {"mesh": [], "namespace": [], "workload": []}
    for policy in policies:
        if policy.selector and policy.namespace == pod.namespace and has_labels(pod.labels, policy.selector):
            levels["workload"].append(policy)
        elif not policy.selector and policy.namespace == mesh.root_namespace:
            levels["mesh"].append(policy)
        elif not policy.selector and policy.namespace == pod.namespace:
            levels["namespace"].append(policy)
    return levels
