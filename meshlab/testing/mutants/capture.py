"""Captures that see less than they should: a lab that used one of them would have to end cannot-tell, never held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshlab.kernel.recorder import Recorder, stop_at_sigterm
from meshlab.proofs.follower import Follower
from meshlab.proofs.packets import outgoing_only
from meshlab.proofs.streams import Order, Stream


class LossyRecorder(Recorder):
    """``capture-loses-packets``: what arrives from a link is lost, and no counter says so."""

    def kept(self, block: memoryview) -> bytes:
        return outgoing_only(bytes(block))


def capture_loses_packets(config: Mapping[str, Any], fds: Mapping[str, int]) -> None:
    stop_at_sigterm()
    LossyRecorder(config, fds).run()


class _Never(Order):
    def take(self, stream: Stream, seq: int, payload: bytes) -> list[bytes]:
        return []


class CaptureWithoutReassembly(Follower):
    """``capture-without-reassembly``: only single packets are searched."""

    order = _Never()
