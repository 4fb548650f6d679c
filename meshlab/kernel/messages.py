"""What a request is on both ends of a channel, and as JSON between them.

    Kill(pid=7, signal=9)  --written-->  {"op": "kill", "pid": 7, "signal": 9}  --read-->  Kill(pid=7, signal=9)

A request is a NamedTuple whose last field, ``op``, is its operation; the type of that field says what the answer is, a
TypedDict. So mypy sees on both ends which fields there are. Each channel has its requests in a module of its own
(``netd_requests``, ``agent.requests`` ...), and the union of them says all that can be asked there.

What comes is not trusted to be one of them: ``read`` says what is wrong with it. The values in it have types as far as
our own programs send it; nothing here checks them.

Standard library only, and no dataclasses, whose import takes some milliseconds of every lab: netd uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypedDict, TypeVar, get_args

_A = TypeVar("_A")

_R = TypeVar("_R", bound=tuple[Any, ...])


class Op(str, Generic[_A]):
    """The name of an operation, which is answered with an ``_A``."""

    __slots__ = ()


class Request(Protocol[_A]):
    """A NamedTuple with a field ``op``."""

    @property
    def op(self) -> Op[_A]: ...

    def _asdict(self) -> dict[str, Any]: ...


class Done(TypedDict):
    """The answer that says nothing but that it was done."""


def by_name(union: object) -> dict[str, Any]:
    """Return the requests of a union by their operation."""
    return {kind._field_defaults["op"]: kind for kind in get_args(union)}


def written(request: Request[Any]) -> dict[str, Any]:
    """Return ``request`` as JSON."""
    return request._asdict()


def read(known: Mapping[str, type[_R]], message: Mapping[str, Any]) -> _R:
    """Return the request that ``message`` holds; what else it holds is ignored.

    Raises:
        KeyError: it lacks ``op``, or a field that has no default.
        ValueError: ``op`` is none of those that are ``known``.
    """
    if (kind := known.get(message["op"])) is None:
        raise ValueError(f"no operation {message['op']!r}; there are {', '.join(known)}")
    fields: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]
    optional: Mapping[str, Any] = kind._field_defaults  # type: ignore[attr-defined]
    return kind(**{name: message[name] for name in fields if name in message or name not in optional})
