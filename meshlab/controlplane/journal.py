"""What a control plane heard and said, as JSON: the conversation that ``check --record`` keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict

from meshlab.protocols.messages import pool
from meshlab.protocols.xds import Request, Response

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from meshlab.protocols.stubs.citadel_pb2 import IstioCertificateRequest

Entry = dict[str, Any]


class Journal:
    """Hands each entry to ``write``, with the time since it was made."""

    def __init__(self, write: Callable[[Entry], None], clock: Callable[[], float]) -> None:
        self._write = write
        self._clock = clock
        self._start = clock()

    def pushed(self, resources: Mapping[str, Mapping[str, str]]) -> None:
        """What the lab set: type -> name -> base64 of the resource. With these a conversation can be held again."""
        self._note("push", resources=resources)

    def accepted(self) -> None:
        self._note("push-accepted")

    def rolled_back(self) -> None:
        self._note("push-rolled-back")

    def stream_opened(self, stream: int, client: str, peer: str, metadata: dict[str, str]) -> None:
        self._note("xds-stream-open", stream=stream, client=client, peer=peer, metadata=metadata)

    def stream_closed(self, stream: int, node: str) -> None:
        self._note("xds-stream-closed", stream=stream, node=node)

    def request(self, stream: int, request: Request) -> None:
        self._note("xds-request", stream=stream, msg=as_dict(request))

    def response(self, stream: int, response: Response) -> None:
        self._note(
            "xds-response",
            stream=stream,
            type=response.type_url,
            nonce=response.nonce,
            resources=[[resource.name, resource.version] for resource in response.resources],
            removed=list(response.removed_resources),
        )

    def certificate_request(
        self, client: str, peer: str, metadata: dict[str, str], request: IstioCertificateRequest
    ) -> None:
        self._note("ca-request", client=client, peer=peer, metadata=metadata, msg=as_dict(request))

    def certificate_issued(self, identity: str, chain: Sequence[str]) -> None:
        self._note("ca-issued", identity=identity, chain=chain)

    def refused(self, what: str, reason: str) -> None:
        self._note(f"{what}-refused", reason=reason)

    def _note(self, kind: str, **fields: Any) -> None:
        self._write({"t": round(self._clock() - self._start, 5), "k": kind, **fields})


def as_dict(message: Message) -> dict[str, Any]:
    """A message of ours as JSON, with the names that its ``.proto`` has."""
    return MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=pool())
