"""What a user sets: the environment of a node proxy, URLs of calls, values of options, sections of pyproject.toml."""

from __future__ import annotations

from benchmarks.parsers.parser import Parser, repeated
from meshlab.errors import UsageError
from meshlab.fuzz.command import seconds_of
from meshlab.lab.calls import urls
from meshlab.proxykit.config import Config

_ENV = b"XDS_ADDRESS=https://10.0.0.1:15012\nSECRET_TTL=24h\nRUST_LOG=access=debug\nAUTH_TOKEN=t\nNODE_NAME=node-1"


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")


def _read_environment(data: bytes) -> None:
    """Roots and tokens are left out: their values may be paths of any file."""
    pairs = (line.partition("=") for line in _text(data).split("\n"))
    files = {"XDS_ROOT_CA": "-----BEGIN", "CA_ROOT_CA": "-----BEGIN", "AUTH_TOKEN": "t"}
    Config.from_env({name: value for name, _, value in pairs} | files)


def _read_url(data: bytes) -> None:
    text = _text(data)
    urls.with_pod(text)
    urls.parse(text)


PARSERS = (
    Parser(
        name="a ztunnel's environment",
        run=_read_environment,
        seeds=lambda: (_ENV, b"CONNECTION_TERMINATION_DEADLINE=1.5s\nCA_ADDRESS=[fd00::1]:15012"),
        documented=(ValueError,),
        shapes={"a long time": repeated(b"SECRET_TTL=", b"9", b"s"), "colons": repeated(b"XDS_ADDRESS=", b":")},
        unit=20_000,
    ),
    Parser(
        name="URL",
        run=_read_url,
        seeds=lambda: (
            b"http://server:8080/a?b#c",
            b"http://shop%2Fserver:80/",
            b"http://[fd00::2]:8080/%20",
            b"http://shop/server:80/x",
        ),
        documented=(UsageError,),
        shapes={
            "colons": repeated(b"http://", b":"),
            "slashes": repeated(b"http://", b"a/"),
            "percents": repeated(b"http://a", b"%41", b":80/"),
            "brackets": repeated(b"http://", b"["),
        },
        unit=4000,
    ),
    Parser(
        name="address of a TCP call",
        run=lambda data: urls.parse_address(_text(data)),
        seeds=lambda: (b"server:8080", b"shop/server:80", b"[fd00::2]:80"),
        documented=(UsageError,),
        shapes={"colons": repeated(b"", b":"), "digits": repeated(b"a:", b"9"), "brackets": repeated(b"", b"[]")},
        unit=20_000,
    ),
    Parser(
        name="a time of an option",
        run=lambda data: seconds_of(_text(data)),
        seeds=lambda: (b"90", b"1.5m", b"2h"),
        documented=(UsageError,),
        shapes={"digits": repeated(b"", b"9"), "points": repeated(b"", b"9.")},
        unit=20_000,
    ),
)
