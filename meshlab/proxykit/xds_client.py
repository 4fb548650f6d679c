"""The stream to istiod: what workloads, services and policies there are. What is said on it is ``protocols.xds``'s.

An update is in effect before it is acknowledged: after the ACK no new connection is judged by what was before.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import ClassVar

import grpc
import grpc.aio

from meshlab.protocols.messages import message
from meshlab.protocols.xds import DELTA_ADS_METHOD, DELTA_ADS_SERVICE, DeltaClient, Node, Request, Response, Update
from meshlab.proxykit.ca_client import CHANNEL, FIRST_BACKOFF_S, MAX_BACKOFF_S
from meshlab.proxykit.config import Config

_MAX_MESSAGE_BYTES = 200 << 20

Apply = Callable[[Update], Mapping[str, str]]
"""Puts an update into effect; name and reason of each resource that was refused."""


class XdsClient:
    client_class: ClassVar[type[DeltaClient]] = DeltaClient

    def __init__(self, config: Config, apply: Apply) -> None:
        credentials = grpc.ssl_channel_credentials(config.xds_root_pem)
        options = (*CHANNEL, ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES))
        self._channel = grpc.aio.secure_channel(config.xds_address, credentials, options=options)
        self._metadata = config.metadata
        self._apply = apply
        self._client = self.client_class(
            Node(
                name=config.node_name,
                instance_ip=config.instance_ip,
                pod_name=config.pod_name,
                pod_namespace=config.pod_namespace,
            )
        )
        self._missing = set(self._client.types)
        self.synced = asyncio.Event()
        """Every type was answered, and accepted, once."""
        self.messages: Counter[str] = Counter()
        """By type URL, like ``message_bytes``."""
        self.message_bytes: Counter[str] = Counter()
        self.terminations: Counter[str] = Counter()
        """Streams that ended, by the reason, in the real ztunnel's words."""
        self._call = self._channel.stream_stream(
            f"/{DELTA_ADS_SERVICE}/{DELTA_ADS_METHOD}",
            request_serializer=message("envoy.service.discovery.v3.DeltaDiscoveryRequest").SerializeToString,
            response_deserializer=message("envoy.service.discovery.v3.DeltaDiscoveryResponse").FromString,
        )

    async def run(self) -> None:
        """Hold a stream for ever; a lost one is opened again and says what is known already."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            stream = self._call(metadata=self._metadata)
            reason = "ConnectionError"
            try:
                for request in self._client.start():
                    await stream.write(request)
                async for response in stream:
                    backoff_s, reason = FIRST_BACKOFF_S, "Error"
                    await stream.write(self._answer(response))
                reason = "Complete"
            except grpc.aio.AioRpcError:
                backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
            except asyncio.InvalidStateError:  # it ended in order as we wrote
                backoff_s, reason = min(backoff_s * 2, MAX_BACKOFF_S), "Complete"
            finally:
                stream.cancel()
            self.terminations[reason] += 1
            await asyncio.sleep(backoff_s)

    def _answer(self, response: Response) -> Request:
        self.messages[response.type_url] += 1
        self.message_bytes[response.type_url] += response.ByteSize()
        update = self._client.receive(response)
        refused = self._apply(update)
        if not refused and not update.errors:
            self._missing.discard(update.type_url)
            if not self._missing:
                self.synced.set()
        return self._client.answer(update, refused)

    async def close(self) -> None:
        await self._channel.close()
