"""What is written as pcapng is read back, and is what scapy's reader sees too."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import capture_scenes as scenes
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.utils import RawPcapNgReader

from meshlab.proofs import pcapng
from meshlab.proofs.links import Link

names = st.text(st.characters(codec="utf-8", exclude_characters=" ", min_codepoint=33), min_size=1, max_size=20)
links = st.lists(st.builds(Link, names, st.integers(1, 999), names), min_size=1, max_size=4, unique=True)


@settings(deadline=None)
@given(links, st.data())
def test_links_frames_directions_times_and_drops_come_back(some: list[Link], data: st.DataObject) -> None:
    frame = st.tuples(st.sampled_from(some), st.booleans(), st.integers(0, 2**63), st.binary(max_size=70))
    frames = data.draw(st.lists(frame, max_size=5))
    drops = data.draw(st.dictionaries(st.sampled_from(some), st.integers(1, 2**40)))
    secrets = data.draw(st.binary(max_size=9))
    written = pcapng.write(some, frames, drops=drops, comment="why", comments={0: "look here"}, secrets=secrets)
    buffer = b"".join(written)
    capture = pcapng.read(buffer)
    assert list(capture.links.values()) == some
    assert (capture.comment, capture.secrets) == ("why", secrets)
    assert [
        (capture.links[0, p.ifindex], p.outgoing, p.time_ns, buffer[p.start : p.end]) for p in capture.packets
    ] == frames
    assert sum(capture.drops.values()) == sum(drops.values())


def test_scapy_reads_names_times_directions_and_comments(tmp_path: Path) -> None:
    link = Link("node-1", 7, "shop/client")
    frames = [(link, True, 1_700_000_000_123_456_789, b"x" * 60), (link, False, 1_700_000_001_000_000_001, b"y" * 61)]
    file = tmp_path / "some.pcapng"
    file.write_bytes(b"".join(pcapng.write([link], frames, comments={1: "here"})))
    with RawPcapNgReader(str(file)) as reader:
        packets = list(reader)
    assert [frame for frame, _ in packets] == [frame for *_, frame in frames]
    heads: list[Any] = [head for _, head in packets]
    assert [(head.tshigh << 32 | head.tslow) for head in heads] == [time for _, _, time, _ in frames]
    assert {head.tsresol for head in heads} == {10**9}
    assert {head.ifname for head in heads} == {b"shop/client"}
    assert [head.direction for head in heads] == [2, 1]


@pytest.mark.parametrize("name", list(scenes.SCENES))
def test_every_fixture_tells_its_story_and_names_its_pods(name: str) -> None:
    capture = pcapng.read((scenes.FOLDER / f"{name}.pcapng").read_bytes())
    assert capture.comment == f"meshlab fixture: {scenes.SCENES[name].story}"
    assert tuple(capture.links.values()) == scenes.LINKS


@pytest.mark.parametrize("junk", [b"", b"\xd4\xc3\xb2\xa1" * 6, b"\x0a\x0d\x0d\x0a\x1c\0\0\0\x1a\x2b\x3c\x4d"])
def test_another_file_is_refused(junk: bytes) -> None:
    with pytest.raises(ValueError, match="no little-endian pcapng file"):
        pcapng.read(junk)


WHOLE = b"".join(
    pcapng.write(
        [Link("node-1", 7, "shop/client")],
        [(Link("node-1", 7, "shop/client"), True, 1, b"x" * 60)],
        drops={Link("node-1", 7, "shop/client"): 3},
        comment="why",
        secrets=b"key",
    )
)


@settings(deadline=None, max_examples=500)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=4), st.integers(0, len(WHOLE)))
def test_a_broken_file_is_refused_or_read_and_nothing_else_happens(changes: list[tuple[int, int]], cut: int) -> None:
    broken = bytearray(WHOLE)
    for at, byte in changes:
        broken[at] = byte
    with contextlib.suppress(ValueError):
        pcapng.read(bytes(broken[:cut]))
    with contextlib.suppress(ValueError):
        pcapng.read(bytes(broken))


def _block(kind: int, body: bytes) -> bytes:
    size = (12 + len(body)).to_bytes(4, "little")
    return kind.to_bytes(4, "little") + size + body + size


SECTION = next(pcapng.write([], []))
INTERFACE = list(pcapng.write([Link("node-1", 7, "shop/client")], []))[1]


@pytest.mark.parametrize(
    ("tail", "says"),
    [
        (b"\6\0\0\0" + bytes(8), r"the pcapng block at byte 28 has no valid size"),
        (b"\6\0\0\0\xff\xff\xff\xff" + bytes(8), "has no valid size"),
        (b"\6\0\0", "has no valid size"),
        (_block(6, bytes(20)), r"the pcapng block at byte 28 \(type 6\) is broken: no interface 0 was described"),
        (_block(6, bytes(8)), "it has 8 bytes, not 20 or more"),
        (INTERFACE + _block(6, bytes(20)), "it has no option 2"),
        (INTERFACE + _block(6, bytes(12) + b"\xff" * 8), "its 4294967295 bytes of packet go beyond its end"),
        (INTERFACE + _block(5, bytes(12) + b"\5\0\x99\0"), "its option 5 goes beyond its end"),
        (_block(1, bytes(8)), "it has no option 3"),
        (_block(1, bytes(8) + b"\3\0\4\0node"), "its description is not a node and an ifindex"),
        (_block(1, bytes(8) + b"\3\0\4\0\xff\xff 1"), "is broken: 'utf-8' codec"),
    ],
)
def test_a_broken_block_is_named_with_its_place(tail: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pcapng.read(SECTION + tail)


def test_blocks_of_another_kind_are_skipped() -> None:
    assert pcapng.read(SECTION + _block(0xBAD, bytes(4)) + INTERFACE).links
