"""What a single value may look like: the types of the table in ``keys``.

Each shape says in words what it wants, so that a message and the documentation say the same.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from urllib.parse import urlsplit

from meshlab.model import addresses
from meshlab.model.workload import TRUE_WORDS
from meshlab.topology.nodes import Scalar, describe
from meshlab.topology.notes import START, did_you_mean, listed

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_PREFIX_LENGTH = re.compile(r"0|[1-9][0-9]{0,2}")
_PATH_LITERAL = re.compile(r"[-a-zA-Z0-9._~%!$&'()+,;:@=]+")
"""The characters of a path (RFC 3986, appendix A), without the star."""
FALSE_WORDS = ("0", "f", "F", "false", "FALSE", "False")
_HEADER = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
"""A token of RFC 9110, section 5.6.2."""
_HEADER_VALUE = re.compile(r"[\t -$&-~]*")
"""Visible ASCII without ``%``."""
_PART_OF_A_DURATION = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_GATEWAY_DURATION = re.compile(r"([0-9]{1,5}(h|m|s|ms)){1,4}")
_UNITS_MS = {"ns": "1e-6", "us": "1e-3", "µs": "1e-3", "ms": "1", "s": "1e3", "m": "6e4", "h": "36e5"}
_LONGEST_MS = 3_600_000_000
_READ_OTHERWISE = re.compile(r"\(\?([=!>(#]|<[=!]|P[=>])|\\[1-9zZpPCQ]|[*+?}]\+")
"""What Python and RE2 do not both have: looking ahead and back, references, ``\\z``, possessive repetition."""
_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")
_SUBDOMAIN_LENGTH = 253
_CLUSTER_DOMAIN = ".svc.cluster.local"
_LONGEST_DURATION = 64
_MOST_WEIGHT = 1_000_000

# fmt: off
CAPABILITIES = (
    "AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "BPF",
    "CHECKPOINT_RESTORE", "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER",
    "FSETID", "IPC_LOCK", "IPC_OWNER", "KILL", "LEASE",
    "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE", "MKNOD", "NET_ADMIN",
    "NET_BIND_SERVICE", "NET_BROADCAST", "NET_RAW", "PERFMON", "SETFCAP",
    "SETGID", "SETPCAP", "SETUID", "SYSLOG", "SYS_ADMIN",
    "SYS_BOOT", "SYS_CHROOT", "SYS_MODULE", "SYS_NICE", "SYS_PACCT",
    "SYS_PTRACE", "SYS_RAWIO", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG",
    "WAKE_ALARM",
)
# fmt: on
"""Source: capabilities(7)."""

XDS_TYPES = ("istio.security.Authorization", "istio.workload.Address")
"""What the control plane serves to a node proxy."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of value."""

    words: str
    """Completes «must be ...»."""
    accepts: Callable[[Scalar], bool]
    choices: tuple[str, ...] = ()

    def fault(self, scalar: Scalar) -> str:
        """Why ``scalar`` will not do, else nothing."""
        if self.accepts(scalar):
            return ""
        return f"{describe(scalar)} must be {self.words}.{self._hint(scalar)}"

    def takes(self, text: str) -> bool:
        return self.accepts(Scalar(START, text, text))

    def _hint(self, scalar: Scalar) -> str:
        if not isinstance(scalar.value, str) and self.takes(scalar.text):
            return f' Put it in quotes: "{scalar.text}"'
        return did_you_mean(scalar.text, self.choices)


def _text(test: Callable[[str], object]) -> Callable[[Scalar], bool]:
    return lambda scalar: isinstance(scalar.value, str) and bool(test(scalar.value))


def _whole(low: int, high: int) -> Callable[[Scalar], bool]:
    return lambda scalar: type(scalar.value) is int and low <= scalar.value <= high


def _number(scalar: Scalar) -> bool:
    return isinstance(scalar.value, int | float) and scalar.value is not True and 0 < scalar.value < 1e6


def _percent(scalar: Scalar) -> bool:
    return isinstance(scalar.value, int | float) and not isinstance(scalar.value, bool) and 0 <= scalar.value <= 100


def is_label(text: str) -> bool:
    """An RFC 1123 label: namespaces, Services, nodes."""
    return _LABEL.fullmatch(text) is not None


def is_subdomain(text: str) -> bool:
    """An RFC 1123 subdomain: pods, service accounts, policies."""
    return len(text) <= _SUBDOMAIN_LENGTH and _SUBDOMAIN.fullmatch(text) is not None


def is_label_key(text: str) -> bool:
    prefix, slash, name = text.rpartition("/")
    return (is_subdomain(prefix) if slash else True) and _QUALIFIED.fullmatch(name) is not None


def is_cidr(text: str) -> bool:
    """An address, or a network in CIDR form, of either family; host bits may be set, as Istio allows.

    Stricter than ``ipaddress``: no netmasks, no zones, since what a ztunnel cannot parse it silently leaves out.
    """
    address, slash, length = text.partition("/")
    if "%" in text or (slash and not _PREFIX_LENGTH.fullmatch(length)):
        return False
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return bool(address)


def is_port_text(text: str) -> bool:
    return text.isascii() and text.isdigit() and text[0] != "0" and len(text) < 6 and int(text) < 65536


def _is_pod(text: str) -> bool:
    namespace, _, name = text.partition("/")
    return is_label(namespace) and is_subdomain(name)


def is_account(text: str) -> bool:
    """``namespace/name``, or a name alone."""
    namespace, slash, name = text.rpartition("/")
    return (is_label(namespace) if slash else True) and is_subdomain(name)


def _is_vip(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    unusable = address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local
    return "%" not in text and not unusable


def _is_pod_ip(text: str) -> bool:
    """Unicast, of one family only (::ffff:10.0.0.1 is of both), and not the lab's own."""
    if not _is_vip(text):
        return False
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        unusable = address.ipv4_mapped is not None
    else:
        unusable = address in _THIS_NETWORK or address == _BROADCAST
    return not unusable and not any(address in network for network in addresses.LABS_OWN)


def is_trust_domain(text: str) -> bool:
    """A trust domain of a policy, or a prefix or suffix of one with ``*``; without ``spiffe://``."""
    return bool(text) and "/" not in text and "*" not in text[1:-1] and (text == "*" or text.count("*") <= 1)


def is_path_pattern(text: str) -> bool:
    """A path, exact or with a ``*`` at one end, or a template of ``{*}`` and, once and as the last of them, ``{**}``.

    Source: CheckValidPathTemplate in pkg/config/security/security.go of istio/istio
    """
    parts = text.strip("/").split("/")
    if "{**}" in parts and {"{*}", "{**}"} & set(parts[parts.index("{**}") + 1 :]):
        return False
    literals = [part for part in parts if part not in ("{*}", "{**}")]
    if "{*}" in text or "{**}" in text:
        return all(map(_PATH_LITERAL.fullmatch, literals))
    return bool(text) and not set("{}") & set("".join(literals))


def _is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        return False


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except ValueError:
        return False
    return True


def milliseconds(text: str) -> Decimal | None:
    """Return what a duration of Go, such as ``1m30s`` or ``500ms``, comes to; ``None`` if it is not one.

    Source: https://pkg.go.dev/time#ParseDuration
    """
    parts = _PART_OF_A_DURATION.findall(text)
    if not text or len(text) > _LONGEST_DURATION or "".join(map("".join, parts)) != text:
        return None
    return sum((Decimal(number) * Decimal(_UNITS_MS[unit]) for number, unit in parts), Decimal())


def _is_duration(text: str) -> bool:
    """At least one millisecond and a whole number of them, as Istio wants it."""
    found = milliseconds(text)
    return found is not None and 1 <= found <= _LONGEST_MS and found % 1 == 0


def _is_gateway_duration(text: str) -> bool:
    found = milliseconds(text)
    return _GATEWAY_DURATION.fullmatch(text) is not None and found is not None and found <= _LONGEST_MS


def is_regex(text: str) -> bool:
    """Whether ``text`` is a regular expression that means the same in RE2, which Envoy has, and in Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of sets within sets, which Python may read otherwise one day
            re.compile(text)
    except (re.error, FutureWarning, DeprecationWarning, OverflowError, RecursionError):
        return False
    return bool(text) and not _READ_OTHERWISE.search(text)


def service_key(host: str, namespace: str) -> str:
    """Return the Service, ``name.namespace``, that Istio takes ``host`` for in ``namespace``; nothing if it is none.

    A host with a dot is taken as it stands: ``reviews.shop`` is no Service.

    Source: ResolveShortnameToFQDN in pkg/config of istio/istio
    """
    if is_label(host):
        return f"{host}.{namespace}"
    key = host.removesuffix(_CLUSTER_DOMAIN)
    return key if key != host and [is_label(part) for part in key.split(".")] == [True, True] else ""


def _is_route_path(text: str) -> bool:
    """Source: the validation rules of HTTPPathMatch, https://gateway-api.sigs.k8s.io/reference/spec/#httppathmatch"""
    odd = ("//", "/./", "/../", "%2f", "%2F", "#")
    return text.startswith("/") and not any(each in text for each in odd) and not text.endswith(("/..", "/."))


def one_of(*choices: str) -> Shape:
    return Shape(f"one of {listed(choices)}", _text(lambda text: text in choices), choices)


ANY_TEXT = Shape("text", _text(lambda _: True))
TEXT = Shape("text that is not empty", _text(bool))
IMAGE = Shape("an image's name", _text(lambda text: bool(text) and not any(c.isspace() for c in text)))
PATH = Shape("an absolute path", _text(lambda text: text.startswith("/")))
LABEL = Shape("a DNS label (lower case, digits and '-', at most 63)", _text(is_label))
SUBDOMAIN = Shape("a DNS name (labels of lower case, digits and '-', at most 253 in all)", _text(is_subdomain))
ACCOUNT_NAME = Shape(f"{SUBDOMAIN.words}, or '' for the default", _text(lambda text: not text or is_subdomain(text)))
LABEL_KEY = Shape("a label's key ([PREFIX/]NAME, NAME at most 63)", _text(is_label_key))
LABEL_VALUE = Shape(
    "a label's value (letters, digits, '-', '_' and '.', at most 63)",
    _text(lambda text: not text or _QUALIFIED.fullmatch(text)),
)
POD = Shape("NAMESPACE/POD", _text(_is_pod))
ACCOUNT = Shape("NAMESPACE/SERVICE-ACCOUNT or SERVICE-ACCOUNT", _text(is_account))
PORT = Shape("a port, 1 to 65535", _whole(1, 65535))
PORT_TEXT = Shape("a port, 1 to 65535, as text", _text(is_port_text))
PORT_KEY = Shape("a port, 1 to 65535", _text(is_port_text))
PORT_NAME = Shape(
    "a port's name (at most 15 of lower case, digits and '-', with a letter)", _text(_PORT_NAME.fullmatch)
)
TARGET_PORT = Shape("a port, 1 to 65535, or a port's name", lambda s: PORT.accepts(s) or PORT_NAME.accepts(s))
METHOD = Shape("an HTTP method in capitals", _text(lambda text: text.isascii() and text.isalpha() and text.isupper()))
BODY_BYTES = Shape("a whole number of bytes, at most 16777216", _whole(0, 1 << 24))
BASE64 = Shape("bytes in base64", _text(_is_base64))
TIMES = Shape("a whole number, 1 to 100", _whole(1, 100))
REPLICAS = Shape("a whole number, 0 or more", _whole(0, 2**31 - 1))
RATE = Shape("a number above 0", _number)
SECONDS = Shape("a number of seconds above 0", _number)
CIDR = Shape("an address or a CIDR of IPv4 or IPv6", _text(is_cidr))
VIP = Shape("an address that a Service can have", _text(_is_vip))
POD_IP = Shape("an address that a pod can have", _text(_is_pod_ip))
RESTART_POLICY = one_of("Always", "OnFailure", "Never")
BOOLEAN = Shape("true or false", lambda scalar: isinstance(scalar.value, bool))
CLUSTER_IP = Shape("'None' or an address that a Service can have", _text(lambda text: text == "None" or _is_vip(text)))
CAPABILITY = Shape(
    "a capability as Linux names it, without CAP_", _text(lambda text: text in CAPABILITIES), CAPABILITIES
)
ECHO_MODE = Shape("echo or server-first", _text(lambda text: text in {"echo", "server-first"}))
PARSE_BOOL = one_of(*TRUE_WORDS, *FALSE_WORDS)
TRUST_DOMAIN = Shape("a trust domain, with '*' at one end at most, and without spiffe://", _text(is_trust_domain))
PATH_PATTERN = Shape("a path, or a template of {*} and, as the last of them, {**}", _text(is_path_pattern))
FAMILY = Shape("4 or 6", lambda s: type(s.value) is int and s.value in (4, 6))
URL = Shape("a URL of http or https", _text(_is_url))
HEADER = Shape("the name of a header", _text(_HEADER.fullmatch))
MATCHED_HEADER = Shape(
    "the name of a header, ':method' or ':authority'",
    _text(lambda t: t in (":method", ":authority") or _HEADER.fullmatch(t)),
)
EDITED_HEADER = Shape(
    "the name of a header, or ':authority'", _text(lambda t: t == ":authority" or _HEADER.fullmatch(t))
)
HEADER_VALUE = Shape("visible ASCII without '%', which Envoy takes for a variable", _text(_HEADER_VALUE.fullmatch))
HTTP_METHOD = one_of("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
REGEX = Shape("a regular expression that RE2 and Python read alike", _text(is_regex))
ROUTE_PATH = Shape("a path, normalised, without '#' and '%2F'", _text(_is_route_path))
DURATION = Shape("a duration in whole milliseconds, 1ms to 1000h, such as 10s or 500ms", _text(_is_duration))
GATEWAY_DURATION = Shape(
    "a duration, 0s to 1000h, of h, m, s and ms, such as 10s or 1m30s", _text(_is_gateway_duration)
)
HTTP_STATUS = Shape("an HTTP status, 200 to 599", _whole(200, 599))
REDIRECT_STATUS = Shape(
    "301, 302, 303, 307 or 308", lambda s: type(s.value) is int and s.value in (301, 302, 303, 307, 308)
)
WEIGHT = Shape(f"a whole number, 0 to {_MOST_WEIGHT}", _whole(0, _MOST_WEIGHT))
WHOLE_PERCENT = Shape("a whole number, 0 to 100", _whole(0, 100))
PERCENT = Shape("a number, 0 to 100", _percent)
HOST = Shape(
    "the host of a Service, NAME or NAME.NAMESPACE.svc.cluster.local (of NAME.NAMESPACE Istio makes no Service)",
    _text(lambda t: service_key(t, "default")),
)
GATEWAY = Shape("`mesh`, GATEWAY or NAMESPACE/GATEWAY", _text(is_account))
SUBSET = Shape("a subset's name (letters, digits, '-', '_' and '.', at most 63)", _text(_QUALIFIED.fullmatch))
