"""HTTP pages of a proxy: whether it is ready (15021), its metrics (15020), and its admin port (15000, localhost only).

Source: https://istio.io/latest/docs/ops/deployment/application-requirements/
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

READINESS_PORT = 15021
METRICS_PORT = 15020
ADMIN_PORT = 15000
_TIMEOUT_S = 5.0
_MAX_LINE = 8192
_REASONS = {200: "OK", 404: "Not Found", 400: "Bad Request", 500: "Internal Server Error"}

Page = Callable[[], tuple[int, str]]
"""Status and body."""


async def serve(host: str | None, port: int, pages: Mapping[str, Page]) -> asyncio.Server:
    """Answer GETs of these paths, and nothing else."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                request = (await reader.readuntil(b"\r\n")).split()
                while await reader.readuntil(b"\r\n") != b"\r\n":
                    pass
                writer.write(_response(request, pages))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return
        finally:
            writer.close()

    return await asyncio.start_server(answer, host, port, limit=_MAX_LINE)


def _response(request: list[bytes], pages: Mapping[str, Page]) -> bytes:
    if len(request) != 3 or request[0] != b"GET":
        status, body = 400, "bad request"
    elif page := pages.get(request[1].decode("latin-1")):
        status, body = page()
    else:
        status, body = 404, "not found"
    text = body.encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}",
        "content-type: text/plain; charset=utf-8",
        f"content-length: {len(text)}",
        "connection: close",
    )
    return "\r\n".join((*head, "", "")).encode() + text


def readiness(pending: Callable[[], list[str]]) -> Page:
    """200 when nothing is pending. It says nothing of certificates, or of whether xDS is still connected."""

    def page() -> tuple[int, str]:
        waiting = pending()
        return (500, f"not ready, pending: {', '.join(waiting)}\n") if waiting else (200, "ready\n")

    return page
