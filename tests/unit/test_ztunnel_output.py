"""The reference ztunnel's stdout: whole lines, and one write for all that happens in a turn of the loop."""

from __future__ import annotations

import asyncio
import io
import sys

import pytest

from meshlab.ztunnel.main import Output


class Writes(io.StringIO):
    """A stdout that remembers each write."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def write(self, text: str) -> int:
        self.seen.append(text)
        return len(text)


def test_lines_of_one_turn_leave_together_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = Writes()
    monkeypatch.setattr(sys, "stdout", stdout)

    async def two_turns() -> None:
        output = Output()
        output.write("one\n")
        output.write("two\n")
        assert stdout.seen == []
        await asyncio.sleep(0)
        output.write("three\n")
        output.flush()

    asyncio.run(two_turns())
    assert [text for text in stdout.seen if text] == ["one\ntwo\n", "three\n"]
