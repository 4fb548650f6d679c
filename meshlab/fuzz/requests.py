"""Which requests tell the routes and policies of a Service port from their neighbours. Pure.

Those that a check asks (``lab.proving.questions``) are on both sides of every match. Beside them are odd ones, which a
proxy may read otherwise than the server behind it:

    /a/b           ->  /x/../a/b   /./a/b   //a/b   /a/b/   /%61/b   /a%2Fb   /x\\..\\a/b   /A/B
    host one.shop  ->  ONE.SHOP
    headers        ->  those that routes change; one of them twice, or empty; a certificate that the client made up
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from meshlab.lab.proving.questions import questions
from meshlab.model import CallShape, HttpRequest, Mesh, Service
from meshlab.strategies.choices import Choices
from meshlab.strategies.routes import NAMES, TEXTS

Oddities = Callable[[Sequence[HttpRequest]], Sequence[HttpRequest]]
"""Gives further requests that are like some of those that are given."""
_ODD = 12
_CERTIFICATE = "x-forwarded-client-cert"


def nothing_odd(_: Sequence[HttpRequest]) -> Sequence[HttpRequest]:
    return ()


def shapes(mesh: Mesh, service: Service | None, number: int, odd: Oddities) -> Iterator[CallShape]:
    """What calls to a Service port send, each once."""
    for port in service.ports if service else ():
        if service is not None and port.port == number:
            plain = questions(mesh, service, port).requests
            yield from dict.fromkeys(map(_shape, (*plain, *odd(plain))))


def oddities(choices: Choices, mesh: Mesh, plain: Sequence[HttpRequest]) -> list[HttpRequest]:
    """Some of the requests ``plain``, each made odd in one way or two."""
    return [_odd(choices, mesh, choices.one_of(plain)) for _ in range(_ODD)]


def _shape(request: HttpRequest) -> CallShape:
    """As a file can say it: with a method in capitals, and a header that is there twice in two cases of its name."""
    headers = {"host": request.authority}
    for name, value in request.headers:
        headers[name.upper() if name in headers else name] = value
    return CallShape(method=request.method.upper(), path=request.path, headers=tuple(headers.items()))


def _odd(choices: Choices, mesh: Mesh, request: HttpRequest) -> HttpRequest:
    for change in dict.fromkeys(choices.several(lambda: choices.one_of((_path, _headers, _path, _headers, _host)))):
        request = change(choices, mesh, request)
    return request


def _path(choices: Choices, _: Mesh, request: HttpRequest) -> HttpRequest:
    path, mark, query = request.path.partition("?")
    odd = choices.one_of(
        (
            f"/x/..{path}",
            f"/.{path}",
            f"/{path}",
            f"{path.rstrip('/')}/",
            f"{path[:1]}%{ord(path[1:2] or '.'):02x}{path[2:]}",
            f"{path[:2]}{path[2:].replace('/', '%2F')}",
            f"/x\\..\\{path[1:]}",
            path.upper(),
        )
    )
    return replace(request, path=odd + mark + query)


def _host(_: Choices, __: Mesh, request: HttpRequest) -> HttpRequest:
    return replace(request, authority=request.authority.upper())


def _headers(choices: Choices, mesh: Mesh, request: HttpRequest) -> HttpRequest:
    name, text = choices.one_of(NAMES), choices.one_of(TEXTS)
    others = tuple(pair for pair in request.headers if pair[0] != name)
    identity = choices.one_of([pod.identity(mesh.trust_domain) for pod in mesh.pods])
    more = choices.one_of(
        (
            tuple((each, text) for each in NAMES if each not in dict(request.headers)),
            ((_CERTIFICATE, f"Hash=00;URI={identity}"),),
            ((name, text), (name, choices.one_of(TEXTS))),
            ((name, ""),),
        )
    )
    kept = others if name in dict(more) else request.headers
    return replace(request, headers=(*kept, *more))
