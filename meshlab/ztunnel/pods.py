"""The pods of this node, as ZDS names them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from meshlab.protocols.zds import ZdsPod
from meshlab.proxykit.certificates import Pause
from meshlab.proxykit.pool import Key
from meshlab.proxykit.tasks import Tasks
from meshlab.ztunnel.proxy import PodProxy

_RETRY_S = 5.0


class Pods:
    """Every pod that is served, by uid, and those whose listeners could not be bound so far."""

    def __init__(self, make: Callable[[ZdsPod, int], PodProxy], pause: Pause = asyncio.sleep) -> None:
        self._make = make
        self._pause = pause
        self._proxies: dict[str, PodProxy] = {}
        self._retries: dict[str, asyncio.Task[None]] = {}
        self._tasks = Tasks()
        self.started = 0
        """How many times a pod's listeners were opened."""
        self.stopped = 0

    @property
    def failing(self) -> list[str]:
        return list(self._retries)

    @property
    def served(self) -> list[ZdsPod]:
        return [proxy.pod for proxy in self._proxies.values()]

    async def add(self, pod: ZdsPod, netns: int) -> None:
        """Serve a pod. The same one twice is no change; in another netns it replaces the one before.

        Raises:
            OSError: its listeners cannot be bound. It is tried again every 5 s, until it is removed.
        """
        proxy = self._make(pod, netns)
        known = self._proxies.get(pod.uid)
        if known is not None and known.inode == proxy.inode:
            os.close(netns)
            return
        await self.remove(pod.uid)
        try:
            self._start(proxy)
        except OSError:
            self._retries[pod.uid] = self._tasks.spawn(self._retry(proxy))
            raise

    async def remove(self, uid: str) -> None:
        if (retry := self._retries.pop(uid, None)) is not None:
            retry.cancel()
        if (proxy := self._proxies.pop(uid, None)) is not None:
            self.stopped += 1
            await proxy.close()

    async def keep_only(self, uids: frozenset[str]) -> None:
        for uid in (self._proxies.keys() | self._retries.keys()) - uids:
            await self.remove(uid)

    def judge_again(self) -> None:
        """Policy has changed, or to whom it applies."""
        for proxy in self._proxies.values():
            proxy.inbound.guard.judge_again()

    def retire_connections(self, stale: Callable[[Key], bool]) -> None:
        """Open no new streams on the pooled connections of these keys."""
        for proxy in self._proxies.values():
            proxy.outbound.pool.retire(stale)

    def drain(self) -> None:
        """Take no new connections, and no new pods; what is open goes on."""
        for retry in self._retries.values():
            retry.cancel()
        for proxy in self._proxies.values():
            proxy.drain()

    async def finished(self) -> None:
        """When no connection of any pod is open."""
        for proxy in list(self._proxies.values()):
            await proxy.finished()

    async def close(self) -> None:
        await self._tasks.cancel()
        await self.keep_only(frozenset())

    def _start(self, proxy: PodProxy) -> None:
        proxy.start()
        self._proxies[proxy.pod.uid] = proxy
        self.started += 1

    async def _retry(self, proxy: PodProxy) -> None:
        try:
            while proxy.pod.uid not in self._proxies:
                await self._pause(_RETRY_S)
                try:
                    self._start(proxy)
                except OSError:
                    continue
            del self._retries[proxy.pod.uid]
        finally:
            if self._proxies.get(proxy.pod.uid) is not proxy:  # it was given up, maybe for one in another netns
                await proxy.close()
