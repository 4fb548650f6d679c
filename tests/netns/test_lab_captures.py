"""Captures of a living lab: looked at while they are open, one at a time, with beacons on every link."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meshlab.errors import UsageError
from meshlab.model.report import Result

if TYPE_CHECKING:
    from meshlab.lab import Lab

    LabFactory = Callable[..., AbstractContextManager[Lab]]

URL = "http://server:8080/hello"


@pytest.fixture(scope="module")
def lab(lab_factory: LabFactory) -> Iterator[Lab]:
    with lab_factory("two-nodes") as lab:
        yield lab


def test_a_capture_can_be_looked_at_and_proven_while_it_is_open_and_goes_on(lab: Lab, tmp_path: Path) -> None:
    client, intruder = lab.pods("shop/client", "shop/intruder")
    with lab.capture() as capture:
        first = client.http(URL)
        seen = sum(1 for _ in capture.packets())
        saved = capture.save(tmp_path / "open.pcapng").stat().st_size
        capture.prove_encrypted(first)
        second, denied = client.http(URL), intruder.http(URL)
        capture.prove_denied(denied, twin=second)
        capture.prove_path(second)
        last = client.http(URL)
    assert 0 < seen < sum(1 for _ in capture.packets())
    assert 0 < saved < capture.save(tmp_path / "closed.pcapng").stat().st_size
    for proof in capture.prove_encrypted(first, second, last):
        assert proof.result is Result.HELD
    assert capture.window.blind == ""


def test_a_capture_in_another_is_an_error_in_words_and_harms_neither(lab: Lab) -> None:
    client = lab.pod("shop/client")
    with lab.capture() as outer:
        before = client.http(URL)
        with pytest.raises(UsageError, match="a capture of this lab is open already"), lab.capture():
            pass
        after = client.http(URL)
    outer.prove_encrypted(before, after)
    with lab.capture() as next_one:
        call = client.http(URL)
    next_one.prove_encrypted(call)


def test_beacons_are_seen_on_every_link_of_every_node_in_both_directions(lab: Lab) -> None:
    with lab.capture() as capture:
        pass
    expected = capture.window.beacons.expected.values()
    links = {(capture.wiring.links[beacon.link], beacon.outgoing) for beacon in expected}
    assert links == {(link, outgoing) for link in capture.wiring.links.values() for outgoing in (True, False)}
    assert {link.name for link, _ in links} >= {"fabric", "mgmt", "proxy", "shop/client"}
    assert capture.window.missing == ()


def test_a_window_that_takes_long_to_follow_still_hears_its_last_beacons(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed, until = lab.captures.follower.feed, 0.0

    def slowly(data: bytes) -> None:
        feed(data)
        while time.monotonic() < until:
            pass

    monkeypatch.setattr(lab.captures.follower, "feed", slowly)
    with lab.capture() as capture:
        call = lab.pod("shop/client").http(URL)
        until = time.monotonic() + 3
    capture.prove_encrypted(call)
