"""Values of policies that are near to what a connection has: some just fit it, the others just miss it.

    fits     the value itself; patterns that end at each of its parts; blocks whose longer half leaves the address out
    misses   another letter case of one part; one letter, one part, one bit or one port away; values of another pod

A proxy that compares too loosely takes a miss for a fit, one that compares too strictly a fit for a miss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from ipaddress import ip_network

from meshlab.model import Address, Connection, Mesh, Pod, SpiffeId
from meshlab.topology.shapes import is_account, is_port_text

_LENGTHS: Mapping[int, tuple[int, ...]] = {
    4: (1, 7, 8, 9, 15, 16, 17, 24, 31, 32),
    6: (1, 32, 47, 48, 49, 63, 64, 65, 112, 127, 128),
}
"""Round the networks of all pods, of a node and of one pod (``model.addresses``)."""


@dataclass(frozen=True, slots=True)
class Values:
    """Values of one field, sorted by what the connection makes of them."""

    fits: tuple[str, ...]
    misses: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Both, repeated until neither kind is much likelier than the other."""
        if not self.fits or not self.misses:
            return self.fits + self.misses
        one, other = max(1, round(len(self.misses) / len(self.fits))), max(1, round(len(self.fits) / len(self.misses)))
        return self.fits * one + self.misses * other


@dataclass(frozen=True)
class Near:
    """What the values of one case are near to. A value that is listed twice is twice as likely."""

    base: Mesh
    connection: Connection
    anything: bool = False
    """Also values that Istio's API server refuses, which an evaluator may meet all the same."""

    @cached_property
    def identities(self) -> tuple[SpiffeId, ...]:
        return tuple(sorted({pod.identity(self.base.trust_domain) for pod in self.base.pods}))

    @property
    def identity(self) -> SpiffeId:
        return self.connection.source or self.identities[0]

    @property
    def destination(self) -> Pod:
        return self.base.pod(self.connection.destination)

    def namespaces(self) -> Values:
        return near_texts(self.identity.namespace, tuple(identity.namespace for identity in self.identities))

    def principals(self) -> Values:
        return near_principals(self.identity, self.identities)

    def service_accounts(self) -> Values:
        """``ns/sa``, and ``sa`` alone, which means the policy's own namespace."""
        namespace, name = self.identity.namespace, self.identity.service_account
        account = f"{namespace}/{name}"
        misses = [f"x{account}", f"{account}x", f"{namespace}x/{name}", f"{namespace}/*", "*"]
        misses += [f"{other.namespace}/{other.service_account}" for other in self.identities if other != self.identity]
        misses += [f"{other.namespace}/{name}" for other in self.identities if other.namespace != namespace]
        misses += [*_other_cases(account)]
        return Values((account, account, name), self._valid(misses, is_account))

    def source_ips(self) -> Values:
        return near_blocks(self.connection.source_ip, self._addresses)

    def destination_ips(self) -> Values:
        return near_blocks(self.connection.destination_ip, self._addresses)

    @cached_property
    def _addresses(self) -> tuple[Address, ...]:
        return tuple(pod.address(self.connection.source_ip.version) for pod in self.base.pods)

    def ports(self) -> Values:
        port = self.connection.port
        others = {str(other.number) for pod in self.base.pods for other in pod.ports} - {str(port)}
        misses = [str(port + 1), str(port - 1), "80", str(port)[:-1], f"{port}0", "http", "0", *sorted(others)]
        return Values((str(port),), self._valid([text for text in misses if text != str(port)], is_port_text))

    def policy_namespaces(self) -> list[str]:
        """Mostly the destination's; a policy in the source's own would decide otherwise, and has no say."""
        mine, root, source = self.destination.namespace, self.base.root_namespace, self.identity.namespace
        return [*[mine] * 7, *[root] * 3, source, *sorted({pod.namespace for pod in self.base.pods})]

    def selectors(self) -> list[dict[str, str] | None]:
        """Everything (two spellings), labels that the destination has, and ones that it nearly has."""
        labels = dict(self.destination.labels)
        fitting: list[dict[str, str] | None] = [None, None, {}, labels, *({k: text} for k, text in labels.items())]
        missing: list[dict[str, str] | None] = [{**labels, "absent": ""}]
        missing += [{key: f"{text}x"} for key, text in labels.items() if text]
        missing += [{key: text.upper()} for key, text in labels.items() if text != text.upper()]
        return [*fitting * 3, *missing]

    def _valid(self, values: Sequence[str], valid: Callable[[str], bool]) -> tuple[str, ...]:
        return tuple(value for value in values if self.anything or valid(value))


def near_identities(identity: SpiffeId) -> list[SpiffeId]:
    """Other trust domains with the same names in them, and names one letter longer."""
    return [
        replace(identity, trust_domain=f"{identity.trust_domain}.example"),
        replace(identity, trust_domain=f"x{identity.trust_domain}"),
        replace(identity, namespace=f"{identity.namespace}x"),
        replace(identity, service_account=f"{identity.service_account}-x"),
    ]


@lru_cache(maxsize=4096)
def near_texts(text: str, others: tuple[str, ...]) -> Values:
    """Patterns over one word: those that match ``text``, and those that just do not (its middle at an end, say)."""
    middle = len(text) // 2
    fits = (text, text, "*", f"{text}*", f"*{text}", f"{text[:middle]}*", f"*{text[middle:]}")
    misses = (
        f"{text}x",
        f"x{text}",
        text[:-1] or "x",
        text[1:] or "x",
        f"{text}x*",
        f"*x{text}",
        f"{text[1:-1] or 'x'}*",
        f"*{text[1:-1] or 'x'}",
        f"{text[0]}*{text[-1]}",
        *_other_cases(text),
        *(f"{other}*" for other in _other_cases(text)),
        *(f"*{other}" for other in _other_cases(text)),
        *others,
    )
    return Values(fits, tuple(value for value in misses if value != text))


@lru_cache(maxsize=4096)
def near_principals(identity: SpiffeId, others: tuple[SpiffeId, ...]) -> Values:
    """Patterns over an identity, which has five parts: ``trust domain/ns/namespace/sa/service account``."""
    text = identity.principal
    parts = text.split("/")
    heads = ["/".join(parts[:place]) for place in range(1, len(parts))]
    tails = ["/".join(parts[place:]) for place in range(1, len(parts))]
    fits = [text, text, text, "*", f"{text}*", f"*{text}"]
    fits += [f"{head}/*" for head in heads] + [f"*/{tail}" for tail in tails]
    fits += [f"{head}/{part[: len(part) // 2]}*" for head, part in zip(heads, parts[1:], strict=True)]
    fits += [f"*{part[len(part) // 2 :]}/{tail}" for tail, part in zip(tails, parts, strict=False)]
    words = near_texts(text, ())
    misses = [value for value in words.misses if value.lower() != text.lower()]
    for changed in _one_part_other(identity, others):
        principal = changed.principal
        misses += [principal, principal, f"{principal}*", f"*{principal}"]
    misses += [*[f"{text}/*", f"*/{text}"] * 3, f"spiffe://{text}"]
    misses += [f"{head}/x*" for head in heads] + [f"*x/{tail}" for tail in tails]
    misses += [other.principal for other in others]
    return Values((*fits, *words.fits), tuple(value for value in misses if value != text))


def _one_part_other(identity: SpiffeId, others: Iterable[SpiffeId]) -> Iterator[SpiffeId]:
    """``identity`` with one part in another letter case, one letter longer, or of another pod."""
    for name in ("trust_domain", "namespace", "service_account"):
        part = getattr(identity, name)
        known = sorted({getattr(other, name) for other in others} - {part})
        for other in (*_other_cases(part), f"{part}x", *known):
            yield replace(identity, **{name: other})


def _other_cases(text: str) -> list[str]:
    """``text`` with its first, its last, or all of its letters in upper case."""
    cases = (text.upper(), text[:1].upper() + text[1:], text[:-1] + text[-1:].upper())
    return [case for case in dict.fromkeys(cases) if case != text]


@lru_cache(maxsize=4096)
def near_blocks(address: Address, others: tuple[Address, ...]) -> Values:
    """Blocks round ``address``, and the blocks beside them, at every length at which another pod's address parts."""
    bits = address.max_prefixlen
    parting = {bits - (int(address) ^ int(other)).bit_length() for other in others if other.version == address.version}
    round_them = {length + step for length in parting for step in (-1, 0, 1, 2)}
    lengths = sorted({length for length in (*_LENGTHS[address.version], *round_them) if 0 < length <= bits})
    upper = [length for length in range(1, bits) if int(address) >> (bits - 1 - length) & 1]
    around = [f"{address}/{length}" for length in lengths]
    masked = [str(ip_network(block, strict=False)) for block in around]
    halves = [str(ip_network(f"{address}/{length}", strict=False)) for length in upper if length in lengths]
    beside = [f"{type(address)(int(address) ^ 1 << (bits - length))}/{length}" for length in lengths]
    all_of, other_family = ("0.0.0.0/0", "::/0") if address.version == 4 else ("::/0", "0.0.0.0/0")
    return Values((str(address), *around, *masked, *halves * 2, all_of), (*beside, other_family))


ValuesOf = Mapping[str, Callable[[Near], Values]]
"""Name of a field -> values for it."""

SOURCE: ValuesOf = {
    "principals": Near.principals,
    "not_principals": Near.principals,
    "namespaces": Near.namespaces,
    "not_namespaces": Near.namespaces,
    "service_accounts": Near.service_accounts,
    "not_service_accounts": Near.service_accounts,
    "ip_blocks": Near.source_ips,
    "not_ip_blocks": Near.source_ips,
}
OPERATION: ValuesOf = {"ports": Near.ports, "not_ports": Near.ports}
CONDITION: ValuesOf = {
    "source.ip": Near.source_ips,
    "source.namespace": Near.namespaces,
    "source.principal": Near.principals,
    "destination.ip": Near.destination_ips,
    "destination.port": Near.ports,
}
L4_FIELDS: tuple[tuple[str, str], ...] = (
    *(("from", name) for name in SOURCE),
    *(("to", name) for name in OPERATION),
    *((key, name) for key in CONDITION for name in ("values", "not_values")),
)
"""Every field of a rule that L4 judges: ``from``, ``to`` or the key of a condition, and the field's name."""
