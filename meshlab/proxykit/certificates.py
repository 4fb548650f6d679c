"""Certificates from the Istio CA: one per identity, asked for in time, renewed at half of its life.

    wanted --> asking --issued--> held --half life--> asking ...
                  `--refused--> backing off (1 s, doubling, to 150 s) --> asking

A certificate that is still valid is used while its successor cannot be had, and the CA is asked once more when it
expires. Clock and randomness are passed in.

Each certificate comes with the roots that the CA wanted trusted at that moment. A handshake trusts those of the newest
answer for its own identity, so that an old and a new root overlap for as long as the CA hands out both.

Source: https://github.com/istio/istio/blob/master/security/proto/istio/v1/auth/ca.proto
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from meshlab.errors import ProtocolError
from meshlab.model import SpiffeId
from meshlab.proxykit.credentials import Credentials
from meshlab.proxykit.tasks import Tasks

Issue = Callable[[SpiffeId], Awaitable[Credentials]]
"""Asks the CA; raises ``CertificateError``."""

Pause = Callable[[float], Awaitable[None]]
"""Lets so many seconds pass."""

_FIRST_BACKOFF_S = 1.0
_MAX_BACKOFF_S = 150.0
_SHORTEST_LIFE_S = 1.0
"""A certificate that is past its half life when it comes would otherwise be asked for without a pause."""
_AT_ONCE = 8
"""Requests to the CA at one time."""


class CertificateError(ProtocolError):
    """There is no certificate for an identity, and why."""


@dataclass(slots=True)
class _Entry:
    """One identity."""

    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """The first answer is here, whatever it was."""
    credentials: Credentials | None = None
    error: str = ""
    """Of the last request, where it failed."""
    task: asyncio.Task[None] | None = None


class Certificates:
    """Every identity that this node has use for."""

    def __init__(self, issue: Issue, now: Callable[[], float], pause: Pause, rng: random.Random, tasks: Tasks) -> None:
        self._issue = issue
        self._now = now
        self._pause = pause
        self._rng = rng
        self._tasks = tasks
        self._entries: dict[SpiffeId, _Entry] = {}
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def get(self, identity: SpiffeId) -> Credentials:
        """A certificate that is valid now.

        Raises:
            CertificateError: the CA does not give one.
        """
        entry = self._want(identity)
        await entry.settled.wait()
        if entry.credentials is None or entry.credentials.not_after_s <= self._now():
            raise CertificateError(f"no certificate for {identity}: {entry.error or 'it has expired'}")
        return entry.credentials

    def keep(self, identities: Iterable[SpiffeId]) -> None:
        """Have certificates for these ahead of their first use, and for no others."""
        wanted = set(identities)
        for identity in wanted:
            self._want(identity)
        for identity in self._entries.keys() - wanted:
            entry = self._entries.pop(identity)
            assert entry.task is not None
            entry.task.cancel()
            entry.error = entry.error or "its workload is gone"
            entry.settled.set()

    def states(self) -> dict[SpiffeId, str]:
        """``Available``, ``Initializing`` or ``Unavailable: why``, for the admin page."""
        now_s = self._now()
        return {identity: _state(entry, now_s) for identity, entry in self._entries.items()}

    def _want(self, identity: SpiffeId) -> _Entry:
        entry = self._entries.get(identity)
        if entry is None:
            entry = self._entries[identity] = _Entry()
            entry.task = self._tasks.spawn(self._watch(identity, entry))
        return entry

    async def _watch(self, identity: SpiffeId, entry: _Entry) -> None:
        """Nobody waits for a first answer that will not come, however the task ends that asks for it."""
        try:
            await self._maintain(identity, entry)
        finally:
            entry.error = entry.error or "nobody asks the CA any more"
            entry.settled.set()

    async def _maintain(self, identity: SpiffeId, entry: _Entry) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while True:
            try:
                async with self._turn:
                    entry.credentials = await self._issue(identity)
            except CertificateError as error:
                entry.error = str(error)
                pause_s = min(backoff_s * self._rng.uniform(0.8, 1.2), _MAX_BACKOFF_S, self._left_s(entry))
                backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)
            else:
                entry.error = ""
                pause_s = max(entry.credentials.refresh_at_s - self._now(), _SHORTEST_LIFE_S)
                backoff_s = _FIRST_BACKOFF_S
            entry.settled.set()
            await self._pause(pause_s)

    def _left_s(self, entry: _Entry) -> float:
        """How long a certificate that cannot be renewed is still good for; without limit where there is none."""
        left_s = entry.credentials.not_after_s - self._now() if entry.credentials is not None else 0.0
        return max(left_s, _SHORTEST_LIFE_S) if left_s > 0 else math.inf


def _state(entry: _Entry, now_s: float) -> str:
    if entry.credentials is not None and entry.credentials.not_after_s > now_s:
        return "Available"
    if entry.credentials is not None:
        return f"Unavailable: it has expired; {entry.error or 'a new one is asked for'}"
    return f"Unavailable: {entry.error}" if entry.error else "Initializing"
