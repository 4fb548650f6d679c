"""The comments in a bundle's capture: each flow says which calls it carried, and is one that may have."""

from __future__ import annotations

import capture_scenes as scenes
import pytest
from bundle_scenes import RULE, frames_of, told_of

from meshlab.proofs import pcapng
from meshlab.report.bundle.annotate import comments

HBONE_LINKS = ("node-1:shop/client", "node-1:fabric", "node-2:fabric", "node-2:shop/server")


def _comments(name: str) -> list[str]:
    script = scenes.play(scenes.SCENES[name])
    return list(comments(frames_of(script), told_of(script)).values())


@pytest.mark.parametrize("name", ["clean", "clean-ipv6"])
def test_a_tunnel_says_on_each_link_who_called_whom_what_was_expected_and_seen_and_the_rule(name: str) -> None:
    family = scenes.SCENES[name].family
    said = [text for text in _comments(name) if text.startswith("shop/intruder -> shop/server, HBONE")]
    assert [text.splitlines()[0].rpartition(" ")[2] for text in said] == ["node-1:shop/intruder", *HBONE_LINKS[1:]]
    sentence = f"call 2: shop/intruder -> shop/server:8080 over IPv{family}: expected allow, seen reset; {RULE}"
    assert {text.partition("\n")[2] for text in said} == {sentence}


def test_a_flow_in_clear_says_so() -> None:
    said = [text for text in _comments("clean") if "shop/plain" in text]
    assert len(said) == 4
    assert {text.splitlines()[0].split(", ")[1] for text in said} == {"in clear"}


def test_each_comment_is_on_the_first_packet_of_its_flow() -> None:
    script = scenes.play(scenes.SCENES["clean"])
    frames = frames_of(script)
    syn = 0x02
    assert all(frames[place][3][14 + 20 + 13] & 0x12 == syn for place in comments(frames, told_of(script)))


def test_what_carries_no_call_has_no_comment() -> None:
    leaking, clean = _comments("leak-raw"), _comments("clean")
    assert leaking == clean, "the leak goes to an address that no call was made to"


def test_a_call_is_not_said_to_be_on_a_flow_that_was_over_before_it_began() -> None:
    script = scenes.play(scenes.SCENES["clean"])
    script.times[1] = (script.now_ns(), script.now_ns() + 1)
    said = comments(frames_of(script), told_of(script)).values()
    assert not any("call 1:" in text for text in said)


def test_comments_and_secrets_are_in_the_file_that_is_written() -> None:
    script = scenes.play(scenes.SCENES["clean"])
    frames = frames_of(script)
    said = comments(frames, told_of(script))
    buffer = b"".join(pcapng.write(scenes.LINKS, frames, comments=said, secrets=b"CLIENT_RANDOM 00 11\n"))
    assert pcapng.read(buffer).secrets == b"CLIENT_RANDOM 00 11\n"
    assert buffer.index(b"CLIENT_RANDOM") < buffer.index(frames[0][3]), "secrets come before the packets that need them"
    assert all(text.encode() in buffer for text in said.values())
