"""h2's connection with three private behaviours mended, for our own objects only. h2 is pinned to a minor for it:

* ``_receive_frame`` formats every frame for a log that is off, which hex-dumps all data: half of a receiver's CPU;
* after a GOAWAY h2 sends nothing more at all, but a drain means that open streams go on, and so do those that crossed
  it (RFC 9113, 6.8);
* h2 ends the connection over a ``content-length``, which means nothing in a tunnel.

Header fields are not looked at here but in ``validation``: h2 takes one malformed list for the end of the connection.
"""

from __future__ import annotations

from typing import Any, ClassVar

import h2.events
from h2.config import H2Configuration
from h2.connection import AllowedStreamIDs, ConnectionInputs, ConnectionState, H2Connection, H2ConnectionStateMachine
from h2.stream import H2Stream
from hpack import Encoder
from hyperframe.frame import DataFrame, Frame, GoAwayFrame


class _TerseDataFrame(DataFrame):
    """A DATA frame that does not hex-dump its body when it is formatted for a log."""

    __repr__ = object.__repr__


class _PlainEncoder(Encoder):
    """Writes literals as they are: Huffman's code saves some bytes, and costs a tenth of a whole call at both ends."""

    def encode(self, headers: Any, huffman: bool = False) -> bytes:
        return super().encode(headers, huffman)


def _no_content_length(headers: object) -> None:
    """A tunnel has no content, so nobody counts it."""


class Connection(H2Connection):
    """h2's connection, mended."""

    transitions: ClassVar[dict[Any, Any]] = {
        **H2ConnectionStateMachine._transitions,
        (ConnectionState.IDLE, ConnectionInputs.SEND_GOAWAY): (None, ConnectionState.IDLE),
        (ConnectionState.IDLE, ConnectionInputs.RECV_GOAWAY): (None, ConnectionState.IDLE),
        (ConnectionState.CLIENT_OPEN, ConnectionInputs.RECV_GOAWAY): (None, ConnectionState.CLIENT_OPEN),
        (ConnectionState.SERVER_OPEN, ConnectionInputs.RECV_GOAWAY): (None, ConnectionState.SERVER_OPEN),
        (ConnectionState.SERVER_OPEN, ConnectionInputs.SEND_GOAWAY): (None, ConnectionState.SERVER_OPEN),
    }

    def __init__(self, *, client: bool) -> None:
        super().__init__(
            H2Configuration(
                client_side=client,
                header_encoding=None,
                validate_inbound_headers=False,
                normalize_inbound_headers=False,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,  # ours are lower-case already
            )
        )
        self.encoder = _PlainEncoder()
        self.state_machine._transitions = self.transitions  # shadows the class's, for this object
        self._frame_dispatch_table[_TerseDataFrame] = self._receive_data_frame

    def _receive_frame(self, frame: Frame) -> list[h2.events.Event]:
        if type(frame) is DataFrame:
            frame.__class__ = _TerseDataFrame
        return super()._receive_frame(frame)

    def _begin_new_stream(self, stream_id: int, allowed_ids: AllowedStreamIDs) -> H2Stream:
        stream = super()._begin_new_stream(stream_id, allowed_ids)
        stream._initialize_content_length = _no_content_length  # type: ignore[method-assign]
        return stream

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[h2.events.Event]]:
        unsent = bytes(self._data_to_send)
        result = super()._receive_goaway_frame(frame)  # drops it
        self._data_to_send += unsent
        return result
